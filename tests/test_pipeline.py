"""dvc.yaml tells the truth: what a stage declares is what it imports and reads, no more and no less."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stages.lib.params import read_yaml

REPOSITORY = Path(__file__).parents[1]


def expand(stages: dict) -> dict[str, dict]:
    """Write out the stages of a `foreach` or `matrix`, each with its `${…}` filled in."""

    def fill(node, values: dict[str, str]):
        if isinstance(node, dict):
            return {fill(key, values): fill(value, values) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(child, values) for child in node]
        for name, value in values.items():
            node = node.replace(f"${{{name}}}", value) if isinstance(node, str) else node
        return node

    expanded = {}
    for name, stage in stages.items():
        if "matrix" in stage:
            for number, arm in enumerate(stage["matrix"]["arm"]):
                values = {"item.dataset": "other", **{f"item.arm.{field}": value for field, value in arm.items()}}
                expanded[f"{name}@other-arm{number}"] = fill(stage, values)
        elif stage.get("foreach") == "${also}":
            expanded[f"{name}@other"] = fill(stage["do"], {"item": "other"})
        elif "foreach" in stage:
            for key, item in stage["foreach"].items():
                values = {"key": key, **{f"item.{field}": value for field, value in item.items()}}
                expanded[f"{name}@{key}"] = fill(stage["do"], values)
        else:
            expanded[name] = stage
    return expanded


STAGES = expand(read_yaml(REPOSITORY / "dvc.yaml")["stages"])
STAGES["train"]["cmd"] = STAGES["train"]["cmd"].replace("${train.launcher}", "python -m")


def module_of(stage: dict) -> ModuleType:
    return importlib.import_module(stage["cmd"].split()[2])


def imports(file: Path) -> set[Path]:
    """Find the files of this project that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        paths = (Path(*name.split(".")).with_suffix(".py") for name in names if name.startswith("stages"))
        found |= {path for path in paths if (REPOSITORY / path).exists()}
    return found


def closure(file: Path) -> set[Path]:
    """Find all the files of this project that run when a file does."""
    found, new = set(), {file}
    while new:
        found |= new
        new = set().union(*(imports(REPOSITORY / path) for path in new)) - found
    return found


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_runs(name):
    module = STAGES[name]["cmd"].split()[2]
    declared = [dep for dep in STAGES[name]["deps"] if dep.endswith(".py")]
    assert sorted(declared) == sorted(map(str, closure(Path(*module.split(".")).with_suffix(".py"))))
    assert declared[1:] == sorted(declared[1:])


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if hasattr(module_of(stage), "read_params")])
def test_a_stage_depends_on_exactly_the_parameters_it_reads(name, monkeypatch):
    class Asked(Exception):
        pass

    def read_params(schema):
        raise Asked(schema)

    python, _, _, *arguments = STAGES[name]["cmd"].split()
    stage = module_of(STAGES[name])
    monkeypatch.setattr(stage, "read_params", read_params)
    monkeypatch.setattr(sys, "argv", [python, *arguments])
    with pytest.raises(Asked) as asked:
        stage.main()
    assert set(STAGES[name]["params"]) == set(asked.value.args[0].model_fields)


def test_a_stage_that_reads_no_parameters_declares_none():
    for name, stage in STAGES.items():
        assert ("params" in stage) == hasattr(module_of(stage), "read_params"), name


def test_stages_import_no_stage_and_lib_imports_no_stage():
    for file in (REPOSITORY / "stages").rglob("*.py"):
        foreign = {path for path in imports(file) if path.parent.name != "lib"}
        assert not foreign, f"{file} imports {foreign}"


def test_the_lock_file_is_of_this_code_and_these_parameters():
    """Whoever changes code or parameters commits what `dvc repro` then gives."""
    ran = subprocess.run(
        ["dvc", "repro", "--dry", "--allow-missing"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Running stage" not in ran.stdout
