"""Name the best experiment, and tell whether it is better than what is committed beyond chance.   Git -> a table

Not a stage: `make best` runs it. It ranks the experiments of HEAD, and HEAD itself, by the validation documents, and
compares with HEAD on the test documents only what it chose: whoever picks the best of many on the documents that judge
it picks luck too.
"""

from stages.lib.history import (
    VALIDATION,
    Metric,
    Run,
    changed_params,
    compare_runs,
    count_judged,
    git,
    list_experiments,
    read,
    read_metric,
    seed_noise,
)
from stages.lib.inputs import read_command
from stages.lib.params import Mistake, Section, read_params
from stages.lib.scoring.comparison import LossComparison
from stages.lib.scoring.document_scores import LOSSES
from stages.lib.scoring.protocol import CompareParams

DOCUMENTS = [Metric(VALIDATION.file, f"validation.{name}") for name in ("documents", "tokens", "bytes")]


class Params(Section):
    compare: CompareParams


def main() -> None:
    read_command(__doc__)
    params = read_params(Params).compare
    head = Run("HEAD", git("rev-parse", "HEAD").strip())
    print(report(head, list_experiments(head.commit), params))


def report(head: Run, experiments: list[Run], params: CompareParams) -> str:
    """Tabulate all runs, the best first, compare the best with what is committed, and say what that means."""
    if not experiments:
        raise Mistake("no experiments of this commit; `dvc exp run -S lora.r=16` makes one")
    try:
        found = {run: read_metric(run, VALIDATION) for run in (head, *experiments)}
        documents = {run: tuple(read_metric(run, metric) for metric in DOCUMENTS) for run in found}
    except Mistake as mistake:
        raise Mistake(
            f"{mistake}; experiments are ranked on validation documents: let prepare.validation_fraction leave some, "
            "and run again what ran before they were scored"
        ) from None
    ranked = sorted(found, key=lambda run: (documents[run] != documents[head], found[run]))
    lines = ["| experiment | changed | validation, bits per byte |", "|---|---|---|"]
    for run in ranked:
        changed = ", ".join(f"{name}: {change.after}" for name, change in changed_params(head, run).items())
        score = f"{found[run]:.4f}" if documents[run] == documents[head] else "other documents"
        lines.append(f"| {run.name} | {changed} | {score} |")
    best = next(run for run in ranked if run == head or compare_runs(head, run, params))
    return "\n".join([*lines, "", conclude(best, head, None if best == head else compare_runs(head, best, params))])


def conclude(best: Run, head: Run, found: LossComparison | None) -> str:
    """Say whether the best on the validation documents is better than what is committed on the test documents."""
    if found is None:
        return "best: HEAD, what is committed"
    ratio, judged = found.perplexity_ratio, count_judged(read(best, LOSSES))
    noise = seed_noise(head)
    if noise is None:
        seeds = "how far seeds alone move it, `python -m commands.seeds 3` tells"
    else:
        more = "more" if abs(found.nll_difference.value) > noise else "no more"
        seeds = f"{more} than two seeds of HEAD may differ"
    return (
        f"best: {best.name}, chosen on validation. On the test documents it has {ratio.value:.4f} times "
        f"HEAD's perplexity (95 % interval: {ratio.bounds()}; p = {found.p_value:.4f}): {found.verdict}; {seeds}. "
        f"These documents have judged {judged} results at least, which the interval does not count."
        + (f" `dvc exp apply {best.name}` takes it" if found.verdict == "better" else "")
    )


if __name__ == "__main__":
    main()
