"""The notebook for Colab and Kaggle does what it says, cell after cell, in a small clone on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import REPOSITORY
from support.clone import Clone

NOTEBOOK = json.loads((REPOSITORY / "docs/colab.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
IPYTHON = f"""
import os, string, subprocess, sys, types

def shell(command):
    subprocess.run(string.Template(command).safe_substitute(globals()), shell=True, check=True)

def set_up():  # all that the project needs is here already: nothing is installed
    os.makedirs(".venv/bin")
    for name, command in {{"python": "", "dvc": " -m dvc"}}.items():
        with open(f".venv/bin/{{name}}", "w") as file:
            file.write(f'#!/bin/sh\\nexec {sys.executable}{{command}} "$@"\\n')
        os.chmod(f".venv/bin/{{name}}", 0o755)
    open(".venv/ready", "w").close()

shown = types.ModuleType("IPython.display")
shown.Image, shown.display = str, lambda picture: print("shown:", picture, flush=True)
sys.modules |= {{"IPython": types.ModuleType("IPython"), "IPython.display": shown}}
"""
AS_IN_COLAB = {  # which also has no name for Git's commits
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def as_script(cell: str) -> str:
    """Write out what IPython makes of a cell's magic lines."""
    lines = [re.sub(r"^!(.*)", lambda found: f"shell({found[1]!r})", line) for line in cell.split("\n")]
    lines = [re.sub(r"^%cd (.*)", lambda found: f"os.chdir({found[1]!r})", line) for line in lines]
    return "\n".join([*lines, "set_up()"] if "git clone" in cell else lines)


def test_no_output_and_no_count_of_a_run_is_kept_in_it():
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if "outputs" in cell
    )
    assert 'REPOSITORY = ""' in CODE[0]


def test_without_an_address_it_says_what_is_expected():
    ran = subprocess.run([sys.executable, "-c", IPYTHON + as_script(CODE[0])], capture_output=True, text=True)
    assert ran.stderr.endswith("REPOSITORY: expected the address of the repository, found nothing\n")


@pytest.mark.slow
def test_its_cells_run_from_top_to_bottom(tmp_path):
    source = Clone(tmp_path / "source")
    source.edit(
        "params.yaml", {"train_fraction: 0.1": "train_fraction: 1.0", "test_fraction: 0.05": "test_fraction: 0.2"}
    )
    params = (source.folder / "params.yaml").read_text()
    smaller = {"model": "wiki-mini", "dataset": "encyclopedia", "  evaluations": "1", "  answer_tokens": "8"}
    for name, value in smaller.items():
        params = re.sub(rf"(?m)^{name}: \S+", f"{name}: {value}", params)
    (source.folder / "params.yaml").write_text(params)
    for number, article in enumerate(sorted((source.folder / "data/raw/encyclopedia").glob("[!R]*.md"))):
        if number % 12:
            article.unlink()
    source.commit("Less of it")
    cells = [re.sub('REPOSITORY = ""', f"REPOSITORY = {str(source.folder)!r}", cell) for cell in CODE]
    script = "\n".join([IPYTHON, *map(as_script, cells)])
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | AS_IN_COLAB, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "shown: plots/eval_results.png" in ran.stdout and "shown: plots/training_loss.png" in ran.stdout
    first, second = ran.stdout.split("shown:", 1)
    assert "base to tuned" in first and "base to tuned" in second
    assert re.search(r"\nbase: .*\ntuned: ", second, re.S) and re.search(r"exact match +\d", second)
    with ZipFile(tmp_path / "adapter.zip") as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
    assert Path(ran.stdout.rstrip().rpartition("\n")[2]) == tmp_path / "adapter.zip"
