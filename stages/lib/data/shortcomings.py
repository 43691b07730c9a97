"""Shortcomings: what of a dataset is too little or too long to be of use, what would do, and how to go on anyway."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from stages.lib.conversations.rows import LeftOut
from stages.lib.data.documents import Document
from stages.lib.data.protocol import PrepareParams
from stages.lib.data.splits import divide, round_up
from stages.lib.data.texts import Text
from stages.lib.scoring.intervals import FEWEST_UNITS, smallest_visible
from stages.lib.sources.source import Split

FEWEST_TRAINING, FEWEST_TEST = 1, 2  # documents; an interval over test documents needs two
SPREADS = (0.02, 0.1)  # of documents' gains, nats per token: the encyclopedia's, and five times that


def too_much_left_out(folder: Path, kept: int, left_out: LeftOut, params: PrepareParams, context: int) -> list[str]:
    """Say so where too many conversations teach nothing, for their length or for another reason.

    Args:
        folder: The dataset's.
        kept: How many documents are left.
        left_out: What is left out, and why.
        params: Of prepare.
        context: Tokens that the model reads at most.
    """
    share = left_out.share(kept)
    if share <= params.max_left_out:
        return []
    ways = ["mend them"]
    if 0 < left_out.longest <= context:
        ways.append(f"keep the long ones with prepare.max_tokens: {left_out.longest}")
    elif left_out.longest:
        ways.append(f"cut the long ones: one has {left_out.longest:,} tokens, and the model reads {context:,}")
    ways.append(f"go on without them with prepare.max_left_out: {round_up(share)}")
    return [
        f"{folder}: {share:.0%} of the conversations teach nothing, and prepare.max_left_out is "
        f"{params.max_left_out:.0%}: {left_out.in_words()}; {', or '.join(ways)}"
    ]


def too_few(
    folder: Path, texts: list[Text], documents: dict[Split, list[Document]], params: PrepareParams
) -> list[str]:
    """Say so where too few documents are left to train on, or to test on."""
    if len(documents["train"]) >= FEWEST_TRAINING and len(documents["test"]) >= FEWEST_TEST:
        return []
    counts = ", ".join(f"{len(found)} {split}" for split, found in documents.items())
    ways = [
        "add some"
        + (
            f": about {enough_documents(params)} leave the {FEWEST_UNITS} that a verdict needs"
            if draws_test(texts)
            else ""
        )
    ]
    if not any(text.conversation for text in texts):
        ways.append("cut long files in several (a .txt or .md file is one document)")
    if draws_test(texts) and (fraction := fraction_that_does(texts, documents, params)):
        ways.append(f"go on with these with prepare.test_fraction: {fraction}")
    return [
        f"{folder}: expected {FEWEST_TRAINING} training and {FEWEST_TEST} test documents at least, found {counts} "
        f"(of {len(texts):,} that were read; equal ones count once); {', or '.join(ways)}"
    ]


def draws_test(texts: list[Text]) -> bool:
    """Return whether test documents are drawn: the dataset itself names none."""
    return not any(text.split == "test" for text in texts)


def enough_documents(params: PrepareParams) -> int:
    """Return of how many documents about as many are drawn for testing as a verdict needs."""
    return math.ceil(FEWEST_UNITS / params.test_fraction)


def fraction_that_does(
    texts: list[Text], documents: dict[Split, list[Document]], params: PrepareParams
) -> float | None:
    """Return the nearest share for testing, in steps of 0.05, with which these documents do; None where none is."""
    used = {document.id for found in documents.values() for document in found}
    texts = [text for text in texts if used & {text.id, f"{text.id}#1"}]
    steps = [percent / 100 for percent in range(5, 100, 5) if percent / 100 + params.validation_fraction < 1]
    for fraction in sorted(steps, key=lambda step: abs(step - params.test_fraction)):
        splits = divide(texts, params.model_copy(update={"test_fraction": fraction}))[1]
        if len(splits["train"]) >= FEWEST_TRAINING and len(splits["test"]) >= FEWEST_TEST:
            return fraction
    return None


def tell_power(folder: Path, texts: list[Text], documents: list[Document], params: PrepareParams) -> str:
    """Say which change of perplexity so many test documents can show, before anything is trained."""
    tokens: Counter[str] = Counter()
    for document in documents:
        tokens[document.group or document.id] += int(document.targets.sum())
    sizes = np.array([*tokens.values()])
    if len(sizes) < FEWEST_UNITS:
        drawn = f": about {enough_documents(params)} documents would leave that many" if draws_test(texts) else ""
        units = f"{folder}: {len(sizes)} test documents or groups"
        return f"{units} cannot show anything for certain; {FEWEST_UNITS} can{drawn}"
    falls = [f"to {math.exp(-smallest_visible(spread, sizes)):.3f} times if it is {spread}" for spread in SPREADS]
    return (
        f"{len(sizes)} test documents or groups detect, four times out of five, a fall in perplexity that depends on "
        f"the standard deviation of their gains in nats per token: {', '.join(falls)}"
    )
