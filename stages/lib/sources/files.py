"""Files outside the repository: where they are kept, and how they are known to be the same as before."""

import hashlib
import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fine-tune-and-compare"

Stamp = list[int]  # a file's size in bytes and its time of last change in nanoseconds, as JSON gives it back


def stamp(path: Path) -> Stamp | None:
    """Return what tells cheaply that a file has not changed since its content was looked at; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(path: Path) -> str:
    """Return the name that Git gives to a file's content."""
    with path.open("rb") as file:
        begun = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        return hashlib.file_digest(file, lambda: begun).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
