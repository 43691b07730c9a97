"""Models and datasets by name: a name is a folder, or a folder that pins a source on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.lib import hub
from stages.lib.params import Mistake, Section, check, read_yaml

MODELS = Path("models/base")
DATASETS = Path("data/raw")
SOURCE = "source.yaml"


class Source(Section):
    """What a `source.yaml` says of the folder it stands in."""

    repo: str | None = None  # owner/name on the Hub; without it the folder holds the thing itself
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None  # a commit, so that it cannot change
    config: str | None = None  # of a dataset that has several
    documents: Literal["wikitext"] | None = None  # pages start at ` = Title = ` lines; otherwise one document a row

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        if (self.repo is None) != (self.revision is None):
            raise ValueError("repo and revision (a commit of 40 hexadecimal digits) go together")
        return self


def find(root: Path, name: str) -> Path:
    """Return the folder of a model or dataset.

    Args:
        root: `MODELS` or `DATASETS`.

    Raises:
        Mistake: No folder has that name; lists those there are.
    """
    names = sorted(folder.name for folder in root.glob("*/"))
    if name not in names:
        raise Mistake(f"params.yaml: {root}/{name}: no such folder; the names there are: {', '.join(names)}")
    return root / name


def read_source(folder: Path) -> Source:
    """Read a folder's `source.yaml`; a folder without one is its own source."""
    path = folder / SOURCE
    return check(read_yaml(path) or {}, Source, path) if path.exists() else Source()


def fetch_model(name: str, patterns: list[str]) -> Path:
    """Return the local folder of a base model, downloaded into the Hub's cache if need be.

    Args:
        name: A folder of models/base/.
        patterns: The files wanted from the Hub, as globs.

    Raises:
        Mistake: Unknown name, or the Hub did not give the files.
    """
    folder = find(MODELS, name)
    source = read_source(folder)
    if source.repo is None:
        return folder
    return hub.fetch("model", source.repo, source.revision, patterns, folder / SOURCE)
