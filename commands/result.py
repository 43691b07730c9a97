"""Say what the last run found: scores before and after tuning, what they allow to be said, and three answers.

metrics/, plots/, data/graded.jsonl -> stdout.   `make repro` ends with it; alone: `python -m commands.result`.
"""

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.inputs import read_command
from stages.lib.lines import read_lines
from stages.lib.markdown import shorten
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake
from stages.lib.records import Interval, read_interval
from stages.lib.scoring.protocol import ARMS

GRADED = Path("data/graded.jsonl")
CURVE = Path("plots/training_loss.csv")
SHOWN, LETTERS = 3, 240  # answers, and how much of each text
SCORES = ("exact_match", "token_f1", "last_number", "json_valid", "json_fields", "pattern", "ended")
WIDTH = 100


def main() -> None:
    read_command(__doc__)
    try:
        print(f"\n{tell()}")
    except FileNotFoundError as error:
        raise Mistake(f"{error.filename}: not there yet; `make repro` makes it") from None


def tell() -> str:
    """Put the results in words and a table."""
    evaluated = {arm: read_metrics(f"evaluate/{arm}") for arm in ARMS}
    found = {arm: metrics["document"] for arm, metrics in evaluated.items()}
    compared, grades = read_metrics("compare"), read_metrics("answers")
    rows = [("perplexity", *(f"{found[arm]['perplexity']:.2f}" for arm in ARMS), _times(compared))]
    rows += [("next-token accuracy", *(f"{found[arm]['accuracy']:.1%}" for arm in ARMS), "")]
    for name in SCORES:
        if name in grades:
            score = grades[name]
            gain = Interval(*(100 * value for value in read_interval(score, "difference")))
            shares = f"{score['base']:.1%}", f"{score['tuned']:.1%}"
            rows.append((name.replace("_", " "), "", *shares, f"{gain.value:+.0f} points ({gain.bounds('+.0f')})"))
    lines = [f"{'':22}{'full':>10}{'base':>10}{'tuned':>10}   base to tuned (95 % interval)"]
    lines += [f"{name:22}{full:>10}{base:>10}{tuned:>10}   {change}" for name, full, base, tuned, change in rows]
    full, base = (evaluated[arm]["precision"].partition(",")[0] for arm in ("full", "base"))
    lines += [f"full: the base model in {full}; base: in {base}; tuned: base with the adapter"]
    lines += ["", *(_wrap(line) for line in (grades.get("in_words"), compared["in_words"]) if line)]
    warnings = [*compared["warnings"], *tell_curve(pd.read_csv(CURVE), read_metrics("train")["kept_step"])]
    lines += [_wrap(f"warning: {line}") for line in warnings]
    if grades["answers"] and GRADED.exists():
        lines += ["", *pairs(read_lines(GRADED), grades["metric"].replace("_", " "))]
    where = f"every answer: {GRADED}; " if grades["answers"] else ""
    lines += ["", f"{where}pictures: plots/", "people's opinion: `make rate`; another try: `dvc exp run -S lora.r=16`"]
    return "\n".join(lines)


def pairs(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Show the answer that gained most, one in the middle and the one that gained least, with their scores."""
    lines = ["three of the answers: the one that tuning helped most, one half-way, and the one it helped least:"]
    for row in pick(rows):
        asked = row["messages"][-1]["content"] if row["messages"] else ""
        lines.append(_wrap(shorten(asked, LETTERS), "> "))
        lines.append(_wrap(f"{'reference:':<11}{shorten(row['reference'], LETTERS)}", "  "))
        for arm in ARMS[1:]:
            answer = f"{arm + ':':<11}{shorten(row[arm], LETTERS)}  ({metric}: {row[f'{arm}_score']:.2g})"
            lines.append(_wrap(answer, "  "))
    return lines


def pick(rows: list[Any]) -> list[Any]:
    """Return the first of the rows, one in the middle and the last."""
    return [rows[place] for place in sorted({0, len(rows) // 2, len(rows) - 1})[:SHOWN]] if rows else []


def tell_curve(losses: pd.DataFrame, kept_step: int) -> list[str]:
    """Say so where the validation loss (of the columns `text` and `loss`) was never lower than before training."""
    validation = losses.loc[losses["text"] == "validation", "loss"]
    if len(validation) < 2 or validation.iloc[1:].min() < validation.iloc[0]:
        return []
    first, last = validation.iloc[0], validation.iloc[-1]
    kept = (
        "the adapter that was kept is that of no step" if kept_step == 0 else f"the adapter kept is of step {kept_step}"
    )
    return [
        f"nothing was learned that helps on validation documents: their loss was {first:.3f} nats per token before "
        f"training and {last:.3f} at the end; {kept}. A lower train.learning_rate, fewer epochs or more text may help"
    ]


def _times(compared: dict[str, Any]) -> str:
    ratio = read_interval(compared["base_to_tuned"], "perplexity_ratio")
    return f"times {ratio.value:.3f} ({ratio.bounds('.3f')})"


def _wrap(text: str, begin: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=begin, subsequent_indent=" " * (len(begin) + 2))


if __name__ == "__main__":
    main()
