"""Metrics: what a stage found, which repeats exactly, and what it cost, which does not."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

METRICS = Path("metrics")


def write_metrics(name: str, values: dict[str, Any]) -> None:
    """Write metrics/<name>.json; the numbers in it are kept to the last digit."""
    path = METRICS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def measure_cost(name: str) -> Iterator[dict[str, float]]:
    """Write metrics/cost/<name>.json: seconds of the block, peak memory in GiB, and tokens per second.

    The memory is the GPU's as PyTorch allocated it, or the process's resident set on a CPU.
    Put the number of tokens worked on in the dictionary that this yields, as `tokens`, and the seconds
    that were not spent on them as `other_seconds`.
    """
    found: dict[str, float] = {}
    start = time.perf_counter()
    yield found
    seconds = time.perf_counter() - start
    cost = {"seconds": round(seconds, 2), "peak_gib": round(_peak_bytes() / 2**30, 3)}
    if "tokens" in found:
        cost["tokens_per_second"] = round(found["tokens"] / (seconds - found.get("other_seconds", 0)), 1)
    write_metrics(f"cost/{name}", cost)


def _peak_bytes() -> int:
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
