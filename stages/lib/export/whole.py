"""Folders that are there whole or not at all: made aside, and moved when they are finished."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.lib.params import Mistake


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside another, whose place it takes if all goes well; else both are as they were.

    What a killed process left aside is taken away by the next one.

    Raises:
        Mistake: There is no room on the disk, or no right to write.
    """
    part, old = (folder.with_name(f"{folder.name}.{state}") for state in ("part", "old"))
    _tidy(folder, part, old)
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Mistake(f"{folder}: cannot be written, and is as it was: {reason}") from None
    finally:
        _tidy(folder, part, old)


def _tidy(folder: Path, part: Path, old: Path) -> None:
    """Take away what is not finished, and what was replaced; what was moved aside and not replaced goes back."""
    shutil.rmtree(part, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
