"""Put the few numbers that decide in one file: all that DVC shows of metrics.   metrics/ -> metrics/summary.json

DVC lists them by name: what decides comes first. Run by `dvc repro summarize`; alone: `python -m stages.summarize`.
"""

from typing import Any

from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import METRICS, read_metrics, write_summary

READ = ("answers", "compare", "evaluate/tuned")


def summarize(answers: dict[str, Any], compared: dict[str, Any], tuned: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Pick the score that decides on answers, where there are any, and what tuning and experiments are judged by."""
    summary = {}
    if answers["answers"]:
        summary["answers"] = {answers["metric"]: answers[answers["metric"]]["tuned"]}
    summary["perplexity"] = {"ratio": compared["base_to_tuned"]["perplexity_ratio"]}
    if "validation" in tuned:  # of the tuned model, on documents that have no part in its verdict
        summary["validation"] = {"perplexity": tuned["validation"]["perplexity"]}
    return summary


def main() -> None:
    read_command(__doc__, [])
    inputs = Inputs(None, *(METRICS / f"{name}.json" for name in READ))
    summary = summarize(*map(read_metrics, READ))
    inputs.confirm()
    write_summary(summary)
    print(*(f"{name}.{key}: {value:.4f}" for name, found in summary.items() for key, value in found.items()), sep="\n")


if __name__ == "__main__":
    main()
