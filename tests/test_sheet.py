"""The rating sheet: fair to both models, and blind."""

import csv
import io
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import document
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from support.rating import HOSTILE, answers

from stages.lib.answers.prose import cut, describe, detokenize
from stages.lib.conversations.formats import Conversation
from stages.lib.data.overlap import quoted
from stages.lib.people.judgement import CRITERIA, Key
from stages.sheet import TEMPLATE, asked, cut_alike, fill_template, make_key, of_conversations, script, table, words_in


@pytest.mark.parametrize("number", [2, 7, 10, 35])
def test_each_kind_of_text_comes_first_as_often_and_couples_hold_one_of_each(number):
    key = make_key(*answers(1, number), seed=number)
    compared = [item for item in key.items if item.kind == "compared"]
    assert len(compared) == number and len(key.items) == number + 2
    first = [item.arms[0] for item in compared]
    assert abs(first.count("tuned") - first.count("base")) <= number % 2
    assert [item.kind for item in key.items][-2:] != ["disordered", "same"] or number == 2
    couples: dict[int, list[str]] = {}
    for item in compared:
        couples.setdefault(item.couple, []).append(item.arms[0])
    assert [sorted(couple) for couple in couples.values() if len(couple) == 2] == [["base", "tuned"]] * (number // 2)
    assert not {item.couple for item in key.items if item.kind != "compared"} & couples.keys()


def test_nothing_on_the_page_but_the_texts_themselves_tells_the_arms():
    """A forest is shown all that 60 pages have, order, couples, lengths and ids, and then guesses as a coin does."""
    seen, truth = [], []
    for seed in range(60):
        key = make_key(*answers(seed), seed)
        page = fill_template(TEMPLATE.read_text(encoding="utf-8"), key)
        items = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["items"]
        arms = {item.id: item.arms for item in key.items if item.kind == "compared"}
        for place, item in enumerate(items):
            if item["id"] in arms:
                first, second = item["texts"]
                seen.append([place, int(item["id"]), item["couple"], len(first), len(second), len(first) > len(second)])
                truth.append(arms[item["id"]][0] == "tuned")
        rest = page.replace(json.dumps(items), "")
        assert "tuned" not in rest and "base" not in re.sub(r"database|based", "", rest)
        assert set(items[0]) == {"id", "prompt", "texts", "couple"}
    right = cross_val_score(RandomForestClassifier(random_state=0), np.array(seen), truth, cv=5).mean()
    assert abs(right - 0.5) < 3 * 0.5 / len(truth) ** 0.5


def test_a_key_survives_its_file_and_its_version_is_its_contents():
    key = make_key(*answers(1), seed=1)
    assert Key.from_json(key.to_json()) == key
    assert make_key(*answers(1), seed=1) == key
    assert make_key(*answers(2), seed=1).sheet != key.sheet != make_key(*answers(1), seed=2).sheet


def test_hostile_text_is_data():
    base, tuned = answers(1, 2)
    base[0] |= {"text": HOSTILE + " end."}
    for rows in (base, tuned):
        rows[1] |= {"prompt": HOSTILE}
    page = fill_template(TEMPLATE.read_text(encoding="utf-8"), make_key(base, tuned, seed=1))
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    assert not set("<>&\u2028") & set(data)
    assert page.count("<script") == 2 and page.count("{{data}}") == data.count("{{data}}")
    assert any("<script>alert(1)" in text for item in json.loads(data)["items"] for text in item["texts"])


def test_a_spreadsheet_computes_nothing_of_it():
    base, tuned = answers(1, 2)
    base[0] |= {"text": "=HYPERLINK(1) is a text. And another."}
    key = make_key(base, tuned, seed=1)
    written = io.StringIO()
    csv.writer(written).writerows(table(key))
    rows = list(csv.DictReader(io.StringIO(written.getvalue())))
    assert [row["item"] for row in rows] == [item.id for item in key.items]
    assert not any(row[side][:1] in "=+-@" for row in rows for side in ("prompt", "text_a", "text_b"))
    assert {f"{criterion}_{side}" for criterion in CRITERIA for side in "ab"} < set(rows[0])


def test_the_controls_differ_as_they_should():
    kinds = {item.kind: item for item in make_key(*answers(3), seed=3).items}
    solid, disordered = (
        kinds["disordered"].texts[kinds["disordered"].arms.index(arm)] for arm in ("solid", "disordered")
    )
    assert solid != disordered and sorted(solid.split()) == sorted(disordered.split())
    assert kinds["same"].texts[0] == kinds["same"].texts[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The 24 @-@ hour 1 @,@ 000 km , 2 @.@ 5 % .", "The 24-hour 1,000 km, 2.5%."),
        ('He said " no " ( twice ) ; it \'s so .', 'He said "no" (twice); it\'s so.'),
        ("Plain text, already (well) set: it's 5%.\n\nYes.", "Plain text, already (well) set: it's 5%. Yes."),
    ],
)
def test_spelling_tells_nothing(text, expected):
    assert detokenize(text) == expected


def test_a_text_is_cut_at_a_sentence_end():
    text = "One sentence here. Another sentence there. A third that is much longer than the two before it"
    assert cut(text, 50, whole=False) == cut(text, 42, whole=False) == "One sentence here. Another sentence there."
    assert cut(text, 41, whole=False) == "One sentence here. Another sentence …"
    assert cut(text, 500, whole=False) == f"{text.rsplit(' ', 1)[0]} …"  # it broke off
    assert cut(text, 500, whole=True) == text
    assert cut("Paris", 5, whole=True) == "Paris"


def test_answers_are_cut_to_one_length_and_none_is_lost():
    broken = [{"text": "word " * number, "ended": False} for number in (30, 60)]
    whole = [{"text": text, "ended": True} for text in ("", "Paris", "the city of light", "A sentence. " * 30)]
    assert cut_alike(broken + whole) == [
        f"{'word ' * 28}word …",
        f"{'word ' * 29}…",
        "(nothing)",
        "Paris",
        "the city of light",
        ("A sentence. " * 12).strip(),
    ]


def test_who_has_the_page_and_the_seed_alone_has_no_key():
    """The order depends on the uncut texts too."""
    first, second = (
        make_key(*(2 * [[row | {"text": row["text"] + extra} for row in answers(1)[0]]]), seed=1) for extra in ("", " ")
    )
    assert [item.texts for item in first.items if item.kind == "compared"] != []
    assert [item.prompt for item in first.items] != [item.prompt for item in second.items]


def test_descriptions_are_counted_by_hand():
    found = describe(["a b a b", "c d e f g"])
    assert found.distinct_1 == (2 + 5) / (4 + 5)
    assert found.distinct_2 == (2 + 4) / (3 + 4)
    assert found.words == 4.5 and found.loops == 0 and found.markup == 0
    assert describe(["so it is it is it is it goes", "once"]).loops == 1 / 2
    assert describe([" = Title = ", "1 @,@ 000", "a = b"]).markup == 2 / 3
    lengths = [describe(["word " * n]).compression for n in (10, 100, 1000)]
    assert all(a < b for a, b in pairwise(lengths))


def test_conversations_are_shown_whole_and_not_as_texts_that_go_on():
    base, tuned = answers(1, 2)
    for rows in (base, tuned):
        for row in rows:
            row["messages"] = [
                {"role": "system", "content": "Answer as JSON."},
                {"role": "user", "content": row["prompt"]},
            ]
            row["prompt"] = script(row["messages"])
    key = make_key(base, tuned, seed=1)
    page = fill_template(TEMPLATE.read_text(encoding="utf-8"), key, of_conversations(base))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data["conversations"] and not of_conversations(answers(1, 2)[0])
    shown = [item["prompt"] for item in data["items"]]
    assert sum(prompt.startswith("System: Answer as JSON.\n\nUser: ") for prompt in shown) >= 2
    assert "User: Where does the sun rise and set?" in shown
    assert asked(base[0]) == base[0]["prompt"].rpartition("User: ")[2]


def test_a_question_that_was_learned_is_known_whichever_instructions_came_before():
    told = Conversation([{"role": r, "content": c} for r, c in (("user", "How deep is it?"), ("assistant", "2 m"))], [])
    learned = [replace(document("a", 4), text="2 m", conversation=told.to_json())]
    assert quoted(["How deep is it?", "How wide is it?"], list(map(words_in, learned))) == ["How deep is it?"]
