"""The project in a folder of a larger repository: whatever runs DVC or Git finds its files there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

MADE = """
import json, pathlib, re
seed = int(re.search("seed: (.*)", pathlib.Path("params.yaml").read_text())[1])
document = dict.fromkeys(("perplexity", "bits_per_byte", "accuracy"), seed)
compared = {"base_to_tuned": {"perplexity_ratio": 1}}
for name, found in {"evaluate/tuned": {"document": document}, "compare": compared}.items():
    file = pathlib.Path("metrics", f"{name}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
rows = [f"{n},t,100,3,3,{2 + seed / 10 + n / 100}" for n in range(8)]
pathlib.Path("metrics/documents.csv").write_text("\\n".join(["id,title,tokens,full,base,tuned", *rows]))
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    params: [train.seed]
    metrics:
    - metrics/evaluate/tuned.json: {cache: false}
    - metrics/compare.json: {cache: false}
    plots:
    - metrics/documents.csv: {cache: false}
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A pipeline of one stage, two folders below the top of a repository."""
    folder = tmp_path / "work/my project"
    folder.mkdir(parents=True)
    for name, text in {"make.py": MADE, "dvc.yaml": PIPELINE, "params.yaml": "train:\n  seed: 1\n"}.items():
        (folder / name).write_text(text)
    (tmp_path / "elsewhere").write_text("of somebody else")
    run(tmp_path, "git", "init", "-q")
    for setting in ("user.name=Tester", "user.email=tester@example.org"):
        run(folder, "git", "config", *setting.split("="))
    run(folder, "dvc", "init", "-q", "--subdir")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "-A", ":/")
    run(folder, "git", "commit", "-qm", "Start")
    return folder


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_commit_is_reproduced(project):
    printed = run(project, sys.executable, "-m", "commands.reproduce", "HEAD")
    assert printed.endswith("4 metrics: 4 equal, 0 within tolerance, 0 different\n")


def test_seeds_run(project):
    printed = run(project, sys.executable, "-m", "commands.seeds", "2")
    assert "| seed-1 | 1.0000 |" in printed and "| seed-2 | 2.0000 |" in printed
    assert "this recipe, of 2 seeds: base to tuned: perplexity times 0." in printed
    assert json.loads((project / "metrics/evaluate/tuned.json").read_text())["document"]["perplexity"] == 1
    assert run(project, "git", "status", "--porcelain") == ""
