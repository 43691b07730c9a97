"""dvc.lock vouches for what ran: the real `dvc`, and edits while it runs."""

import json
import shutil
import subprocess
import time

import psutil
import pytest
from support.clone import Clone

from stages.lib.params import read_yaml

PAGES = {"train": ["airplane", "ant", "atom"], "validation": ["berlin"], "test": ["brazil", "cairo"]}


@pytest.fixture
def clone(tmp_path) -> Clone:
    """A repository whose dataset is six short articles."""
    clone = Clone(tmp_path)
    pages = {page: (tmp_path / f"data/raw/encyclopedia/{page}.md") for names in PAGES.values() for page in names}
    texts = {page: path.read_text()[:900] for page, path in pages.items()}
    shutil.rmtree(tmp_path / "data/raw/encyclopedia")
    for split, names in PAGES.items():
        (tmp_path / "data/raw/encyclopedia" / split).mkdir(parents=True)
        for page in names:
            (tmp_path / "data/raw/encyclopedia" / split / f"{page}.md").write_text(texts[page])
    clone.edit("params.yaml", {"train_fraction: 0.1": "train_fraction: 1.0", "epochs: 1": "epochs: 3"})
    clone.commit("Few texts")
    return clone


def recorded(clone: Clone) -> dict:
    """Return what dvc.lock says of train, and assert that the run cache says nothing more."""
    runs = [read_yaml(path) for path in clone.folder.glob(".dvc/cache/runs/*/*/*")]
    cached = [run["params"]["params.yaml"]["lora"]["r"] for run in runs if "stages.train" in run["cmd"]]
    lock = read_yaml(clone.folder / "dvc.lock")["stages"].get("train", {})
    assert ([lock["params"]["params.yaml"]["lora"]["r"]] if lock else []) == cached
    return lock


def rank(clone: Clone) -> int:
    return json.loads((clone.folder / "models/adapter/adapter_config.json").read_text())["r"]


def test_parameters_changed_while_train_runs_are_recorded_nowhere(clone):
    first = subprocess.Popen(
        ["dvc", "repro", "train"], cwd=clone.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(clone.folder.glob("models/checkpoints/*/checkpoint-*/seal.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    training = psutil.Process(first.pid).children(recursive=True)
    for process in training:
        process.suspend()
    assert "is busy" in clone.run("dvc", "exp", "run", "-S", "lora.r=4", "train", expect=255)
    params = clone.folder / "params.yaml"
    params.write_text(params.read_text().replace("r: 8", "r: 4"))  # if that has not left it so
    for process in training:
        process.resume()
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 255
    assert (
        "params.yaml: lora.r was 8 when the stage began and is 4 now; no result is written: "
        "put it back to go on from the last checkpoint, or run again as it is now\n"
    ) in stderr
    assert recorded(clone) == {}
    assert not (clone.folder / "models/adapter").exists()

    clone.run("git", "checkout", "-q", "params.yaml")
    assert "going on from models/checkpoints/" in clone.run("dvc", "repro", "train")
    assert recorded(clone)["params"]["params.yaml"]["lora"]["r"] == rank(clone) == 8
    clone.edit("params.yaml", {"r: 8": "r: 4"})
    assert clone.stages_run("repro", "train") == {"train"}  # of which nothing comes from the run cache
    assert rank(clone) == 4


@pytest.mark.parametrize(
    ("stage", "name", "old", "new"),
    [("check", "dataset", "encyclopedia", "wikitext-2"), ("prepare", "model", "wiki-mini", "llama-3.2-1b")],
)
def test_a_name_changed_between_two_stages_is_refused_by_the_second(clone, stage, name, old, new):
    """By a command that is appended to the first one's: DVC has filled the old name into the second already."""
    command = read_yaml(clone.folder / "dvc.yaml")["stages"][stage]["cmd"]
    edit = rf"sed 's/^{name}:.*/{name}:\ {new}/' params.yaml > edited && mv edited params.yaml"
    clone.edit("dvc.yaml", {f"cmd: {command}\n": f"cmd: {command} && {edit}\n"})
    printed = clone.run("dvc", "repro", expect=255)
    assert f"params.yaml: {name} is '{new}', and was '{old}' when the command was given" in printed
    assert list(read_yaml(clone.folder / "dvc.lock")["stages"])[-1] == stage
