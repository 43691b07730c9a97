"""The real pipeline, on what the repository ships, with less training: `dvc repro` and what re-runs when."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stages.prepare import hash_position

REPOSITORY = Path(__file__).parents[1]
SMALLER = {  # of params.yaml
    "train_fraction: 1.0": "train_fraction: 0.1",
    "validation_fraction: 0.1": "validation_fraction: 0.02",
    "test_fraction: 0.2": "test_fraction: 0.05",
    "epochs: 3": "epochs: 1",
    "block_tokens: 512": "block_tokens: 128",
    "max_new_tokens: 64": "max_new_tokens: 4",
}
EVERYTHING = {
    *("check", "prepare", "train", "compare", "draw", "evaluate@full", "evaluate@base", "evaluate@tuned"),
    *("generate@base", "generate@tuned", "sheet", "rate"),
}
AFTER_TRAINING = {"train", "evaluate@tuned", "generate@tuned", "compare", "draw", "sheet", "rate"}


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
        self.edit("params.yaml", SMALLER)
        (folder / "dvc.lock").unlink(missing_ok=True)
        self.run("git", "init", "-q")
        for setting in ("user.name=Tester", "user.email=tester@example.org"):
            self.run("git", "config", *setting.split("="))
        self.commit("Start")

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

    def results(self) -> dict[str, str]:
        """Return a hash of each file that must repeat: metrics but for cost, curves, scores, answers, adapter."""
        kept = [
            path for top in ("metrics", "plots", "data", "models/adapter") for path in (self.folder / top).rglob("*")
        ]
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in kept
            if path.is_file() and "cost" not in path.parts
        }


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("clone"))
    assert clone.stages_run("repro") == EVERYTHING
    clone.commit("Run")
    return clone


def test_the_results_are_there_and_sane(clone):
    arms = {
        arm: json.loads((clone.folder / f"metrics/evaluate/{arm}.json").read_text())["document"]
        for arm in ("full", "base", "tuned")
    }
    counts = {(found["documents"], found["tokens"], found["bytes"]) for found in arms.values()}
    assert len(counts) == 1
    assert all(1.0 < found["bits_per_byte"] < 1.7 for found in arms.values())
    assert arms["full"]["nll"] < arms["base"]["nll"]
    comparison = json.loads((clone.folder / "metrics/compare.json").read_text())["base_to_tuned"]
    assert comparison["nll_difference"] == pytest.approx(arms["tuned"]["nll"] - arms["base"]["nll"], abs=1e-12)
    table = (clone.folder / "data/ratings/results.md").read_text().splitlines()
    assert len(table) == 2 + len((clone.folder / "data/prompts.txt").read_text().splitlines())
    assert "no ratings yet" in json.loads((clone.folder / "metrics/human.json").read_text())["in_words"]


def test_nothing_runs_twice(clone):
    assert clone.stages_run("repro") == set()
    assert clone.run("git", "status", "--porcelain") == ""


def test_what_dvc_shows(clone):
    shown = clone.run("dvc", "metrics", "show", "--md")
    assert all(f"metrics/{name}.json" in shown for name in ("prepare", "train", "compare", "evaluate/tuned"))
    clone.run("dvc", "plots", "show", "-o", "shown")
    page = (clone.folder / "shown" / "index.html").read_text()
    assert "Loss (nats per token)" in page and "Learning rate" in page
    shutil.rmtree(clone.folder / "shown")


def test_a_second_run_from_scratch_repeats_every_result_to_the_last_bit(clone):
    before = clone.results()
    assert clone.stages_run("repro", "-f") == EVERYTHING
    assert clone.results() == before
    clone.run("git", "checkout", "-q", ".")  # metrics/cost


def test_a_lora_parameter_re_runs_what_it_touches_and_going_back_runs_nothing(clone):
    before = clone.results()
    assert clone.stages_run("exp", "run", "-S", "lora.r=4") == AFTER_TRAINING
    changed = {name for name, value in clone.results().items() if before[name] != value}
    assert {
        "models/adapter/adapter_model.safetensors",
        "metrics/evaluate/tuned.json",
        "metrics/compare.json",
    } <= changed
    assert not {name for name in changed if name.endswith(("base.json", "full.json", "prepare.json", "base.jsonl"))}
    assert "lora.r" in clone.run("dvc", "params", "diff")
    assert clone.stages_run("exp", "run", "-S", "lora.r=8") == set()
    assert clone.results() == before


def test_another_dataset_is_scored_beside_and_re_runs_nothing_else(clone):
    folder = clone.folder / "data/raw/other/test"
    folder.mkdir(parents=True)
    for name, words in {"oak": "An oak is a tree. Its fruit is the acorn.", "tin": "Tin is a soft metal."}.items():
        (folder / f"{name}.txt").write_text(words)
    stages = {"prepare_also@other", *(f"evaluate_also@other-arm{number}" for number in range(3)), "compare_also@other"}
    assert clone.stages_run("exp", "run", "-S", "also=[other]") == {"check", *stages}
    found = json.loads((clone.folder / "metrics/also/other/compare.json").read_text())["base_to_tuned"]
    assert found["documents"] == 2
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
    clone.run("dvc", "checkout", "-q")


def test_seeds_are_experiments_and_leave_the_workspace_alone(clone):
    printed = clone.run("python", "-m", "stages.seeds", "2")
    first, second = (re.search(rf"^\| seed-{seed} \| (.*) \|$", printed, re.M)[1].split(" | ") for seed in (1, 2))
    shipped = json.loads((clone.folder / "metrics/evaluate/tuned.json").read_text())["document"]
    assert first[0] == f"{shipped['perplexity']:.4f}" and first[0] != second[0]
    assert clone.run("git", "status", "--porcelain") == ""
    assert "seed-2" in clone.run("dvc", "exp", "list")


def test_code_of_one_stage_re_runs_that_stage(clone):
    clone.edit("stages/generate.py", {'"""Continue': '"""Now continue'})
    assert clone.stages_run("repro") == {"generate@base", "generate@tuned"}  # whose answers are the same
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q")


def test_new_articles_re_run_everything_they_touch(clone):
    """All but `check`, which reads names."""
    for split, (low, high) in {"test": (0, 0.05), "train": (0.07, 1)}.items():
        texts = (f"# Zebra {n}\n\n{' '.join(f'stripe{n * i % 997}' for i in range(1, 30))}." for n in range(1, 997))
        text = next(t for t in texts if low < hash_position(t, "split") < high and hash_position(t, "keep") < 0.1)
        (clone.folder / f"data/raw/encyclopedia/zebra-for-{split}.md").write_text(text)
    assert clone.stages_run("repro") == EVERYTHING - {"check"}
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
    clone.run("dvc", "checkout", "-q")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: wiki-mini",
            "model: gpt",
            "models/base/gpt: no such folder; the names there are: llama-3.2-1b, wiki-mini",
        ),
        (
            "dataset: encyclopedia",
            "dataset: news",
            "data/raw/news: no such folder; the names there are: encyclopedia, ",
        ),
        ("r: 8", "r: many", "lora.r: Input should be a valid integer, found 'many'"),
        ("r: 8", "rank: 8", "lora.rank: unknown parameter"),
    ],
)
def test_a_mistake_gets_one_line_and_its_undoing_brings_everything_back(clone, old, new, message):
    before = clone.results()
    clone.edit("params.yaml", {old: new})
    printed = clone.run("dvc", "repro", expect=255)
    assert printed.count(f"params.yaml: {message}") == 1 and "Traceback" not in printed
    clone.edit("params.yaml", {new: old})
    assert clone.stages_run("repro") == set()
    assert clone.results() == before
