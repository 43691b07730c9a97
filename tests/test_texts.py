"""Datasets: every kind of file gives the documents it holds, and a split never moves."""

import json
import os
from collections import Counter

import pandas as pd
import pytest
from support.preparing import prepare_params

from stages.lib.data import texts
from stages.lib.data.splits import part_splits, split_texts
from stages.lib.data.texts import Text, pages_as_texts, read_dataset
from stages.lib.params import Mistake

WIKITEXT = " \n = One = \n \n First page . \n \n = = Part = = \n \n More . \n \n = Two = \n \n Second page . \n"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A function that makes a dataset of files and reads it."""
    monkeypatch.setattr(texts, "DATASETS", tmp_path)

    def read(**files: str | bytes) -> list[Text]:
        for name, content in files.items():
            path = tmp_path / "mine" / name.replace("__", ".")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_dataset("mine"))

    return read


def test_a_text_file_is_a_document(dataset):
    found = dataset(moon__md="# The Moon\n\nIt is round.\n", sun__txt="\ufeffIt is hot.\r\nVery.\n", blank__txt=" \n")
    assert found == [
        Text("moon.md", "The Moon", "# The Moon\n\nIt is round.", None),
        Text("sun.txt", "sun", "It is hot.\nVery.", None),
    ]


def test_a_row_is_a_document(dataset, tmp_path):
    rows = [{"text": "one ", "title": "I"}, {"text": "zwei\u2028drei"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = dataset(train__jsonl=lines + "\n\n")
    assert found == [
        Text("train.jsonl:1", "I", "one ", "train"),
        Text("train.jsonl:2", "train.jsonl:2", "zwei\u2028drei", "train"),
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "mine" / "valid.parquet")
    assert [text.split for text in dataset()] == ["train", "train", "validation", "validation"]
    assert [text.title for text in dataset()][2:] == ["I", "valid.parquet:2"]


def test_a_split_is_named_by_a_word_of_a_file_of_many_documents_or_all_of_a_document(dataset):
    row = json.dumps({"text": "x"})
    found = dataset(**{"wiki.valid.jsonl": row, "train-00000-of-00002.jsonl": row, "train-test.jsonl": row})
    assert {text.id: text.split for text in found} == {
        "wiki.valid.jsonl:1": "validation",
        "train-00000-of-00002.jsonl:1": "train",
        "train-test.jsonl:1": None,
    }
    found = {text.id: text.split for text in dataset(**{"test-pilot.md": "x", "test.md": "x"})}
    assert (found["test-pilot.md"], found["test.md"]) == (None, "test")


def test_a_folder_names_a_split_and_hidden_ones_are_not_read(dataset):
    found = dataset(**{"train/a.txt": "x", "dev/b.txt": "y", ".notes/c.txt": "z", "c.txt": "# No heading"})
    assert {text.id: text.split for text in found} == {"train/a.txt": "train", "dev/b.txt": "validation", "c.txt": None}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("eval.jsonl", "test"),
        ("evaluation-0.jsonl", "test"),
        ("my_testing.jsonl", "test"),
        ("Training.v2.jsonl", "train"),
        ("data/training/0.jsonl", "train"),
        ("data/my-eval/0.jsonl", "test"),
        ("dev_set/part.jsonl", "validation"),
        ("latest.jsonl", None),
        ("contest/evaluator.jsonl", None),
    ],
)
def test_splits_have_the_names_that_the_hub_knows(dataset, name, split):
    assert [text.split for text in dataset(**{name: '{"text": "x"}'})] == [split]


def test_source_yaml_may_name_splits_formats_and_columns(dataset):
    source = "splits: {train_sft: train, gold: test}\ncolumns: {question: q, answer: a}\n"
    row = '{"q": "Hi", "a": "Hello", "text": null}'
    found = dataset(**{"source.yaml": source, "train_sft.jsonl": row, "gold/b.json": f"[{row}]", "c.jsonl": row})
    assert {text.id: (text.split, text.text) for text in found} == {
        "train_sft.jsonl:1": ("train", "Hi\nHello"),
        "gold/b.json:1": ("test", "Hi\nHello"),
        "c.jsonl:1": (None, "Hi\nHello"),
    }
    with pytest.raises(Mistake, match=r"c.jsonl:1: a dataset is all texts or all conversations; this one has both"):
        dataset(**{"a.txt": "A text."})


def test_what_is_about_a_dataset_is_none_of_its_texts_and_is_named(dataset, capsys):
    about = {name: "About." for name in ("README.md", "LICENSE", "CITATION.cff", "dataset_infos.json", "raw.txt.dvc")}
    found = dataset(**about, **{"a.txt": "A text.", "sub/readme.md": "A text, too.", "prompts.txt": "Ask this"})
    assert [text.id for text in found] == ["a.txt", "sub/readme.md"]
    assert "mine: not read as text: CITATION.cff, LICENSE, README.md, dataset_infos.json, raw.txt.dvc" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("row", ['{"text": "cut \\ud83d"}', '{"text": "x", "title": "cut \\ud83d"}'])
def test_half_an_emoji_is_refused_with_its_row(dataset, row):
    with pytest.raises(Mistake, match=r"^a.jsonl:2: holds half a character \(a lone surrogate\): 'cut \\ud83d'$"):
        dataset(**{"a.jsonl": '{"text": "whole"}\n' + row})


def test_a_byte_order_mark_is_no_part_of_a_text(dataset):
    found = dataset(**{"a.txt": "\ufeffOne\ufeff text.", "b.jsonl": '{"text": "\\ufeffOne \ufefftext."}'})
    assert [text.text for text in found] == ["One text.", "One text."]


def test_a_file_may_have_any_name(dataset, tmp_path):
    dataset(**{"a.txt": "A text."})
    with open(os.fsencode(tmp_path) + b"/mine/caf\xe9.txt", "w") as file:
        file.write("Coffee.")
    assert [(text.id, text.title) for text in dataset()] == [("a.txt", "a"), ("caf\\xe9.txt", "caf\\xe9")]


def test_a_wikitext_page_is_a_document_and_keeps_every_byte(dataset):
    found = dataset(source__yaml="documents: wikitext", test__raw=WIKITEXT)
    assert [(text.id, text.title, text.split) for text in found] == [
        ("test.raw:1", "One", "test"),
        ("test.raw:2", "Two", "test"),
    ]
    assert " \n" + "".join(text.text for text in found) == WIKITEXT


def test_wikitext_on_the_hub_gives_the_same_pages():
    lines = WIKITEXT.splitlines(keepends=True)
    rows = ["" if line == " \n" else line for line in lines]  # as the Hub has them
    assert list(pages_as_texts([row or " \n" for row in rows], "x", None)) == list(pages_as_texts(lines, "x", None))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"source__yaml": ""}, "no files"),
        ({"a__txt": b"caf\xe9"}, r"a.txt: not UTF-8: byte 3 is 0xe9"),
        ({"a__pdf": "x"}, r"a.pdf: expected .txt, .md"),
        ({"a__jsonl": '{"text": "x"}\n{"text": '}, r"a.jsonl:2: not JSON"),
        (
            {"a__jsonl": '{"body": "x"}'},
            r"a.jsonl:1: found the columns body, expected those of one format \(text: text; messages",
        ),
        ({"a__parquet": "x"}, r"a.parquet: not a Parquet file"),
        ({"a__parquet": b"PAR1" + b"x" * 50 + b"PAR1"}, r"a.parquet: not a Parquet file"),
        ({"a__txt": "x" * (texts.MAX_DOCUMENT_BYTES + 1)}, r"a.txt: a document of more than 16,777,216 bytes"),
        ({"a__jsonl": json.dumps({"text": "x" * (texts.MAX_DOCUMENT_BYTES + 1)})}, r"a.jsonl:1: more than 16,777,216"),
        ({"source__yaml": "documents: wikitext", "a__raw": "no heading"}, r"a.raw: expected a line ` = Title = `"),
        ({"source__yaml": "documents: wikitext", "a__raw": "lost" + WIKITEXT}, r"a.raw: expected a line ` = Title = `"),
        ({"source__yaml": "- repo"}, r"source.yaml: the file: expected names and values"),
    ],
)
def test_what_cannot_be_read_is_named(dataset, files, message):
    with pytest.raises(Mistake, match=message):
        dataset(**files)


def places(documents: list[Text], **changes: float) -> dict[str, str]:
    splits = split_texts(documents, prepare_params(**changes))
    return {document.text: split for split, members in splits.items() for document in members}


MANY = [Text(str(number), "", f"text number {number}", None) for number in range(2000)]


def test_a_split_holds_its_share():
    counts = Counter(places(MANY).values())
    assert counts["test"] == pytest.approx(400, abs=55)  # three standard deviations
    assert counts["validation"] == pytest.approx(200, abs=41)


def test_documents_do_not_move_when_others_come_go_or_change_places():
    before = places(MANY)
    assert {text: split for text, split in places(MANY[::-1]).items()} == before
    assert places(MANY[500:]) == {text.text: before[text.text] for text in MANY[500:]}


def test_a_text_that_is_held_out_is_not_learned():
    copies = [Text("1", "", "same", "train"), Text("2", "", "same", "test"), Text("3", "", "other", "train")]
    splits = part_splits(split_texts(copies, prepare_params(validation_fraction=0.0)))
    assert [[text.id for text in members] for members in splits.values()] == [["3"], [], ["2"]]


def test_equal_texts_stay_together():
    assert all(len({split for split in (places([text, text._replace(id="copy")])).values()}) == 1 for text in MANY[:50])


def test_a_smaller_fraction_keeps_a_subset_and_touches_no_other_split():
    full, half, tenth = (places(MANY, train_fraction=fraction) for fraction in (1.0, 0.5, 0.1))
    assert set(tenth) < set(half) < set(full)
    assert {t for t, s in full.items() if s != "train"} == {t for t, s in tenth.items() if s != "train"}
    assert Counter(half.values())["train"] == pytest.approx(700, abs=56)


def test_a_split_that_the_dataset_names_is_kept_and_the_others_are_drawn():
    named = [text._replace(split="test" if int(text.id) < 50 else "train") for text in MANY]
    found = places(named)
    assert {text for text, split in found.items() if split == "test"} == {text.text for text in MANY[:50]}
    assert Counter(found.values())["validation"] == pytest.approx(195, abs=40)
