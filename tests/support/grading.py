"""Answers of a model to questions that differ, and what grades them."""

from stages.lib.answers.grading import Grades, grade, score_answers, units_of
from stages.lib.answers.protocol import GradeParams

PARAMS = GradeParams(metric="exact_match", pattern="", seed=1, resamples=1000)


def rows(texts: list[str], references: list[str], groups: list[str] | None = None) -> list[dict]:
    """Make answers to questions that differ, as generate keeps them."""
    return [
        {
            "id": str(number),
            "title": f"question {number}",
            "group": groups[number] if groups else "",
            "split": "test",
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "tools": None,
            "reference": reference,
            "text": text,
            "tokens": 3,
            "ended": True,
            "precision": "nf4 (79% of the weights), computed in fp32 on cpu",
        }
        for number, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]


def grades(base: list[dict], tuned: list[dict], params: GradeParams = PARAMS) -> Grades:
    return grade(*score_answers(base, tuned, params.pattern), units_of(base), params)
