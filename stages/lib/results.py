"""Results of the last run, put back where a stage refuses to run: DVC deletes them before the stage can look."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.lib.params import Mistake, parse_yaml

LOCK = Path("dvc.lock")


@contextmanager
def results_kept() -> Iterator[None]:
    """Put back, where a mistake ends a stage of DVC's, what the last run left; a stage run by hand has lost nothing.

    Of several processes, the one that started the others does so.
    """
    try:
        yield
    except Mistake:
        if "DVC_STAGE" in os.environ and "WORLD_SIZE" not in os.environ:
            put_back(os.environ["DVC_STAGE"])
        raise


def put_back(stage: str) -> None:
    """Take the outputs that dvc.lock names from DVC's cache, or from Git; those that are in neither stay away."""
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet", stage], capture_output=True, check=False)
    locked = parse_yaml(LOCK.read_text(encoding="utf-8"), LOCK)["stages"] if LOCK.exists() else {}
    for output in locked.get(stage, {}).get("outs", []):
        path = Path(output["path"])
        if path.exists():
            continue
        staged = subprocess.run(["git", "show", f":./{path.as_posix()}"], capture_output=True, check=False).stdout
        if hashlib.md5(staged, usedforsecurity=False).hexdigest() == output["md5"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(staged)
