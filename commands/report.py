"""Write what changed between two commits, for a pull request.   Git -> report/report.md and pictures

Not a stage: `python -m commands.report main` compares a branch with what is checked out. All of it stands in
Git: neither DVC's cache nor a remote is asked. Experiments are named like commits.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import vl_convert
from ruamel.yaml import YAML

from stages.lib.history import (
    BITS_PER_BYTE,
    Metric,
    Run,
    changed_params,
    find_run,
    read,
    read_metric,
    read_metrics,
)
from stages.lib.markdown import cell, shorten
from stages.lib.params import Mistake, Section, read_params
from stages.lib.scoring.protocol import CompareParams
from stages.lib.scoring.task_history import judge_tasks
from stages.lib.verdicts import ANSWERS, describe, judge, judge_answers

REPORT = Path("report")


class Shown(NamedTuple):
    """A metric that a reviewer reads."""

    label: str
    metric: Metric
    form: str  # how its numbers are written
    better: Literal["less", "more", ""]


SHOWN = (  # what is read first stands first
    *(
        Shown(
            f"answers of the tuned model: {name.replace('_', ' ')}", Metric("answers", f"{name}.tuned"), ".1%", "more"
        )
        for name in ("exact_match", "last_number", "json_valid", "pattern", "ended")
    ),
    Shown("perplexity of the tuned model", Metric("evaluate/tuned", "document.perplexity"), ".3f", "less"),
    Shown("bits per byte", BITS_PER_BYTE, ".4f", "less"),
    Shown("next-token accuracy", Metric("evaluate/tuned", "document.accuracy"), ".2%", "more"),
    Shown("calibration error", Metric("evaluate/tuned", "document.ece"), ".4f", "less"),
    Shown("perplexity of the quantised base", Metric("evaluate/base", "document.perplexity"), ".3f", "less"),
    Shown("perplexity, tuned over base", Metric("compare", "base_to_tuned.perplexity_ratio"), ".4f", "less"),
    Shown("validation loss", Metric("train", "validation.loss"), ".4f", "less"),
    Shown("preferred by people, share of prompts", Metric("human", "preference.win_rate"), ".0%", "more"),
)
COSTS = (
    Shown("training seconds", Metric("cost/train", "seconds"), ".0f", ""),
    Shown("training tokens per second", Metric("cost/train", "tokens_per_second"), ",.0f", ""),
    Shown("training memory, GiB", Metric("cost/train", "peak_gib"), ".2f", ""),
)
PLOTS = (ANSWERS, Path("plots/eval_results.csv"), Path("plots/training_loss.csv"))  # of DVC's plots
ANSWER_LETTERS = 300  # shown of each


class Params(Section):
    compare: CompareParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit, branch or experiment before")
    parser.add_argument("head", nargs="?", default="HEAD", help="the one after")
    parser.add_argument("--cost", action="store_true", help="time and memory too, which depend on the machine")
    options = parser.parse_args()
    params = read_params(Params).compare
    before, after = find_run(options.base), find_run(options.head)
    REPORT.mkdir(exist_ok=True)
    pictures = render_plots(before, after, REPORT)
    (REPORT / "report.md").write_text(write(before, after, params, pictures, options.cost), encoding="utf-8")
    print(f"{REPORT}/report.md")


def write(before: Run, after: Run, params: CompareParams, pictures: list[str], cost: bool = False) -> str:
    """Write the report as Markdown; pictures have lines of their own, which can be left out."""
    changed = [
        f"| `{name}` | {change.before} | {change.after} |" for name, change in changed_params(before, after).items()
    ]
    shown = "\n".join(["\n", *(f'<img src="{picture}" width="420">' for picture in pictures)] if pictures else [])
    verdicts = [*judge_answers(before, after, params), *judge(before, after, params), *describe(after)]
    parts = {
        f"From {before.label} to {after.label}": "\n\n".join(verdicts),
        "Parameters": "\n".join(["| parameter | before | after |", "|---|---|---|", *changed])
        if changed
        else "The same.",
        "Metrics": table_metrics(before, after, SHOWN) + shown,
        **({"Tasks": tasks} if (tasks := judge_tasks(before, after, params)) else {}),
        **({"Cost": tell_cost(before, after)} if cost else {}),
        "What ran": table_stages(before, after),
        "Answers of the tuned model": table_answers(before, after),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n"


def tell_cost(before: Run, after: Run) -> str:
    """Tabulate what training cost, and name the machines."""
    machines = [read_metrics(run, "cost/train")["environment"] for run in (before, after)]
    named = [found["gpu"] if found["gpu"] != "none" else found["cpu"] for found in machines]
    return f"{table_metrics(before, after, COSTS)}\n\nBefore on {named[0]}; after on {named[1]}."


def table_metrics(before: Run, after: Run, metrics: Sequence[Shown]) -> str:
    """Tabulate metrics, and how they changed."""
    rows = [f"| {' | '.join(row)} |" for row in list_metrics(before, after, metrics)]
    return "\n".join(["| metric | before | after | change | better is |", "|---|---|---|---|---|", *rows])


def list_metrics(before: Run, after: Run, metrics: Sequence[Shown]) -> list[tuple[str, ...]]:
    """List what each metric is called, was, is, how it changed, and which change is better."""
    rows = []
    for label, metric, form, better in metrics:
        old, new = (find_metric(run, metric) for run in (before, after))
        if old is None and new is None:
            continue
        change = "" if old is None or new is None else "0" if old == new else f"{new - old:+z{form}}"
        cells = [format(value, form) if value is not None else "" for value in (old, new)]
        rows.append((label, *cells, change, better))
    return rows


def find_metric(run: Run, metric: Metric) -> float | None:
    """Find a number in a commit's metrics; None where it is not there."""
    try:
        return read_metric(run, metric)
    except Mistake:
        return None


def table_stages(before: Run, after: Run) -> str:
    """List the stages by what dvc.lock says: whether what they read, what they are, or what they gave changed."""
    locks = [YAML(typ="safe").load(read(run, "dvc.lock"))["stages"] for run in (before, after)]
    lines, same = ["| stage | | because of |", "|---|---|---|"], []
    for name, new in locks[1].items():
        old = locks[0].get(name, {})
        changed = _differences(old.get("deps", []), new.get("deps", []))
        old_params, new_params = _flat(old.get("params", {})), _flat(new.get("params", {}))
        changed += [key for key in new_params if old_params.get(key) != new_params[key]]
        results = _differences(old.get("outs", []), new.get("outs", []))
        if changed or results:
            lines.append(
                f"| {name} | {'new' if not old else 'ran' if results else 'ran, same results'} | {', '.join(changed)} |"
            )
        else:
            same.append(name)
    told = f"The same as before: {', '.join(same)}." if same else ""
    return "\n".join(lines if len(lines) > 2 else ["No stage."]) + f"\n\n{told}"


def table_answers(before: Run, after: Run) -> str:
    """Put both answers to each prompt side by side."""
    samples = (read_metrics(run, "generate/tuned")["samples"] for run in (before, after))
    told, retold = ({sample["prompt"]: sample["text"] for sample in found} for found in samples)
    lines = ["| prompt | before | after |", "|---|---|---|"]
    for prompt, new in retold.items():
        old = told.get(prompt, "")
        lines.append(f"| {_shown(prompt)} | {_shown(old)} | {'the same' if new == old else _shown(new)} |")
    return "\n".join(lines)


def render_plots(before: Run, after: Run, folder: Path) -> list[str]:
    """Write DVC's plots of both commits as pictures; return their names."""
    command = [sys.executable, "-m", "dvc", "plots", "diff", "--json", before.name, after.name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Mistake(f"dvc plots diff: {ran.stderr.strip().splitlines()[-1]}")
    pictures = []
    drawn = json.loads(ran.stdout)["data"]
    for path in PLOTS:
        for plot in drawn.get(str(path), []):
            pictures.append(f"{path.stem}.png")
            (folder / pictures[-1]).write_bytes(vl_convert.vegalite_to_png(json.dumps(plot["content"]), scale=2))
    return pictures


def _differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    known = {entry["path"]: entry.get("md5") for entry in old}
    return [entry["path"] for entry in new if known.get(entry["path"]) != entry.get("md5")]


def _flat(params: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value) for file in params.values() for name, value in file.items()}


def _shown(text: str) -> str:
    return cell(shorten(text, ANSWER_LETTERS))


if __name__ == "__main__":
    main()
