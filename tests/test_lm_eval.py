"""lm-evaluation-harness: it finds the perplexities that are found here, and its tasks are run on every arm.

Skipped where the harness is not installed; `make agreement` installs it apart and runs this.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from support.training import PARAMS

from stages.lib.data.preparation import tokenize
from stages.lib.data.texts import read_dataset
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.adapter import add_adapter
from stages.lib.model.loading import ADAPTER, load_model
from stages.lib.params import Mistake
from stages.lib.scoring.document_scores import summarize
from stages.lib.scoring.windows import score_documents
from stages.lib.sources.source import MODELS

pytest.importorskip("lm_eval")

TASK = """
task: pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.mark.parametrize("window_tokens", [128, 512])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_harness_finds_the_same(adapted, window_tokens, tmp_path):
    from lm_eval.tasks import TaskManager

    from commands.tasks import run_tasks

    texts = list(read_dataset("encyclopedia"))[:12]
    model = load_model("wiki-mini", PARAMS.quantization)
    if adapted:
        torch.manual_seed(0)
        model = add_adapter(model, PARAMS.lora).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": text.text}) + "\n" for text in texts))
    (tmp_path / "pages.yaml").write_text(TASK.format(file=pages))
    manager = TaskManager(include_path=str(tmp_path))
    harness = run_tasks(model, MODELS / "wiki-mini", ["pages"], manager, window_tokens=window_tokens)
    theirs = {name.partition(",")[0]: value for name, value in harness["results"]["pages"].items()}
    documents = tokenize(texts, load_tokenizer("wiki-mini"))
    found = summarize(score_documents(model, documents, window_tokens, stride_tokens=window_tokens, batch_size=4))
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        ours = getattr(found, metric)
        print(f"{metric} {window_tokens} {adapted}: {ours:.9g}, lm-eval {theirs[metric]:.9g}")
        assert ours == pytest.approx(theirs[metric], rel=1e-5)


CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
}
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: ["Paris", "Berlin", "Rome", "Madrid", "Tokyo", "Cairo"]
doc_to_target: "{{{{capital}}}}"
metric_list: [{{metric: acc}}, {{metric: brier_score}}]
"""
ANSWER = """
task: answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: generate_until
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_target: " {{{{capital}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
GROUP = """
group: both
task: [choice]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which `make tasks` runs: an adapter of random weights, a release of it, and tasks of one's own."""
    from commands import release, tasks

    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml", "models/base"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(REPOSITORY / name)
    torch.manual_seed(0)
    model = add_adapter(load_model("wiki-mini", PARAMS.quantization), PARAMS.lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(ADAPTER)
    release.merge(MODELS / "wiki-mini", ADAPTER, release.RELEASE)
    monkeypatch.setattr(tasks, "current_adapter", lambda: "1.dir")
    (tmp_path / "own").mkdir()
    rows = [{"country": country, "capital": capital} for country, capital in CAPITALS.items()]
    file = tmp_path / "own/capitals.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "id": 7}]))
    for name, text in {"choice": CHOICE.format(file=file), "answer": ANSWER.format(file=file), "both": GROUP}.items():
        (tmp_path / f"own/{name}.yaml").write_text(text)
    return tmp_path


def run(monkeypatch, *names: str) -> dict:
    from commands.tasks import main

    monkeypatch.setattr(sys, "argv", ["tasks", *names, "--include", "own"])
    main()
    return json.loads(Path("metrics/tasks.json").read_text())


def test_tasks_of_ones_own_run_on_every_arm(project, monkeypatch, capsys):
    from commands.release import CARD, RELEASE

    (RELEASE / CARD).write_text("of `1.dir`")
    found = run(monkeypatch, "both", "answer")
    score, answered = found["tasks"]["both"]["acc"], found["tasks"]["answer"]["exact_match"]
    assert set(found["tasks"]) == {"both", "answer"} and {"base", "tuned", "released"} <= set(score)
    change = score["base_to_tuned"]
    assert change["units"] == 6 and change["tests"] == 2 and answered["tuned_to_released"]["units"] == 6
    assert change["change"] == pytest.approx(score["tuned"] - score["base"])
    rows = [json.loads(line) for line in Path("data/tasks/choice.jsonl").read_text().splitlines()]
    assert [row["doc"]["country"] for row in rows] == [*CAPITALS, "France"]
    assert sum(row["tuned"]["acc"] for row in rows) / 7 == score["tuned"]
    measured = found["measured"][0]
    assert measured["adapter"] == "1.dir" and set(measured["seeds"].values()) == {0, 1234}
    assert capsys.readouterr().out.count("| both | acc |") == 2
    again = Path("metrics/tasks.csv").read_bytes()
    assert run(monkeypatch, "both", "answer") == found and Path("metrics/tasks.csv").read_bytes() == again


def test_a_release_of_another_adapter_is_left_out_and_that_is_said(project, monkeypatch, capsys):
    from commands.release import CARD, RELEASE

    for text in ("of `2.dir`", None):  # None: it was not finished
        (RELEASE / CARD).write_text(text) if text else (RELEASE / CARD).unlink()
        found = run(monkeypatch, "choice")
        assert set(found["tasks"]["choice"]["acc"]) == {"base", "tuned", "base_to_tuned"}
        assert set(found["tasks"]["choice"]["brier_score"]) == {"base", "tuned"}
        assert "models/release: not of this adapter, so it is left out" in capsys.readouterr().out


def test_an_unknown_task_is_said_in_a_line_before_anything_is_loaded(project, monkeypatch):
    from commands import tasks

    monkeypatch.setattr(tasks, "run_arms", None)
    with pytest.raises(Mistake, match=r"^chois: the harness cannot load this: .*expected names as `lm_eval ls tasks`"):
        run(monkeypatch, "chois")
    Path("own/capitals.jsonl").unlink()
    with pytest.raises(Mistake, match=r"^choice: the harness cannot load this: "):
        run(monkeypatch, "choice")


def test_a_text_begins_as_its_tokenizer_begins_it_and_once(project, monkeypatch):
    from lm_eval.tasks import TaskManager

    from commands.tasks import Harness, run_tasks

    (project / "own/pages.yaml").write_text(
        TASK.format(file=project / "own/capitals.jsonl").replace("{{text}}", "{{country}}")
    )
    starts = []

    def note(harness, requests, *arguments, **options):
        starts.extend([*context, *continuation][:2] for _, context, continuation in requests)
        return [(-1.0, False) for _ in requests]

    monkeypatch.setattr(Harness, "_loglikelihood_tokens", note)
    model = load_model("wiki-mini", PARAMS.quantization)
    run_tasks(model, MODELS / "wiki-mini", ["choice", "pages"], TaskManager(include_path="own"))
    assert len(starts) == 6 * 6 + 6 + 6 + 1 and {begin for begin, _ in starts} == {model.config.bos_token_id}
    assert model.config.bos_token_id not in {second for _, second in starts}
