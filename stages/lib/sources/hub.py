"""Files of the Hugging Face Hub at one commit: fetched by the Hub's client, compared with their hashes, once.

Beside what it fetched, the client keeps the listing of every file of a commit, with its hash. The listing proves that
nothing is missing, and `verified/<commit>.json`, written here beside it, that a file had its hash: where both hold,
nothing is asked of the network. Another commit, or a folder of the same name, is never read instead.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from stages.lib.params import Mistake
from stages.lib.sources.files import Stamp, git_blob_sha1, sha256, stamp, write_whole

Kind = Literal["model", "dataset"]
OTHER = {"model": ["*/*"], "dataset": None}  # of a model, folders hold what is not loaded: other formats, older states


def fetch(kind: Kind, repo: str, revision: str, patterns: list[str] | None, where: Path) -> Path:
    """Return the folder that holds a repository's files at a commit, fetched and verified if they were not before.

    Args:
        kind: What the repository holds.
        repo: Its name, owner/name.
        revision: The commit, 40 hexadecimal digits.
        patterns: The files wanted, as globs in which `*` matches `/` too; None for all.
        where: The source.yaml that names them, for messages.

    Raises:
        Mistake: The Hub did not give a file, or not as it lists it.
    """
    folder = _cache(kind, repo) / "snapshots" / revision
    record = _cache(kind, repo) / "verified" / f"{revision}.json"
    what = f"{where}: {repo} at {revision}"
    if (files := listing(kind, repo, revision, patterns)) is not None and not _unverified(files, folder, record):
        return folder
    incomplete = files is None or any(stamp(folder / name) is None for name in files)
    if incomplete and (reason := _download(kind, repo, revision, patterns)):
        raise Mistake(f"{what}: {reason}")
    if (files := listing(kind, repo, revision, patterns)) is None:
        raise Mistake(
            f"{what}: its listing cannot be kept in {folder.parents[1]}; is there room, and a right to write?"
        )
    if damaged := _verify(files, folder, record):
        name, found = next(iter(damaged.items()))
        what = f"{where}: {repo}/{name} at {revision}: expected the hash {files[name]}, found {found}"
        if reason := _discard(folder, damaged) or _download(kind, repo, revision, patterns):
            raise Mistake(f"{what}; fetching it again failed: {reason}")
        if _verify(files, folder, record):
            raise Mistake(f"{what}, and again when fetched anew; delete {folder.parent.parent} and run again")
    return folder


def listing(kind: Kind, repo: str, revision: str, patterns: list[str] | None) -> dict[str, str] | None:
    """Return the hash of each file of a commit (SHA-256, or Git's SHA-1 of small ones) if its listing is cached."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    try:
        entries = get_cached_repo_tree(repo, repo_type=kind, revision=revision)
    except CachedRepoTreeNotFoundError:
        return None
    hashes = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries}
    wanted = filter_repo_objects(hashes, allow_patterns=patterns, ignore_patterns=OTHER[kind])
    return {name: hashes[name] for name in wanted}


def _cache(kind: Kind, repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / repo_folder_name(repo_id=repo, repo_type=kind)


def _read(record: Path) -> dict[str, Stamp]:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a damaged record is no record
        return {}


def _unverified(files: dict[str, str], folder: Path, record: Path) -> list[str]:
    known = _read(record)
    return [name for name in files if name not in known or stamp(folder / name) != known[name]]


def _verify(files: dict[str, str], folder: Path, record: Path) -> dict[str, str]:
    """Compare files with their hashes unless the record says so already; return the hashes found of those that differ.

    A file is compared with what the Hub lists: the name of its blob is not kept by a cache without links.
    """
    right, damaged = {}, {}
    for name in _unverified(files, folder, record):
        before = stamp(folder / name)
        digest = sha256 if len(files[name]) == 64 else git_blob_sha1
        found = digest(folder / name) if before else "no file"
        if found == files[name]:
            right[name] = before
        else:
            damaged[name] = found
    with suppress(OSError):  # a cache that is not ours to write in is verified each time
        write_whole(record, json.dumps(_read(record) | right, indent=1))
    return damaged


def _discard(folder: Path, names: Iterable[str]) -> str | None:
    """Delete files of the cache and the blobs that they link to, which would be linked to again; return why not."""
    try:
        for name in names:
            (folder / name).resolve().unlink(missing_ok=True)
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        return f"{error.filename} cannot be deleted: {error.strerror}"
    return None


def _download(kind: Kind, repo: str, revision: str, patterns: list[str] | None) -> str | None:
    """Let the Hub's client fetch what it lacks; return why it could not."""
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        lacks = "lacks files" if listing(kind, repo, revision, None) else "has no listing, which tells which there are,"
        return f"HF_HUB_OFFLINE is set, and the cache in {constants.HF_HUB_CACHE} {lacks} of this commit; unset it"

    from stages.lib.sources.network import FAILURES, NO_HUB, explain, few_tries

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        with few_tries(page):
            snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=OTHER[kind]
            )
    except FAILURES as error:
        return explain(error)
    if listing(kind, repo, revision, None) == {}:
        (_cache(kind, repo) / "trees" / f"{revision}.json").unlink(missing_ok=True)
        return NO_HUB
    return None
