"""Show what changed between two commits: parameters, the few metrics that decide, the verdict.   Git -> a screen

Not a stage: `make diff` compares HEAD with the workspace, `make diff REV=r16` another commit or an experiment. A second
name stands for the workspace: `python -m commands.diff main r16`.
"""

import argparse
import textwrap

from ruamel.yaml import YAML

from commands.report import SHOWN, Params, Shown, list_metrics
from stages.lib.history import (
    WORKSPACE,
    Metric,
    Run,
    changed_params,
    find_run,
    flatten,
    read,
    read_flat_params,
)
from stages.lib.markdown import shorten, table
from stages.lib.params import PARAMS, Mistake, read_params
from stages.lib.scoring.protocol import CompareParams
from stages.lib.verdicts import judge, judge_answers

WIDTH = 100
ROWS, LETTERS = 8, 24  # of parameters, and of a value
DECIDING = (  # after the score of answers that decides
    "perplexity, tuned over base",
    "perplexity of the tuned model",
    "next-token accuracy",
    "validation loss",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", default="HEAD", help="a commit, branch or experiment")
    parser.add_argument("after", nargs="?", default=WORKSPACE.name, help="the one to compare with it")
    options = parser.parse_args()
    print(tell(find_run(options.before), find_run(options.after), read_params(Params).compare))


def tell(before: Run, after: Run, params: CompareParams) -> str:
    """Put what changed in tables, and the verdicts in words."""
    changed = [
        (name, *(shorten(str(value), LETTERS) for value in change))
        for name, change in changed_params(before, after).items()
    ]
    metrics = [row[:4] for row in list_metrics(before, after, deciding(after))]
    parts = [f"{before.label} -> {after.label}"]
    if changed:
        rows = changed[:ROWS] + ([("…", f"{len(changed) - ROWS} more", "")] if len(changed) > ROWS else [])
        parts.append(table(("parameter", "before", "after"), rows))
    else:
        parts.append("parameters: the same")
    parts.append(table(("metric", "before", "after", "change"), metrics))
    verdicts = [*judge_answers(before, after, params), *judge(before, after, params)]
    parts += [textwrap.fill(line.replace("**", ""), WIDTH) for line in verdicts]
    if after == WORKSPACE and (edited := list_edited()):
        parts.append(f"not run yet: {', '.join(edited)}; `make repro` runs with what params.yaml says now")
    return "\n\n".join(parts)


def deciding(run: Run) -> list[Shown]:
    """List the metrics that decide, the first one first."""
    name = read_flat_params(run).get("answers.metric", "")
    answers = Shown(f"answers, {name.replace('_', ' ')}", Metric("answers", f"{name}.tuned"), ".1%", "more")
    return [answers, *(shown for label in DECIDING for shown in SHOWN if shown.label == label)]


def list_edited() -> list[str]:
    """List the parameters that were edited since `check` ran: the results in the workspace are of others."""
    try:
        known = YAML(typ="safe").load(read(WORKSPACE, "dvc.lock"))["stages"]["check"]["params"][str(PARAMS)]
    except (Mistake, KeyError):
        return []
    now, then = read_flat_params(WORKSPACE), flatten(known)
    return [name for name in now if now[name] != then.get(name, now[name])]


if __name__ == "__main__":
    main()
