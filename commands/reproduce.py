"""Run the pipeline of a commit again, from nothing, and tell whether its numbers come out again.   Git -> a table

Not a stage: `make reproduce REV=main` runs it. The commit is cloned apart, so that what is checked out
here stays as it is; data that DVC keeps come from the cache here, results do not: every stage runs.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stages.lib.git import git
from stages.lib.history import find_run, flatten
from stages.lib.metrics import parse_metrics
from stages.lib.params import Mistake
from stages.lib.scoring.task_history import TASKS

LEFT = ("cost/", f"{TASKS}.")  # metrics that do not repeat, or that no stage writes
TOLERANCE = 1e-3  # relative: other processors and versions round differently
UNKNOWN = "not recorded"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="a commit, branch, tag or experiment")
    run = find_run(parser.parse_args().revision)
    with tempfile.TemporaryDirectory() as folder:
        repository, project = (git("rev-parse", f"--show-{what}").strip() for what in ("toplevel", "prefix"))
        git("clone", "--quiet", "--no-checkout", repository, folder)
        git("-C", folder, "fetch", "--quiet", repository, run.commit)
        git("-C", folder, "checkout", "--quiet", run.commit)
        clone = Path(folder, project)
        before = read_metrics(clone)
        cache = subprocess.run(["dvc", "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
        dvc(clone, "cache", "dir", "--local", str(Path(cache).resolve()))
        dvc(clone, "repro", "--force", "--no-run-cache")
        after = read_metrics(clone)
    print(f"\n{run.name} ({run.commit[:7]}) again:\n")
    print(compare_environments(before, after))
    lines, different = compare_numbers(before, after)
    print(lines)
    sys.exit(1 if different else 0)


def dvc(folder: Path, *command: str) -> None:
    """Run DVC in a folder, with this environment.

    Raises:
        Mistake: It failed; it has said why.
    """
    if subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, check=False).returncode:
        raise Mistake(f"dvc {' '.join(command)} failed in a clone of the commit")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read all metrics of a checkout, by the file and the name in it."""
    found = {}
    for file in sorted((folder / "metrics").rglob("*.json")):
        name = file.relative_to(folder / "metrics").with_suffix("").as_posix()
        found |= flatten(parse_metrics(file.read_text(encoding="utf-8")), name)
    return found


def compare_environments(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Put both environments side by side."""
    place = "cost/train.environment."
    names = sorted({name for name in (*before, *after) if name.startswith(place)})
    rows = [(name.removeprefix(place), before.get(name, UNKNOWN), after.get(name, UNKNOWN)) for name in names]
    return "\n".join(["| | then | now |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""])


def compare_numbers(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, int]:
    """Tell which metrics are equal, within `TOLERANCE`, or different, and how many are different."""
    names = [name for name in dict.fromkeys((*before, *after)) if not name.startswith(LEFT)]
    sorted_out: dict[str, list[str]] = {"equal": [], "within tolerance": [], "different": []}
    for name in names:
        sorted_out[judge(before.get(name), after.get(name))].append(name)
    counts = ", ".join(f"{len(found)} {verdict}" for verdict, found in sorted_out.items())
    rows = [
        f"| {name} | {before.get(name)!s:.60} | {after.get(name)!s:.60} | {verdict} |"
        for verdict in ("different", "within tolerance")
        for name in sorted_out[verdict]
    ]
    table = ["| metric | then | now | |", "|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join([*table, f"{len(names)} metrics: {counts}"]), len(sorted_out["different"])


def judge(then: Any, now: Any) -> str:
    """Compare two values."""
    if then == now and type(then) is type(now):
        return "equal"
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (then, now))
    return "within tolerance" if numbers and math.isclose(then, now, rel_tol=TOLERANCE) else "different"


if __name__ == "__main__":
    main()
