"""Somebody brings a few texts: what is wrong with them is told at once, and what is advised works."""

import json
import re
import sys
from pathlib import Path
from statistics import median

import pytest
from conftest import REPOSITORY, change_params, write_params

from stages import prepare
from stages.lib.data.documents import read_documents
from stages.lib.data.overview import COLUMNS, count_scripts
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake

ARTICLES = sorted((REPOSITORY / "data/raw/encyclopedia").glob("[!R]*.md"))  # without its README.md
MINE = Path("data/raw/mine")
SPLITS = ("train", "validation", "test")
HEADING = " ".join(f"all{number}" for number in range(40)) + " "


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which `prepare.main()` runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    MINE.mkdir(parents=True)
    for name in ("dvc.yaml", "models/base", "stages"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    write_params(tmp_path, {"dataset": "mine"})
    monkeypatch.setattr(sys, "argv", ["prepare"])
    return tmp_path


def bring(number: int, beginning: str = "") -> None:
    """Bring the first lines of so many articles."""
    for article in ARTICLES[:number]:
        (MINE / article.name).write_text(beginning + article.read_text()[:400].strip())


def refusal() -> list[str]:
    with pytest.raises(Mistake) as refused:
        prepare.main()
    return str(refused.value).splitlines()


def advice(told: str, name: str) -> float:
    """Return the value of a parameter with which it is said to go on."""
    return float(re.search(rf"{name}: ([\d.]+)", told)[1].rstrip("."))


def write_questions(number: int, letters: int = 20) -> None:
    """Bring so many conversations, the last of which has an answer of so many letters."""
    rows = [{"question": f"What is {page.stem}?", "answer": page.read_text()[:120]} for page in ARTICLES[:number]]
    rows[-1]["answer"] = " ".join(f"{n}" for n in range(letters))
    (MINE / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_twelve_small_files_are_counted_before_anything_is_trained(project, capsys):
    bring(12)
    (MINE / "again.md").write_text((MINE / ARTICLES[0].name).read_text())
    prepare.main()
    printed, counts = capsys.readouterr().out, read_metrics("prepare")
    assert printed.startswith("data/raw/mine: 13 documents were read\n") and counts["read"] == 13
    tokenizer = load_tokenizer("wiki-mini")
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[2:5]}
    for split in SPLITS:
        texts = [document.text for document in read_documents(split)]
        lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        read = [1 + length for length in lengths]  # <s> before it
        found = [len(texts), sum(read), sum(lengths), median(read or [0]), max(read, default=0)]
        assert rows[split][:5] == [f"{number:,.12g}" for number in found]
        assert found == [counts[split][name] for name in list(COLUMNS)[:5]]
    assert sum(counts[split]["documents"] - counts[split]["repeated"] for split in SPLITS) == 12
    assert sum(counts[split]["repeated"] + counts[split]["left_out"] for split in SPLITS) == 1
    assert "\nletters: Latin 100.0%\n" in printed and counts["scripts"] == {"Latin": 1}
    assert (
        "test documents or groups cannot show anything for certain; 6 can: about 30 documents would leave that many"
        in printed
    )


def test_what_is_said_of_too_few_documents_works(project):
    bring(4)
    (told,) = refusal()
    assert told.startswith("data/raw/mine: expected 1 training and 2 test documents at least, found ")
    assert "of 4 that were read" in told and "about 30 leave the 6 that a verdict needs" in told
    change_params(Path("params.yaml"), {"prepare.test_fraction": advice(told, "prepare.test_fraction")})
    prepare.main()
    assert read_metrics("prepare")["test"]["documents"] >= 2


def test_what_is_wrong_is_told_at_once_and_what_is_said_works(project):
    bring(5, HEADING)
    change_params(Path("params.yaml"), {"prepare.test_fraction": 0.5})
    few, alike = refusal()
    assert "found 0 train, 2 validation, 3 test (of 5 that were read" in few
    assert alike.startswith("data/raw/mine: held-out documents that stand in one another, by more than 20%: ")
    change_params(Path("params.yaml"), {"prepare.test_fraction": advice(few, "prepare.test_fraction")})
    copied, *_ = refusal()
    assert copied.startswith("data/raw/mine: held-out documents that stand in training ones too, by more than 20%: ")
    change_params(Path("params.yaml"), {"prepare.max_overlap": advice(copied, "prepare.max_overlap")})
    prepare.main()
    assert read_metrics("prepare")["test"]["documents"] >= 2 and read_metrics("prepare")["train"]["documents"] >= 1


def test_what_is_said_of_long_conversations_works(project):
    write_questions(8, 160)
    change_params(Path("params.yaml"), {"prepare.max_tokens": 400})
    told = refusal()[0]
    assert "12% of the conversations teach nothing" in told and "1 longer than 400 tokens" in told
    params = Path("params.yaml").read_text()
    needed = int(advice(told, "prepare.max_tokens"))
    for name, value, left in (("max_tokens", needed, 0), ("max_left_out", advice(told, "prepare.max_left_out"), 1)):
        Path("params.yaml").write_text(params)
        change_params(Path("params.yaml"), {f"prepare.{name}": value, "prepare.test_fraction": 0.65})
        prepare.main()
        assert sum(read_metrics("prepare")["not_learned"]["rows"].values()) == left
    Path("params.yaml").write_text(params)
    change_params(Path("params.yaml"), {"prepare.max_tokens": needed - 1})
    assert "teach nothing" in refusal()[0]


def test_a_conversation_that_the_model_cannot_read_is_to_be_cut(project):
    write_questions(8, 600)
    told = refusal()[0]
    assert re.search(r"cut the long ones: one has [\d,]+ tokens, and the model reads 512", told)
    assert "max_tokens:" not in told


def test_scripts_are_shares_of_letters():
    found = count_scripts(["Ab c, 12!", "\u0416\u0436", "\u4e2d\uff21"])
    assert found == {"Latin": 4 / 7, "Cyrillic": 2 / 7, "CJK": 1 / 7}
    assert count_scripts(["12 !"]) == {}
