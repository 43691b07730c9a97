"""Checkpoints: the states that a killed training run goes on from, and nobody else does.

They lie outside what DVC keeps, which it deletes before a stage starts, in a folder named for all that defines the run.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ValidationError

from stages.lib.inputs import loaded_code
from stages.lib.params import Mistake
from stages.lib.sources.source import MODELS, find, read_source

CHECKPOINTS = Path("models/checkpoints")
KEPT = 2  # finished checkpoints: the newest may be damaged
SEAL = "seal.json"  # written last: a checkpoint without it was never finished
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gguf")


class Seal(BaseModel):
    """What a finished checkpoint says of itself."""

    run: str  # the key of the run
    seconds: float  # worked until then
    files: dict[str, str]  # SHA-256 by name


class Checkpoints:
    """The checkpoints of one run, in the folders `checkpoint-<step>` that the Hugging Face Trainer writes.

    Args:
        key: The run's.
        root: The folder of all runs.
        minutes: The longest time without one, roughly.
    """

    def __init__(self, key: str, root: Path = CHECKPOINTS, minutes: float = math.inf) -> None:
        self.key = key
        self.minutes = minutes
        self.folder = root / key

    def seal(self, step: int, seconds: float) -> None:
        """Finish a checkpoint: from now on it counts."""
        folder = self.folder / f"checkpoint-{step}"
        seal = Seal(run=self.key, seconds=seconds, files=_digests(folder))
        unfinished = folder / f"{SEAL}.part"
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(seal.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / SEAL)
        self._rotate()

    def hold(self) -> None:
        """Keep other processes from training here at the same time, this run or another, until this one ends.

        Raises:
            Mistake: One does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder.parent / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"{self.lock.name}: another process is training here; wait for it, or stop it") from None

    def newest(self) -> tuple[Path, float] | None:
        """Return the newest whole checkpoint of this run and the seconds worked until it; delete the others after it.

        What is not whole, or of another run, is named on stdout.
        """
        for folder in sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True):
            if not (reason := self._fault(folder)):
                return folder, self._seal(folder).seconds
            print(f"{folder}: {reason}; going on from the one before it")
            shutil.rmtree(folder)
        return None

    def discard(self) -> None:
        """Delete all checkpoints of the run: it is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rotate(self) -> None:
        """Delete all but the newest finished checkpoints, and the best that they would return to."""
        finished = sorted((seal.parent for seal in self.folder.glob(f"checkpoint-*/{SEAL}")), key=_step)
        kept = {folder.resolve() for folder in finished[-KEPT:]}
        kept |= {best.resolve() for folder in finished[-KEPT:] if (best := _best(folder))}
        for folder in finished:
            if folder.resolve() not in kept:
                shutil.rmtree(folder)

    def _seal(self, folder: Path) -> Seal:
        return Seal.model_validate_json((folder / SEAL).read_text(encoding="utf-8"))

    def _fault(self, folder: Path) -> str | None:
        try:
            seal = self._seal(folder)
        except FileNotFoundError:
            return "was never finished"
        except (ValidationError, UnicodeDecodeError):
            return f"{SEAL} is damaged"
        if seal.run != self.key:
            return f"belongs to another run, {seal.run}"
        if seal.files != _digests(folder):
            return "is damaged"
        if (best := _best(folder)) and best.resolve() != folder.resolve() and self._fault(best):
            return f"needs {best}, which is not whole"
        return None


def run_key(model: str, *parts: object) -> str:
    """Name a run after all that decides its result: code, libraries, base model, and what else is given.

    Args:
        model: A folder of models/base/.
        parts: Parameters (by their text), texts (by their bytes), and the like.
    """
    source = read_source(find(MODELS, model))
    pinned = [source.repo, source.revision] if source.repo else [source.sha256] if source.sha256 else None
    weights = pinned or sorted(_digests(find(MODELS, model)).items())
    code = [file.read_bytes() for file in loaded_code()]
    digest = hashlib.sha256()
    for part in (weights, [(name, version(name)) for name in LIBRARIES], *code, *parts):
        digest.update(hashlib.sha256(part if isinstance(part, bytes | memoryview) else repr(part).encode()).digest())
    return digest.hexdigest()[:16]


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(SEAL))
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    return found


def _best(folder: Path) -> Path | None:
    best = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    return Path(best) if best else None


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
