"""Parameters and names: every mistake gets a line of its own, at once."""

import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import REPOSITORY, change_params, write_params

from stages.lib.params import Mistake, read_params, read_yaml
from stages.lib.sources.source import MODELS, find, read_source
from stages.lib.training.recipe import Recipe

OTHERWISE = {  # than the reference recipe, in all that it says
    "quantization.bits": 16,
    "quantization.kind": "fp4",
    "lora.r": 4,
    "lora.alpha": 8,
    "lora.dropout": 0.0,
    "lora.target_modules": "all-linear",
    "train.batch_size": 2,
    "train.learning_rate": 1e-3,
    "train.epochs": 1,
    "train.block_tokens": 64,
    "train.evaluations": 1,
    "train.gradient_checkpointing": "true",
}


def write(folder: Path, *edits: tuple[str, str]) -> Path:
    path = write_params(folder)
    text = path.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def set_by(target: str) -> dict[str, str]:
    """Return the parameters that a command of the Makefile sets."""
    printed = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    command = next(line for line in printed.splitlines() if "dvc exp run" in line)
    return dict(setting.split("=", 1) for flag, setting in pairwise(shlex.split(command)) if flag == "-S")


@pytest.mark.parametrize(
    ("target", "model", "dataset"),
    [("brief", "llama-3.2-1b", "wikitext-2"), ("encyclopedia", "wiki-mini", "encyclopedia")],
)
@pytest.mark.parametrize("before", [{}, OTHERWISE], ids=["as shipped", "whatever was there"])
def test_the_reference_recipe_is_a_command_away(target, model, dataset, before, tmp_path):
    path = Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))
    change_params(path, before)
    change_params(path, set_by(target))
    params, names = read_params(Recipe, path), read_yaml(path)
    assert (names["model"], names["dataset"]) == (model, dataset)
    assert (params.quantization.bits, params.quantization.kind) == (4, "nf4")
    assert params.lora.model_dump() == {
        "r": 8,
        "alpha": 32,
        "rslora": False,
        "dora": False,
        "init": "default",
        "dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    }
    assert (params.train.batch_size, params.train.learning_rate, params.train.epochs) == (4, 2e-4, 3)
    assert (params.train.block_tokens, params.train.evaluations) == (512, 6)
    assert params.train.gradient_checkpointing == "auto"  # where it is needed


def test_tests_run_on_what_make_encyclopedia_sets(tmp_path):
    path = write_params(tmp_path)
    before = read_yaml(path)
    change_params(path, set_by("encyclopedia"))
    assert read_yaml(path) == before


def test_all_mistakes_are_reported_at_once(tmp_path):
    path = write(tmp_path, ("r: 8", "r: -8"), ("alpha: 32", "alhpa: 32"), ("epochs: 3", "epochs: three"))
    with pytest.raises(Mistake) as mistake:
        read_params(Recipe, path)
    assert str(mistake.value).splitlines() == [
        f"{path}: lora.r: Input should be greater than 0, found -8",
        f"{path}: lora.alpha: missing",
        f"{path}: lora.alhpa: unknown parameter",
        f"{path}: train.epochs: Input should be a valid integer, found 'three'",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dropout: 0.05", "dropout: 1.5", "lora.dropout: Input should be less than 1, found 1.5"),
        ("bits: 4", "bits: 5", "quantization.bits: Input should be 4, 8 or 16, found 5"),
        ("bits: 4", "bits: '4'", "quantization.bits: Input should be 4, 8 or 16, found '4'"),
        ("epochs: 3", "epochs: 3.5", "train.epochs: Input should be a valid integer, found 3.5"),
        (
            "lora:",
            "lorra:",
            "lorra: no stage reads this; there are also, answers, compare, dataset, evaluate, "
            "generate, lora, model, prepare, quantization, rate, run, sheet, train",
        ),
        ("lora:", "lora: [", "not YAML"),
        (
            "micro_batch_size: auto",
            "micro_batch_size: 3",
            "train: micro_batch_size 3 does not divide batch_size 4",
        ),
        (
            "early_stopping_patience: 0",
            "early_stopping_patience: 6",
            "train: early_stopping_patience 6 cannot be reached in evaluations 6; 0 turns it off",
        ),
        (
            "micro_batch_size: auto",
            "micro_batch_size: -2",
            "train.micro_batch_size: Input should be greater than 0 or 'auto', found -2",
        ),
        ("compile: auto", "compile: maybe", "train.compile: Input should be a valid boolean or 'auto', found 'maybe'"),
        ("init: default", "init: pissa", "lora.init: pissa changes the base model's weights"),
        ("init: default", "init: LoftQ", "lora.init: Input should be 'default', 'gaussian', 'pissa' or 'loftq'"),
        ("seed: 1", "seed: -1", "train.seed: Input should be greater than or equal to 0, found -1"),
    ],
)
def test_a_mistake_says_where_what_was_expected_and_what_was_found(tmp_path, old, new, message):
    with pytest.raises(Mistake) as mistake:
        read_params(Recipe, write(tmp_path, (old, new)))
    assert message in str(mistake.value)


@pytest.mark.parametrize("number", ["3e-05", "3.0e-5", "0.00003"])
def test_numbers_are_read_as_dvc_writes_them(tmp_path, number):
    path = write(tmp_path, ("learning_rate: 0.0002", f"learning_rate: {number}"))
    assert read_params(Recipe, path).train.learning_rate == 3e-5


def test_an_unknown_name_lists_the_names_there_are():
    with pytest.raises(Mistake, match=r"models/base/gpt-5: no such folder; the names there are: .*llama-3.2-1b"):
        find(MODELS, "gpt-5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repo: a/b", "repo and revision"),
        ("repo: a/b\nrevision: main", "revision: String should match pattern"),
        ("package: a==1\nfile: b.gguf", "package .*, file .* and sha256 .* go together"),
        ("package: a>=1\nfile: b.bin\nsha256: x12", "package: String.*\n.*file: String.*\n.*sha256: String"),
        ("repository: a/b", "repository: unknown parameter"),
    ],
)
def test_a_source_is_pinned_to_a_commit(tmp_path, text, message):
    (tmp_path / "source.yaml").write_text(text)
    with pytest.raises(Mistake, match=message):
        read_source(tmp_path)


@pytest.mark.parametrize("stage", [["train"], ["evaluate", "base"], ["generate", "base"], ["prepare"]])
def test_a_stage_refuses_a_mistake_before_it_imports_anything_slow_and_without_a_traceback(tmp_path, stage):
    write(tmp_path, ("r: 8", "r: no"), ("bits: 4", "bits: 5"), ("test_fraction: 0.2", "test_fraction: 2.0"))
    for name in ("dvc.yaml", "stages"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-X", "importtime", "-m", f"stages.{stage[0]}", *stage[1:]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert ran.returncode == 1
    lines = ran.stderr.decode().splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    told = [line for line in lines if not line.startswith("import time:")]
    assert imported.isdisjoint({"torch", "transformers", "peft", "datasets"})  # which take seconds
    mistakes = {
        "train": [
            "quantization.bits: Input should be 4, 8 or 16, found 5",
            "lora.r: Input should be a valid integer, found 'no'",
        ],
        "prepare": ["prepare.test_fraction: Input should be less than 1, found 2.0"],
    }
    expected = mistakes.get(stage[0], mistakes["train"][:1])
    assert told == [f"params.yaml: {mistake}" for mistake in expected]
