"""A repository of its own, in which the real pipeline runs."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from conftest import REPOSITORY, write_params

from stages.lib.metrics import parse_metrics

SMALLER = {  # than `TEXT`
    "prepare.train_fraction": 0.1,
    "prepare.validation_fraction": 0.02,
    "prepare.test_fraction": 0.05,
    "train.epochs": 1,
    "train.block_tokens": 128,
    "generate.max_new_tokens": 4,
}


def results(folder: Path) -> dict[str, str]:
    """Return a hash of each file that must repeat: metrics but for cost, curves, scores, answers, adapter."""
    kept = [path for top in ("metrics", "plots", "data", "models/adapter") for path in (folder / top).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in kept
        if path.is_file() and "cost" not in path.parts
    }


class Clone:
    """A repository of its own, with the files of this one and a small run's parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True
        )
        for name in listed.stdout.decode().strip("\0").split("\0"):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / name)
        write_params(folder, SMALLER)
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.init()
        self.commit("Start")

    @classmethod
    def at(cls, folder: Path) -> "Clone":
        """Return a repository that is there already."""
        clone = cls.__new__(cls)
        clone.folder = folder
        return clone

    def init(self) -> None:
        """Make the folder a repository in which there is somebody to commit; one that is there already stays."""
        self.run("git", "init", "-q")
        for setting in ("user.name=Tester", "user.email=tester@example.org"):
            self.run("git", "config", *setting.split("="))

    def run(self, *command: str, expect: int = 0) -> str:
        """Run a command and return what it printed."""
        ran = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert ran.returncode == expect, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def stages_run(self, *command: str) -> set[str]:
        """Run a command of DVC and return the stages that it ran (not those it took from the cache)."""
        return set(re.findall("Running stage '(.*)'", self.run("dvc", *command)))

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def edit(self, name: str, changes: dict[str, str]) -> None:
        text = (self.folder / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new, 1)
        (self.folder / name).write_text(text)

    def read_metrics(self, name: str) -> dict:
        return parse_metrics((self.folder / "metrics" / f"{name}.json").read_text())

    def results(self) -> dict[str, str]:
        return results(self.folder)
