"""Cards: what a README.md says of a model, a dataset or an artifact, above all its licence, origin and scores.

A card begins with metadata in YAML between two lines `---`, as on the Hugging Face Hub.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from stages.lib.history import ADAPTER, outs_in
from stages.lib.params import Mistake, parse_yaml
from stages.lib.results import LOCK
from stages.lib.scoring.document_scores import SCORES, TextMetrics
from stages.lib.sources.source import DATASETS, MODELS, find, read_source
from stages.lib.training.recipe import Recipe

CARD = "README.md"
MADE_OF = "made_of"  # DVC's hashes of what an artifact was made of and compared with, by path


class Card(NamedTuple):
    """A README.md, its metadata apart."""

    metadata: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return f"---\n{ModelCardData(**self.metadata).to_yaml()}\n---\n{self.text}"


class Licence(NamedTuple):
    """What a licence is called on the Hub, and where it can be read if the Hub does not know it."""

    name: str
    link: str | None = None


def read_card(path: Path) -> Card:
    """Read a README.md; one that is not there says nothing.

    Raises:
        Mistake: Its metadata is no YAML.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.match(r"---\n(.*?)^---\n(.*)", text, re.S | re.M)
    metadata = parse_yaml(found[1], path) if found else None
    return Card(metadata, found[2]) if found and isinstance(metadata, dict) else Card({}, text)


def read_licences(folder: Path) -> list[Licence]:
    """Return the licences that the card of a model or a dataset names.

    Raises:
        Mistake: It names none.
    """
    metadata = read_card(folder / CARD).metadata
    names = metadata.get("license") or []
    names = names if isinstance(names, list) else [names]
    if names == ["other"]:  # one that the Hub does not know
        names = [metadata["license_name"]] if metadata.get("license_name") else []
    if not names:
        raise Mistake(
            f"{folder / CARD}: names no licence; begin it with the lines `---`, `license: mit` (or what it is), `---`"
        )
    return [Licence(str(name), metadata.get("license_link")) for name in names]


def joint_licence(licences: list[Licence]) -> dict[str, str | None]:
    """Name all the licences in the metadata of a model, which has one: several together are `other`, with their names.

    A licence that the Hub does not know is `other` too; what has a link is taken for one.
    """
    names = list(dict.fromkeys(licence.name for licence in licences))
    link = next((licence.link for licence in licences if licence.link), None)
    if len(names) == 1 and not link:
        return {"license": names[0]}
    return {"license": "other", "license_name": "-and-".join(names), "license_link": link}


def hub_name(model: str) -> str | None:
    """Return the name that a base model has on the Hub: where it comes from, or what its card says it was made of."""
    folder = find(MODELS, model)
    return read_source(folder).repo or read_card(folder / CARD).metadata.get("base_model")


def describe_origin(folder: Path, name: str) -> str:
    """Say where a model or a dataset comes from: its name, and what pins it."""
    source = read_source(folder)
    pin = f" at {source.revision}" if source.revision else ""
    return f"{name}, from the package {source.package}" if source.package else f"{name}{pin}"


def describe_artifact(model: str, dataset: str, library: str, scores: Mapping[str, float]) -> dict[str, Any]:
    """Lay out the metadata of an artifact: base, data, what it was made of, and its own scores.

    Args:
        model: A folder of models/base/.
        dataset: A folder of data/raw/.
        library: What loads it, as the Hub calls it.
        scores: Of the dataset's held-out documents, by their names.
    """
    source = read_source(find(DATASETS, dataset))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=source.repo or dataset,
            dataset_name=dataset,
            dataset_config=source.config,
            dataset_revision=source.revision,
            dataset_split="test",
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=float(value),
        )
        for name, value in scores.items()
    ]
    known = ModelCardData(
        base_model=hub_name(model),
        datasets=[source.repo] if source.repo else None,
        library_name=library,
        pipeline_tag="text-generation",
        model_name=title(model, dataset),
        eval_results=results,
    )
    return known.to_dict() | {MADE_OF: made_of()}


def title(model: str, dataset: str) -> str:
    return f"{model}, tuned on {dataset}"


def loss_scores(found: TextMetrics) -> dict[str, float]:
    """Pick the scores of held-out documents that a card shows."""
    names = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    return names | {"next_token_accuracy": found.accuracy}


def made_of() -> dict[str, str]:
    """Return DVC's hashes of the adapter, and of the scores that those of an artifact are compared with."""
    outs = outs_in(LOCK.read_text(encoding="utf-8"))
    return {path: outs[path] for path in (ADAPTER, *(f"{SCORES}/{arm}.parquet" for arm in ("full", "tuned")))}


def tabulate(arms: Mapping[str, TextMetrics]) -> str:
    """Put the scores of held-out documents in a table, a row an arm."""
    rows = [
        f"| {arm} | {found.perplexity:.3f} | {found.bits_per_byte:.4f} | {found.accuracy:.2%} |"
        for arm, found in arms.items()
    ]
    return "\n".join(["| arm | perplexity | bits per byte | next-token accuracy |", "|---|---|---|---|", *rows])


def tell_settings(recipe: Recipe) -> str:
    """Write what was set of the adapter and of training."""
    settings = json.dumps({"lora": recipe.lora.model_dump(), "train": recipe.train.model_dump()}, indent=2)
    return f"<details><summary>Settings</summary>\n\n```json\n{settings}\n```\n\n</details>"
