"""Name the best experiment, and tell whether it is better than what is committed beyond chance.   Git -> a table

Not a stage: `make best` runs it. It ranks HEAD and the experiments of all commits, each try once, by the validation
documents, and compares with HEAD on the test documents only what it chose: whoever picks the best of many on the
documents that judge it picks luck too.
"""

import textwrap
from typing import NamedTuple

from commands.diff import WIDTH
from commands.experiments import lay_out
from stages.lib.history import (
    ANSWERING,
    VALIDATION,
    Metric,
    Run,
    compare_runs,
    count_judged,
    list_tries,
    read,
    read_arithmetic,
    read_flat_params,
    read_metric,
    read_metrics,
    seed_noise,
)
from stages.lib.inputs import read_command
from stages.lib.params import Mistake, Section, read_params
from stages.lib.scoring.document_scores import LOSSES
from stages.lib.scoring.protocol import CompareParams
from stages.lib.verdicts import compare_answers

OTHER_ARITHMETIC = "other arithmetic"
DOCUMENTS = [Metric(VALIDATION.file, f"validation.{name}") for name in ("documents", "tokens", "bytes")]


class Score(NamedTuple):
    """Of validation documents, and what tells that they are the same ones, graded alike, in which arithmetic."""

    answers: float | None  # mean of the score that decides, where conversations are learned
    bits_per_byte: float
    documents: tuple[float | str, ...]
    arithmetic: tuple[str, str]  # of losses, and of answers

    @property
    def place(self) -> tuple[float, float]:
        """What comes first is best: of equally good answers, those of the model that expects the references more."""
        return -(self.answers or 0.0), self.bits_per_byte


class Params(Section):
    compare: CompareParams


def main() -> None:
    read_command(__doc__)
    params = read_params(Params).compare
    print(report(list_tries(), params))


def report(runs: list[Run], params: CompareParams) -> str:
    """Tabulate HEAD, the first of the runs, and experiments, the best first; say whether that is better than HEAD."""
    head = runs[0]
    if len(runs) < 2:
        raise Mistake("no experiments yet; `dvc exp run -S lora.r=16` makes one")
    found = {run: score for run in runs if (score := find_score(run))}
    if head not in found:
        raise Mistake(
            "HEAD: its validation documents were not scored, by which experiments are ranked; let "
            "prepare.validation_fraction leave some, and run again what ran before they were scored"
        )
    comparable = [run for run, score in found.items() if unlike(score, found[head]) is None]
    ranked = sorted(comparable, key=lambda run: found[run].place)
    others = [run for run in runs if run not in comparable]
    columns = {"bits per byte": [f"{found[run].bits_per_byte:.4f}" for run in ranked]}
    if found[head].answers is not None:
        columns = {find_decider(head): [f"{found[run].answers:.1%}" for run in ranked]} | columns
    missing = [unlike(found[run], found[head]) if run in found else "not scored" for run in others]
    cells = [*zip(*columns.values(), strict=True), *((why,) * len(columns) for why in missing)]
    best = next(run for run in ranked if run == head or compare_runs(head, run, params))
    told = lay_out([*ranked, *others], head, [f"validation, {name}" for name in columns], cells)
    parts = [conclude(best, head, params)]
    if OTHER_ARITHMETIC in missing:
        own = " and ".join(filter(None, dict.fromkeys(found[head].arithmetic)))
        parts.append(
            f"HEAD was computed in {own or 'an arithmetic not recorded'}, "
            f"{missing.count(OTHER_ARITHMETIC)} of these in another arithmetic, and rounding alone makes a difference: "
            "to compare, run `dvc repro -f` with HEAD's parameters on the machine that made these, and commit"
        )
    return "\n\n".join([told, *(textwrap.fill(part, WIDTH) for part in parts)])


def find_score(run: Run) -> Score | None:
    """Return the tuned model's score of a commit's validation documents; None where it has none."""
    try:
        bits, documents = read_metric(run, VALIDATION), [read_metric(run, metric) for metric in DOCUMENTS]
    except Mistake:
        return None
    try:
        graded = read_metrics(run, "answers").get("validation", {})
    except Mistake:  # a commit from before answers were graded
        graded = {}
    decider = find_decider(run)
    told = (*documents, decider if graded else "", graded.get("answers", 0))
    arithmetic = read_arithmetic(run), read_arithmetic(run, ANSWERING) if graded else ""
    return Score(graded.get(decider), bits, told, arithmetic)


def unlike(score: Score, other: Score) -> str | None:
    """Say in words why two scores do not compare; None where they do."""
    if score.documents != other.documents:
        return "other documents"
    return None if score.arithmetic == other.arithmetic else OTHER_ARITHMETIC


def find_decider(run: Run) -> str:
    """Return the name of the score by which a commit's answers are judged."""
    return read_flat_params(run).get("answers.metric", "")


def conclude(best: Run, head: Run, params: CompareParams) -> str:
    """Say whether the best on the validation documents is better than what is committed on the test documents."""
    found = None if best == head else compare_runs(head, best, params)
    if found is None:
        return "best: HEAD, what is committed"
    answers = compare_answers(head, best, params)
    told = f"{str(answers).replace('**', '')} " if answers else ""
    ratio, judged = found.perplexity_ratio, count_judged(read(best, LOSSES))
    noise = seed_noise(head)
    if noise is None:
        seeds = "how far seeds alone move it, `python -m commands.seeds 3` tells"
    else:
        more = "more" if abs(found.nll_difference.value) > noise else "no more"
        seeds = f"{more} than two seeds of HEAD may differ"
    return (
        f"best: {best.name}, chosen on validation. {told}On the test documents it has {ratio.value:.4f} times "
        f"HEAD's perplexity (95 % interval: {ratio.bounds()}; p = {found.p_value:.4f}): {found.verdict}; {seeds}. "
        f"These documents have judged {judged} results at least, which the interval does not count."
        + (f" {taking(best, head)}" if (answers or found).verdict == "better" else "")
    )


def taking(best: Run, head: Run) -> str:
    """Say how to take an experiment over; applied, one of another commit would take back all code committed since."""
    if best.baseline == head.commit:
        return f"`dvc exp apply {best.name}` takes it"
    return f"It is of another commit: `git cherry-pick {best.commit[:7]}`, then `make settle`, tries it on HEAD's code"


if __name__ == "__main__":
    main()
