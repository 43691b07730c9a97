"""Inputs: what a stage reads, noted when it begins and compared before it writes its results.

DVC records parameters, code and data as they are when a stage ends. Had they changed while it ran, dvc.lock would vouch
for what never ran, and the run cache would serve it to others: docs/locks.md.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from stages.lib.params import PARAMS, Mistake, Section, read_yaml

CODE = Path(__file__).parents[1]
DVCIGNORE = Path(".dvcignore")
LARGE_BYTES = 16 * 2**20  # a larger file is compared by size and time: hashing gigabytes twice takes too long
ABSENT = object()
States = dict[Path, str]  # what each file held


def read_command(
    description: str | None, names: Sequence[str] = (), **positionals: dict[str, Any]
) -> argparse.Namespace:
    """Parse a command line; surplus arguments are refused.

    Args:
        description: What `--help` shows.
        names: Those of `NAMES` that DVC fills into the command when it begins; None where a person runs the stage.
        positionals: The arguments, each with its settings for `add_argument`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, settings in positionals.items():
        parser.add_argument(name, **settings)
    for name in names:
        parser.add_argument(f"--{name}", help=f"refuse to run unless {PARAMS} still names this {name}")
    return parser.parse_args()


def loaded_code() -> list[Path]:
    """List the files of this project's code that are loaded: what has run or may run."""
    modules = [module for name, module in sys.modules.items() if name == "__main__" or name.startswith("stages.")]
    files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    return sorted(file for file in files if file.is_relative_to(CODE))


class Inputs:
    """Parameters, code and data of a stage as they were when it began.

    Args:
        params: Its sections of params.yaml, as it read them; None for a stage without parameters.
        paths: The files and folders that it is going to read.
    """

    def __init__(self, params: Section | None, *paths: Path) -> None:
        self.params = params
        self.paths = paths
        self.data = _states(paths)

    def changes(self) -> list[str]:
        """Say in a line each what is no longer as the stage read it."""
        found = []
        if self.params:
            values, then = read_yaml(PARAMS), self.params.model_dump(exclude_unset=True)
            now = {name: values[name] for name in then if name in values} if isinstance(values, dict) else values
            found = [
                f"{PARAMS}: {name or 'the whole'} was {before} when the stage began and is {after} now"
                for name, before, after in differences(then, now)
            ]
        code = loaded_code()
        then = self.data | {file: CODE_AT_START[file] for file in code if file in CODE_AT_START}
        now = _states([*self.paths, *code])
        for file in sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file)):
            what = "is new" if file not in then else "has changed" if file in now else "is gone"
            found.append(f"{os.path.relpath(file)}: {what} since the stage began")
        return found

    def confirm(self) -> None:
        """Refuse to go on where something changed since the stage began.

        Raises:
            Mistake: A line for each change.
        """
        refuse(self.changes(), "put it back or run again")


def refuse(changes: list[str], remedy: str) -> None:
    """Raise a `Mistake` where there are changes."""
    if changes:
        raise Mistake("\n".join(f"{change}; no result is written: {remedy}" for change in changes))


def differences(then: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """List the values by name that differ between two nested dictionaries: name, before, after."""
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = [(key, then.get(key, ABSENT), now.get(key, ABSENT)) for key in {**then, **now}]
        return [line for key, old, new in pairs for line in differences(old, new, f"{name}.{key}".lstrip("."))]
    if then == now:
        return []
    before, after = ("not there" if value is ABSENT else value for value in (then, now))
    return [(name, before, after)]


def _states(paths: Iterable[Path]) -> States:
    """Read the states of files, and of those in folders, that DVC does not ignore."""
    ignored = GitIgnoreSpec.from_lines(DVCIGNORE.read_text().splitlines() if DVCIGNORE.exists() else [])
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return {file: _state(file) for file in files if file.is_file() and not ignored.match_file(file)}


def _state(file: Path) -> str:
    try:
        status = file.stat()
        if status.st_size > LARGE_BYTES:
            return f"{status.st_size} bytes of {status.st_mtime_ns} ns"
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:  # gone meanwhile, or not ours to read: who reads it says so
        return str(error)


CODE_AT_START = _states(CODE.rglob("*.py"))  # this module is among the first that a stage imports
