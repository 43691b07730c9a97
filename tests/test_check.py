"""What is wrong in params.yaml, or in a folder that it names, is refused before DVC deletes anything."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import REPOSITORY, change_params, write_params
from dvc.utils.hydra import apply_overrides
from support.clone import Clone

from stages.lib.history import flatten
from stages.lib.params import read_yaml

PINNED = "repo: acme/thing\nrevision: " + "a" * 40


class Project:
    """A folder with a model, a dataset and parameters, for `stages.check` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_params(folder)
        for name in ("dvc.yaml", "stages", "data/raw/encyclopedia"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(REPOSITORY / name)
        shutil.copytree(REPOSITORY / "models/base/wiki-mini", folder / "models/base/wiki-mini")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def set(self, values: Mapping[str, object]) -> None:
        change_params(self.folder / "params.yaml", values)

    def check(self, *options: str) -> str:
        """Return what `check` says; nothing where all is right."""
        ran = subprocess.run(
            [sys.executable, *options, "-m", "stages.check"], cwd=self.folder, capture_output=True, text=True
        )
        checked = self.folder / "data/checked"
        assert (ran.returncode == 0) == checked.exists(), ran.stderr
        return ran.stderr


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def test_what_is_shipped_passes(tmp_path):
    for name in ("dvc.yaml", "params.yaml", "stages", "models"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "data").mkdir()  # where it writes
    (tmp_path / "data/raw").symlink_to(REPOSITORY / "data/raw")
    ran = subprocess.run([sys.executable, "-m", "stages.check"], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_nothing_slow_is_imported(project):
    """As `make repro` does both each time, also where nothing is to be done."""
    settled = [sys.executable, "-X", "importtime", "-c", "import commands.settle"]
    for told in (
        project.check("-X", "importtime"),
        subprocess.run(settled, cwd=REPOSITORY, capture_output=True, text=True, check=True).stderr,
    ):
        imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
        assert imported.isdisjoint({"torch", "transformers", "peft", "datasets", "pandas", "scipy", "huggingface_hub"})


def test_every_section_is_read_and_all_mistakes_are_told_at_once(project):
    wrong = {
        name: value
        for name, value in flatten(read_yaml(REPOSITORY / "params.yaml")).items()
        if name.count(".") == 1 and not isinstance(value, str)
    }
    project.set({**dict.fromkeys(wrong, "wrong"), "also": "[encyclopedia]"})
    told = project.check().splitlines()
    assert {line.split(": ")[1] for line in told} == set(wrong)


@pytest.mark.parametrize(
    ("file", "text", "changed", "message"),
    [
        ("data/raw/pin/source.yaml", "repo: a/b", {"dataset": "pin"}, "repo and revision .* go together"),
        ("data/raw/pin/source.yaml", "repo: a/b\nrevision: main", {"also": "[pin]"}, "revision: String should match"),
        (
            "data/raw/pin/source.yaml",
            "package: a==1\nfile: a.gguf\nsha256: " + "a" * 64,
            {"dataset": "pin"},
            "of models",
        ),
        ("data/raw/pin/source.yaml", "[", {"also": "[pin]"}, "not YAML"),
        ("data/raw/pin/.hidden", "", {"dataset": "pin"}, "data/raw/pin: no files; put texts there"),
        ("models/base/pin/source.yaml", PINNED + "0", {"model": "pin"}, "revision: String should match"),
        ("models/base/pin/source.yaml", PINNED + "\nconfig: a", {"model": "pin"}, "config and documents are of data"),
        ("models/base/pin/README.md", "", {"model": "pin"}, "missing config.json, tokenizer.json, .safetensors"),
        ("models/base/wiki-mini/config.json", "version https://git-lfs", {}, "config.json: not JSON"),
        ("models/base/wiki-mini/model.safetensors", "version https://git-lfs", {}, "model.safetensors: not whole"),
        ("data/raw/x/a.md", "", {"dataset": "x/../encyclopedia"}, "dataset: expected a folder's name"),
        ("data/raw/x/a.md", "", {"also": '["\'x"]'}, "also.0: expected a folder's name"),
        ("data/raw/x.dvc", "", {"dataset": "x"}, "data/raw/x: not here yet; `dvc pull data/raw/x`"),
        ("data/raw/x/a.md", "", {"quantization.bits": 8}, "quantization.bits: 8 needs a GPU"),
    ],
)
def test_a_mistake_gets_a_line(project, file, text, changed, message):
    if "GPU" in message and any(Path("/dev").glob("nvidia*")):
        pytest.skip("there is a GPU")
    project.write(file, text)
    project.set(changed)
    told = project.check()
    assert len(told.splitlines()) == 1 and re.search(message, told), told


def test_every_parameter_can_be_set_and_set_back_by_dvc(tmp_path):
    """Its writer loses the place of a comment behind an empty list, and then calls the file corrupted."""
    shipped = read_yaml(REPOSITORY / "params.yaml")
    file = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", file)
    values = {
        f"{section}.{name}" if isinstance(found, dict) else section: value
        for section, found in shipped.items()
        for name, value in (found.items() if isinstance(found, dict) else [("", found)])
    }
    for other in ("[one,two]", "another", "1e-05", "[]"):
        apply_overrides(file, [f"{name}={other}" for name in values])
        assert read_yaml(file) != shipped
        apply_overrides(file, [f"{name}={json.dumps(value)}" for name, value in values.items()])
        assert read_yaml(file) == shipped


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    return Clone(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize("command", [["repro"], ["repro", "train"], ["exp", "run"]])
def test_dvc_deletes_nothing_before_a_mistake_is_told_and_how_to_undo_it(clone, command):
    if command == ["exp", "run"]:
        printed = clone.run("dvc", "exp", "run", "-S", "lora.r=eight", expect=255)
    else:
        clone.edit("params.yaml", {"r: 8": "r: eight"})
        printed = clone.run("dvc", *command, expect=255)
    assert (
        "params.yaml: lora.r: Input should be a valid integer, found 'eight'\n"
        "nothing was deleted; `git checkout params.yaml` puts back what was committed: lora.r: 8\n"
    ) in printed
    assert clone.run("git", "status", "--porcelain") == " M params.yaml\n"
    clone.run("git", "checkout", "-q", "params.yaml")


def test_a_folder_that_git_does_not_know_is_told_apart_from_one_that_is_not_there(clone):
    folder = clone.folder / "data/raw/my notes"
    folder.mkdir()
    (folder / "a.md").write_text("one")
    printed = clone.run("dvc", "exp", "run", "--temp", "-S", "dataset=my notes", "check", expect=255)
    assert "data/raw/my notes: in this copy, which holds what Git knows, there is no such folder" in printed
    assert "`git add 'data/raw/my notes'`" in printed and "git checkout" not in printed
    shutil.rmtree(folder)


def test_a_dataset_with_a_space_in_its_name_is_prepared(clone):
    folder = clone.folder / "data/raw/my notes"
    folder.mkdir()
    rows = [{"text": f"Note {number} is about {word}."} for number, word in enumerate(("ant", "bee", "cat", "dog"))]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clone.edit("params.yaml", {"also: []": "also: [my notes]"})
    assert clone.stages_run("repro", "prepare_also@my notes") == {"check", "prepare", "prepare_also@my notes"}
    counts = clone.read_metrics("also/my notes/prepare")
    assert counts["test"]["documents"] == 4
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
