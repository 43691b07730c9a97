"""Processes: how many train together, which of them this one is, and whose child."""

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import psutil
import pynvml
from pydantic import Field, PositiveFloat, PositiveInt

from stages.lib.params import Mistake, Section

TAKEN = []  # the open lock of the GPU that this process has taken
MISTAKES = "MISTAKES_FD"  # the environment variable that names the pipe on which workers tell their mistakes


class RunParams(Section):
    """Where and how safely training is computed."""

    processes: PositiveInt | Literal["auto"]  # on this machine; auto: one for each GPU
    checkpoint_minutes: PositiveFloat  # between states that a killed run goes on from, besides one an evaluation


Untracked = Annotated[RunParams, Field(exclude=True)]  # not in `model_dump()`, by which inputs and runs are compared


def num_processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process among them; 0 alone writes files."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return its number among those of its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def workers_to_start(asked: int | Literal["auto"]) -> int:
    """Return how many processes this one is to start; 0: it does the work, alone or as one of a launcher's."""
    if "WORLD_SIZE" in os.environ:
        return 0
    if asked == "auto":
        import torch

        asked = torch.cuda.device_count()
    return asked if asked > 1 else 0


def take_gpu() -> None:
    """Let this process see one GPU that no other run on this machine has taken, where there are several.

    It stays taken until this process ends. Where none is left, nothing changes; and processes that train together, and
    whoever sets CUDA_VISIBLE_DEVICES, choose for themselves.
    """
    if {"WORLD_SIZE", "CUDA_VISIBLE_DEVICES"} & os.environ.keys():
        return
    gpus = gpu_ids()
    for gpu in gpus if len(gpus) > 1 else []:
        path = Path(tempfile.gettempdir()) / f"{gpu}.taken"
        try:
            if not path.exists():
                path.touch()
                path.chmod(0o644)  # whoever may read it may lock it, another user too
            lock = path.open()
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            TAKEN.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return


def gpu_ids() -> list[str]:
    """Return the ids of this machine's GPUs, as NVIDIA's driver numbers them."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []


def work_in_processes(number: int) -> None:
    """Run this very command in so many processes that find each other, and exit as they do.

    They end together: when one fails, when this process is interrupted, and (`die_with_dvc`) when it is gone.

    Raises:
        Mistake: The first that one of them made; the others' are most likely the same.
    """
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // number)} | dict(os.environ) | {MISTAKES: writing}
    workers = [
        subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={name: str(value) for name, value in (shared | {"RANK": place, "LOCAL_RANK": place}).items()},
            pass_fds=[writing],
            process_group=0,  # where Ctrl-C reaches this process alone
        )
        for place in range(number)
    ]
    os.close(writing)
    told, ended = b"", [None]
    try:
        while not told and None in ended and not any(ended):
            if select.select([reading], [], [], 0.1)[0]:
                told = os.read(reading, 2**16)
            ended = [worker.poll() for worker in workers]
    finally:
        for worker in workers:  # all of them before one misses another, and says so
            worker.kill()
        for worker in workers:
            worker.wait()
    if told:
        raise Mistake(told.split(b"\0")[0].decode())
    status = next(filter(None, ended), 0)
    sys.exit(status if status >= 0 else 128 - status)  # of a signal, as a shell has it


@contextmanager
def tell_mistakes() -> Iterator[None]:
    """Let the process that started this one among others say a mistake, once, and end them all."""
    try:
        yield
    except Mistake as mistake:
        if MISTAKES in os.environ:
            os.write(int(os.environ[MISTAKES]), f"{mistake}\0".encode())
            signal.pause()  # while others still wait for this one: gone, it would make them fail in their own words
        raise


def die_with_dvc() -> None:
    """End this process when the DVC that started it is gone, however it went, or the launcher of several processes.

    A killed parent cannot tell its children, and what goes on unseen would disturb the next run. DVC tells what it
    starts so (`DVC_STAGE`); if it was gone before this process could look, a foster parent of another session is here
    in its place.
    """
    parents = psutil.Process().parents()
    if num_processes() > 1:
        threading.Thread(target=_outlive, args=parents[:1], daemon=True).start()
    elif "DVC_STAGE" in os.environ:
        starter = next(parent for parent in parents if not _is_shell(parent))
        if os.getsid(starter.pid) != os.getsid(0):
            sys.exit("the dvc that started this stage is gone")
        threading.Thread(target=_outlive, args=[starter], daemon=True).start()


def _is_shell(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # some systems keep the command lines of others to themselves
        return "-c" in process.cmdline() and "python" not in process.name()
    return False


def _outlive(ancestor: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        while ancestor.is_running() and ancestor.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.1)  # in which it may yet take a step
    os._exit(1)
