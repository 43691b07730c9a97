"""The rows of a dataset on the Hugging Face Hub: of one configuration, at one commit, read from verified files.

`datasets` reads a folder of links to these files alone, row by row: it asks the Hub nothing, sees nothing that lies
beside them, and keeps no cache of its own, in which two commits could be mixed or bytes change.
"""

import json
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import ArrowException

from stages.lib.params import Mistake
from stages.lib.sources import hub

CARDS = ["README.md", ".huggingface.yaml"]  # their front matter says which files are whose; the second goes first


def read_splits(repo: str, revision: str, config: str | None, where: Path) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield each split's name and rows.

    Args:
        repo: The dataset's name, owner/name.
        revision: The commit.
        config: The name of one of its configurations; None for the default one.
        where: The source.yaml that says so, for messages.

    Raises:
        Mistake: It cannot be had, or `datasets` cannot read it; rows that it cannot read raise likewise.
    """
    import datasets  # slow to import

    card = read_card(hub.fetch("dataset", repo, revision, CARDS, where), where)
    what = f"{where}: {repo} at {revision}"
    chosen = choose(card.get("configs") or [], config, what)
    patterns = needed(chosen, what) if chosen else None
    if not chosen and f"{posixpath.basename(repo)}.py" in (hub.listing("dataset", repo, revision, None) or {}):
        raise Mistake(f"{what}: it is made by a script, and scripts are never run; name a dataset that holds its rows")
    folder = hub.fetch("dataset", repo, revision, patterns, where)
    files = hub.listing("dataset", repo, revision, patterns) or {}
    with tempfile.TemporaryDirectory() as view:
        for name in set(files) - set(CARDS):
            link = Path(view, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder / name)
        configs = {"configs": [chosen]} if chosen else {}
        Path(view, CARDS[0]).write_text(f"---\n{json.dumps(card | configs, default=str)}\n---\n", encoding="utf-8")
        with _refused_in_words(what):
            splits = datasets.load_dataset(view, chosen["config_name"] if chosen else config, streaming=True)
        for name, rows in splits.items():
            yield str(name), _each(rows, what)


def _each(rows: Iterable[Any], what: str) -> Iterator[Any]:
    with _refused_in_words(what):
        yield from rows


@contextmanager
def _refused_in_words(what: str) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError, ArrowException) as error:
        raise Mistake(f"{what}: `datasets` cannot read it: {' '.join(str(error).split())[:300]}") from None


def read_card(folder: Path, where: Path) -> dict[str, Any]:
    """Read what a dataset's card says of its configurations."""
    import yaml  # as `datasets` reads it
    from huggingface_hub import metadata_load

    readme, overriding = (folder / name for name in CARDS)
    try:
        card = (metadata_load(readme) if readme.exists() else None) or {}
        return card | ((yaml.safe_load(overriding.read_text()) if overriding.exists() else None) or {})
    except (ValueError, yaml.YAMLError) as error:
        raise Mistake(f"{where}: {readme}: its front matter is not YAML: {' '.join(str(error).split())}") from None


def choose(configs: list[dict[str, Any]], name: str | None, what: str) -> dict[str, Any] | None:
    """Return the named configuration, or without a name the default one; None where the card names none at all."""
    if not configs:
        return None
    named = {str(config.get("config_name")): config for config in configs}
    defaults = [key for key, config in named.items() if key == "default" or config.get("default") or len(named) == 1]
    chosen = name or (defaults[0] if len(defaults) == 1 else None)
    if chosen not in named:
        found = f"config: {name}: no such configuration" if name else "config: missing"
        raise Mistake(f"{what}: {found}; there are {', '.join(sorted(named))}")
    return named[chosen]


def needed(config: dict[str, Any], what: str) -> list[str] | None:
    """Return globs of the files that a configuration reads, and perhaps of some more; None if it may be any.

    `datasets` and the Hub's client differ in what a glob matches, so each is cut where it stops being literal.
    """
    data_dir, data_files = config.get("data_dir"), config.get("data_files")
    if data_files is None:
        paths = [f"{data_dir}/**"] if data_dir else ["**"]
    else:
        entries = [data_files] if isinstance(data_files, str) else data_files
        paths = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
        paths = [path for group in paths for path in ([group] if isinstance(group, str) else group)]
        paths = [posixpath.join(data_dir or "", path) for path in paths]
    found = []
    for path in paths:
        if "://" in path or path.startswith("/") or ".." in path.split("/"):
            raise Mistake(f"{what}: its card names {path}, which lies elsewhere, so that the commit does not pin it")
        literal = re.split(r"[*?\[{]", posixpath.normpath(path), maxsplit=1)[0]
        found += [f"{literal}*"] if literal != posixpath.normpath(path) else [literal, f"{literal}/*"]
    return None if "*" in found else found
