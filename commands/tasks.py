"""Run tasks of lm-evaluation-harness on the base model, the tuned one and the released one, and compare them in pairs.

models/ -> metrics/tasks.json, metrics/tasks.csv, data/tasks/.   Not a stage: `make tasks TASKS="hellaswag arc_easy"`
installs the harness apart and runs this. The texts of its tasks come from the Hugging Face Hub; the YAML files of tasks
of your own lie in the folder that --include names.

The released model, models/release/, is compared with the tuned one: does what is shipped still do it?
"""

# pyright: reportMissingImports=false

import argparse
import gc
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from commands.release import RELEASE, is_released
from stages.lib.history import current_adapter
from stages.lib.lines import write_lines
from stages.lib.metrics import METRICS, write_metrics
from stages.lib.model.loading import ADAPTER, arithmetic, context_tokens, load_model, load_weights
from stages.lib.model.quantization import FULL
from stages.lib.params import Mistake, read_params
from stages.lib.scoring.protocol import CompareParams
from stages.lib.scoring.task_comparison import lay_out
from stages.lib.scoring.task_history import TASKS
from stages.lib.scoring.task_scores import Results, keep, read_scores, to_csv
from stages.lib.sources.source import fetch_model
from stages.lib.training.recipe import Recipe

SAMPLES = Path("data/tasks")
SEEDS = {  # the harness's own, with which published numbers draw their few-shot examples
    "random_seed": 0,
    "numpy_random_seed": 1234,
    "torch_random_seed": 1234,
    "fewshot_random_seed": 1234,
}


class Params(Recipe):
    compare: CompareParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="names, as `lm_eval ls tasks` lists them")
    parser.add_argument("--include", type=Path, help="folder of more tasks")
    parser.add_argument("--limit", type=int, help="documents a task, the first ones")
    options = parser.parse_args()
    params = read_params(Params)
    adapter = current_adapter()
    manager = TaskManager(include_path=str(options.include) if options.include else None)
    try:
        manager.load(options.tasks)
    except (OSError, ValueError, KeyError) as error:
        raise Mistake(
            f"{' '.join(options.tasks)}: the harness cannot load this: {' '.join(str(error).split())}; expected names "
            "as `lm_eval ls tasks` lists them, or of the folder that --include names, whose data can be reached"
        ) from None
    found = run_arms(params, adapter, options.tasks, manager, options.limit)
    scores = read_scores(found)
    measured = {"adapter": adapter, "harness": version("lm_eval"), "seeds": SEEDS, "limit": options.limit}
    measured["arithmetic"] = arithmetic()
    metrics = lay_out(scores, params.compare, **measured)
    shutil.rmtree(SAMPLES, ignore_errors=True)
    for task in found["base"]["samples"]:
        rows = json.loads(json.dumps(keep(task, found), default=handle_non_serializable))
        write_lines(rows, SAMPLES / f"{task}.jsonl")
    write_metrics(TASKS, metrics)
    (METRICS / f"{TASKS}.csv").write_text(to_csv(scores), encoding="utf-8")
    print(*metrics["in_words"], f"\nevery sample: {SAMPLES}/; the report shows {METRICS}/{TASKS}.json", sep="\n")


def run_arms(
    params: Params, adapter: str, tasks: list[str], manager: TaskManager, limit: int | None
) -> dict[str, Results]:
    """Return what the harness finds of the tasks under each arm."""
    found = {}
    folder = fetch_model(params.model, ["*.json"])
    model = load_model(params.model, params.quantization, ADAPTER)
    assert isinstance(model, PeftModel)
    with model.disable_adapter():
        found["base"] = run_tasks(model, folder, tasks, manager, limit)
    found["tuned"] = run_tasks(model, folder, tasks, manager, limit)
    if is_released(adapter):
        del model
        gc.collect()
        found["released"] = run_tasks(load_weights(RELEASE, FULL), RELEASE, tasks, manager, limit)
    elif RELEASE.exists():
        print(f"{RELEASE}: not of this adapter, so it is left out; `make release` makes one that is")
    return found


class Harness(HFLM):
    """The harness's model, which begins a text with what its tokenizer puts there, and with that once."""

    def loglikelihood_rolling(self, *arguments: Any, **options: Any) -> list[float]:
        """Score whole texts, which the harness begins with BOS by itself."""
        self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(*arguments, **options)
        finally:
            self.add_bos_token = None


def run_tasks(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    tasks: list[str],
    manager: TaskManager,
    limit: int | None = None,
    window_tokens: int | None = None,
) -> Results:
    """Return what the harness finds of the tasks, and in each sample, as `question`, what its document alone asks.

    Args:
        folder: Of the tokenizer.
        window_tokens: Instead of the model's context.
    """
    harness = Harness(
        model,
        tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        max_length=window_tokens or context_tokens(model.config),
        softmax_dtype="float32",
        batch_size=4,
    )
    found = simple_evaluate(harness, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=0, **SEEDS)
    loaded = manager.load(tasks)["tasks"]
    for task, samples in found["samples"].items():
        for sample in samples:
            sample["question"] = loaded[task].doc_to_text(sample["doc"])
    return found


if __name__ == "__main__":
    main()
