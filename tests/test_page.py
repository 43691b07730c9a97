"""The rating sheet in a real browser: two raters, a reload, keys, a phone, hostile text; and what `rate` makes of it.

Needs Chromium, as Debian's package `chromium` installs it; skipped where there is none.
"""

import json

import pytest
from support.rating import HOSTILE, answers

from stages.lib.people.judgement import CRITERIA, Key, read_answers
from stages.lib.people.rating import RateParams
from stages.rate import Control, Leaning, summarize
from stages.sheet import TEMPLATE, fill_template, make_key

NUMBER = 4  # prompts; two controls come beside


@pytest.fixture
def key() -> Key:
    return make_key(*answers(1, NUMBER), seed=1)


@pytest.fixture
def page(browser, key, tmp_path):
    """The sheet, opened as a file; whatever it says to a console or asks of a network fails the test."""
    (tmp_path / "sheet.html").write_text(fill_template(TEMPLATE.read_text(encoding="utf-8"), key), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if "file:" not in request.url[:5] else None)
    page.goto((tmp_path / "sheet.html").as_uri())
    yield page
    context.close()
    assert [text for text in complaints if not text.startswith("blob:")] == []


def begin(page, rater: str) -> None:
    page.get_by_label("Your name").fill(rater)
    page.get_by_role("button", name="Begin").click()


def texts_shown(page) -> list[str]:
    return [text.removeprefix("… ") for text in page.locator(".text").all_text_contents()]


def item_shown(page, key: Key):
    shown = set(texts_shown(page))
    prompt = page.locator("#prompt").text_content().removesuffix(" …")
    return next(item for item in key.items if item.prompt == prompt and set(item.texts) == shown)


def rate(page, key: Key, prefer: str = "tuned") -> None:
    """Rate the arm `prefer` 5 and the other 2, by clicking, and go on."""
    item = item_shown(page, key)
    first = page.locator("fieldset input").first.get_attribute("name")[0]
    for side, text in (("A", int(first)), ("B", 1 - int(first))):
        for criterion in CRITERIA:
            group = page.get_by_role("group", name=f"{criterion.title()} of {side}")
            group.get_by_label("5" if item.arms[text] == prefer else "2", exact=True).check()
    best = item.arms.index(prefer) if prefer in item.arms and len(set(item.arms)) == 2 else None
    label = "Tie: equally good" if best is None else "A" if best == int(first) else "B"
    page.locator("#overall").get_by_label(label, exact=True).check()
    page.get_by_role("button", name="Next").click()


def download(page, folder) -> dict:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download my answers").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_raters_a_reload_and_every_number(page, key, tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    begin(page, "Ann")
    orders = {"Ann": [], "Bo": []}
    for place in range(NUMBER + 2):
        if place == 3:
            page.get_by_role("group", name="Fluency of B").get_by_label("4", exact=True).check()
            page.reload()
            assert page.get_by_role("group", name="Fluency of B").get_by_label("4", exact=True).is_checked()
            assert page.locator("#place").text_content() == "Pair 4 of 6"
        orders["Ann"].append((item_shown(page, key).id, texts_shown(page)[0]))
        rate(page, key)
    assert "6 of 6 pairs" in page.locator("#count").text_content()
    saved = download(page, folder)
    assert saved["sheet"] == key.sheet and saved["rater"] == "Ann" and len(saved["answers"]) == 6
    page.get_by_role("button", name="Someone else").click()
    begin(page, "Bo")
    for _ in range(NUMBER + 2):
        orders["Bo"].append((item_shown(page, key).id, texts_shown(page)[0]))
        rate(page, key, prefer="base")
    download(page, folder)
    assert [item for item, _ in orders["Ann"]] != [item for item, _ in orders["Bo"]]
    sides = [dict(order) for order in orders.values()]
    assert any(sides[0][item] != sides[1][item] for item in sides[0])  # some pair is turned
    for order in orders.values():  # whoever rates: half of the texts on the left are tuned
        left = [{i.id: i for i in key.items}[item] for item, _ in order]
        arms = [i.arms[i.texts.index(shown)] for i, (_, shown) in zip(left, order) if i.kind == "compared"]
        assert sorted(arms) == ["base"] * 2 + ["tuned"] * 2
    votes, refused = read_answers(folder, key)
    found = summarize(votes, RateParams(seed=1, resamples=1000))
    assert refused == [] and (found.raters, found.prompts, found.judgements) == (2, 4, 8)
    assert found.preference.votes == {"base": 4, "tuned": 4, "tie": 0, "both bad": 0}
    assert found.preference.prompts == Leaning(tuned=0, base=0, undecided=4)
    for rated in found.criteria.values():
        assert (rated.base, rated.tuned, rated.ratings) == (3.5, 3.5, 16)
    assert found.controls.same == Control(passed=2, answered=2)
    assert found.agreement["fluency"] == pytest.approx(-1)


def test_keys_alone_do(page, key, tmp_path):
    page.keyboard.press("Tab")
    page.get_by_label("Your name").press_sequentially("Cy")
    page.keyboard.press("Enter")
    for sign in "123" + "450" + "a":
        page.keyboard.press(sign)
    page.keyboard.press("Enter")
    assert page.locator("#place").text_content() == "Pair 2 of 6"
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    assert "6 of 7 answers are open" in page.locator("#missing").text_content()
    page.get_by_role("button", name="Save what I have").click()
    first, second = download(page, tmp_path)["answers"]
    left = first["left"]
    assert first["ratings"][left] == {"fluency": 1, "relevance": 2, "correctness": 3}
    assert first["ratings"][1 - left] == {"fluency": 4, "relevance": 5, "correctness": "cannot judge"}
    assert first["preference"] == left
    assert second["ratings"][second["left"]] == {"fluency": 4} and "preference" not in second
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Back").click()
    assert page.get_by_role("group", name="Relevance of A").get_by_label("2", exact=True).is_checked()


def test_keys_rate_where_the_focus_is_and_nowhere_else(page, key):
    begin(page, "Cy")
    page.locator(".text").nth(1).focus()
    page.keyboard.press("3")
    assert page.get_by_role("group", name="Fluency of B").get_by_label("3", exact=True).is_checked()
    page.get_by_role("button", name="Back").evaluate("button => button.disabled = false")
    page.get_by_role("button", name="Back").focus()
    for sign in "1b0t":
        page.keyboard.press(sign)
    assert page.locator("input:checked").count() == 1


def test_who_cannot_be_remembered_is_told(browser, key, tmp_path):
    (tmp_path / "sheet.html").write_text(fill_template(TEMPLATE.read_text(encoding="utf-8"), key), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script("Storage.prototype.setItem = () => { throw new Error('full'); };")
    page.goto((tmp_path / "sheet.html").as_uri())
    begin(page, "Di")
    assert page.get_by_role("alert").is_visible()


def test_the_anchors_stay_at_hand(page, key):
    begin(page, "Em")
    page.get_by_text("What the numbers mean, and keys").click()
    for anchors in CRITERIA.values():
        for anchor in anchors:
            assert page.locator("#help").get_by_text(anchor).is_visible()


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    base, tuned = answers(1, 2)
    for row in (*base, *tuned):
        row["prompt"] += HOSTILE
        row["text"] = f"{HOSTILE} <img src=x onerror=alert(1)> {'long ' * 20_000}end."
    key = make_key(base, tuned, seed=1)
    (tmp_path / "sheet.html").write_text(fill_template(TEMPLATE.read_text(encoding="utf-8"), key), encoding="utf-8")
    page = browser.new_page()
    page.on("dialog", lambda dialog: pytest.fail("a text ran as a program"))
    page.goto((tmp_path / "sheet.html").as_uri())
    begin(page, "<b>Dee</b> __proto__")
    while len(texts_shown(page)[0]) < 1000:  # a control
        page.get_by_role("button", name="Next").click()
        page.get_by_role("button", name="Next").click()
    assert set(texts_shown(page)) <= {text for item in key.items for text in item.texts}
    assert page.locator(".text *, #prompt *").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.get_by_role("button", name="Save what I have").click()
    assert page.locator("#name").text_content() == "<b>Dee</b> __proto__"
    assert download(page, tmp_path)["rater"] == "<b>Dee</b> __proto__"


def test_a_phone_shows_it_without_sideways_scrolling(page, key):
    page.set_viewport_size({"width": 360, "height": 740})
    for step in (lambda: None, lambda: begin(page, "Eve"), lambda: rate(page, key)):
        step()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [page.locator(".side").nth(number).bounding_box() for number in (0, 1)]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"] - 1
    for label in page.locator(".choices label").all():
        assert label.bounding_box()["height"] >= 44


def test_everything_has_a_name_for_who_does_not_see_it(page, key):
    begin(page, "Flo")
    assert page.get_by_role("progressbar", name="Pair 1 of 6").count() == 1
    assert page.get_by_role("group", name="Which do you prefer").get_by_role("radio").count() == 4
    for side in "AB":
        for criterion in CRITERIA:
            assert page.get_by_role("group", name=f"{criterion.title()} of {side}").get_by_role("radio").count() >= 5
