"""Count what people said of the two models' texts.   data/ratings -> metrics/human.json

Reads data/ratings/answers/, whatever of it belongs to the sheet, and writes plots/human.csv, plots/human.png and
data/ratings/results.md too. Run by `dvc repro rate`; alone: `python -m stages.rate`.
"""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import krippendorff
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from stages.lib.colours import COLOURS
from stages.lib.inputs import Inputs, read_command
from stages.lib.markdown import cell
from stages.lib.metrics import write_metrics
from stages.lib.params import Section, read_params
from stages.lib.people.judgement import ANSWERS, CRITERIA, KEY, RATINGS, Key, read_answers
from stages.lib.people.rating import RateParams
from stages.lib.records import Interval, to_metrics
from stages.lib.scoring.intervals import change

RESULTS = RATINGS / "results.md"
PLOTS = Path("plots")
PREFERENCES = {"base": COLOURS["base"], "tuned": COLOURS["tuned"], "tie": "#bbbbbb", "both bad": "#666666"}
PILOT = 35  # decided prompts, of which a sign test finds a win rate of 75 % four times in five


class Params(Section):
    rate: RateParams


@dataclass(frozen=True)
class Leaning:
    """Prompts by the arm that their votes lean to."""

    tuned: int
    base: int
    undecided: int


@dataclass(frozen=True)
class Preference:
    """What people preferred."""

    votes: dict[str, int]  # by `PREFERENCES`
    prompts: Leaning
    win_rate: Interval | None = None  # of tuned, among the decided prompts (Wilson 1927)
    p_value: float | None = None  # of a two-sided sign test


@dataclass(frozen=True)
class Rated:
    """Mean ratings by a criterion, over the raters of a prompt, then over prompts."""

    ratings: int
    prompts: int
    base: float | None = None
    tuned: float | None = None
    difference: Interval | float | None = None  # no interval where all prompts show the same one


@dataclass(frozen=True)
class Control:
    """Raters who saw through a control, of those who answered it."""

    passed: int
    answered: int


@dataclass(frozen=True)
class Controls:
    disordered: Control
    same: Control


@dataclass(frozen=True)
class Opinions:
    """What people said of the two models' texts, and metrics/human.json holds."""

    raters: int
    prompts: int  # with a preference
    judgements: int
    preference: Preference
    fluency: Rated
    relevance: Rated
    correctness: Rated
    agreement: dict[str, float]  # by criterion
    controls: Controls
    in_words: str

    @property
    def criteria(self) -> dict[str, Rated]:
        """The mean ratings by criterion."""
        return {criterion: getattr(self, criterion) for criterion in CRITERIA}


def summarize(votes: pd.DataFrame, params: RateParams, num_refused: int = 0) -> Opinions:
    """Turn votes into counts, means, and what they allow to be said; prompts are the units that are drawn."""
    compared = votes[votes["kind"] == "compared"]
    preferences = compared[compared["criterion"] == "preference"]
    raters, preference = int(preferences["rater"].nunique()), prefer(preferences)
    return Opinions(
        raters=raters,
        prompts=sum(asdict(preference.prompts).values()),
        judgements=len(preferences),
        preference=preference,
        **{criterion: rate_criterion(numbers(compared, criterion), params) for criterion in CRITERIA},
        agreement=agree(compared),
        controls=Controls(passed(votes, "disordered", {"solid"}), passed(votes, "same", {"tie", "both bad"})),
        in_words=describe(preference, raters, num_refused),
    )


def prefer(preferences: pd.DataFrame) -> Preference:
    """Count preferences, and test whether prompts lean to one arm."""
    votes = {arm: int((preferences["arm"] == arm).sum()) for arm in PREFERENCES}
    lean = preferences["arm"].map({"tuned": 1, "base": -1}).fillna(0).groupby(preferences["item"]).sum()
    wins, losses = int((lean > 0).sum()), int((lean < 0).sum())
    prompts = Leaning(tuned=wins, base=losses, undecided=len(lean) - wins - losses)
    if not wins + losses:
        return Preference(votes, prompts)
    test = binomtest(wins, wins + losses)
    bounds = test.proportion_ci(method="wilson")
    win_rate = Interval(wins / (wins + losses), bounds.low, bounds.high)
    return Preference(votes, prompts, win_rate, float(test.pvalue))


def numbers(votes: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Return the ratings of a criterion that are numbers."""
    chosen = votes[(votes["criterion"] == criterion) & (votes["value"] != "cannot judge")]
    return chosen.assign(value=chosen["value"].astype(float))


def rate_criterion(ratings: pd.DataFrame, params: RateParams) -> Rated:
    """Compare the arms' mean ratings, of those who rated both texts."""
    both = ratings.pivot_table(index=["item", "rater"], columns="arm", values="value")
    both = both.reindex(columns=["base", "tuned"]).dropna()
    means = both.groupby("item").mean()
    if means.empty:
        return Rated(ratings=0, prompts=0)
    base, tuned = means["base"].to_numpy(), means["tuned"].to_numpy()
    gain = tuned - base
    difference = float(gain.mean())
    if np.ptp(gain) > 0:
        difference = change(gain, np.ones(len(gain)), params.resamples, params.seed).interval
    return Rated(2 * len(both), len(means), float(base.mean()), float(tuned.mean()), difference)


def agree(votes: pd.DataFrame) -> dict[str, float]:
    """Measure how far raters agree beyond chance, where several rated the same: 1 always, 0 as dice would.

    For two raters Cohen's kappa (quadratic weights for numbers), for more Krippendorff's alpha (ordinal for numbers,
    nominal for preferences), which allows for what is missing. Left out where all said the same: there is nothing
    by which agreement could be told from chance.
    """
    found = {}
    for criterion in ("preference", *CRITERIA):
        chosen = votes[votes["criterion"] == criterion]
        if criterion == "preference":
            units = chosen.assign(
                unit=chosen["item"], code=chosen["arm"].map({arm: n for n, arm in enumerate(PREFERENCES)})
            )
        else:
            chosen = numbers(votes, criterion)
            units = chosen.assign(unit=chosen["item"] + chosen["arm"], code=chosen["value"])
        if units.empty:
            continue
        table = units.pivot_table(index="rater", columns="unit", values="code")
        table = table.loc[:, table.notna().sum() > 1]
        if len(table) < 2 or table.size == 0 or np.unique(table.to_numpy()[table.notna().to_numpy()]).size < 2:
            continue
        if len(table) == 2:
            scale = {} if criterion == "preference" else {"weights": "quadratic", "labels": [1, 2, 3, 4, 5]}
            found[criterion] = float(cohen_kappa_score(*table.to_numpy().astype(int), **scale))
        else:
            level = "nominal" if criterion == "preference" else "ordinal"
            found[criterion] = float(krippendorff.alpha(table.to_numpy(), level_of_measurement=level))
    return found


def passed(votes: pd.DataFrame, kind: str, right: set[str]) -> Control:
    """Count who saw through a control."""
    said = votes[(votes["kind"] == kind) & (votes["criterion"] == "preference")]["arm"]
    return Control(passed=int(said.isin(right).sum()), answered=len(said))


def describe(preference: Preference, raters: int, num_refused: int) -> str:
    """Say what the preferences allow to be said."""
    left_out = f"; {num_refused} answers or files refused" if num_refused else ""
    wins, losses = preference.prompts.tuned, preference.prompts.base
    prompts, decided = wins + losses + preference.prompts.undecided, wins + losses
    if not prompts:
        return f"no preferences yet: `make rate` opens {RATINGS}/sheet.html{left_out}"
    pilot = f"; a pilot: {decided} of the {PILOT} decided prompts that it takes" if decided < PILOT else ""
    who = f"{raters} rater{'s' if raters > 1 else ''}, {prompts} prompt{'s' if prompts > 1 else ''}"
    if preference.win_rate is None or preference.p_value is None:
        return f"{who}: neither model is preferred on any prompt{pilot}{left_out}"
    rate, p_value = preference.win_rate, preference.p_value
    verdict = "cannot tell" if p_value >= 0.05 else "better" if rate.value > 0.5 else "worse"
    return (
        f"{who}: tuned preferred on {wins} of {decided} decided prompts (95 % interval of the rate "
        f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %, p = {p_value:.3f}): {verdict}{pilot}{left_out}"
    )


def draw_opinions(found: Opinions) -> Figure:
    """Draw mean ratings by criterion, and the votes for either arm."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", width_ratios=[3, 2])
    for offset, arm in ((-0.2, "base"), (0.2, "tuned")):
        means = [getattr(rated, arm) if rated.prompts else np.nan for rated in found.criteria.values()]
        bars = left.bar(np.arange(len(CRITERIA)) + offset, means, width=0.38, color=COLOURS[arm], label=arm)
        left.bar_label(bars, ["" if np.isnan(mean) else f"{mean:.1f}" for mean in means], padding=2)
    left.set_xticks(range(len(CRITERIA)), CRITERIA)
    left.set(ylim=(1, 5.3), ylabel="mean rating (1 to 5, more is better)")
    left.legend(loc="upper left", ncols=2)
    votes = found.preference.votes
    bars = right.barh(list(votes), list(votes.values()), color=[PREFERENCES[arm] for arm in votes])
    right.bar_label(bars, padding=2)
    right.set(xlabel="preferences (votes)", xlim=(0, max(1, 1.15 * max(votes.values()))))
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(found.in_words, width=95))
    return figure


def tabulate(key: Key, votes: pd.DataFrame) -> str:
    """Put all prompts with both texts and their votes in a Markdown table; nothing before anyone rated, unseen."""
    preferences = votes[votes["criterion"] == "preference"]
    if preferences.empty:
        return "No preferences yet. After them both models' texts stand here, and who preferred which.\n"
    counts = preferences.groupby(["item", "arm"]).size()
    lines = ["| prompt | base | tuned | preferred: base, tuned, tie, both bad |", "|---|---|---|---|"]
    for item in sorted((item for item in key.items if item.kind == "compared"), key=lambda item: item.prompt):
        texts = dict(zip(item.arms, item.texts))
        said = [int(counts.get((item.id, arm), 0)) for arm in PREFERENCES]
        cells = [item.prompt, texts["base"], texts["tuned"], ", ".join(map(str, said)) if sum(said) else ""]
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    read_command(__doc__, [])
    params = read_params(Params)
    inputs = Inputs(params, KEY, ANSWERS)
    key = Key.from_json(KEY.read_text(encoding="utf-8"))
    votes, refused = read_answers(ANSWERS, key)
    found = summarize(votes, params.rate, len(refused))
    inputs.confirm()
    write_metrics("human", {"sheet": key.sheet} | to_metrics(found) | {"refused": refused})
    rated = [(name, rated) for name, rated in found.criteria.items() if rated.prompts]
    means = [(f"{name}, {arm}", getattr(means, arm)) for name, means in rated for arm in ("base", "tuned")]
    pd.DataFrame(sorted(means), columns=["of", "mean"]).to_csv(PLOTS / "human.csv", index=False)
    draw_opinions(found).savefig(PLOTS / "human.png", dpi=100)
    RESULTS.write_text(tabulate(key, votes), encoding="utf-8")
    print(*(f"refused: {line}" for line in refused), found.in_words, sep="\n")


if __name__ == "__main__":
    main()
