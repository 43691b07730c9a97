"""Processes: which of several this one is, as launchers such as `accelerate launch` say, and whose child."""

import os
import threading
import time
from contextlib import suppress

import psutil


def num_processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process among them; 0 alone writes files."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return its number among those of its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def die_with_dvc() -> None:
    """End this process when the `dvc` that started it is gone, however it went.

    A killed parent cannot tell its children, and what goes on unseen would disturb the next run.
    """
    for ancestor in psutil.Process().parents():
        with suppress(psutil.Error):  # some systems keep the command lines of others to themselves
            if any(os.path.basename(word) == "dvc" for word in ancestor.cmdline()[:3]):
                threading.Thread(target=_outlive, args=[ancestor], daemon=True).start()
                return


def _outlive(ancestor: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        while ancestor.is_running() and ancestor.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(1)
