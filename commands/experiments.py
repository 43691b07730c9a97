"""List the experiments of all commits: what each changed, and how good its tuned model is.   Git -> a table

Not a stage: `make experiments` runs it. HEAD stands first, then its experiments, then those of other commits. A try
that was made twice, with the same parameters and results, stands there once. `make best` says which is best, and why.
"""

from collections.abc import Sequence

from commands.diff import WIDTH, deciding
from commands.report import find_metric
from stages.lib.history import VALIDATION, Metric, Run, changed_params, list_tries, read_arithmetic
from stages.lib.inputs import read_command
from stages.lib.markdown import shorten, table
from stages.lib.params import Mistake

FEWEST_LETTERS = 12  # of what changed
COLUMNS = {  # after the score of answers that decides
    "ratio": (Metric("compare", "base_to_tuned.perplexity_ratio"), ".4f"),
    "validation": (VALIDATION, ".4f"),
}


def main() -> None:
    read_command(__doc__)
    print(tabulate(list_tries()))


def tabulate(runs: list[Run]) -> str:
    """Tabulate HEAD, the first of the runs, and experiments."""
    if len(runs) < 2:
        raise Mistake("no experiments yet; `dvc exp run -S lora.r=16` makes one")
    answers = deciding(runs[0])[0]
    columns = {answers.label.removeprefix("answers, "): (answers.metric, answers.form), **COLUMNS}
    found = {name: [find_metric(run, metric) for run in runs] for name, (metric, _) in columns.items()}
    shown = [name for name, values in found.items() if any(value is not None for value in values)]
    cells = [["" if value is None else format(value, columns[name][1]) for value in found[name]] for name in shown]
    return lay_out(runs, runs[0], shown, list(zip(*cells, strict=True))) + (
        "\n\nratio: of perplexity on test documents, tuned over base; validation: bits per byte there\n"
        "`make diff REV=<experiment>` compares one with the workspace; `make best` ranks them on validation"
    )


def lay_out(runs: Sequence[Run], head: Run, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Tabulate runs with cells of their own: what they are of, what they changed, cut so that a line fits a screen."""
    rows = [(run.name, origin(run, head), *more) for run, more in zip(runs, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(("experiment", "of", *columns), *rows, strict=True)]
    letters = max(FEWEST_LETTERS, WIDTH - sum(widths) - 3 * len(widths) - 4)
    changes = [shorten(describe_changes(head, run), letters - 2) for run in runs]
    return table(
        ("experiment", "of", "changed", *columns),
        [(*row[:2], changed, *row[2:]) for row, changed in zip(rows, changes, strict=True)],
    )


def origin(run: Run, head: Run) -> str:
    """Name the commit that an experiment was made of."""
    return "" if run == head else "HEAD" if run.baseline == head.commit else run.baseline[:7]


def describe_changes(head: Run, run: Run) -> str:
    """List what differs from HEAD: the arithmetic, with which all results do, and parameters."""
    arithmetic = read_arithmetic(run)
    changes = [f"{name}: {change.after}" for name, change in changed_params(head, run).items()]
    return ", ".join([*([] if arithmetic == read_arithmetic(head) else [arithmetic or "unknown arithmetic"]), *changes])


if __name__ == "__main__":
    main()
