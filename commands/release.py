"""Merge the adapter into the base model's 16-bit weights, and tell what that changed.   models/ -> models/release/

Not a stage: `make release` runs it. models/release/ is a model like any other, for transformers and for
servers that read its files: safetensors, tokenizer, and a card with the numbers of the commit. What is released is
scored anew, on the same documents, as what it is: the arm `merged`.
"""

import json
import shutil
from pathlib import Path

from stages.lib.inputs import read_command
from stages.lib.metrics import METRICS
from stages.lib.params import Mistake, read_params
from stages.lib.records import read_record
from stages.lib.scoring.comparison import compare, describe
from stages.lib.scoring.document_scores import Evaluation, TextMetrics, read_scores, summarize
from stages.lib.scoring.protocol import CompareParams
from stages.lib.sources.source import MODELS, fetch_model, find, read_source
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

    from stages.lib.data.documents import read_documents
    from stages.lib.model.loading import ADAPTER, load_weights
    from stages.lib.model.quantization import FULL
    from stages.lib.scoring.windows import score_documents

    merge(fetch_model(params.model, ["*.json", "*.jinja", "*.safetensors"]), ADAPTER, RELEASE)
    arms = {arm: read_record(Evaluation, METRICS / "evaluate" / f"{arm}.json").document for arm in ("full", "tuned")}
    window_tokens, stride_tokens = arms["tuned"].window_tokens, arms["tuned"].stride_tokens
    documents = list(read_documents("test"))
    merged = score_documents(load_weights(RELEASE, FULL).eval(), documents, window_tokens, stride_tokens, BATCH_SIZE)
    lines = [
        describe(f"{arm} to merged", compare(read_scores(arm), merged, params.compare)) for arm in ("full", "tuned")
    ]
    (RELEASE / "README.md").write_text(card(params, arms | {"merged": summarize(merged)}, lines), encoding="utf-8")
    print(*lines, f"{RELEASE}: {sum(file.stat().st_size for file in RELEASE.iterdir()) / 1e6:,.0f} MB", sep="\n")


def merge(base: Path, adapter: Path, folder: Path) -> None:
    """Add the adapter to the base model's weights in float32, and save them in the precision they came in."""
    import torch
    from peft import PeftModel

    from stages.lib.model.loading import read_config, read_weights

    stored = read_config(base).dtype or torch.bfloat16
    model = read_weights(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    shutil.rmtree(folder, ignore_errors=True)
    merged.to(stored).save_pretrained(folder)
    for file in (file for pattern in KEPT for file in base.glob(pattern)):
        shutil.copy(file, folder)


def card(params: Params, arms: dict[str, TextMetrics], lines: list[str]) -> str:
    """Write the model's card: what it is, how it was made, what it scored."""
    source = read_source(find(MODELS, params.model))
    rows = "\n".join(
        f"| {arm} | {found.perplexity:.3f} | {found.bits_per_byte:.4f} | {found.accuracy:.2%} |"
        for arm, found in arms.items()
    )
    told = "\n".join(f"- {line}" for line in lines)
    settings = json.dumps({"lora": params.lora.model_dump(), "train": params.train.model_dump()}, indent=2)
    return f"""---
base_model: {source.repo or source.package or params.model}
library_name: transformers
pipeline_tag: text-generation
---

# {params.model}, tuned on {params.dataset}

A LoRA adapter (rank {params.lora.r}), trained on the frozen base in {params.quantization.bits} bit, merged into the
base's 16-bit weights. Held-out documents of the dataset, each scored whole:

| arm | perplexity | bits per byte | next-token accuracy |
|---|---|---|---|
{rows}

`full` is the base model, `tuned` its quantised weights with the adapter, `merged` is this.

{told}

The licences of the base model and of the text hold for this model too.

```json
{settings}
```
"""


if __name__ == "__main__":
    main()
