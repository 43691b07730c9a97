"""Inputs: what changes while a stage runs fails it, and no result vouches for what never ran."""

import contextlib
import copy
import importlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, write_params
from ruamel.yaml import YAML
from support.pipeline import STAGES

from stages.lib import inputs
from stages.lib.inputs import Inputs
from stages.lib.params import Mistake, Section, read_params, read_yaml
from stages.lib.training.recipe import Recipe

SMALL = {  # than `TEXT`
    "train.epochs": 1,
    "train.evaluations": 1,
    "train.block_tokens": 64,
    "generate.max_new_tokens": 2,
    "compare.resamples": 100,
    "rate.resamples": 100,
}
PAGES = {"train": ["airplane", "ant", "atom"], "validation": ["berlin"], "test": ["brazil", "cairo"]}


def outputs(name: str) -> list[Path]:
    """List what dvc.yaml says that a stage writes."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in STAGES[name].get(kind, [])]
    return [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


SHIPPED = ("dvc.yaml", ".dvcignore", "stages/sheet.html", "stages/lib/conversations/plain.jinja")


class Small:
    """A folder in which every stage runs in this process, within a second or two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (*SHIPPED, "data/prompts.txt", "data/ratings/answers"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(REPOSITORY / name, folder / name)
        shutil.copytree(REPOSITORY / "models/base/wiki-mini", folder / "models/base/wiki-mini")
        for dataset in ("encyclopedia", "other"):
            for split, pages in PAGES.items():
                (folder / "data/raw" / dataset / split).mkdir(parents=True)
                for page in pages if dataset == "encyclopedia" else ["chess", "dna"]:
                    text = (REPOSITORY / f"data/raw/encyclopedia/{page}.md").read_text()[:900]
                    (folder / "data/raw" / dataset / split / f"{page}.md").write_text(text)
        (folder / "plots").mkdir()
        write_params(folder, SMALL)

    def run(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        _, _, module, *arguments = shlex.split(STAGES[name]["cmd"])
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with contextlib.chdir(self.folder):
            importlib.import_module(module).main()


def before_comparing(monkeypatch: pytest.MonkeyPatch, act) -> None:
    """Do something while a stage runs: after it has read, before it compares."""
    compare = Inputs.changes

    def changes(noted: Inputs) -> list[str]:
        act()
        return compare(noted)

    monkeypatch.setattr(Inputs, "changes", changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    """After a run of every stage, during which each small file was written anew as it was."""
    project = Small(tmp_path_factory.mktemp("small"))

    def rewrite() -> None:
        for file in Path().rglob("*"):
            if file.is_file() and file.stat().st_size <= inputs.LARGE_BYTES:
                file.write_bytes(file.read_bytes())

    with pytest.MonkeyPatch.context() as monkeypatch:
        before_comparing(monkeypatch, rewrite)
        for name in STAGES:
            project.run(name, monkeypatch)
            assert all((project.folder / path).exists() for path in outputs(name)), name
    return project


@pytest.mark.parametrize("name", STAGES)
def test_what_changes_while_a_stage_runs_fails_it_and_nothing_is_written(name, small, tmp_path, monkeypatch):
    shutil.copytree(small.folder, tmp_path, dirs_exist_ok=True)  # with the times of the files
    project = copy.copy(small)
    project.folder = tmp_path
    for path in (tmp_path / path for path in outputs(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data = [tmp_path / dep for dep in STAGES[name]["deps"] if not dep.endswith(".py")]
    files = [path if path.is_file() else max(path.rglob("*.*"), key=lambda file: file.suffix) for path in data]
    params, lines = read_yaml(tmp_path / "params.yaml"), []
    for section in STAGES[name].get("params", []):
        value = params[section]
        params[section] = {**value, "more": 1} if isinstance(value, dict) else "changed"
        was = ".more was not there when the stage began and is 1 now"
        lines.append(
            f"params.yaml: {section}"
            + (was if isinstance(value, dict) else f" was {value} when the stage began and is changed now")
        )
    lines += [f"{file.relative_to(tmp_path)}: has changed since the stage began" for file in files]

    def change() -> None:
        YAML(typ="safe").dump(params, tmp_path / "params.yaml")
        for file in files:
            file.write_bytes(b"changed")

    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    before_comparing(monkeypatch, change)
    with pytest.raises(Mistake) as mistake:
        project.run(name, monkeypatch)
    said = str(mistake.value).splitlines()
    assert sorted(line.partition("; no result is written: put it back")[0] for line in said) == sorted(set(lines))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


class Lora(Section):
    lora: dict


def note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    monkeypatch.chdir(folder)
    Path("data").mkdir()
    with Path("data/large.bin").open("wb") as weights:
        weights.truncate(inputs.LARGE_BYTES + 1)
    Path("data/small.txt").write_text("a")
    Path("params.yaml").write_text("lora:\n  r: 8\n  dropout: 0.05\nsheet: 1\n")
    return Inputs(Lora(lora={"r": 8, "dropout": 0.05}), Path("data"), Path("prompts.txt"))


def test_each_change_has_a_line(tmp_path, monkeypatch):
    noted = note(tmp_path, monkeypatch)
    Path("params.yaml").write_text("lora:\n  r: 16\n  alpha: 32\n")
    Path("data/small.txt").unlink()
    Path("data/more.txt").write_text("b")
    Path("prompts.txt").write_text("Paris")
    os.utime("data/large.bin", ns=(0, 0))
    with pytest.raises(Mistake) as mistake:
        noted.confirm()
    assert str(mistake.value).splitlines() == [
        f"{change}; no result is written: put it back or run again"
        for change in (
            "params.yaml: lora.r was 8 when the stage began and is 16 now",
            "params.yaml: lora.dropout was 0.05 when the stage began and is not there now",
            "params.yaml: lora.alpha was not there when the stage began and is 32 now",
            "data/large.bin: has changed since the stage began",
            "data/more.txt: is new since the stage began",
            "data/small.txt: is gone since the stage began",
            "prompts.txt: is new since the stage began",
        )
    ]


def test_what_dvc_would_not_record_otherwise_is_no_change(tmp_path, monkeypatch):
    noted = note(tmp_path, monkeypatch)
    Path(".dvcignore").write_text("/data/*.md\n")
    Path("data/README.md").write_text("about it")
    Path("data/small.txt").write_text("a")
    Path("params.yaml").write_text("lora: {dropout: 5e-2, r: 8}  # another section too\nsheet: 2\n")
    assert noted.changes() == []


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("stages/lib/answers/prose.py", "# more", ["stages/lib/answers/prose.py: has changed since the stage began"]),
        ("stages/lib/answers/prose.py", None, ["stages/lib/answers/prose.py: is gone since the stage began"]),
        ("stages/lib/data/overlap.py", "# more", []),  # which is not loaded
        ("stages/lib/answers/prose.py", "", []),
    ],
)
def test_code_that_runs_must_stay_and_other_code_may_change(tmp_path, file, change, expected):
    shutil.copytree(REPOSITORY / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
from pathlib import Path
from stages.lib.inputs import Inputs
import stages.lib.answers.prose
noted, file = Inputs(None), Path({file!r})
file.write_text(file.read_text() + {change!r}) if {change!r} is not None else file.unlink()
print(*noted.changes(), sep="\\n", end="")
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == expected


def test_a_name_that_dvc_filled_in_otherwise_is_refused_at_once(tmp_path):
    write_params(tmp_path)
    for name in ("dvc.yaml", "stages"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    ran = subprocess.run(
        [sys.executable, "-m", "stages.prepare", "--model=wiki-mini", "--dataset=wikitext-2"],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "params.yaml: dataset is 'encyclopedia', and was 'wikitext-2' when the command was given; "
        "put it back or run again\n"
    )


@pytest.mark.parametrize("surplus", [["more"], ["--dataset=x"], ["--help"]])
def test_the_command_line_knows_what_it_takes(surplus):
    ran = subprocess.run(
        [sys.executable, "-m", "stages.evaluate", "base", "other", *surplus], cwd=REPOSITORY, capture_output=True
    )
    if surplus == ["--help"]:
        assert ran.returncode == 0 and b"Score held-out documents" in ran.stdout
    else:
        assert ran.returncode == 2 and b"unrecognized arguments" in ran.stderr


def test_params_are_compared_as_the_schema_read_them(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert Inputs(read_params(Recipe)).changes() == []
