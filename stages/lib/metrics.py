"""Metrics: what a stage found, which repeats exactly, and what it cost, which does not."""

import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pynvml

METRICS = Path("metrics")
SUMMARY = "summary"
CPUINFO = Path("/proc/cpuinfo")


def write_metrics(name: str, values: dict[str, Any]) -> None:
    """Write metrics/<name>.json; the numbers in it are kept to the last digit.

    They stand in a list of one record, because DVC passes over lists: each number outside of one is a line of `dvc
    metrics diff` and a column of `dvc exp show`. What these are to show, `summarize` writes with `write_summary`.
    """
    _write(name, [values])


def write_summary(values: dict[str, Any]) -> None:
    """Write metrics/summary.json, the numbers that DVC shows."""
    _write(SUMMARY, values)


def read_metrics(name: str) -> dict[str, Any]:
    """Read metrics/<name>.json."""
    return parse_metrics((METRICS / f"{name}.json").read_text(encoding="utf-8"))


def parse_metrics(text: str) -> dict[str, Any]:
    """Read the text of metrics; those of old commits stand in no list."""
    found = json.loads(text)
    return found[0] if isinstance(found, list) else found


def _write(name: str, values: Any) -> None:
    path = METRICS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def measure_cost(name: str) -> Iterator[dict[str, Any]]:
    """Write metrics/cost/<name>.json: seconds of the block, peak memory in GiB, and where a GPU tells it, energy.

    The memory is what PyTorch allocated of this process's GPU, or the process's resident set on a CPU.
    The energy, in watt-hours, is all that the GPU took meanwhile, for whomever.
    What is put in the dictionary that this yields is written too; `tokens` worked on become tokens per second.
    """
    found: dict[str, Any] = {}
    start, joules = time.perf_counter(), _gpu_joules()
    yield found
    seconds = time.perf_counter() - start
    cost = {"seconds": seconds, "peak_gib": peak_bytes() / 2**30}
    if joules is not None and (now := _gpu_joules()) is not None:
        cost["watt_hours"] = (now - joules) / 3600
    if "tokens" in found:
        cost["tokens_per_second"] = found.pop("tokens") / seconds
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in (cost | found).items()}
    write_metrics(f"cost/{name}", rounded)


def environment() -> dict[str, str]:
    """Name what results can depend on besides code, parameters and data: hardware, and versions of libraries."""
    torch = sys.modules["torch"]
    cpu = re.search(r"^model name\s*: (.*)$", CPUINFO.read_text(), re.M) if CPUINFO.exists() else None
    libraries = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def peak_bytes() -> int:
    """Return the most that PyTorch allocated of this process's GPU, or the process's largest resident set on a CPU."""
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _gpu_joules() -> float | None:
    """Read the energy counter of this process's GPU: NVML has one since Volta."""
    torch = sys.modules["torch"]
    if not torch.cuda.is_available():
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # it counts in millijoules
    except pynvml.NVMLError:
        return None
