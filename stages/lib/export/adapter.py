"""The adapter as others load it: of which base it is, and whether a server takes it."""

import json
from pathlib import Path
from typing import Any

from stages.lib.params import Mistake
from stages.lib.sources.source import MODELS, find, read_source

CONFIG = "adapter_config.json"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read what peft keeps of an adapter beside its weights."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def check_base(folder: Path, model: str) -> None:
    """Refuse an adapter that names another base model, or another commit of it, than it was trained on.

    Args:
        folder: The adapter's.
        model: A folder of models/base/.

    Raises:
        Mistake: Says what it names.
    """
    source, config = read_source(find(MODELS, model)), read_adapter_config(folder)
    expected = (source.repo or f"{MODELS}/{model}", source.revision)
    found = (config["base_model_name_or_path"], config.get("revision"))
    if found != expected:
        told = [" at ".join(filter(None, pair)) for pair in (expected, found)]
        raise Mistake(
            f"{folder / CONFIG}: expected the base {told[0]}, on which it was trained, found {told[1]}; "
            "`dvc checkout models/adapter` or `dvc repro` puts the adapter back"
        )


def vllm_lines(folder: Path, model: str, merged: Path) -> list[str]:
    """Return the commands with which vLLM serves the merged model and the adapter, or say why it cannot take it."""
    config, source = read_adapter_config(folder), read_source(find(MODELS, model))
    rank = max([config["r"], *config.get("rank_pattern", {}).values()])
    limit = next((limit for limit in VLLM_RANKS if limit >= rank), None)
    why = {
        "it is no DoRA": config.get("use_dora"),
        "it trains no whole modules": config.get("modules_to_save"),
        f"its rank is at most {VLLM_RANKS[-1]}": limit is None,
        "its base model is on the Hub": source.repo is None,
    }
    lines = [f"vllm serve {merged}"]
    if unmet := [need for need, missing in why.items() if missing]:
        return [*lines, f"# the adapter alone: no; vLLM takes one if {' and '.join(unmet)}"]
    at = f" --revision {source.revision}" if source.revision else ""
    return [
        *lines,
        f"vllm serve {source.repo}{at} --enable-lora --max-lora-rank {limit} --lora-modules tuned={folder}",
    ]
