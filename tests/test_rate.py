"""People's ratings: what is no answer is refused by name, the rest counted as by hand, a known truth found again."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from support.rating import RATE_PARAMS, answer, answers, compared, save

from commands.ratings import collect
from stages.lib.people.judgement import CRITERIA, Key, read_answers
from stages.rate import Control, Controls, Leaning, Rated, draw_opinions, summarize, tabulate
from stages.sheet import make_key, table


@pytest.fixture
def key() -> Key:
    return make_key(*answers(1, 4), seed=1)


def test_no_answers_are_no_failure(key, tmp_path):
    (tmp_path / "README.md").write_text("Put answers here.")
    votes, refused = read_answers(tmp_path, key)
    found = summarize(votes, RATE_PARAMS)
    assert refused == [] and found.judgements == 0 and found.in_words.startswith("no preferences yet")
    draw_opinions(found)
    assert "tuned" not in tabulate(key, votes)


def test_what_is_no_answer_is_refused_by_name_and_the_rest_is_kept(key, tmp_path):
    first, second, third, fourth = compared(key)
    given = [
        answer(first),
        answer(first, tuned=1),
        answer(second, tuned=6),
        answer(third) | {"item": "99"},
        answer(third) | {"preference": "tuned"},
        "nonsense",
        answer(fourth) | {"more": 1},
    ]
    save(tmp_path, key, "Ann", given)
    save(tmp_path, key, "Old", [])
    (tmp_path / "ratings-Old.json").write_text(json.dumps({"sheet": "0" * 12, "rater": "Old", "answers": given}))
    save(tmp_path, key, "escape", [answer(third) | {"item": "\x1b[2J\ud800"}])
    (tmp_path / "ratings-empty.csv").write_text("")
    (tmp_path / "ratings-folder.json").mkdir()
    (tmp_path / "ratings-sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "ratings-broken.json").write_text('{"sheet": ')
    (tmp_path / "ratings-list.json").write_text("[1]")
    (tmp_path / "ratings-deep.json").write_text("[" * 100_000)
    (tmp_path / "ratings-Cy.csv").write_text("a,b\n1,2\n")
    (tmp_path / "ratings-latin.csv").write_bytes(b"\xff\xfe\xe9")
    votes, refused = read_answers(tmp_path, key)
    assert set(votes["item"]) == {first.id} and len(votes) == 7
    for expected in (
        f"ratings-Ann.json: item {first.id!r}: 'ann' has answered it already",
        f"ratings-Ann.json: item {second.id!r}: ratings.{second.arms.index('tuned')}.fluency: Input should be",
        "ratings-Ann.json: item '99': the sheet has no such item",
        f"ratings-Ann.json: item {third.id!r}: preference",
        "ratings-Ann.json: answer 6: ",
        f"ratings-Ann.json: item {fourth.id!r}: more: Extra inputs",
        f"ratings-Old.json: item {second.id!r}: ratings",
        r"ratings-escape.json: item '\x1b[2J\ud800': ",
        *(f"ratings-{name}: not a file of answers" for name in ("empty.csv", "folder.json", "sheet.xlsx")),
        *(f"ratings-{name}: not a file of answers" for name in ("broken.json", "list.json", "deep.json", "Cy.csv")),
        "ratings-latin.csv: not a file of answers",
    ):
        assert sum(line.startswith(expected) for line in refused) == 1, (expected, refused)
    assert sum(f"expected an answer to sheet {key.sheet}, found one to '000000000000'" in line for line in refused) == 3
    json.dumps(refused).encode()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_spreadsheet_says_the_same_as_the_page(key, tmp_path, delimiter):
    item, other = compared(key)[:2]
    rows = table(key)
    for row in rows[1:]:
        if row[1] == item.id:  # A is the first text, and tie a preference
            row[5:] = ["4", "2", "5", "1", "cannot judge", "", "Tie"]
        if row[1] == other.id:
            row[5:] = ["", "", "", "", "", "7", ""]
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    lines += [delimiter * 11, f"a note{delimiter}"]
    (tmp_path / "ratings-Bo.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    votes, refused = read_answers(tmp_path, key)
    assert refused == [
        f"ratings-Bo.csv: item {other.id!r}: ratings.1.correctness.constrained-int: "
        "Input should be less than or equal to 5, found 7"
    ]
    values = {(row.criterion, row.arm): row.value for row in votes.itertuples()}
    first, second = item.arms
    assert values.pop(("preference", "tie")) is None
    assert values == {
        ("fluency", first): 4, ("fluency", second): 2, ("relevance", first): 5, ("relevance", second): 1,
        ("correctness", first): "cannot judge",
    }  # fmt: skip
    assert set(votes["rater"]) == {"bo"}


def test_every_number_is_the_one_counted_by_hand(key, tmp_path):
    a, b, c, d = compared(key)
    controls = {item.kind: item for item in key.items if item.kind != "compared"}
    solid, same = controls["disordered"], controls["same"]
    save(tmp_path, key, "Ann", [
        answer(a, 5, 3), answer(b, 4, 2), answer(c, 2, 4, "base"), answer(d, 1, 1, "both bad"),
        answer(solid, preference="solid"), answer(same, preference="tie"),
    ])  # fmt: skip
    save(tmp_path, key, "Bo", [
        answer(a, 4, 4), answer(b, 4, 2, "base"), answer(c, 3, 4, "base"),
        answer(solid, preference="disordered"), answer(same) | {"preference": 0},
    ])  # fmt: skip
    votes, refused = read_answers(tmp_path, key)
    found = summarize(votes, RATE_PARAMS)
    assert not refused and (found.raters, found.prompts, found.judgements) == (2, 4, 7)
    preference = found.preference
    assert preference.votes == {"base": 3, "tuned": 3, "tie": 0, "both bad": 1}
    assert preference.prompts == Leaning(tuned=1, base=1, undecided=2)  # a; c; b one each, and d
    assert preference.win_rate.value == 0.5 and preference.p_value == 1
    tuned, base = [(5 + 4) / 2, 4, (2 + 3) / 2, 1], [(3 + 4) / 2, 2, 4, 1]
    fluency = found.fluency
    assert (fluency.tuned, fluency.base) == (np.mean(tuned), np.mean(base))
    assert fluency.difference.value == pytest.approx(np.mean(tuned) - np.mean(base))
    assert fluency.difference.low < fluency.difference.value < fluency.difference.high
    assert (fluency.ratings, fluency.prompts) == (14, 4)
    both = ([5, 3, 4, 2, 2, 4], [4, 4, 4, 2, 3, 4])
    assert found.agreement["fluency"] == pytest.approx(cohen_kappa_score(*both, weights="quadratic"))
    assert found.controls == Controls(disordered=Control(1, 2), same=Control(1, 2))
    assert "cannot tell; a pilot: 2 of the 35 decided prompts" in found.in_words
    row = next(line for line in tabulate(key, votes).splitlines() if line.startswith(f"| {a.prompt} "))
    assert row.endswith("| 0, 2, 0, 0 |") and a.texts[a.arms.index("tuned")].split()[0] in row


def test_texts_cannot_break_the_table(key, tmp_path):
    (item,) = (item for item in key.items if item.id == compared(key)[0].id)
    broken = key._replace(items=[item._replace(prompt="a|b", texts=("one\n\n| <b>", "*two*"), arms=("base", "tuned"))])
    save(tmp_path, broken, "Ann", [answer(broken.items[0])])
    votes, _ = read_answers(tmp_path, broken)
    assert tabulate(broken, votes).splitlines()[2:] == [r"| a\|b | one \| &lt;b&gt; | \*two\* | 0, 1, 0, 0 |"]


@pytest.mark.parametrize("said", [[{"fluency": 3}, {}], [{"correctness": "cannot judge"}, {}], [{}, {}]])
def test_partial_answers_are_counted_as_far_as_they_go(key, tmp_path, said):
    save(tmp_path, key, "Ann", [{"item": compared(key)[0].id, "left": 0, "ratings": said}])
    control = next(item for item in key.items if item.kind == "same")
    save(tmp_path, key, "Bo", [answer(control, preference="both bad")])
    votes, refused = read_answers(tmp_path, key)
    found = summarize(votes, RATE_PARAMS)
    assert refused == [] and found.raters == 0 and found.fluency.prompts == 0
    assert found.controls.same == Control(passed=1, answered=1)
    assert found.in_words.startswith("no preferences yet")


def test_who_could_not_judge_one_text_says_nothing_of_the_difference(key, tmp_path):
    """Else one rater's severity would look like a difference of the models."""
    for name, tuned, base in (("harsh", "cannot judge", 1), ("mild", 4, 4)):
        given = [answer(item) for item in compared(key)]
        for item, one in zip(compared(key), given):
            one["ratings"] = [{"correctness": tuned if arm == "tuned" else base} for arm in item.arms]
        save(tmp_path, key, name, given)
    found = summarize(read_answers(tmp_path, key).votes, RATE_PARAMS).correctness
    assert found == Rated(ratings=8, prompts=4, base=4, tuned=4, difference=0)  # and no interval


def test_one_person_is_one_rater_and_the_latest_answer_counts(key, tmp_path):
    item = compared(key)[0]
    for saved, name, preference in (("2", "Ann Lee", "tuned"), ("1", "ann\u200b lee", "base")):
        text = {"sheet": key.sheet, "rater": name, "saved": saved, "answers": [answer(item, preference=preference)]}
        (tmp_path / f"ratings-{3 - int(saved)}.json").write_text(json.dumps(text))
    (tmp_path / "ratings-Ann-Lee.csv").write_text("\n".join(",".join(row) for row in table(key)[:1]))
    votes, refused = read_answers(tmp_path, key)
    assert len(refused) == 1 and summarize(votes, RATE_PARAMS).preference.votes["tuned"] == 1
    assert set(votes["rater"]) == {"ann-lee"}


def test_kappa_knows_the_whole_scale():
    """Of five numbers of which 2 and 3 never occur: 1 and 5 are four apart, not two."""
    pairs = zip([1, 1, 5, 5, 1, 5], [1, 5, 5, 4, 1, 4])
    rows = [(rater, str(n), "compared", "fluency", "base", value)
            for n, pair in enumerate(pairs) for rater, value in zip("ab", pair)]  # fmt: skip
    votes = pd.DataFrame(rows, columns=["rater", "item", "kind", "criterion", "arm", "value"])
    assert summarize(votes, RATE_PARAMS).agreement["fluency"] == pytest.approx(0.571, abs=5e-4)


def test_equal_texts_have_no_winner(key, tmp_path):
    equal = key._replace(items=[item._replace(texts=("a", "a")) for item in compared(key)])
    save(tmp_path, equal, "Ann", [answer(item) for item in equal.items])
    preference = summarize(read_answers(tmp_path, equal).votes, RATE_PARAMS).preference
    assert preference.prompts == Leaning(tuned=0, base=0, undecided=4)


def test_nine_of_ten_and_eight_of_ten():
    """The p-values of a sign test: 9 of 10 is 0.021, 8 of 10 is 0.109."""
    rate = summarize(study([1] * 9 + [0], raters=1), RATE_PARAMS).preference.win_rate
    assert (rate.low, rate.high) == pytest.approx((0.596, 0.982), abs=5e-4)  # Wilson's
    for wins, p_value, verdict in ((9, 0.021, "better"), (8, 0.109, "cannot tell"), (1, 0.021, "worse")):
        votes = study([1] * wins + [0] * (10 - wins), raters=1)
        found = summarize(votes, RATE_PARAMS)
        assert found.preference.p_value == pytest.approx(p_value, abs=5e-4)
        assert f": {verdict}; a pilot" in found.in_words


def study(tuned_wins: list[int], raters: int, noise: float = 0.0):
    """Simulate votes: each rater sees the truth of each prompt but for a share of `noise`, and rates accordingly."""
    rng, rows = np.random.default_rng(5), []
    for rater in range(raters):
        for number, truth in enumerate(tuned_wins):
            wins = truth if rng.random() >= noise else 1 - truth
            rows.append((f"r{rater}", str(number), "compared", "preference", "tuned" if wins else "base", None))
            for arm, better in (("tuned", wins), ("base", 1 - wins)):
                rows += [(f"r{rater}", str(number), "compared", name, arm, 4 if better else 2) for name in CRITERIA]
    return pd.DataFrame(rows, columns=["rater", "item", "kind", "criterion", "arm", "value"])


def test_a_known_preference_is_found_again():
    truth = (np.random.default_rng(3).random(1000) < 0.75).astype(int)
    found = summarize(study(truth.tolist(), raters=3, noise=0.1), RATE_PARAMS)
    preference = found.preference
    assert preference.win_rate.low < 0.75 < preference.win_rate.high and preference.p_value < 1e-6
    assert found.fluency.difference.low < 2 * (2 * 0.75 - 1) * 0.8 < found.fluency.difference.high
    expected = 1 - (2 * 0.9 * 0.1) / (2 * 0.7 * 0.3)  # two raters differ in 18 %, two votes drawn from all in 42 %
    assert found.agreement["preference"] == pytest.approx(expected, abs=0.05)
    assert "better" in found.in_words and "pilot" not in found.in_words


def test_raters_that_agree_always_and_never():
    truth = [0, 1] * 100
    always = summarize(study(truth, raters=3), RATE_PARAMS).agreement
    assert always == pytest.approx(dict.fromkeys(("preference", *CRITERIA), 1.0))
    dice = summarize(study(truth, raters=4, noise=0.5), RATE_PARAMS).agreement
    assert all(abs(value) < 0.1 for value in dice.values())


def test_downloads_are_moved_where_they_belong(key, tmp_path, monkeypatch):
    downloads, kept = tmp_path / "downloads", tmp_path / "answers"
    downloads.mkdir(), kept.mkdir()
    monkeypatch.setattr("commands.ratings.ANSWERS", kept)
    save(downloads, key, "before", [])
    known = set(downloads.iterdir())
    (downloads / "ratings-half.json").write_text('{"sheet"')
    (downloads / "ratings-other.json").write_text('{"sheet": "other", "rater": "O"}')
    save(downloads, key, "Ann Lee", [])
    assert collect(downloads, known, key.sheet) == kept / "ratings-ann-lee.json"
    assert [file.name for file in kept.iterdir()] == ["ratings-ann-lee.json"] and len(list(downloads.iterdir())) == 3
