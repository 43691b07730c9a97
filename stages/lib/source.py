"""Models and datasets by name: a name is a folder, or a folder that pins a source on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    offline = not hub_answers()
    try:
        return Path(
            snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns, local_files_only=offline)
        )
    except (HfHubHTTPError, OSError) as error:
        raise not_given(folder, source, offline, error) from None


def hub_answers() -> bool:
    """Try the Hugging Face Hub once: without a network its client would go on trying for half a minute."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
    except HTTPError:  # a refusal is an answer too
        return True
    except OSError:
        return False
    return True


def not_given(folder: Path, source: Source, offline: bool, error: Exception) -> Mistake:
    """Say in one line why a Hub source could not be had, and what to do."""
    what = f"{folder / SOURCE}: {source.repo} at {source.revision}"
    if offline:
        return Mistake(f"{what}: the Hugging Face Hub does not answer, and its cache here lacks it; check the network")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Mistake(
        f"{what}: the Hugging Face Hub did not give it: {reason} "
        "(if it is gated, accept its licence there and run `hf auth login`)"
    )
