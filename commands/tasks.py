"""Run tasks of lm-evaluation-harness on the base model and the tuned one.   models/ -> a table on stdout

Not a stage: `make tasks TASKS="hellaswag arc_easy"` installs the harness apart and runs this. The texts of
its tasks come from the Hugging Face Hub; the YAML files of tasks of your own lie in the folder that --include names.
"""

import argparse
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.model.loading import ADAPTER, context_tokens, load_model
from stages.lib.params import read_params
from stages.lib.sources.source import fetch_model
from stages.lib.training.recipe import Recipe


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
) -> dict[str, dict[str, Any]]:
    """Return what the harness found, by task and `metric,filter`."""
    harness = HFLM(
        model,
        tokenizer=tokenizer,
        max_length=window_tokens or context_tokens(model.config),
        add_bos_token=False,
        softmax_dtype="float32",
        batch_size=4,
    )
    manager = TaskManager(include_path=str(include) if include else None)
    return simple_evaluate(harness, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=1000)["results"]


def table(base: dict[str, dict[str, Any]], tuned: dict[str, dict[str, Any]]) -> str:
    """Put the numbers of both side by side, with the harness's standard errors."""
    lines = ["| task | metric | base | tuned |", "|---|---|---|---|"]
    for task, found in base.items():
        for name, value in found.items():
            metric, _, kind = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                cells = [_with_error(arm[task], metric, kind) for arm in (base, tuned)]
                lines.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_error(found: dict[str, Any], metric: str, kind: str) -> str:
    error = found.get(f"{metric}_stderr,{kind}")
    return f"{found[f'{metric},{kind}']:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")


if __name__ == "__main__":
    main()
