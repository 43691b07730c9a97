"""Say what tuning bought and what quantisation cost.   data/scores -> metrics/compare.json

Also lists every document in metrics/documents.csv. Run by `dvc repro compare`; alone: `python -m stages.compare`.
With the name of a dataset it compares the scores in data/also/<name>/, and writes metrics/also/<name>/compare.json.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS, write_metrics
from stages.lib.params import Section, read_params
from stages.lib.scoring.comparison import CompareParams, compare, describe
from stages.lib.scoring.scores import ALSO, ARMS, SCORES, read_scores

DOCUMENTS = METRICS / "documents.csv"
DIVERGENCE = {"kl_from_base": "kl", "agreement_with_base": "agreed"}  # metrics, and columns that they are the sums of


class Params(Section):
    compare: CompareParams


def divergence(tuned: pd.DataFrame) -> dict[str, float]:
    """Return how far tuning moved the predictions: KL(base‖tuned) in nats per token, and the share of tokens on which
    both find the same one likeliest."""
    return {name: float(tuned[column].sum() / tuned["tokens"].sum()) for name, column in DIVERGENCE.items()}


def list_documents(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """List the nats per token of every document under every arm, what tuning gained most on first."""
    table = scores["base"][["id", "title", "tokens"]].copy()
    for arm, found in scores.items():
        table[arm] = found["nll"] / found["tokens"]
    table["tuned_minus_base"] = table["tuned"] - table["base"]
    return table.sort_values("tuned_minus_base", ignore_index=True)


def compare_arms(folder: Path, metrics: Path, params: CompareParams) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Compare what evaluate wrote of one set of documents, and say it; return the comparisons, and the scores."""
    scores = {arm: read_scores(arm, folder) for arm in ARMS}
    found = {arm: json.loads((metrics / f"{arm}.json").read_text()) for arm in ARMS}
    assert len({(arm["document"]["window_tokens"], arm["document"]["stride_tokens"]) for arm in found.values()}) == 1
    assert found["base"]["precision"] == found["tuned"]["precision"]
    tuning = compare(scores["base"], scores["tuned"], params) | divergence(scores["tuned"])
    quantizing = compare(scores["full"], scores["base"], params)
    lines = [describe("base to tuned", tuning), describe("full to base", quantizing)]
    warnings = [f"{arm}: {line}" for arm in ARMS for line in found[arm]["warnings"]]
    print(*lines, *(f"warning: {line}" for line in warnings), sep="\n")
    return {"base_to_tuned": tuning, "full_to_base": quantizing, "in_words": lines[0], "warnings": warnings}, scores


def main() -> None:
    name = read_command(__doc__, [], also={"nargs": "?", "help": "a folder of data/also/"}).also
    params = read_params(Params)
    folder, metrics = (ALSO / name, METRICS / "also" / name) if name else (SCORES, METRICS / "evaluate")
    inputs = Inputs(params, *(file for arm in ARMS for file in (folder / f"{arm}.parquet", metrics / f"{arm}.json")))
    comparisons, scores = compare_arms(folder, metrics, params.compare)
    documents = list_documents(scores)
    inputs.confirm()
    if name:
        write_metrics(f"also/{name}/compare", comparisons)
        return
    write_metrics("compare", comparisons)
    documents.to_csv(DOCUMENTS, index=False, float_format="%.6f")
    print(f"gained most on {name_extreme(documents.iloc[0])}; least on {name_extreme(documents.iloc[-1])}")
    print(f"every document: {DOCUMENTS}")


def name_extreme(document: pd.Series) -> str:
    return f"{document['title']!r} ({document['tuned_minus_base']:+.3f} nats per token)"


if __name__ == "__main__":
    main()
