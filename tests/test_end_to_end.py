"""The real pipeline, on what the repository ships, with less training: `dvc repro` and what re-runs when."""

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from support.clone import Clone, results
from support.pipeline import STAGES
from support.uploads import WritableHub
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.lib.data.splits import hash_position
from stages.lib.history import adapter_in
from stages.lib.params import read_yaml

EVERYTHING = {
    *("check", "prepare", "train", "compare", "draw", "evaluate@full", "evaluate@base", "evaluate@tuned"),
    *("generate@base", "generate@tuned", "grade", "summarize", "sheet", "rate"),
}
AFTER_TRAINING = {"train", "evaluate@tuned", "generate@tuned", "compare", "draw", "summarize"}
JUDGING = {"grade", "sheet", "rate"}  # which run where so little training makes the tuned model answer otherwise


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("clone"))
    assert clone.stages_run("repro") == EVERYTHING
    clone.commit("Run")
    return clone


def test_the_results_are_there_and_sane(clone):
    arms = {arm: clone.read_metrics(f"evaluate/{arm}")["document"] for arm in ("full", "base", "tuned")}
    counts = {(found["documents"], found["tokens"], found["bytes"]) for found in arms.values()}
    assert len(counts) == 1
    assert all(1.0 < found["bits_per_byte"] < 1.7 for found in arms.values())
    assert arms["full"]["nll"] < arms["base"]["nll"]
    comparison = clone.read_metrics("compare")["base_to_tuned"]
    assert comparison["nll_difference"] == pytest.approx(arms["tuned"]["nll"] - arms["base"]["nll"], abs=1e-12)
    key = json.loads((clone.folder / "data/ratings/key.json").read_text())
    assert len(key["items"]) == 2 + len((clone.folder / "data/prompts.txt").read_text().splitlines())
    assert "no preferences yet" in clone.read_metrics("human")["in_words"]


def test_nothing_runs_twice(clone):
    assert clone.stages_run("repro") == set()
    assert clone.run("git", "status", "--porcelain") == ""


def test_a_lock_file_cut_short_is_made_again_from_the_cache(clone):
    lock = clone.folder / "dvc.lock"
    whole = lock.read_bytes()
    for cut in (0, whole.index(b" md5:", len(whole) // 2) + len(" md5")):  # elsewhere the rest may be whole YAML
        lock.write_bytes(whole[:cut])
        assert "dvc.lock" in clone.run("dvc", "repro", expect=255)
        lock.unlink()
        assert clone.stages_run("repro") == set()
        assert lock.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EVERYTHING - {"check"}))
def test_a_stage_needs_nothing_but_what_it_declares(clone, tmp_path, name):
    """In a folder that holds only that, it makes all it declares, the very same, and nothing else."""
    stage = STAGES[name]
    for dep in dict.fromkeys(stage["deps"]):
        (tmp_path / dep).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (clone.folder / dep).is_dir() else shutil.copy
        copy(clone.folder / dep, tmp_path / dep)
    shutil.copy(clone.folder / "dvc.yaml", tmp_path)  # which says what sections there may be
    params = read_yaml(clone.folder / "params.yaml")
    declared = {section: params[section] for section in [*stage.get("params", []), "run"]}
    (tmp_path / "params.yaml").write_text(json.dumps(declared))  # JSON is YAML
    listed = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    outs = [Path(out if isinstance(out, str) else next(iter(out))) for out in listed]
    for out in outs:
        (tmp_path / out).parent.mkdir(parents=True, exist_ok=True)  # as DVC does
    command = [sys.executable, *shlex.split(stage["cmd"])[1:]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    given = [Path(dep) for dep in stage["deps"]]
    found = {Path(file): value for file, value in results(tmp_path).items()}
    made = {str(file): value for file, value in found.items() if not any(map(file.is_relative_to, given))}
    assert all((tmp_path / out).exists() for out in outs)
    assert made and all(any(Path(file).is_relative_to(out) for out in outs) for file in made)
    assert made.items() <= clone.results().items()


def test_what_dvc_shows_are_the_numbers_that_decide_on_one_screen(clone):
    lines = clone.run("dvc", "metrics", "show").splitlines()
    assert lines[0].split() == ["Path", "perplexity.ratio", "validation.perplexity"]
    assert len(lines) <= 25 and max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[1:] if line.split()[1] != "-"] == ["metrics/summary.json"]
    columns = json.loads(clone.run("dvc", "exp", "show", "--json"))[0]["data"]["metrics"]
    assert {name for name, found in columns.items() if found["data"]} == {"metrics/summary.json"}


@pytest.mark.slow
def test_a_second_run_from_scratch_repeats_every_result_to_the_last_bit(clone):
    before = clone.results()
    assert clone.stages_run("repro", "-f") == EVERYTHING
    assert clone.results() == before
    assert "metrics/cost/train.json" in clone.run("git", "diff", "--name-only")
    clone.run("python", "-m", "commands.settle")
    assert clone.run("git", "status", "--porcelain") == ""


def test_a_lora_parameter_re_runs_what_it_touches_and_going_back_runs_nothing(clone):
    before = clone.results()
    assert clone.stages_run("exp", "run", "-S", "lora.r=4") - JUDGING == AFTER_TRAINING | {"check"}
    changed = {name for name, value in clone.results().items() if before[name] != value}
    assert {
        "models/adapter/adapter_model.safetensors",
        "metrics/evaluate/tuned.json",
        "metrics/compare.json",
    } <= changed
    assert not {name for name in changed if name.endswith(("base.json", "full.json", "prepare.json", "base.jsonl"))}
    assert "lora.r" in clone.run("dvc", "params", "diff")
    lines = clone.run("dvc", "metrics", "diff").splitlines()
    assert [line.split()[1] for line in lines] == ["Metric", "perplexity.ratio", "validation.perplexity"]
    told = clone.run("python", "-m", "commands.diff", "HEAD")
    assert re.search(r"\| lora\.r +\| 8 +\| 4 +\|", told) and "The tuned model: " in told
    assert clone.stages_run("exp", "run", "-S", "lora.r=8") == set()
    assert clone.results() == before


def test_where_it_is_computed_re_runs_nothing_but_the_check_of_parameters(clone):
    assert clone.stages_run("exp", "run", "-S", "run.checkpoint_minutes=7") == {"check"}
    assert clone.stages_run("exp", "run", "-S", "run.checkpoint_minutes=5") == set()


@pytest.mark.slow
def test_conversations_are_learned_scored_answered_and_put_on_the_sheet(clone):
    folder = clone.folder / "data/raw/talk"
    folder.mkdir(parents=True)
    words = [path.stem for path in sorted((clone.folder / "data/raw/encyclopedia").glob("[!R]*.md"))]
    rows = [
        {"question": f"Which letter does {word} begin with?", "answer": f"With {word[0].upper()}."} for word in words
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "talk.jsonl").write_text("\n".join([*lines, json.dumps(rows[0] | {"answer": " "})]))
    (folder / "prompts.txt").write_text("Which letter does zebra begin with?\n")
    settings = ("dataset=talk", "prepare.train_fraction=1.0", "prepare.test_fraction=0.1", "generate.answer_tokens=8")
    ran = clone.stages_run("exp", "run", *(word for setting in settings for word in ("-S", setting)))
    assert ran | JUDGING >= {"check", "prepare", "train", "compare", "evaluate@full", "generate@tuned"}
    prepared = clone.read_metrics("prepare")
    assert prepared["template"]["origin"] == "plain" and prepared["not_learned"]["rows"] == {"an empty answer": 1}
    found = {arm: clone.read_metrics(f"evaluate/{arm}") for arm in ("base", "tuned")}
    assert found["base"]["blocks"] is None and found["base"]["document"]["tokens"] == prepared["test"]["tokens"]
    assert found["tuned"]["document"]["nll"] < 0.8 * found["base"]["document"]["nll"]
    answers = [json.loads(line) for line in (clone.folder / "data/answers/tuned.jsonl").read_text().splitlines()]
    for split in ("test", "validation"):
        assert sum(answer["split"] == split for answer in answers) == prepared[split]["documents"]
    assert clone.read_metrics("answers")["validation"]["answers"] == prepared["validation"]["documents"]
    assert all(
        answer["reference"].strip() == f"With {answer['messages'][0]['content'].split()[3][0].upper()}."
        for answer in answers
    )
    page = (clone.folder / "data/ratings/sheet.html").read_text()
    assert "Which letter does zebra begin with?" in page and "User: Which letter does" in page
    assert "<mark> With" in (clone.folder / "data/prepared/preview.html").read_text()
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
    clone.run("dvc", "checkout", "-q")


@pytest.mark.slow
def test_another_dataset_is_scored_beside_and_re_runs_nothing_else(clone):
    folder = clone.folder / "data/raw/other/test"
    folder.mkdir(parents=True)
    for name, words in {"oak": "An oak is a tree. Its fruit is the acorn.", "tin": "Tin is a soft metal."}.items():
        (folder / f"{name}.txt").write_text(words)
    stages = {"prepare_also@other", *(f"evaluate_also@other-arm{number}" for number in range(3)), "compare_also@other"}
    assert clone.stages_run("exp", "run", "-S", "also=[other]") == {"check", *stages}
    found = clone.read_metrics("also/other/compare")["base_to_tuned"]
    assert found["documents"] == 2
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
    clone.run("dvc", "checkout", "-q")


def test_arms_that_two_machines_scored_are_not_compared(clone):
    """As where the base comes from a shared cache, and the tuned model is scored here."""
    here = clone.read_metrics("evaluate/base")["precision"].rpartition(" in ")[2]
    clone.edit("metrics/evaluate/base.json", {f"computed in {here}": "computed in fp16 on elsewhere"})
    said = clone.run("python", "-m", "stages.compare", expect=1)
    clone.run("git", "checkout", "-q", "metrics/evaluate/base.json")
    told = f"full in {here}, base in fp16 on elsewhere, tuned in {here}; rounding alone makes a difference"
    assert said.count("\n") == 1 and f"computed in different arithmetic: {told}" in said
    command = re.search("`dvc (repro -f -s .*?)`", said)[1].split()
    asked = {f"{stage}@{arm}" for stage in ("evaluate", "generate") for arm in ("base", "tuned")} | {"evaluate@full"}
    assert clone.stages_run(*command, "--dry") == asked


@pytest.mark.parametrize(
    ("file", "module"),
    [("data/generated/base.jsonl", "stages.sheet"), ("metrics/evaluate/full.json", "commands.release")],
)
def test_neither_are_they_rated_or_released_with_a_verdict(clone, file, module):
    here = clone.read_metrics("evaluate/base")["precision"].rpartition(" in ")[2]
    kept = (clone.folder / file).read_text()
    clone.edit(file, {f"computed in {here}": "computed in fp16 on elsewhere"})
    said = clone.run("python", "-m", module, expect=1)
    (clone.folder / file).unlink()  # it may be linked to DVC's cache
    (clone.folder / file).write_text(kept)
    assert said.count("\n") == 1 and "computed in different arithmetic: " in said and "fp16 on elsewhere" in said


@pytest.fixture(scope="module")
def seeds(clone) -> str:
    """The experiments seed-1, which is what is committed, and seed-2; and what was printed of them."""
    return clone.run("python", "-m", "commands.seeds", "2")


def test_seeds_are_experiments_and_leave_the_workspace_alone(clone, seeds):
    first, second = (re.search(rf"^\| seed-{seed} \| (.*) \|$", seeds, re.M)[1].split(" | ") for seed in (1, 2))
    shipped = clone.read_metrics("evaluate/tuned")["document"]
    assert first[0] == f"{shipped['perplexity']:.4f}" and first[0] != second[0]
    assert clone.run("git", "status", "--porcelain") == ""
    assert "seed-2" in clone.run("dvc", "exp", "list")


@pytest.mark.slow
def test_a_queue_runs_experiments_and_leaves_the_workspace_alone(clone):
    clone.run("dvc", "exp", "run", "--queue", "-n", "queued", "-S", "compare.resamples=100,200")
    clone.run("dvc", "queue", "start")
    deadline = time.monotonic() + 1200
    while re.search("Queued|Running", status := clone.run("dvc", "queue", "status")) and time.monotonic() < deadline:
        time.sleep(2)
    assert status.count("Success") == 2, status
    assert clone.run("git", "status", "--porcelain") == ""
    listed = clone.run("dvc", "exp", "list", "--name-only").split()
    clone.run("dvc", "exp", "remove", *(found := [name for name in listed if name.startswith("queued")]))
    assert len(found) == 2


def test_the_best_experiment_and_a_report_of_it(clone, seeds):
    told = clone.run("python", "-m", "commands.best")
    losses = [float(number) for number in re.findall(r"^\|.*\| (\d.\d+) +\|$", told, re.M)]
    assert losses == sorted(losses) and len(losses) >= 2
    assert re.search(r"^\| seed-2 +\| HEAD +\| train.seed: 2 +\|", told, re.M)
    assert "seed-1" not in told  # which is HEAD
    clone.run("python", "-m", "commands.report", "HEAD", "seed-2")
    report = (clone.folder / "report/report.md").read_text()
    assert "| `train.seed` | 1 | 2 |" in report and "| train | ran | train |" in report
    assert re.search(r"The tuned model: [a-z0-9,% ]+\.\*\* Perplexity times \d\.\d{4}", report)
    for picture in re.findall(r'<img src="(.*?)"', report):
        assert (clone.folder / "report" / picture).read_bytes().startswith(b"\x89PNG")
    found = clone.read_metrics("evaluate/tuned")["document"]
    assert f"| perplexity of the tuned model | {found['perplexity']:.3f} |" in report


def test_what_a_pull_request_runs(clone, tmp_path):
    """The shell of both workflows, as it stands, with a `gh` that writes down what it is asked."""
    binaries = clone.folder / ".venv/bin"
    binaries.mkdir(parents=True)
    for name, command in {"python": "", "dvc": " -m dvc"}.items():
        (binaries / name).write_text(f'#!/bin/sh\nexec {sys.executable}{command} "$@"\n')
        (binaries / name).chmod(0o755)
    head = clone.run("git", "rev-parse", "HEAD").strip()
    variables = {"BASE": head, "HEAD": head, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GH_REPO": "o/r"}
    for name, workflow in (("check", "report"), ("comment", "comment")):
        steps = read_yaml(clone.folder / f".github/workflows/{name}.yml")["jobs"][workflow]["steps"]
        folder = clone.folder
        if name == "comment":
            folder = clone.folder / "report"
            (tmp_path / "gh").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
            (tmp_path / "gh").chmod(0o755)
        for step in steps:
            if "run" in step and "Set up" not in step["name"]:
                script = step["run"].replace("${{ github.event.pull_request.number }}", "7")
                path = f"{tmp_path}:{os.environ['PATH']}"
                ran = subprocess.run(
                    ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
                    **{
                        "cwd": folder,
                        "env": os.environ | variables | {"PATH": path},
                        "capture_output": True,
                        "text": True,
                    },
                )
                assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "The tuned model gives every held-out document the same loss" in (tmp_path / "summary.md").read_text()
    asked = (tmp_path / "asked").read_text()
    assert "repos/o/r/issues/7/comments" in asked and "pr comment 7 --body-file body.md" in asked
    body = (clone.folder / "report/body.md").read_text()
    assert body.startswith("<!-- report -->") and "<img" not in body
    clone.run("git", "clean", "-qfdx", "-e", ".dvc", "-e", "data", "-e", "models", "-e", "plots")
    assert clone.run("git", "status", "--porcelain") == ""


def pull_elsewhere(clone: Clone, folder: Path) -> None:
    """A colleague clones, pulls, and finds nothing to do."""
    clone.run("git", "clone", "-q", ".", str(folder))
    colleague = Clone.at(folder)
    colleague.run("dvc", "pull", "-q")
    assert colleague.stages_run("repro") == set()
    assert colleague.run("git", "status", "--porcelain") == ""
    assert colleague.results() == clone.results()


def test_a_folder_shares_data_and_a_git_remote_shares_experiments(clone, seeds, tmp_path):
    clone.run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    clone.commit("Share")
    clone.run("dvc", "push", "-q")
    pull_elsewhere(clone, tmp_path / "colleague")
    clone.run("git", "clone", "-q", "--bare", ".", str(tmp_path / "hub.git"))
    clone.run("git", "remote", "add", "hub", str(tmp_path / "hub.git"))
    clone.run("dvc", "exp", "push", "-q", "hub", "seed-2")
    for command in (
        ["git", "remote", "add", "hub", str(tmp_path / "hub.git")],
        ["dvc", "exp", "pull", "-q", "hub", "seed-2"],
    ):
        subprocess.run(command, cwd=tmp_path / "colleague", check=True)
    listed = subprocess.run(["dvc", "exp", "list", "-A"], cwd=tmp_path / "colleague", capture_output=True, text=True)
    assert "seed-2" in listed.stdout
    clone.run("git", "reset", "-q", "--hard", "HEAD~1")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("dvc_s3", "moto", "flask"))),
    reason="pip install dvc-s3 moto flask flask-cors",
)
def test_s3_shares_data(clone, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        import boto3

        for _ in range(60):
            time.sleep(0.5)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="bucket")
        clone.run("dvc", "remote", "add", "-d", "store", "s3://bucket/store")
        clone.run("dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{port}")
        clone.commit("Share")
        clone.run("dvc", "push", "-q")
        pull_elsewhere(clone, tmp_path / "colleague")
    finally:
        server.kill()
    clone.run("git", "reset", "-q", "--hard", "HEAD~1")


def test_a_release_is_a_model_that_scores_as_it_says(clone):
    printed = clone.run("python", "-m", "commands.release")
    assert "full to merged: perplexity times" in printed and "tuned to merged: perplexity times" in printed
    folder = clone.folder / "models/release"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and tokenizer("Paris").input_ids[0] == model.config.bos_token_id
    card = (folder / "README.md").read_text()
    assert f"`{adapter_in((clone.folder / 'dvc.lock').read_text())}`" in card
    full, tuned, merged = (
        float(re.search(rf"^\| {arm} \| ([\d.]+)", card, re.M)[1]) for arm in ("full", "tuned", "merged")
    )
    assert merged < full and merged < tuned
    assert clone.run("git", "status", "--porcelain") == ""


@pytest.fixture
def hub(monkeypatch):
    """A Hub in whose name `acme` may be written, which every process that is started finds."""
    with WritableHub() as hub:
        hub.let_write("hf_acme", "acme")
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_acme", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        for name, value in (settings | {"NO_PROXY": "*", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}).items():
            monkeypatch.setenv(name, value)
        yield hub


def publish(clone: Clone, *arguments: str, expect: int = 0) -> str:
    """Publish; return the one line that is printed."""
    printed = clone.run("python", "-m", "commands.publish", "acme/thing", *arguments, expect=expect)
    assert len(printed.splitlines()) == 1, printed
    return printed


def test_the_adapter_and_the_release_are_published_with_their_own_scores(clone, hub):
    folders = {name: clone.folder / "models" / name for name in ("adapter", "release")}
    head = clone.run("git", "rev-parse", "HEAD").strip()
    assert f"{hub.url}/acme/thing: private, commit " in publish(clone)
    sent = hub.files("acme/thing")
    card = ModelCard(sent.pop("README.md").decode())
    assert sent == {file.name: file.read_bytes() for file in folders["adapter"].iterdir()}
    assert hub.current("acme/thing").private and card.data["commit"] == head
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    tuned = clone.read_metrics("evaluate/tuned")["document"]
    names = {"perplexity": "perplexity", "bits_per_byte": "bits_per_byte", "next_token_accuracy": "accuracy"}
    assert scores == {name: tuned[metric] for name, metric in names.items()}
    compared = clone.read_metrics("compare")
    assert f"- {compared['in_words']}" in card.text.splitlines() and "- full to tuned: perplexity times" in card.text
    clone.run("python", "-m", "commands.release")
    publish(clone, "models/release")
    sent = hub.files("acme/thing")
    card = ModelCard(sent.pop("README.md").decode())
    assert sent == {file.name: file.read_bytes() for file in folders["release"].iterdir() if file.name != "README.md"}
    merged = float(re.search(r"^\| merged \| ([\d.]+)", card.text, re.M)[1])
    assert {f"{result.metric_value:.3f}" for result in card.data.eval_results} >= {f"{merged:.3f}"}
    for line in ("- full to merged: perplexity times", "- tuned to merged: ", f"- {compared['in_words']}"):
        assert any(found.startswith(line) for found in card.text.splitlines())
    assert clone.run("git", "status", "--porcelain") == ""


def test_what_is_not_of_this_commit_has_no_licence_or_no_owner_is_not_published(clone, hub, tmp_path, monkeypatch):
    assert "not committed: params.yaml" in edited(clone, "params.yaml", {"r: 8": "r: 4"}, commit=False)
    assert "check, train: not what code, data" in edited(clone, "params.yaml", {"r: 8": "r: 4"})
    assert "compare, draw, summarize: not what" in edited(clone, "metrics/compare.json", {"0.": "0.9"})
    assert "README.md: names no licence" in edited(clone, "models/base/wiki-mini/README.md", {"license: ": "licence: "})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "no token of the Hugging Face Hub here: run `hf auth login`" in publish(clone, expect=1)
    assert hub.asked == []


def edited(clone: Clone, name: str, changes: dict[str, str], commit: bool = True) -> str:
    """Edit a file, and commit it or not; return why nothing is published then, and undo it."""
    clone.edit(name, changes)
    if commit:
        clone.commit("Edit")
    try:
        return publish(clone, expect=1)
    finally:
        clone.run("git", "reset", "-q", "--hard", "HEAD~1" if commit else "HEAD")


def test_an_export_is_the_release_in_other_files_that_score_as_it_does_and_is_published(clone, hub):
    pytest.importorskip("xllamacpp")
    clone.run("python", "-m", "commands.export", "--prompts", "6")
    folder = clone.folder / "models/export"
    names = {f"wiki-mini-encyclopedia-{kind}.gguf" for kind in ("BF16", "Q8_0")}
    files = {*names, "Modelfile.BF16", "Modelfile.Q8_0", "README.md", "proof.json"}
    assert {path.name for path in folder.iterdir()} == files
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["adapter"] == adapter_in((clone.folder / "dvc.lock").read_text())
    adapter, merged, half, eight = proof["artifacts"]
    assert (
        adapter["name"] == "adapter on NF4"
        and adapter["nll"] == clone.read_metrics("evaluate/tuned")["document"]["nll"]
    )
    assert half["nll"] == merged["nll"] and half["nll_change"] == 0  # whose own precision is bf16
    assert 0 < abs(eight["nll_change"]) < 0.005 * merged["nll"]
    for found in (half, eight):
        ran = found["llama_cpp"]
        assert ran["prompts"] == 6 and ran["log_prob"] == pytest.approx(ran["expected_log_prob"], rel=0.005)
    assert f"| BF16 | {half['megabytes']:.0f} | {half['nll']:.4f} |" in (folder / "README.md").read_text()
    publish(clone, "models/export")
    sent = hub.files("acme/thing")
    card = ModelCard(sent.pop("README.md").decode())
    assert sent == {name: (folder / name).read_bytes() for name in files - {"README.md"}}
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores == {f"perplexity_{found['name']}": math.exp(found["nll"]) for found in (half, eight)}
    for line in ("- full to BF16: perplexity", "- full to Q8_0: perplexity", "- base to tuned: perplexity"):
        assert line in card.text
    assert clone.run("git", "status", "--porcelain") == ""


def test_code_of_one_stage_re_runs_that_stage(clone):
    clone.edit("stages/generate.py", {'"""Ask the': '"""Now ask the'})
    assert clone.stages_run("repro") == {"generate@base", "generate@tuned"}  # whose answers are the same
    clone.run("git", "reset", "-q", "--hard")
    clone.run("dvc", "checkout", "-q")


@pytest.mark.slow
def test_new_articles_re_run_everything_they_touch(clone):
    """All but `check`, which runs when parameters change."""
    for split, (low, high) in {"test": (0, 0.05), "train": (0.07, 1)}.items():
        texts = (f"# Zebra {n}\n\n{' '.join(f'stripe{n * i % 997}' for i in range(1, 30))}." for n in range(1, 997))
        text = next(t for t in texts if low < hash_position(t, "split") < high and hash_position(t, "keep") < 0.1)
        (clone.folder / f"data/raw/encyclopedia/zebra-for-{split}.md").write_text(text)
    assert clone.stages_run("repro") - JUDGING == EVERYTHING - {"check"} - JUDGING
    clone.run("git", "reset", "-q", "--hard")
    clone.run("git", "clean", "-qfd")
    clone.run("dvc", "checkout", "-q")


def test_a_mistake_in_the_data_costs_no_result(clone):
    """What is found after DVC has deleted the outputs of a stage, in the cache and in Git."""
    before, source = clone.results(), clone.folder / "data/raw/encyclopedia/source.yaml"
    source.write_text("revision: 1\n")
    assert "data/raw/encyclopedia/source.yaml: revision: " in clone.run("dvc", "repro", expect=255)
    source.unlink()
    assert clone.results() == before and clone.run("git", "status", "--porcelain") == ""
    assert clone.stages_run("repro") == set()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model: wiki-mini",
            "model: gpt",
            "models/base/gpt: no such folder; the names there are: llama-3.2-1b, smollm2-135m, wiki-mini",
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
