"""The leakage gate: copies are found, whole, in part or slightly changed, and independent texts are not."""

import re
from pathlib import Path

import numpy as np
import pytest

from stages.lib.data.overlap import grams, overlap, quoted
from stages.lib.data.splits import find_overlap
from stages.lib.data.texts import Text

MINE = Path("mine")


def text(seed: int, num_words: int = 400) -> str:
    """Words of a small vocabulary, the frequent ones very frequent, as in a language."""
    rng = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in rng.zipf(1.3, num_words) % 5000)


TRAINING = [text(seed) for seed in range(20)]


def change(words: str, every: int) -> str:
    """Replace each so many-th word."""
    return " ".join(f"new{i}" if i % every == 0 else word for i, word in enumerate(words.split()))


def test_sequences_are_what_a_search_by_hand_finds():
    words = ["the", "cat", "sat", "on", "the", "mat", "the", "cat", "sat", "on"]
    assert len(grams(["The cat, sat on the mat! The CAT sat on."], 3)[0]) == len(
        {tuple(words[i : i + 3]) for i in range(8)}
    )
    np.testing.assert_array_equal(*grams(["a b c d", "A: b; c d."], 9))
    assert len(grams(["..."], 3)[0]) == 0
    assert not set.intersection(*map(set, grams(["a b c", "c b a"], 3)))


@pytest.mark.parametrize(
    ("held_out", "copied", "alike"),
    [
        (text(99), 0, 0.05),
        (TRAINING[7], 1, 1),
        (TRAINING[7].upper().replace(" ", ", "), 1, 1),
        (" ".join(TRAINING[7].split()[:200] + text(99).split()[:200]), 0.48, 0.5),
        (change(TRAINING[7], 12), 0, 0.58),  # each sequence of 13 words holds a new one; 7 of 12 of five words do not
        ("w1 w2", 0, 0),
        ("", 0, 0),
    ],
)
def test_copies_are_found(held_out, copied, alike):
    row = overlap(TRAINING, [text(98), held_out]).table.iloc[1]
    assert row["copied"] == pytest.approx(copied, abs=0.01)
    assert row["alike"] == pytest.approx(alike, abs=0.05)
    assert row["nearest"] == 7 or alike != 1


def test_the_share_of_copied_sequences_equals_a_search_by_hand():
    held_out = " ".join([*TRAINING[3].split()[:50], *text(99).split()[:70], *TRAINING[9].split()[30:90]])

    def sequences(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    known = set().union(*(sequences(training.split()) for training in TRAINING))
    own = sequences(held_out.split())
    assert overlap(TRAINING, [held_out]).table["copied"][0] == len(own & known) / len(own)


def splits(**test_documents: str) -> dict[str, list[Text]]:
    training = [Text(f"train{i}.md", "", words, None) for i, words in enumerate(TRAINING)]
    return {"train": training, "validation": [], "test": [Text(n, "", t, None) for n, t in test_documents.items()]}


def test_documents_that_overlap_too_much_are_named():
    held_out = splits(fresh=text(99), copy=change(TRAINING[7], 20))
    found, (told,) = find_overlap(MINE, held_out, 0.2)
    assert re.search(r"^mine: .* too, by more than 20%: copy \(7\d%, mostly as in train7.md\); scores on them", told)
    anyway = float(told.rpartition("prepare.max_overlap: ")[2])
    assert anyway - 0.01 < found["test"]["largest"] <= anyway
    assert find_overlap(MINE, held_out, anyway) == (found, [])
    assert found["test"]["largest"] == pytest.approx(0.75, abs=0.05) and "validation" not in found


def test_held_out_documents_that_are_nearly_equal_are_named():
    """They are one piece of evidence, and cannot count as two."""
    pair = splits(fresh=text(99), one=text(98), two=change(text(98), 20).upper())
    found, (told,) = find_overlap(MINE, pair, 0.2)
    assert re.search(r"in one another, .*: one \(7\d% as in two\), two \(7\d% as in one\); .*independent", told)
    assert found["test"]["largest_within"] == pytest.approx(0.75, abs=0.05)
    assert find_overlap(MINE, pair, 0.9) == (found, [])
    inside = splits(short=" ".join(text(98).split()[:40]), long=text(98))
    assert find_overlap(MINE, inside, 1.0)[0]["test"]["largest_within"] == 1


def test_what_stands_in_another_held_out_text_is_what_would_stand_in_training():
    held_out = [text(97), text(98), change(text(97), 12), text(98) + " " + text(96), "w1 w2", ""]
    found = overlap(TRAINING, held_out).table
    for number, one in enumerate(held_out):
        others = [*held_out[:number], "", *held_out[number + 1 :]]
        alone = overlap(others, [one]).table.iloc[0]
        assert (found["twin_alike"][number], found["twin"][number]) == (alone["alike"], alone["nearest"])


def test_independent_documents_pass():
    found, complaints = find_overlap(MINE, splits(a=text(98), b=text(99)), 0.1)
    assert found["test"]["copied"] == 0 and complaints == []


def test_a_prompt_that_stands_in_training_is_told():
    known = " ".join(TRAINING[4].split()[30:36])
    assert quoted([known.upper() + ".", "nothing like it", known[1:]], TRAINING) == [known.upper() + "."]


CHANGED = {  # where there are no spaces a sign counts as a word
    "Chinese": ("\u4e00", 3000),
    "Japanese": ("\u3041", 80),
    "Thai": ("\u0e01", 45),
    "Hindi": ("\u0905", 50),
    "Arabic": ("\u0627", 30),
}


@pytest.mark.parametrize("language", CHANGED)
def test_a_copy_with_one_word_in_twenty_changed_is_found_in_any_script(language):
    first, number = CHANGED[language]
    rng = np.random.default_rng(0)
    signs = [chr(ord(first) + int(sign)) for sign in rng.integers(0, number, 4000)]
    spaced = language in ("Hindi", "Arabic")

    def text(start: int, changed: bool = False) -> str:
        part = signs[start : start + 400]
        part = [
            signs[-1 - at] if changed and at % (100 if spaced else 20) == 7 else sign for at, sign in enumerate(part)
        ]
        return "".join(sign + (" " if spaced and at % 5 == 4 else "") for at, sign in enumerate(part))

    table = overlap([text(0), text(400)], [text(400, changed=True), text(800)]).table
    assert table["alike"][0] > 0.2 and table["nearest"][0] == 1
    assert table["alike"][1] < 0.05
