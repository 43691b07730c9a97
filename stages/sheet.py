"""Put both models' answers on a page on which people rate them unseen.   data/generated, data/prepared -> data/ratings

Writes sheet.html, which works from a mail attachment, sheet.csv for those who prefer a spreadsheet, and key.json, which
tells whose text is whose; metrics/sheet.json has the number of prompts that stand in training documents.
Run by `dvc repro sheet`; alone: `python -m stages.sheet`.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.answers.prose import cut, detokenize
from stages.lib.arithmetic import require_one_arithmetic
from stages.lib.conversations.formats import Conversation
from stages.lib.data.documents import PREPARED, Document, read_documents
from stages.lib.data.overlap import quoted
from stages.lib.data.units import distinct
from stages.lib.inputs import Inputs, read_command
from stages.lib.lines import read_lines
from stages.lib.metrics import write_metrics
from stages.lib.params import Section, read_params
from stages.lib.people.judgement import CRITERIA, KEY, RATINGS, Item, Key
from stages.lib.people.rating import SheetParams

GENERATED, ANSWERS = Path("data/generated"), Path("data/answers")
TEMPLATE = Path("stages/sheet.html")
LEAST_LETTERS = 120  # that a text is cut to
SOLID = {  # whether of conversations: an answer to a prompt; its words in disorder make a text that none can prefer
    False: (
        "The sun rises in",
        "the east in the morning and sets in the west in the evening, because the Earth turns on its axis once a day.",
    ),
    True: (
        "User: Where does the sun rise and set?",
        "It rises in the east in the morning and sets in the west in the evening, because the Earth turns on its axis.",
    ),
}


class Params(Section):
    sheet: SheetParams


def make_key(base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]], seed: int) -> Key:
    """Pair the answers to each prompt, and put the pairs and their texts in an order that tells nothing.

    Of equal prompts the first alone has a pair: two would count as two opinions of one thing.
    One text of each pair comes first; in half of the pairs it is the tuned model's. The pairs are themselves coupled,
    one of each kind: who turns both or neither of a couple keeps the balance without knowing the kinds.
    Two more pairs are controls: a solid text and its words in disorder, and a text beside itself.
    """
    base, tuned = zip(*distinct(zip(base, tuned, strict=True), lambda pair: pair[0]["prompt"]))
    told = json.dumps([(row["prompt"], row["text"]) for row in (*base, *tuned)])
    rng = np.random.default_rng([seed, *hashlib.sha256(told.encode()).digest()])  # who has the page alone has no seed
    texts = cut_alike([*base, *tuned])
    items = []
    tuned_first = rng.permutation(np.arange(len(base)) % 2)
    for number, (before, after) in enumerate(zip(base, tuned, strict=True)):
        assert before["prompt"] == after["prompt"]
        pair = (texts[number], texts[len(base) + number])
        items.append(_item("compared", before["prompt"], pair, ("base", "tuned"), turned=bool(tuned_first[number])))
    prompt, solid = SOLID[of_conversations(base)]
    disordered = " ".join(rng.permutation(solid.split()).tolist())
    items.append(
        _item("disordered", prompt, (solid, disordered), ("solid", "disordered"), turned=bool(rng.integers(2)))
    )
    chosen = items[int(rng.integers(len(base)))]
    items.append(_item("same", chosen.prompt, (chosen.texts[0],) * 2, (chosen.arms[0],) * 2, turned=False))
    shuffled = rng.permutation(len(base)).tolist()
    couples = list(zip_longest(*([n for n in shuffled if tuned_first[n] == kind] for kind in (0, 1))))
    couples += [(len(base),), (len(base) + 1,)]
    names = rng.permutation(len(couples)).tolist()
    couple_of = {number: name for name, couple in zip(names, couples) for number in couple}
    order = rng.permutation(len(items)).tolist()
    placed = [items[number]._replace(id=str(place), couple=couple_of[number]) for place, number in enumerate(order, 1)]
    contents = json.dumps([(item.prompt, item.texts, item.couple) for item in placed], ensure_ascii=False)
    return Key(f"s{hashlib.sha256(contents.encode()).hexdigest()[:11]}", placed)  # no number, for spreadsheets


def of_conversations(answers: Sequence[dict[str, Any]]) -> bool:
    """Return whether conversations are answered, not texts continued."""
    return any("messages" in answer for answer in answers)


def cut_alike(answers: list[dict[str, Any]]) -> list[str]:
    """Spell all answers alike, and cut them to one length: the least that any came to that its length ended."""
    texts = [answer["text"].strip() if "messages" in answer else detokenize(answer["text"]) for answer in answers]
    letters = min((len(text) for text, answer in zip(texts, answers) if not answer["ended"]), default=10**6)
    letters = max(letters, LEAST_LETTERS)
    return [cut(text, letters, answer["ended"]) if text else "(nothing)" for text, answer in zip(texts, answers)]


def _item(kind: str, prompt: str, texts: tuple[str, str], arms: tuple[str, str], turned: bool) -> Item:
    if turned:
        texts, arms = (texts[1], texts[0]), (arms[1], arms[0])
    return Item("", kind, prompt, texts, arms, couple=0)


def fill_template(template: str, key: Key, conversations: bool = False) -> str:
    """Put what raters may see into the page, as data that no browser takes for markup."""
    seen = [{"id": i.id, "prompt": i.prompt, "texts": i.texts, "couple": i.couple} for i in key.items]
    shown = {"sheet": key.sheet, "criteria": CRITERIA, "conversations": conversations, "items": seen}
    data = json.dumps(shown, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return template.replace("{{data}}", data)


def table(key: Key) -> list[list[str]]:
    """Lay the sheet out for a spreadsheet, with empty cells for the ratings."""
    rated = [f"{criterion}_{side}" for criterion in CRITERIA for side in "ab"]
    rows = [["sheet", "item", "prompt", "text_a", "text_b", *rated, "preference"]]
    for item in key.items:
        # a spreadsheet would compute what begins so
        texts = [f"'{text}" if text[:1] in "=+-@" else text for text in (item.prompt, *item.texts)]
        rows.append([key.sheet, item.id, *texts, *[""] * (len(rated) + 1)])
    return rows


def read_answers(arm: str, params: SheetParams) -> list[dict[str, Any]]:
    """Read what generate wrote for an arm: the answers to prompts, and to some held-out conversations."""
    prompts, answers = (read_lines(folder / f"{arm}.jsonl") for folder in (GENERATED, ANSWERS))
    held_out = [answer for answer in answers if answer["split"] == "test"]
    chosen = np.random.default_rng(params.seed).permutation(len(held_out))[: params.held_out]
    return [
        answer | ({"prompt": script(answer["messages"])} if "messages" in answer else {})
        for answer in [*prompts, *(held_out[number] for number in sorted(chosen))]
    ]


def script(messages: list[dict[str, Any]]) -> str:
    """Write a conversation as a play: who speaks, and what they say."""
    return "\n\n".join(f"{message['role'].title()}: {message['content'].strip()}" for message in messages)


def asked(answer: dict[str, Any]) -> str:
    """Return what a model was given last: a text to continue, or a message."""
    return answer["messages"][-1]["content"] if "messages" in answer else answer["prompt"]


def words_in(document: Document) -> str:
    """Return all that a model reads in a document."""
    return Conversation.from_json(document.conversation).said if document.conversation else document.text


def main() -> None:
    read_command(__doc__, [])
    params = read_params(Params)
    training = PREPARED / "train.parquet"
    answers = [folder / f"{arm}.jsonl" for folder in (GENERATED, ANSWERS) for arm in ("base", "tuned")]
    inputs = Inputs(params, training, *answers, TEMPLATE)
    base, tuned = (read_answers(arm, params.sheet) for arm in ("base", "tuned"))
    require_one_arithmetic({"base": base[0]["settings"]["precision"], "tuned": tuned[0]["settings"]["precision"]})
    key = make_key(base, tuned, params.sheet.seed)
    known = quoted([asked(answer) for answer in base], [words_in(document) for document in read_documents("train")])
    page = fill_template(TEMPLATE.read_text(encoding="utf-8"), key, of_conversations(base))
    inputs.confirm()
    RATINGS.mkdir(parents=True, exist_ok=True)
    KEY.write_text(key.to_json(), encoding="utf-8")
    (RATINGS / "sheet.html").write_text(page, encoding="utf-8")
    with (RATINGS / "sheet.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(table(key))
    print("prompts that stand in training documents:", ", ".join(map(repr, known)) or "none")
    write_metrics("sheet", {"quoted_prompts": len(known)})
    print(f"{RATINGS}/sheet.html: {len(key.items)} pairs to rate; `make rate` opens it")


if __name__ == "__main__":
    main()
