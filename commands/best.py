"""Name the best experiment, and tell whether it is better than what is committed beyond chance.   Git -> a table

Not a stage: `make best` runs it. It ranks the experiments of HEAD, and HEAD itself, by held-out bits per
byte. Whoever picks the best of many picks luck too: a p-value counts here as many times as there were experiments.
"""

from stages.lib.history import (
    BITS_PER_BYTE,
    Run,
    changed_params,
    compare_runs,
    git,
    list_experiments,
    read_metric,
    seed_noise,
)
from stages.lib.inputs import read_command
from stages.lib.params import Mistake, Section, read_params
from stages.lib.records import Interval
from stages.lib.scoring.comparison import LossComparison
from stages.lib.scoring.protocol import CompareParams


class Params(Section):
    compare: CompareParams


def main() -> None:
    read_command(__doc__)
    params = read_params(Params).compare
    head = Run("HEAD", git("rev-parse", "HEAD").strip())
    print(report(head, list_experiments(head.commit), params))


def report(head: Run, experiments: list[Run], params: CompareParams) -> str:
    """Tabulate all runs, the best first, each compared with what is committed, and say what that means."""
    if not experiments:
        raise Mistake("no experiments of this commit; `dvc exp run -S lora.r=16` makes one")
    losses = {run: read_metric(run, BITS_PER_BYTE) for run in (head, *experiments)}
    lines = ["| experiment | changed | bits per byte | perplexity, times HEAD's (95 % interval) |", "|---|---|---|---|"]
    compared = {run: compare_runs(head, run, params) for run in sorted(losses, key=losses.__getitem__)}
    for run, found in compared.items():
        changed = ", ".join(f"{name}: {change.after}" for name, change in changed_params(head, run).items())
        ratio = "other documents" if found is None else "" if run == head else show(found.perplexity_ratio)
        lines.append(f"| {run.name} | {changed} | {losses[run]:.4f} | {ratio} |")
    best, found = next((run, found) for run, found in compared.items() if found is not None)
    return "\n".join([*lines, "", conclude(best, head, found, len(experiments))])


def show(ratio: Interval) -> str:
    """Write a ratio with its interval."""
    return f"{ratio.value:.4f} ({ratio.bounds()})"


def conclude(best: Run, head: Run, found: LossComparison, number: int) -> str:
    """Say whether the best is better than what is committed."""
    if best == head:
        return "best: HEAD, what is committed"
    p_value = min(1.0, number * found.p_value)
    tried = f"p = {p_value:.4f} after {number} tried" if number > 1 else f"p = {p_value:.4f}"
    sure = p_value < 0.05 and found.perplexity_ratio.high < 1
    said = "better than HEAD beyond the chance of documents" if sure else "not better than HEAD beyond chance"
    noise = seed_noise(head)
    if noise is None:
        seeds = "how far seeds alone move it, `python -m commands.seeds 3` tells"
    else:
        seeds = f"{'more' if abs(found.nll_difference.value) > noise else 'no more'} than two seeds of HEAD may differ"
    return f"best: {best.name}, {said} ({tried}); {seeds}. `dvc exp apply {best.name}` takes it"


if __name__ == "__main__":
    main()
