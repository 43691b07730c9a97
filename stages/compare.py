"""Say what tuning bought and what quantisation cost.   data/scores -> metrics/compare.json

Also lists every document in metrics/documents.csv. Run by `dvc repro compare`; alone: `python -m stages.compare`.
With the name of a dataset it compares the scores in data/also/<name>/, and writes metrics/also/<name>/compare.json.
"""

from dataclasses import dataclass

import pandas as pd

from stages.lib.arithmetic import require_one_arithmetic
from stages.lib.data.protocol import ALSO
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS, read_metrics, write_metrics
from stages.lib.params import Section, read_params
from stages.lib.records import read_record, to_metrics
from stages.lib.scoring.comparison import Comparison, compare, describe
from stages.lib.scoring.document_scores import LOSSES, SCORES, Evaluation, read_scores, write_losses
from stages.lib.scoring.protocol import ARMS, CompareParams


class Params(Section):
    compare: CompareParams


@dataclass(frozen=True)
class TuningComparison(Comparison):
    """What tuning changed, and how far it moved the predictions."""

    kl_from_base: float  # KL(base‖tuned) in nats per token
    agreement_with_base: float  # share of tokens on which both find the same one likeliest


@dataclass(frozen=True)
class Comparisons:
    """What metrics/compare.json holds."""

    base_to_tuned: TuningComparison
    full_to_base: Comparison
    in_words: str
    warnings: list[str]


def compare_tuning(base: pd.DataFrame, tuned: pd.DataFrame, params: CompareParams) -> TuningComparison:
    """Compare the base model with the tuned one, whose scores say how it diverged."""
    kl, agreed = (float(tuned[column].sum() / tuned["tokens"].sum()) for column in ("kl", "agreed"))
    return TuningComparison(**vars(compare(base, tuned, params)), kl_from_base=kl, agreement_with_base=agreed)


def list_documents(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """List the nats per token of every document under every arm, what tuning gained most on first."""
    grouped = ["group"] if (scores["base"]["group"] != "").any() else []
    table = scores["base"][["id", "title", *grouped, "tokens"]].copy()
    for arm, found in scores.items():
        table[arm] = found["nll"] / found["tokens"]
    table["tuned_minus_base"] = table["tuned"] - table["base"]
    return table.sort_values("tuned_minus_base", ignore_index=True)


def compare_arms(scores: dict[str, pd.DataFrame], found: dict[str, Evaluation], params: CompareParams) -> Comparisons:
    """Compare the arms by their scores and metrics of one set of documents."""
    assert len({(arm.document.window_tokens, arm.document.stride_tokens) for arm in found.values()}) == 1
    tuning = compare_tuning(scores["base"], scores["tuned"], params)
    return Comparisons(
        base_to_tuned=tuning,
        full_to_base=compare(scores["full"], scores["base"], params),
        in_words=describe("base to tuned", tuning),
        warnings=[f"{arm}: {line}" for arm in ARMS for line in found[arm].warnings],
    )


def main() -> None:
    name = read_command(__doc__, [], also={"nargs": "?", "help": "a folder of data/also/"}).also
    params = read_params(Params)
    folder, place = (ALSO / name, f"also/{name}") if name else (SCORES, "evaluate")
    read = [file for arm in ARMS for file in (folder / f"{arm}.parquet", METRICS / place / f"{arm}.json")]
    inputs = Inputs(params, *read)
    scores = {arm: read_scores(arm, folder) for arm in ARMS}
    found = {arm: read_record(Evaluation, read_metrics(f"{place}/{arm}")) for arm in ARMS}
    precisions = {arm: found[arm].precision for arm in ARMS}
    require_one_arithmetic(precisions, *(["evaluate_also"] if name else []))
    comparisons = compare_arms(scores, found, params.compare)
    print(comparisons.in_words, describe("full to base", comparisons.full_to_base), sep="\n")
    print(*(f"warning: {line}\n" for line in comparisons.warnings), sep="", end="")
    losses = list_documents(scores)
    inputs.confirm()
    write_metrics(f"also/{name}/compare" if name else "compare", to_metrics(comparisons))
    if not name:
        write_losses(losses)
        print(f"gained most on {name_extreme(losses.iloc[0])}; least on {name_extreme(losses.iloc[-1])}")
        print(f"every document: {LOSSES}")


def name_extreme(document: pd.Series) -> str:
    return f"{document['title']!r} ({document['tuned_minus_base']:+.3f} nats per token)"


if __name__ == "__main__":
    main()
