"""Grade both models' answers to held-out conversations.   data/answers -> metrics/answers.json, data/graded.jsonl

Each answer stands beside its reference in data/graded.jsonl, the largest gains first, and by the score that decides in
metrics/answers.csv. Run by `dvc repro grade`; alone: `python -m stages.grade`.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.answers.grading import Grades, Row, grade, score_answers, units_of
from stages.lib.answers.protocol import GradeParams
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS, write_metrics
from stages.lib.params import Section, read_params
from stages.lib.records import to_metrics

ANSWERS, GRADED = Path("data/answers"), Path("data/graded.jsonl")
SCORES = METRICS / "answers.csv"
SHOWN = 3  # gains, and losses, on stdout


class Params(Section):
    answers: GradeParams


def read_answers(arm: str) -> list[Row]:
    """Read the answers of an arm; none where texts are learned."""
    lines = (ANSWERS / f"{arm}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


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
            lines += [f"{title}: {_short(asked)}"]
            lines += [f"  {name:<9} {_short(row[name])}" for name in ("reference", "base", "tuned")]
    return "\n".join(lines)


def _short(text: str, letters: int = 100) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= letters else f"{text[: letters - 2].rsplit(' ', 1)[0]} …"


def main() -> None:
    read_command(__doc__, [])
    params = read_params(Params).answers
    inputs = Inputs(Params(answers=params), *(ANSWERS / f"{arm}.jsonl" for arm in ("base", "tuned")))
    base, tuned = read_answers("base"), read_answers("tuned")
    scores, rows, found = pd.DataFrame(columns=["id", "unit", "base", "tuned"]), [], None
    if base:
        before, after = score_answers(base, tuned, params.pattern)
        units = units_of(base)
        found = grade(before, after, units, params)
        scores = pd.DataFrame({"id": [row["id"] for row in base], "unit": units})
        scores = scores.assign(base=before[params.metric], tuned=after[params.metric])
        order = (scores["base"] - scores["tuned"]).sort_values(kind="stable").index
        scores = scores.loc[order]
        rows = tabulate(base, tuned, scores)
    inputs.confirm()
    write_metrics("answers", to_words(found, params) if found else {"answers": 0})
    scores.to_csv(SCORES, index=False)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    GRADED.write_text(lines or "\n", encoding="utf-8")  # DVC warns of empty files
    if found:
        print(found.to_words(params.metric), show(rows), f"every answer: {GRADED}", sep="\n")
    else:
        print("no held-out conversations: texts are continued, not answered")


def to_words(found: Grades, params: GradeParams) -> dict[str, Any]:
    """Lay the grades out as metrics, with what they say."""
    return to_metrics(found) | {"in_words": found.to_words(params.metric)}


if __name__ == "__main__":
    main()
