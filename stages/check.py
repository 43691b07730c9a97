"""Refuse what is wrong before anything runs.   params.yaml, models/base, data/raw -> data/checked

Reads every section of params.yaml, the source.yaml of every model and dataset that it names, and what can be told of
them at once. Run by `dvc repro` whenever a parameter changed, and before everything else: DVC deletes the outputs of a
stage before the stage can refuse. What it writes is always the same, so that nothing else runs again because it did.
"""

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from safetensors import SafetensorError, safe_open

from stages.lib.answers.protocol import GradeParams
from stages.lib.answers.sampling import GenerateParams
from stages.lib.data.protocol import PrepareParams
from stages.lib.inputs import Inputs, differences, read_command
from stages.lib.model.quantization import NEEDS_GPU
from stages.lib.params import CHECKED, PARAMS, Mistake, parse_yaml, read_params, read_yaml
from stages.lib.people.rating import RateParams, SheetParams
from stages.lib.scoring.protocol import CompareParams, EvaluateParams
from stages.lib.sources.source import DATASETS, MODELS, SOURCE, experiment_of, find, read_source
from stages.lib.training.processes import RunParams
from stages.lib.training.recipe import Recipe

GPUS = ("nvidia*", "nvhost*", "kfd", "dxg")  # of /dev: NVIDIA's, Jetson's, AMD's, and those of Windows seen from Linux


def name_of_folder(name: str) -> str:
    """Refuse a name that a shell, DVC or a file system would read as something else."""
    if not (name[:1].isalnum() and all(letter.isalnum() or letter in " ._+-" for letter in name)):
        raise ValueError(f"expected a folder's name of letters, digits, spaces and . _ + -, found {name!r}")
    return name


Name = Annotated[str, AfterValidator(name_of_folder)]


class Params(Recipe):
    """All of params.yaml."""

    model: Name
    dataset: Name
    also: list[Name]
    prepare: PrepareParams
    evaluate: EvaluateParams
    generate: GenerateParams
    answers: GradeParams
    compare: CompareParams
    sheet: SheetParams
    rate: RateParams
    run: RunParams


def check_model(name: str) -> None:
    """Refuse a model's folder that says wrongly where the model is, or lacks a part of it."""
    folder = find(MODELS, name)
    source = read_source(folder)
    if source.config or source.documents:
        raise Mistake(f"{folder / SOURCE}: config and documents are of datasets; a model has neither")
    if source.repo or source.package or any(folder.glob("*.gguf")):
        return
    weights = sorted(folder.glob("*.safetensors"))
    lacking = [file for file in ("config.json", "tokenizer.json") if not (folder / file).exists()]
    if lacking or not weights:
        raise Mistake(
            f"{folder}: expected {SOURCE}, a .gguf, or config.json, tokenizer.json and .safetensors; "
            f"missing {', '.join([*lacking, *([] if weights else ['.safetensors'])])}"
        )
    for file in (folder / "config.json", folder / "tokenizer.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Mistake(f"{file}: not JSON: {error}; fetch it again (with Git LFS, `git lfs pull`)") from None
    for file in weights:
        try:
            safe_open(file, "numpy")  # reads the header, and compares the file's size with it
        except SafetensorError as error:
            raise Mistake(f"{file}: not whole: {error}; fetch it again (with Git LFS, `git lfs pull`)") from None


def check_dataset(name: str) -> None:
    """Refuse a dataset's folder that says wrongly where the dataset is, or holds nothing."""
    folder = find(DATASETS, name)
    source = read_source(folder)
    if source.package:
        raise Mistake(f"{folder / SOURCE}: package is of models; a dataset has repo and revision, or its files here")
    if source.repo is None and not any(
        file.is_file() and not file.name.startswith(".") and file != folder / SOURCE for file in folder.rglob("*")
    ):
        raise Mistake(f"{folder}: no files; put texts there, or a {SOURCE} that names repo and revision")


def check_machine(params: Params) -> None:
    """Refuse what needs a GPU where there is none for certain."""
    none = version("torch").endswith("+cpu") or not any(found for name in GPUS for found in Path("/dev").glob(name))
    if none and params.quantization.bits == 8:
        raise Mistake(NEEDS_GPU)


def collect(*checks: Callable[[], None]) -> list[str]:
    """Return the mistakes that checks find, each once."""
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except Mistake as mistake:
            found[str(mistake)] = None
    return list(found)


def list_edited() -> list[tuple[str, Any, Any]]:
    """List the parameters that differ from the last commit's: name, then, now; none in the copy of an experiment."""
    committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS}"], capture_output=True, text=True, check=False)
    if committed.returncode or experiment_of(Path.cwd()):
        return []
    try:
        return differences(parse_yaml(committed.stdout, PARAMS), read_yaml(PARAMS))
    except Mistake:  # one of them is no YAML
        return []


def undoing() -> str:
    """Say how params.yaml becomes again what it is in the last commit; nothing where it is that, or of no use."""
    values = ", ".join(f"{name}: {then}" for name, then, _ in list_edited())
    return f"\nnothing was deleted; `git checkout {PARAMS}` puts back what was committed: {values}" if values else ""


def main() -> None:
    read_command(__doc__)
    try:
        params = read_params(Params)
        inputs = Inputs(params)
        datasets = (lambda name=name: check_dataset(name) for name in dict.fromkeys((params.dataset, *params.also)))
        if found := collect(lambda: check_model(params.model), *datasets, lambda: check_machine(params)):
            raise Mistake("\n".join(found))
        inputs.confirm()
    except Mistake as mistake:
        raise Mistake(f"{mistake}{undoing()}") from None
    if values := ", ".join(f"{name}: {now} (committed: {then})" for name, then, now in list_edited()):
        print(f"{PARAMS} keeps {values} for later runs too; `git checkout {PARAMS}` puts back what was committed")
    CHECKED.parent.mkdir(parents=True, exist_ok=True)
    CHECKED.write_text("params.yaml and what it names can be read\n", encoding="utf-8")


if __name__ == "__main__":
    main()
