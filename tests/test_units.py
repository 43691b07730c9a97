"""Equal things are one piece of evidence, however often they are there and however they are written."""

import csv
import io
import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_params
from support.comparing import PARAMS, scores
from support.preparing import prepare_params
from support.rating import RATE_PARAMS, answer, answers, compared, save

from stages import prepare
from stages.lib.answers.prompts import add_first_sentences, as_prompts, read_prompts
from stages.lib.data.documents import read_documents
from stages.lib.data.splits import part_splits, split_texts
from stages.lib.data.texts import Text
from stages.lib.data.units import distinct, normalized
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake
from stages.lib.people.judgement import CRITERIA, Answer, Answers, Key, find_copies, read_answers
from stages.lib.scoring.comparison import compare
from stages.rate import Leaning, summarize
from stages.sheet import make_key, table

STEMS = ("café", "river", "stone", "cloud", "träum", "ember")


def story(seed: int) -> str:
    """Ninety words in three lines, that no other seed has in a row."""
    rng = random.Random(seed)
    words = [f"{rng.choice(STEMS)}{rng.randrange(10**6)}" for _ in range(90)]
    return "\n".join(" ".join(words[start : start + 30]) for start in (0, 30, 60))


STORIES = [story(seed) for seed in range(3)]
SPELLINGS = {
    "the same": str,
    "a newline at the end": lambda text: f"{text}\n",
    "white space": lambda text: text.replace(" ", "\u00a0 \t"),
    "line endings": lambda text: text.replace("\n", "\r\n"),
    "Unicode form": lambda text: unicodedata.normalize("NFD", text),
    "a byte order mark": lambda text: f"\ufeff{text}",
    "a zero-width space": lambda text: text.replace("river", "ri\u200bver"),
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which `prepare.main()` runs; its dataset `mine` has eight training texts, and none held out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "data/raw").mkdir(parents=True)
    for name in ("dvc.yaml", "models/base"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    write_params(tmp_path, {"dataset": "mine", "prepare.validation_fraction": 0.0})
    monkeypatch.setattr(sys, "argv", ["prepare"])
    rows("mine/train", [story(seed) for seed in range(10, 18)])
    return tmp_path


def rows(name: str, texts: list[str]) -> None:
    file = Path(f"data/raw/{name}.jsonl")
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def judged() -> tuple[str, int]:
    """Say what a small gain on every prepared test document proves."""
    documents = list(read_documents("test"))
    tokens = np.array([document.num_targets for document in documents])
    gains = np.array([0.1 + len(normalized(document.text)) % 7 / 100 for document in documents])
    found = compare(scores(np.full(len(tokens), 3.0), tokens), scores(3.0 - gains, tokens), PARAMS)
    return found.verdict, found.documents


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_three_documents_three_times_prove_what_three_do(project, capsys, respell):
    rows("mine/test", [*STORIES, *STORIES, *map(respell, STORIES)])
    prepare.main()
    assert judged() == ("cannot tell", 3)
    counts = read_metrics("prepare")
    assert {split: counts[split]["left_out"] for split in ("train", "validation", "test")} == {
        "train": 0, "validation": 0, "test": 6,
    }  # fmt: skip
    assert re.search(r"^test +3 .* 6$", capsys.readouterr().out, re.M)


def test_nine_documents_prove_more(project):
    rows("mine/test", [story(seed) for seed in range(100, 109)])
    prepare.main()
    assert judged() == ("better", 9)


def test_a_file_and_a_row_of_the_same_text_are_one_document(project):
    rows("mine/test", STORIES)
    for number, text in enumerate(STORIES):
        file = Path(f"data/raw/mine/test/{number}.txt")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    prepare.main()
    assert judged() == ("cannot tell", 3)


def test_of_another_dataset_too_equal_documents_are_one(project, monkeypatch, capsys):
    rows("mine/test", STORIES[:2])
    prepare.main()
    rows("other/test", [*STORIES, *STORIES])
    monkeypatch.setattr(sys, "argv", ["prepare", "other"])
    prepare.main()
    counts = read_metrics("also/other/prepare")["test"]
    assert (counts["documents"], counts["left_out"]) == (3, 3)
    assert re.search(r"^data/raw/other: 6 documents were read\n.*\ntest +3 .* 3$", capsys.readouterr().out, re.M)
    rows("other/test", [STORIES[0]] * 9)
    with pytest.raises(Mistake, match="found 1; equal ones count once"):
        prepare.main()


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_what_is_held_out_is_not_learned_however_it_is_written(project, respell):
    rows("mine/test", STORIES)
    rows("mine/train", [story(seed) for seed in (10, 10, 11)] + [respell(STORIES[0])])
    prepare.main()
    train = read_metrics("prepare")["train"]
    assert (train["documents"], train["repeated"], train["left_out"]) == (3, 1, 1)  # repeats are learned, and counted


def test_a_text_of_two_splits_stands_in_one_in_whatever_order_it_comes():
    texts = [
        Text(f"{text} {split}", "", text, split)
        for text, names in {"a": ("test", "validation"), "b": ("train", "validation"), "c": ("train", "test"),
                            "d": ("train", "train"), "e": ("test", None), "f": (None, None)}.items()
        for split in names
    ]  # fmt: skip
    params = prepare_params(validation_fraction=0.3, test_fraction=0.3)
    found = set()
    for seed in range(20):
        shuffled = random.Random(seed).sample(texts, len(texts))
        splits = part_splits(split_texts(shuffled, params))
        found.add(tuple((split, *sorted(text.text for text in kept)) for split, kept in splits.items()))
    assert found == {(("train", "d", "d", "f", "f"), ("validation", "b"), ("test", "a", "c", "e"))}


def test_splits_drawn_by_a_hash_are_the_same_in_whatever_order_texts_come():
    texts = [
        Text(f"{seed} {name}", "", respell(story(seed)), None)
        for seed in range(40)
        for name, respell in SPELLINGS.items()
    ]
    params = prepare_params(validation_fraction=0.05, test_fraction=0.05)
    found = set()
    for seed in range(5):
        splits = part_splits(split_texts(random.Random(seed).sample(texts, len(texts)), params))
        unique = [sorted({normalized(text.text) for text in kept}) for kept in splits.values()]
        assert sum(map(len, unique)) == 40 and all(unique)
        assert [len(kept) for kept in splits.values()][1:] == [len(kept) for kept in unique][1:]
        found.add(json.dumps(unique))
    assert len(found) == 1


def test_without_equal_texts_nothing_is_left_out_and_nothing_moves():
    texts = [Text(str(seed), "", story(seed), None) for seed in range(200)]
    params = prepare_params(validation_fraction=0.2, test_fraction=0.2)
    splits = split_texts(texts, params)
    assert part_splits(splits) == splits and all(splits.values())


def test_equal_is_by_words_and_not_by_more():
    different = ["Water boils when", "water boils when", "Water boils when.", "Water boil swhen", "2\u00b2", "22"]
    assert distinct(different, str) == different
    assert distinct(["a  b", "a b", "b a", " a\tb\n"], str) == ["a  b", "b a"]


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_prompt_is_asked_once(tmp_path, capsys, respell):
    path = tmp_path / "prompts.txt"
    prompts = ["The café by the river", "Water boils when"]
    path.write_bytes("\r\n".join([*prompts, *map(respell, prompts)]).encode())
    assert read_prompts(path) == prompts
    assert capsys.readouterr().out == f"{path}: 2 of 4 prompts left out: they repeat another\n"
    path.write_bytes("\ufeffone\ntwo\n".encode())
    assert read_prompts(path) == ["one", "two"] and not capsys.readouterr().out


def test_a_first_sentence_is_continued_once_and_the_number_is_still_reached():
    texts = [f"{first}\n{rest}" for first, rest in (
        ("An oak is a tree.", "It bears acorns."),
        ("No sentence after it", ""),
        ("An oak  is a tree.", "Another article begins alike."),
        ("Water boils when it is hot.", "A prompt says that too."),
        ("The elm is a tree.", "It bears none."),
        ("The ash is a tree.", "It bears keys."),
    )]  # fmt: skip
    prompts = ["Water boils when it is  hot."]
    asked = as_prompts(prompts)
    found = add_first_sentences(asked, texts, 2)
    assert [prompt.text for prompt in found] == [*prompts, "An oak is a tree.", "The elm is a tree."]
    assert [prompt.reference for prompt in found] == [None, "It bears acorns.", "It bears none."]
    assert [prompt.text for prompt in add_first_sentences(asked, texts, 0)] == prompts
    assert len(add_first_sentences(asked, texts, 9)) == 4


@pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
def test_a_sheet_has_one_pair_a_prompt(respell):
    base, tuned = answers(1, 6)
    more = [[row | {"prompt": respell(row["prompt"]), "text": f"Again {row['text']}"} for row in arm[:3]]
            for arm in (base, tuned)]  # fmt: skip
    assert make_key(base + more[0], tuned + more[1], seed=1) == make_key(base, tuned, seed=1)


@pytest.fixture
def key() -> Key:
    return make_key(*answers(1, 10), seed=1)


def rate(key: Key, seed: int) -> list[dict]:
    """What a rater answers who throws dice, in the order of the key."""
    rng, given = random.Random(seed), []
    for item in key.items:
        ratings = [{name: rng.randint(1, 5) for name in CRITERIA} for _ in "ab"]
        given.append({"item": item.id, "left": 0, "ratings": ratings, "preference": rng.choice([0, 1, "tie"])})
    return given


def spreadsheet(key: Key, given: list[dict], **dialect) -> str:
    """Fill the sheet's spreadsheet with answers, and save it as some program does."""
    rows = table(key)
    for row, one in zip(rows[1:], given):
        row[5:-1] = [str(ratings[name]) for name in CRITERIA for ratings in one["ratings"]]
        row[-1] = {0: "A", 1: "b"}.get(one["preference"], one["preference"])
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


def page(key: Key, given: list[dict], rater: str, saved: str = "") -> str:
    return json.dumps({"sheet": key.sheet, "rater": rater, "saved": saved, "answers": given})


def partial(given: list[dict]) -> list[dict]:
    """The first five answers, and half of the sixth."""
    half = given[5] | {"ratings": [given[5]["ratings"][0], {}], "preference": None}
    return [*given[:5], half]


COPIES = {  # of the answers that `page(key, given, "Anna")` saves: a file's name, and what is in it
    "the same file": ("ratings-anna (1).json", lambda key, given: page(key, given, "Anna (1)")),
    "another name": ("final.json", lambda key, given: page(key, given, "Zoe", "2026-01-01")),
    "other sides and another order": (
        "z.json", lambda key, given: page(key, [one | {"left": 1} for one in given[::-1]], "Zoe")),
    "a spreadsheet": ("ratings-zoe.csv", spreadsheet),
    "with a byte order mark": ("z.csv", lambda key, given: "\ufeff" + spreadsheet(key, given)),
    "semicolons": ("z.csv", lambda key, given: spreadsheet(key, given, delimiter=";", lineterminator="\n")),
    "tabs and quotes": ("z.csv", lambda key, given: spreadsheet(key, given, delimiter="\t", quoting=csv.QUOTE_ALL)),
    "a partial save": ("a.json", lambda key, given: page(key, partial(given), "A", "2025-01-01")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), COPIES.values(), ids=COPIES)
def test_a_file_under_a_second_name_is_no_second_rater(key, tmp_path, name, content):
    given = rate(key, 3)
    (tmp_path / "ratings-anna.json").write_text(page(key, given, "Anna"))
    once = summarize(read_answers(tmp_path, key).votes, RATE_PARAMS)
    (tmp_path / name).write_text(content(key, given))
    votes, refused = read_answers(tmp_path, key)
    assert summarize(votes, RATE_PARAMS) == once and once.raters == 1 and once.agreement == {}
    assert len(refused) == 1 and all(file in refused[0] for file in (name, "ratings-anna.json", "one rater"))


def test_copied_spreadsheets_are_one_rater(key, tmp_path):
    for name in ("ratings-anna.csv", "ratings-anna (1).csv"):
        (tmp_path / name).write_text(spreadsheet(key, rate(key, 3)), encoding="utf-8-sig")
    votes, refused = read_answers(tmp_path, key)
    assert set(votes["rater"]) == {"anna-1"} and summarize(votes, RATE_PARAMS).raters == 1
    assert refused == ["ratings-anna.csv: the same answers as ratings-anna (1).csv: the two count as one rater"]


def test_the_fuller_file_counts_whatever_the_names_are(key):
    files = {}
    for name, given in {"b": rate(key, 3), "c": rate(key, 3), "a": partial(rate(key, 3)), "d": rate(key, 4)}.items():
        files[name] = Answers(name, "", name, [Answer.model_validate(one) for one in given])
    for seed in range(10):
        told = find_copies(random.Random(seed).sample(list(files.values()), len(files)))
        assert told == {
            "a": "a: no other answers than b: the two count as one rater",
            "c": "c: the same answers as b: the two count as one rater",
        }


def test_two_people_are_two_raters(key, tmp_path):
    """Who answered one or two pairs may have said what another said, and who said otherwise once is another."""
    given = rate(key, 3)
    save(tmp_path, key, "Ann", given)
    save(tmp_path, key, "Bo", given[:2])
    save(tmp_path, key, "Cy", [*given[:-1], given[-1] | {"preference": "both bad"}])
    votes, refused = read_answers(tmp_path, key)
    assert refused == [] and set(votes["rater"]) == {"ann", "bo", "cy"}


def test_the_votes_on_two_pairs_of_one_prompt_are_one(key, tmp_path):
    """Of a sheet made before prompts were asked once."""
    ten, five = compared(key), compared(key)[:5]
    twins = [item._replace(prompt=f"{other.prompt}\n") for item, other in zip(ten[5:], five)]
    old = key._replace(items=[*five, *twins])
    save(tmp_path, old, "Ann", [answer(item) for item in five])
    once = summarize(read_answers(tmp_path, old).votes, RATE_PARAMS)
    save(tmp_path, old, "Ann", [answer(item) for item in old.items])
    votes, refused = read_answers(tmp_path, old)
    assert summarize(votes, RATE_PARAMS) == once and once.preference.prompts.tuned == 5
    assert "cannot tell" in once.in_words
    assert refused == [f"ratings-Ann.json: item {item.id!r}: 'ann' has answered its prompt already" for item in twins]
    save(tmp_path, old, "Bo", [answer(item, preference="base") for item in twins])
    found = summarize(read_answers(tmp_path, old).votes, RATE_PARAMS)
    assert found.preference.prompts == Leaning(tuned=0, base=0, undecided=5) and found.fluency.prompts == 5
