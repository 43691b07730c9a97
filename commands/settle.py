"""Bring the results up to date, in the middle of a merge too.   code, data, params.yaml -> dvc.lock, metrics, plots

Not a stage: `make settle` runs it, and so does `make repro`. In a merge, cherry-pick or rebase, people decide what
code, data and parameters are to be. The results follow: what Git could not merge of dvc.lock is merged stage by stage,
and `dvc repro` takes from DVC's cache what fits, and runs what never ran. A run that gives the committed results once
more leaves on record what these cost when they were first made.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from dvc.utils.serialize import dump_yaml

from stages.lib.git import git
from stages.lib.inputs import read_command
from stages.lib.metrics import METRICS
from stages.lib.params import Mistake, parse_yaml
from stages.lib.results import LOCK

COST = METRICS / "cost"
RESULTS = (LOCK, METRICS, Path("plots"))
UNFINISHED = {  # by what Git calls the other side: how to go on
    "REBASE_HEAD": "git rebase --continue",
    "MERGE_HEAD": "git commit",
    "CHERRY_PICK_HEAD": "git cherry-pick --continue",
    "REVERT_HEAD": "git revert --continue",
}


def main() -> None:
    targets = read_command(__doc__, targets={"nargs": "*", "help": "stages to stop at; without any, all run"}).targets
    conflicts = git("diff", "--name-only", "--diff-filter=U", "--relative").splitlines()
    refuse_conflicts(conflicts)
    if str(LOCK) in conflicts:
        base, ours, theirs = (read_lock(f":{side}") for side in (1, 2, 3))
        dump_yaml(LOCK, {"schema": "2.0", "stages": merge_stages(base, ours, theirs)})
    call("stages.check")  # before DVC deletes what it is about to make anew
    call("dvc", "repro", *targets)
    unfinished = [head for head in UNFINISHED if Path(git("rev-parse", "--git-path", head).strip()).exists()]
    for revision in ("HEAD", *unfinished):
        keep_costs(revision)
    if unfinished:
        git("add", "--all", "--", *map(str, RESULTS))
        print(f"{', '.join(map(str, RESULTS))}: settled; go on with `{UNFINISHED[unfinished[0]]}`")


def call(*command: str) -> None:
    """Run a Python program, and end with its status where it fails; DVC's advice to push is kept back.

    It is given where there is no remote, too, and then fails.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    ran = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, env=environment)
    assert ran.stdout
    for line in ran.stdout:
        if not line.startswith("Use `dvc push`"):
            print(line, end="", flush=True)
    if status := ran.wait():
        sys.exit(status)


def refuse_conflicts(files: list[str]) -> None:
    """Refuse to go on where code, data or parameters have conflicts.

    Raises:
        Mistake: Names them.
    """
    undecided = [file for file in files if not any(map(Path(file).is_relative_to, RESULTS))]
    if undecided:
        raise Mistake(f"{', '.join(undecided)}: changed on both sides: decide, `git add` it, and run again")


def read_lock(revision: str) -> dict[str, Any]:
    """Read the stages in the dvc.lock of a commit, or of a side of a conflict; none where there is no such file."""
    try:
        return parse_yaml(git("show", f"{revision}:./{LOCK}"), LOCK)["stages"]
    except Mistake:
        return {}


def merge_stages(base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Merge dvc.lock stage by stage: what their side alone changed is theirs, all else ours."""
    chosen = {name: theirs if ours.get(name) == base.get(name) else ours for name in ours | theirs}
    return {name: side[name] for name, side in chosen.items() if name in side}


def keep_costs(revision: str) -> None:
    """Put back what the results of a commit cost, where the run that is here now gave the very same results."""
    with suppress(Mistake):  # there is no commit yet
        if not git("diff", "--name-only", revision, "--", str(LOCK)):
            return  # the same
    lock = parse_yaml(LOCK.read_text(encoding="utf-8"), LOCK)
    repeated = find_repeated(lock["stages"], read_lock(revision))
    if not repeated:
        return
    costs = [path for stage in repeated.values() for path in map(path_of, stage["outs"]) if path.is_relative_to(COST)]
    for path in costs:
        path.write_text(git("show", f"{revision}:./{path}"), encoding="utf-8")
    dump_yaml(LOCK, lock | {"stages": lock["stages"] | repeated})
    git("add", "--", *map(str, (LOCK, *costs)))  # as DVC has done with those of the run


def find_repeated(now: dict[str, Any], committed: dict[str, Any]) -> dict[str, Any]:
    """Return the committed entries of the stages whose entries in dvc.lock differ in nothing but cost."""

    def without_cost(stage: dict[str, Any]) -> dict[str, Any]:
        return stage | {"outs": [out for out in stage["outs"] if not path_of(out).is_relative_to(COST)]}

    return {
        name: committed[name]
        for name, stage in now.items()
        if name in committed and stage != committed[name] and without_cost(stage) == without_cost(committed[name])
    }


def path_of(out: dict[str, Any]) -> Path:
    """Return the path of an output in dvc.lock."""
    return Path(out["path"])


if __name__ == "__main__":
    main()
