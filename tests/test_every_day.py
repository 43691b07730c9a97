"""Days with Git and DVC: merges, cherry-picks, rebases, older experiments, lost caches (docs/every-day.md)."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.clone import Clone
from support.pipeline import STAGES

from commands.settle import keep_costs, merge_stages
from stages.lib.params import read_yaml

MAIN, SHEET, MARGIN = "main", "sheet", "margin"  # branches
EDITOR = ("-c", "core.editor=true")  # which leaves the message of a commit as it is


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Clone:
    """A repository that has run, with two branches: one has another seed of the sheet, one another margin."""
    clone = Clone(tmp_path_factory.mktemp("origin"))
    clone.run("dvc", "repro")
    clone.commit("Run")
    clone.run("git", "branch", "-qm", MAIN)
    for branch, changed in {SHEET: "sheet.seed=2", MARGIN: "compare.margin=0.02"}.items():
        clone.run("git", "checkout", "-qb", branch, MAIN)
        clone.run("dvc", "exp", "run", "-S", changed)
        clone.commit(changed)
    clone.run("git", "checkout", "-q", MAIN)
    clone.run("dvc", "checkout", "-q")
    return clone


@pytest.fixture
def clone(origin, tmp_path) -> Clone:
    """A colleague's clone, which shares the cache of the first."""
    origin.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Clone.at(tmp_path / "clone")
    clone.init()
    for branch in (SHEET, MARGIN):
        clone.run("git", "branch", "-q", branch, f"origin/{branch}")
    clone.run("dvc", "cache", "dir", "--local", str(origin.folder / ".dvc/cache"))
    clone.run("dvc", "checkout", "-q")
    return clone


def conflicts(clone: Clone) -> list[str]:
    return clone.run("git", "diff", "--name-only", "--diff-filter=U").split()


def settle(clone: Clone) -> set[str]:
    """Settle, and return the stages that ran: not those taken from the cache."""
    printed = clone.run("python", "-m", "commands.settle")
    assert conflicts(clone) == []
    return set(re.findall("Running stage '(.*)'", printed))


def is_settled(clone: Clone) -> bool:
    """Return whether everything is committed and nothing is to be run."""
    return clone.run("git", "status", "--porcelain") == "" and clone.stages_run("repro", "--dry") == set()


def values(clone: Clone) -> tuple[int, float]:
    params = read_yaml(clone.folder / "params.yaml")
    return params["sheet"]["seed"], params["compare"]["margin"]


def test_git_puts_no_markers_into_what_stages_write():
    listed = [out for stage in STAGES.values() for kind in ("metrics", "plots") for out in stage.get(kind, [])]
    files = ["dvc.lock", *(next(iter(out)) for out in listed)]
    told = subprocess.run(["git", "check-attr", "merge", *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert set(told.stdout.splitlines()) == {f"{file}: merge: unset" for file in files} and len(files) > 20


@pytest.mark.parametrize("command", ["merge", "cherry-pick", "rebase"])
def test_branches_come_together_and_results_come_from_the_cache(clone, command):
    clone.run("git", "checkout", "-q", SHEET)
    clone.run("dvc", "checkout", "-q")
    clone.run("git", command, MARGIN, expect=1)
    assert conflicts(clone) == ["dvc.lock"]
    assert settle(clone) <= {"check"}  # of parameters that never stood together
    going_on = {"merge": ["commit", "--no-edit"]}.get(command, [command, "--continue"])
    clone.run("git", *EDITOR, *going_on)
    assert values(clone) == (2, 0.02) and is_settled(clone)


def test_results_of_another_machine_are_merged_stage_by_stage(origin, tmp_path):
    """Its run cache is not here, only what `dvc pull` fetches of each branch."""
    origin.run("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    origin.run("dvc", "push", "-q", "--all-branches")
    origin.run("git", "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Clone.at(tmp_path / "clone")
    clone.init()
    clone.run("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    for branch in (MARGIN, SHEET):
        clone.run("git", "checkout", "-q", branch)
        clone.run("dvc", "pull", "-q")
    clone.run("git", "merge", MARGIN, expect=1)
    assert settle(clone) == {"check"}
    clone.run("git", "commit", "-q", "--no-edit")
    assert values(clone) == (2, 0.02) and is_settled(clone)


def test_a_stage_that_one_side_changed_is_that_sides():
    base, ours, theirs = ({"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 2, "b": 1, "c": 2, "e": 2}, {"a": 1, "b": 3, "c": 3})
    assert merge_stages(base, ours, theirs) == {"a": 2, "b": 3, "c": 2, "e": 2}
    assert merge_stages({}, {}, theirs) == theirs and merge_stages(base, base, {"f": 3}) == {"f": 3}


def test_what_people_must_decide_is_left_to_them(clone):
    clone.run("git", "checkout", "-qb", "more", MAIN)
    clone.edit("params.yaml", {"margin: 0.01": "margin: 0.03"})
    assert clone.stages_run("repro") >= {"check", "compare"}
    clone.commit("margin: 0.03")
    clone.run("git", "merge", MARGIN, expect=1)
    assert set(conflicts(clone)) == {"dvc.lock", "metrics/compare.json", "params.yaml"}
    told = clone.run("python", "-m", "commands.settle", expect=1)
    assert told == "params.yaml: changed on both sides: decide, `git add` it, and run again\n"
    clone.run("git", "checkout", "-q", "--theirs", "params.yaml")
    clone.run("git", "add", "params.yaml")
    assert settle(clone) == set()
    clone.run("git", "commit", "-qm", "Merge")
    assert values(clone) == (1, 0.02) and is_settled(clone)


def test_a_run_that_gives_the_same_again_leaves_git_clean(clone):
    cost = clone.folder / "metrics/cost/generate/base.json"
    before = cost.read_text()
    clone.run("dvc", "repro", "--force", "--single-item", "generate@base")
    assert cost.read_text() != before and clone.run("git", "status", "--porcelain").split()[1::2] == [
        "dvc.lock",
        "metrics/cost/generate/base.json",
    ]
    assert settle(clone) == set()
    assert cost.read_text() == before and is_settled(clone)


def test_what_an_experiment_sets_stays_and_says_so(clone):
    told = clone.run("dvc", "exp", "run", "-S", "run.checkpoint_minutes=7")
    assert "params.yaml keeps run.checkpoint_minutes: 7 (committed: 5) for later runs too; `git checkout params" in told
    assert clone.run("git", "diff", "--name-only").split() == ["dvc.lock", "params.yaml"]
    told = clone.run("dvc", "exp", "run", "--temp", "-S", "run.checkpoint_minutes=8")
    assert "keeps" not in told and "checkpoint_minutes: 7" in (clone.folder / "params.yaml").read_text()


def test_an_experiment_of_an_older_commit_is_picked_onto_todays_code(clone):
    clone.run("dvc", "exp", "run", "--name", "older", "-S", "sheet.seed=2")
    clone.run("git", "checkout", "-q", ".")
    clone.edit("stages/rate.py", {'"""Count': '"""Now count'})
    clone.stages_run("repro")
    clone.commit("Code")
    code = (clone.folder / "stages/rate.py").read_text()
    assert re.search(r"older +\| [0-9a-f]{7} +\|", clone.run("python", "-m", "commands.experiments"))

    clone.edit("README.md", {"# Fine-tune": "# Now fine-tune"})
    clone.run("dvc", "exp", "apply", "older")
    assert (clone.folder / "stages/rate.py").read_text() != code  # which is why nobody should
    clone.run("git", "checkout", "-q", ".")
    clone.run("git", "stash", "apply", "-q", "refs/exps/apply/stash")
    assert (clone.folder / "README.md").read_text().startswith("# Now fine-tune")
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q")

    experiment = re.search(r"(\w{7}) \[older\]", clone.run("dvc", "exp", "list", "--all-commits"))[1]
    clone.run("git", "cherry-pick", experiment, expect=1)
    assert conflicts(clone) == ["dvc.lock"]
    assert settle(clone) == {"rate"}
    clone.run("git", *EDITOR, "cherry-pick", "--continue")
    assert (clone.folder / "stages/rate.py").read_text() == code and values(clone)[0] == 2 and is_settled(clone)


def test_a_run_apart_takes_data_that_git_knows(clone):
    folder = clone.folder / "data/raw/mine"
    folder.mkdir()
    (folder / "one.md").write_text("A text of one's own.")
    command = ("dvc", "exp", "run", "--temp", "-S", "dataset=mine", "check")
    assert "`git add data/raw/mine` (for more than a few MB, `dvc add`), and run again" in clone.run(
        *command, expect=255
    )
    clone.run("git", "add", "data/raw/mine")
    assert "Ran experiment(s)" in clone.run(*command)
    clone.run("git", "rm", "-rq", "--cached", "data/raw/mine")
    clone.run("dvc", "add", "-q", "data/raw/mine")
    assert "Ran experiment(s)" in clone.run(*command)


def test_a_task_of_the_queue_that_failed_keeps_its_log(clone):
    clone.run("dvc", "exp", "run", "--queue", "--name", "wrong", "-S", "lora.r=eight")
    clone.run("dvc", "queue", "start")
    deadline = time.monotonic() + 60
    while re.search("Queued|Running", status := clone.run("dvc", "queue", "status")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert re.search("wrong .* Failed", status)
    assert "params.yaml: lora.r: Input should be a valid integer, found 'eight'" in clone.run(
        "dvc", "queue", "logs", "wrong"
    )
    assert is_settled(clone)
    clone.run("dvc", "queue", "remove", "--failed")


def test_results_are_settled_before_there_is_a_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    keep_costs("HEAD")


def test_a_clean_of_what_git_does_not_know_costs_nothing(clone):
    before = clone.results()
    clone.run("git", "clean", "-qfd")
    assert clone.results() == before and is_settled(clone)
    clone.run("git", "clean", "-qfdx", "-e", ".dvc")
    assert not (clone.folder / "models/adapter").exists()
    clone.run("dvc", "checkout", "-q")
    assert clone.results() == before and is_settled(clone)


def test_a_cache_that_was_lost_is_filled_from_what_is_here(origin, tmp_path):
    clone = Clone.at(Path(shutil.copytree(origin.folder, tmp_path / "copy")))
    shutil.rmtree(clone.folder / ".dvc/cache")
    assert len(clone.stages_run("repro", "--dry")) > 10
    clone.run("dvc", "commit", "--force")
    assert is_settled(clone)
    shutil.rmtree(clone.folder / "models/adapter")
    assert clone.stages_run("repro") == set()  # the adapter is in the cache again, and so is what made it
    assert clone.results() == origin.results()


def test_a_worktree_shares_the_cache_and_has_experiments(clone, tmp_path):
    clone.run("git", "worktree", "add", "-q", str(tmp_path / "tree"), MARGIN)
    tree = Clone.at(tmp_path / "tree")
    tree.run("dvc", "cache", "dir", "--local", clone.run("dvc", "cache", "dir").strip())
    tree.run("dvc", "checkout", "-q")
    assert is_settled(tree)
    assert "tried" in tree.run("dvc", "exp", "run", "--name", "tried", "-S", "sheet.seed=2")
    assert "tried" in clone.run("dvc", "exp", "list", "--all-commits")


WAITING = """
stages:
  train:
    cmd: touch {folder}/begun; until test ${{rank}} != 2 -o -e {folder}/go; do sleep 0.1; done; cp params.yaml adapter
    params: [rank]
    outs: [adapter]
"""


class Waiting(Clone):
    """A repository with one stage, which waits for a file `go` where the rank is 2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.init()
        self.run("dvc", "init", "-q")
        (self.folder / "dvc.yaml").write_text(WAITING.format(folder=folder))
        (self.folder / "params.yaml").write_text("rank: 1\n")
        self.commit("Start")

    def start(self) -> subprocess.Popen:
        command = ["dvc", "exp", "run", "--name", "first", "-S", "rank=2"]
        first = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not (self.folder.parent / "begun").exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        return first

    def finish(self, first: subprocess.Popen) -> str:
        (self.folder.parent / "go").touch()
        return first.communicate(timeout=60)[0]

    def experiments(self) -> set[str]:
        return set(self.run("dvc", "exp", "list", "--name-only").split())


def test_while_one_runs_another_may_run_apart(tmp_path):
    project = Waiting(tmp_path)
    first = project.start()
    assert "is busy, it is being blocked by" in project.run("dvc", "repro", expect=255)
    project.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "rank=3")
    assert "rank" in project.run("dvc", "params", "diff") and "first" in project.run("dvc", "exp", "show", "--csv")
    project.finish(first)
    assert first.returncode == 0 and project.experiments() == {"first", "apart"}


def test_a_second_experiment_in_the_workspace_costs_the_first_its_name_and_no_result(tmp_path):
    project = Waiting(tmp_path)
    first = project.start()
    assert "is busy" in project.run("dvc", "exp", "run", "--name", "second", expect=255)
    assert "'NoneType' object is not subscriptable" in project.finish(first)
    assert project.experiments() == set()
    assert project.stages_run("exp", "run", "--name", "first", "-S", "rank=2") == set()
    assert project.experiments() == {"first"}


def test_a_commit_made_while_an_experiment_runs_is_off_the_branch_and_can_be_picked(tmp_path):
    project = Waiting(tmp_path)
    branch = project.run("git", "branch", "--show-current").strip()
    first = project.start()
    assert project.run("git", "branch", "--show-current") == ""  # DVC has detached HEAD
    project.run("git", "commit", "-q", "--allow-empty", "-m", "Meanwhile")
    commit = project.run("git", "rev-parse", "HEAD").strip()
    project.finish(first)
    assert project.run("git", "branch", "--show-current").strip() == branch
    assert "Meanwhile" not in project.run("git", "log", "--oneline") and commit[:7] in project.run("git", "reflog")
