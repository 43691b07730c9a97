"""Grade both models' answers to held-out conversations.   data/answers -> metrics/answers.json, data/graded.jsonl

Each answer stands beside its reference in data/graded.jsonl, the largest gains first, and by the score that decides in
metrics/answers.csv. Run by `dvc repro grade`; alone: `python -m stages.grade`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.answers.grading import Grades, Row, grade, score_answers, scores_for, units_of
from stages.lib.answers.protocol import GradeParams
from stages.lib.arithmetic import require_one_arithmetic
from stages.lib.inputs import Inputs, read_command
from stages.lib.lines import read_lines, write_lines
from stages.lib.markdown import shorten
from stages.lib.metrics import METRICS, write_metrics
from stages.lib.params import Section, read_params
from stages.lib.records import to_metrics

ANSWERS, GRADED = Path("data/answers"), Path("data/graded.jsonl")
SCORES = METRICS / "answers.csv"
SHOWN, LETTERS = 3, 100  # gains, and losses, on stdout, and how much of each text


class Params(Section):
    answers: GradeParams


def tabulate(base: list[Row], tuned: list[Row], scores: pd.DataFrame) -> list[Row]:
    """Put each conversation, its reference and both answers in a row, what gained most first."""
    rows = []
    for number in scores.index:
        said = {name: base[number][name] for name in ("id", "title", "messages", "reference")}
        rows.append(said | {"base": base[number]["text"], "tuned": tuned[number]["text"]})
        rows[-1] |= {f"{arm}_score": float(scores[arm][number]) for arm in ("base", "tuned")}
    return rows


def show(rows: list[Row]) -> str:
    """Show the largest gains and losses."""
    gains = [row for row in rows if row["tuned_score"] > row["base_score"]][:SHOWN]
    losses = [row for row in reversed(rows) if row["tuned_score"] < row["base_score"]][:SHOWN]
    lines = []
    for title, found in (("gained most", gains), ("lost most", losses)):
        for row in found:
            asked = row["messages"][-1]["content"] if row["messages"] else ""
            lines += [f"{title}: {shorten(asked, LETTERS)}"]
            lines += [f"  {name:<9} {shorten(row[name], LETTERS)}" for name in ("reference", "base", "tuned")]
    return "\n".join(lines)


def main() -> None:
    read_command(__doc__, [])
    params = read_params(Params).answers
    files = [ANSWERS / f"{arm}.jsonl" for arm in ("base", "tuned")]
    inputs = Inputs(Params(answers=params), *files)
    base, answered = map(read_lines, files)  # none where texts are learned
    tuned, validation = ([row for row in answered if row["split"] == split] for split in ("test", "validation"))
    scores, rows, found = pd.DataFrame(columns=["id", "unit", "base", "tuned"]), [], None
    if base:
        require_one_arithmetic({"base": base[0]["precision"], "tuned": tuned[0]["precision"]})
        before, after = score_answers(base, tuned, params.pattern)
        units = units_of(base)
        found = grade(before, after, units, params)
        scores = pd.DataFrame({"id": [row["id"] for row in base], "unit": units})
        scores = scores.assign(base=before[params.metric], tuned=after[params.metric])
        order = (scores["base"] - scores["tuned"]).sort_values(kind="stable").index
        scores = scores.loc[order]
        rows = tabulate(base, tuned, scores)
    inputs.confirm()
    metrics = to_words(found, params) if found else {"answers": 0}
    write_metrics("answers", metrics | ({"validation": score_validation(validation, params)} if validation else {}))
    scores.to_csv(SCORES, index=False)
    write_lines(rows, GRADED)
    if found:
        print(found.to_words(params.metric), show(rows), f"every answer: {GRADED}", sep="\n")
    else:
        print("no held-out conversations: texts are continued, not answered")


def score_validation(rows: list[Row], params: GradeParams) -> dict[str, float]:
    """Return the mean of the deciding score over the tuned model's answers to validation conversations."""
    score = scores_for([row["reference"] for row in rows], params.pattern).get(params.metric)
    scored = [score(row["reference"], row["text"]) for row in rows] if score else []
    return {"answers": len(rows)} | ({params.metric: sum(scored) / len(scored)} if scored else {})


def to_words(found: Grades, params: GradeParams) -> dict[str, Any]:
    """Lay the grades out as metrics, with what they say."""
    return to_metrics(found) | {"metric": params.metric, "in_words": found.to_words(params.metric)}


if __name__ == "__main__":
    main()
