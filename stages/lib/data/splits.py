"""Splits: which documents are learned, and which are held out, so that nothing stands in both."""

import hashlib
import math
from pathlib import Path

from stages.lib.data.overlap import copied, overlap
from stages.lib.data.protocol import PrepareParams
from stages.lib.data.texts import Text
from stages.lib.data.units import distinct, normalized
from stages.lib.sources.source import Split


def divide(texts: list[Text], params: PrepareParams) -> tuple[dict[Split, list[Text]], dict[Split, list[Text]]]:
    """Put documents in splits.

    Returns:
        By split: what was drawn, and what of it is kept, so that nothing stands in two splits or is held out twice.
    """
    drawn = split_texts(texts, params)
    kept = part_splits(drawn)
    if any(text.conversation for text in texts):
        kept = leave_out_alike(kept, params.max_alike)
    return drawn, kept


def split_texts(texts: list[Text], params: PrepareParams) -> dict[Split, list[Text]]:
    """Put every document in a split, and leave out the training documents that `train_fraction` does not keep.

    What the dataset itself names test or validation stays so. A split it does not name is drawn from the rest by a hash
    of the text, or of a conversation's group or first question: no document's place depends on another's.
    """
    named = {text.split for text in texts}
    test_fraction = 0 if "test" in named else params.test_fraction
    validation_fraction = 0 if "validation" in named else params.validation_fraction
    splits: dict[Split, list[Text]] = {"train": [], "validation": [], "test": []}
    for text in texts:
        position = hash_position(text.place, "split")
        if text.split in ("validation", "test"):
            splits[text.split].append(text)
        elif position < test_fraction:
            splits["test"].append(text)
        elif position < test_fraction + validation_fraction:
            splits["validation"].append(text)
        elif hash_position(text.place, "keep") < params.train_fraction:
            splits["train"].append(text)
    return splits


def part_splits(splits: dict[Split, list[Text]]) -> dict[Split, list[Text]]:
    """Keep each held-out text once, and no text in two splits: test comes before validation, and both before training.

    Equal texts are one document, and would otherwise count as independent evidence. Training texts may be repeated.
    """
    test = distinct(splits["test"], lambda text: text.identity)
    held_out = distinct([*test, *splits["validation"]], lambda text: text.identity)
    known = {normalized(text.identity) for text in held_out}
    train = [text for text in splits["train"] if normalized(text.identity) not in known]
    return {"train": train, "validation": held_out[len(test) :], "test": test}


def hash_position(text: str, purpose: str) -> float:
    """Map a text to [0, 1), evenly, and differently for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{text}".encode()).digest()[:8]) / 2**64


def leave_out_alike(splits: dict[Split, list[Text]], max_alike: float) -> dict[Split, list[Text]]:
    """Leave out conversations that say nearly the same as another: training ones as held-out ones, and later twins.

    Conversations share questions and short answers by nature, so what counts is the share of all that was said.
    """
    kept: dict[Split, list[Text]] = {**splits}
    names: tuple[Split, ...] = ("test", "validation", "train")  # each may lose to the one before it
    for split in names[:2]:
        while kept[split]:
            table = overlap([], [text.text for text in kept[split]]).table
            alike = table["twin_alike"] > max_alike
            first = table.index < table["twin"]
            twins = table.index[alike & ~(first & alike[table["twin"]].to_numpy())]  # of two that are alike, the second
            if twins.empty:
                break
            kept[split] = [text for number, text in enumerate(kept[split]) if number not in set(twins)]
    for held_out in names[:2]:
        for other in names[names.index(held_out) + 1 :]:
            if kept[held_out] and kept[other]:
                learned = overlap([t.text for t in kept[other]], [t.text for t in kept[held_out]]).learned
                kept[other] = [text for text, share in zip(kept[other], learned) if share <= max_alike]
    return kept


def find_overlap(
    folder: Path, splits: dict[Split, list[Text]], max_overlap: float
) -> tuple[dict[Split, dict[str, float]], list[str]]:
    """Measure how much of the held-out documents stands in training ones too, or in others of their split.

    Args:
        folder: The dataset's.
        splits: Its documents.
        max_overlap: More of a text is too much.

    Returns:
        By split: the mean over documents of the share of their 13-word sequences that stand in training; the largest
        overlap of a document, by that measure or by the 5-word sequences it shares with one training document; and
        the largest overlap of two documents of the split, by 5-word sequences. Of conversations, from which those that
        are too alike were left out, the former of their questions and answers apart.
        And a line each on texts that stand in training too, and on those that stand in one another; names them.
    """
    found, copies, twins, most = {}, [], [], 0.0
    held: tuple[Split, ...] = ("validation", "test")
    for split in held:
        if not splits[split]:
            continue
        training, held_out = splits["train"], splits[split]
        table = overlap([text.text for text in training], [text.text for text in held_out]).table
        if held_out[0].conversation:
            found[split] = {
                part: float(copied(_part(part, training), _part(part, held_out)).mean())
                for part in ("asked", "answered")
            }
            found[split] |= {"largest": float(table["alike"].max()), "largest_within": float(table["twin_alike"].max())}
            continue
        worst = table[["copied", "alike"]].max(axis=1)
        found[split] = {"copied": float(table["copied"].mean()), "largest": float(worst.max())}
        found[split]["largest_within"] = float(table["twin_alike"].max())
        most = max(most, found[split]["largest"], found[split]["largest_within"])
        for number in worst.index[worst > max_overlap]:
            twin = training[table["nearest"][number]].id
            copies.append(f"{held_out[number].id} ({worst[number]:.0%}, mostly as in {twin})")
        for number in table.index[table["twin_alike"] > max_overlap]:
            twin = held_out[table["twin"][number]].id
            twins.append(f"{held_out[number].id} ({table['twin_alike'][number]:.0%} as in {twin})")
    anyway = f"or go on as they are with prepare.max_overlap: {round_up(most)}"
    complaints = []
    if copies:
        complaints.append(
            f"{folder}: held-out documents that stand in training ones too, by more than {max_overlap:.0%}: "
            f"{some(copies)}; scores on them would be too good: remove one of each two, put both into one split, "
            f"{anyway}"
        )
    if twins:
        complaints.append(
            f"{folder}: held-out documents that stand in one another, by more than {max_overlap:.0%}: {some(twins)}; "
            f"they would count as independent evidence: remove one of each two, make them one document, {anyway}"
        )
    return found, complaints


def round_up(share: float) -> float:
    """Return a share in whole percent that is no smaller."""
    return math.ceil(100 * share - 1e-9) / 100


def _part(part: str, texts: list[Text]) -> list[str]:
    return [getattr(text.conversation, part) if text.conversation else text.text for text in texts]


def some(names: list[str]) -> str:
    """List the first five names, and count the rest."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
