"""Run tasks of lm-evaluation-harness on the base model and the tuned one.   models/ -> a table on stdout

Not a stage: `make tasks TASKS="hellaswag arc_easy"` installs the harness apart and runs this. The texts of
its tasks come from the Hugging Face Hub; the YAML files of tasks of your own lie in the folder that --include names.
"""

# pyright: reportMissingImports=false

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.model.loading import ADAPTER, context_tokens, load_model
from stages.lib.params import read_params
from stages.lib.sources.source import fetch_model
from stages.lib.training.recipe import Recipe


class TaskScore(NamedTuple):
    """What the harness found of a task by a metric."""

    task: str
    metric: str
    filter: str  # of the answers, such as `none`
    value: float
    error: float | None  # standard error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="names, as `lm_eval ls tasks` lists them")
    parser.add_argument("--include", type=Path, help="folder of more tasks")
    parser.add_argument("--limit", type=int, help="examples a task")
    options = parser.parse_args()
    params = read_params(Recipe)
    model = load_model(params.model, params.quantization, ADAPTER)
    assert isinstance(model, PeftModel)
    tokenizer = AutoTokenizer.from_pretrained(fetch_model(params.model, ["*.json"]), trust_remote_code=False)
    run = {"tasks": options.tasks, "include": options.include, "limit": options.limit}
    with model.disable_adapter():
        base = run_tasks(model, tokenizer, **run)
    print(table(base, run_tasks(model, tokenizer, **run)))


def run_tasks(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    include: Path | None,
    limit: int | None = None,
    window_tokens: int | None = None,
) -> list[TaskScore]:
    """Return what the harness finds of the tasks."""
    harness = HFLM(
        model,
        tokenizer=tokenizer,
        max_length=window_tokens or context_tokens(model.config),
        add_bos_token=False,
        softmax_dtype="float32",
        batch_size=4,
    )
    manager = TaskManager(include_path=str(include) if include else None)
    found = simple_evaluate(harness, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=1000)
    return read_results(found["results"])


def read_results(results: dict[str, dict[str, Any]]) -> list[TaskScore]:
    """Read the harness's results: a dictionary a task, whose keys are `metric,filter` and `metric_stderr,filter`."""
    scores = []
    for task, found in results.items():
        for name, value in found.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{kind}")
                scores.append(TaskScore(task, metric, kind, value, error if isinstance(error, float) else None))
    return scores


def table(base: list[TaskScore], tuned: list[TaskScore]) -> str:
    """Put the numbers of both side by side, with the harness's standard errors."""
    lines = ["| task | metric | base | tuned |", "|---|---|---|---|"]
    for before, after in zip(base, tuned, strict=True):
        lines.append(f"| {before.task} | {before.metric} | {_with_error(before)} | {_with_error(after)} |")
    return "\n".join(lines)


def _with_error(score: TaskScore) -> str:
    return f"{score.value:.4f}" + ("" if score.error is None else f" ± {score.error:.4f}")


if __name__ == "__main__":
    main()
