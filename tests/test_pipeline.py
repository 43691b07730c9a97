"""dvc.yaml tells the truth: what a stage declares is what it imports and reads, no more and no less."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY, write_params
from support.pipeline import STAGES, TEMPLATES

from commands.deps import code_of, imports, with_code
from commands.plots_page import ORDER, PAGE, render
from stages.lib.colours import COLOURS
from stages.lib.params import read_yaml

COLOURS_OF_ARMS = {"domain": list(COLOURS), "range": list(COLOURS.values())}


def module_of(stage: dict) -> ModuleType:
    return importlib.import_module(stage["cmd"].split()[2])


def test_dvc_yaml_lists_exactly_the_code_that_each_stage_runs():
    pipeline = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")
    assert with_code(pipeline) == pipeline, "run `make deps`"
    for name, stage in STAGES.items():
        assert code_of(stage["cmd"]) == [dep for dep in stage["deps"] if dep.endswith(".py")], name


def test_stages_are_exactly_those_of_dvc_yaml():
    scripts = {file.stem for file in (REPOSITORY / "stages").glob("*.py")}
    assert scripts == {re.findall(r"stages\.(\w+)", stage["cmd"])[0] for stage in STAGES.values()}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_notes_exactly_the_parameters_and_data_that_it_declares(name, tmp_path, monkeypatch):
    """What it did not note could change while it runs, and dvc.lock would vouch for what never ran."""

    class Noted(Exception):
        pass

    def note(params, *paths):
        raise Noted(params.model_dump() if params else (), paths)

    stage = module_of(STAGES[name])
    write_params(tmp_path)
    for path in ("dvc.yaml", "stages", "models", "data"):
        (tmp_path / path).symlink_to(REPOSITORY / path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "Inputs", note)
    monkeypatch.setattr(sys, "argv", shlex.split(STAGES[name]["cmd"])[2:])
    with pytest.raises(Noted) as noted:
        stage.main()
    params, paths = noted.value.args
    assert set(params) == set(STAGES[name].get("params", []))
    assert {str(path) for path in paths} == {dep for dep in STAGES[name]["deps"] if not dep.endswith(".py")}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "check"])  # which works on no folder
def test_a_command_hands_over_the_names_that_dvc_filled_in(name):
    """An edit of params.yaml between two stages would otherwise be read by the second, on the first one's data."""
    stage = {key: value for key, value in TEMPLATES[name].items() if key != "matrix"}
    filled = re.findall(r"\$\{(\w+)\}", json.dumps(stage))
    handed = re.findall(r"--(\w+)='\$\{(\w+)\}'", TEMPLATES[name]["cmd"])
    assert {(name, name) for name in filled} == set(handed)
    assert {name for name, _ in handed} == {"model", "dataset"} & set(TEMPLATES[name].get("params", []))


def test_lib_imports_no_stage_stages_import_no_stage_and_neither_imports_a_command():
    for file in (REPOSITORY / "stages").rglob("*.py"):
        foreign = {path for path in imports(file) if not path.is_relative_to("stages/lib")}
        assert not foreign, f"{file} imports {foreign}"
        assert "commands" not in re.findall(r"^ *(?:from|import) (\w+)", file.read_text(encoding="utf-8"), re.M)


def test_the_lock_file_is_of_this_code_and_these_parameters():
    """Whoever changes code or parameters commits what `dvc repro` then gives."""
    ran = subprocess.run(
        ["dvc", "repro", "--dry", "--allow-missing"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Running stage" not in ran.stdout


def plots_of(stages: dict) -> dict[str, dict]:
    """What each plot of the stages is declared to be, by its file."""
    return {file: props for stage in stages.values() for plot in stage.get("plots", []) for file, props in plot.items()}


def test_each_plot_is_declared_once_with_a_title_in_words_and_has_its_place_on_the_page():
    plots = plots_of(STAGES)
    tables = {file: props for file, props in plots.items() if file.endswith(".csv")}
    pictures = {Path(file).stem for file in plots if file.endswith(".png")}
    assert set(tables) == set(ORDER) and pictures <= {Path(file).stem for file in tables}
    assert set(plots) == {f"plots/{picture}.png" for picture in pictures} | set(tables)
    assert "plots" not in read_yaml(REPOSITORY / "dvc.yaml")  # DVC would draw the same files once more
    titles = [props["title"] for props in tables.values()]
    assert len(set(titles)) == len(titles) and all(
        re.fullmatch(r"[A-Z][\w ,-]+( \(.*\))?\??", title) for title in titles
    )
    assert max(map(len, titles)) <= 50  # of which VS Code cuts longer ones
    assert all((REPOSITORY / f".dvc/plots/{props['template']}.json").exists() for props in tables.values())


def test_the_page_of_plots_is_what_its_command_writes():
    assert (REPOSITORY / PAGE).read_text(encoding="utf-8") == render(), "run `python -m commands.plots_page`"
    assert "html_template = plots/page.html" in (REPOSITORY / ".dvc/config").read_text()
    for name in ("answers", "bars"):
        assert json.dumps(COLOURS_OF_ARMS) in json.dumps(
            json.loads((REPOSITORY / f".dvc/plots/{name}.json").read_text())
        )


def test_dvc_shows_no_number_but_those_of_the_summary():
    """Whatever a stage writes with `write_metrics` stands in a list, which DVC passes over."""
    for file in (REPOSITORY / "stages").rglob("*.py"):
        assert ("write_summary" in file.read_text()) == (file.name in ("summarize.py", "metrics.py")), file


def test_every_stage_can_come_from_the_run_cache():
    """DVC keeps a stage with a plain output that is not cached out of it; metrics and plots may be uncached."""
    for name, stage in STAGES.items():
        assert all(isinstance(out, str) for out in stage.get("outs", [])), name
