"""Merge the adapter into the base model's own weights, and tell what that changed.   models/ -> models/release/

Not a stage: `make release` runs it. models/release/ is a model like any other, for transformers and for
servers that read its files: safetensors, tokenizer, the chat template that was learned, and a card with the numbers of
the commit. What is released is scored anew, on the same documents, as what it is: the arm `merged`.
"""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

from stages.lib.arithmetic import require_one_arithmetic
from stages.lib.conversations.template import NAMED, OWN, Template, read_template
from stages.lib.history import current_adapter
from stages.lib.inputs import read_command
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake, read_params
from stages.lib.publishing.card import CARD, Card, describe_artifact, loss_scores, tabulate, tell_settings, title
from stages.lib.records import read_record
from stages.lib.scoring.comparison import compare, describe
from stages.lib.scoring.document_scores import Evaluation, TextMetrics, read_scores, summarize
from stages.lib.scoring.protocol import CompareParams
from stages.lib.sources.source import fetch_model
from stages.lib.training.recipe import Recipe

RELEASE = Path("models/release")
KEPT = ("tokenizer*", "special_tokens_map.json", "*.jinja", "generation_config.json")  # files, as they are
BATCH_SIZE = 4  # windows scored at once


class Params(Recipe):
    dataset: str
    compare: CompareParams


def main() -> None:
    read_command(__doc__)
    params = read_params(Params)
    if params.lora.init == "loftq":
        raise Mistake(
            "lora.init: loftq: this adapter also makes up for quantisation error, so it does not fit 16-bit weights"
        )
    release(params, current_adapter())


def release(params: Params, trained: str) -> None:
    """Make models/release/ of the adapter that dvc.lock calls `trained`, and say how it scores."""
    from stages.lib.data.documents import read_documents
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.export.adapter import check_base
    from stages.lib.export.ends import find_ends, write_ends
    from stages.lib.export.whole import whole_folder
    from stages.lib.model.loading import ADAPTER, arithmetic, load_weights
    from stages.lib.model.quantization import FULL
    from stages.lib.scoring.windows import score_documents

    check_base(ADAPTER, params.model)
    evaluations = {arm: read_record(Evaluation, read_metrics(f"evaluate/{arm}")) for arm in ("full", "tuned")}
    here = {"merged": f"merged, computed in {arithmetic()}"}
    require_one_arithmetic({arm: found.precision for arm, found in evaluations.items()} | here)
    arms = {arm: found.document for arm, found in evaluations.items()}
    window_tokens, stride_tokens = arms["tuned"].window_tokens, arms["tuned"].stride_tokens
    documents = list(read_documents("test"))
    with whole_folder(RELEASE) as folder:
        merge(fetch_model(params.model, ["*.json", "*.jinja", "*.safetensors"]), ADAPTER, folder)
        if template := read_template():
            write_template(template, folder)
        write_ends(folder, find_ends(folder, load_tokenizer(params.model, special=template is not None), template))
        model = load_weights(folder, FULL)
        merged = score_documents(model, documents, window_tokens, stride_tokens, BATCH_SIZE)
        lines = [
            describe(f"{arm} to merged", compare(read_scores(arm), merged, params.compare)) for arm in ("full", "tuned")
        ]
        told = card(params, trained, arms | {"merged": summarize(merged)}, lines)
        (folder / CARD).write_text(told, encoding="utf-8")
    print(*lines, f"{RELEASE}: {sum(file.stat().st_size for file in RELEASE.iterdir()) / 1e6:,.0f} MB", sep="\n")


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Add the adapter to the base model's weights, and save them in the precision they came in.

    Each weight is added to in float32, one after the other: they never all need the memory of float32.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    from stages.lib.model.loading import read_weights

    stored = getattr(torch, stored_dtype(base))
    model = PeftModel.from_pretrained(read_weights(base, dtype=stored), adapter)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.to(torch.float32)
            layer.merge()
            layer.to(stored)
    model.unload().save_pretrained(folder)
    for file in (file for pattern in KEPT for file in base.glob(pattern)):
        shutil.copy(file, folder)


def stored_dtype(folder: Path) -> str:
    """Return the name that PyTorch has for the precision of most of a model's weights, as its files hold them.

    config.json may name none, or another.
    """
    from safetensors import safe_open

    numbers: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no dictionary
                part = weights.get_slice(name)
                numbers[part.get_dtype()] += math.prod(part.get_shape())
    return {"F32": "float32", "F16": "float16"}.get(numbers.most_common(1)[0][0], "bfloat16")


def write_template(template: Template, folder: Path) -> None:
    """Write the template that was learned where transformers and servers look for it, unless it is the model's own."""
    if template.origin == "plain":  # it begins with what the tokenizer puts before a text, which may be nothing
        begin = json.dumps(template.tokens["bos_token"])
        (folder / OWN).write_text(f"{{%- set bos_token = {begin} -%}}\n{template.source}", encoding="utf-8")
    elif template.origin not in (OWN, f"chat_template in {NAMED}"):
        (folder / OWN).write_text(template.source, encoding="utf-8")


def is_released(adapter: str) -> bool:
    """Tell whether models/release/ is whole, and of this adapter: its card, which is written last, names it."""
    return (RELEASE / CARD).exists() and f"`{adapter}`" in (RELEASE / CARD).read_text(encoding="utf-8")


def card(params: Params, trained: str, arms: dict[str, TextMetrics], lines: list[str]) -> str:
    """Write the model's card: what it is, of which adapter, how it was made, what it scored."""
    told = "\n".join(f"- {line}" for line in lines)
    text = f"""
# {title(params.model, params.dataset)}

A LoRA adapter (rank {params.lora.r}; in dvc.lock `{trained}`), trained on the frozen base in
{params.quantization.bits} bit, merged into the base's own weights, which were not quantised. Held-out documents of the
dataset, each scored whole:

{tabulate(arms)}

`full` is the base model, `tuned` its quantised weights with the adapter, `merged` is this.

{told}

The licences of the base model and of the text hold for this model too.

{tell_settings(params)}
"""
    scores = loss_scores(arms["merged"])
    return str(Card(describe_artifact(params.model, params.dataset, "transformers", scores), text))


if __name__ == "__main__":
    main()
