"""Read a dataset as documents, split them, and turn them into tokens.   data/raw -> data/prepared

Run by `dvc repro prepare`; alone: `python -m stages.prepare`. With the name of a dataset it prepares the test documents
of that one alone, to data/also/<name>/test.parquet, for scores on a text that is not the one learned.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.template import TEMPLATE
from stages.lib.data.documents import PREPARED, PROMPTS_OF_DATASET, Document, read_documents, write_documents
from stages.lib.data.preparation import Preparation, count
from stages.lib.data.preview import PREVIEW, render_preview
from stages.lib.data.protocol import ALSO, PrepareParams
from stages.lib.data.splits import check_overlap, leave_out_alike, part_splits, split_texts
from stages.lib.data.texts import Text, read_dataset, read_own_prompts
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import write_metrics
from stages.lib.params import CHECKED, Mistake, Section, read_params
from stages.lib.results import results_kept
from stages.lib.scoring.intervals import FEWEST_UNITS, smallest_visible
from stages.lib.sources.source import DATASETS, MODELS, Split

SPREADS = (0.02, 0.1)  # of documents' gains, nats per token: the encyclopedia's, and five times that
PLAIN = Path("stages/lib/conversations/plain.jinja")  # the template of base models


class Params(Section):
    model: str
    dataset: str
    prepare: PrepareParams


def prepare(name: str, params: Params) -> None:
    """Prepare the dataset that is learned."""
    inputs = Inputs(params, CHECKED, DATASETS / name, MODELS / params.model, PLAIN)
    preparation = Preparation.of(params.model, params.prepare)
    texts = list(read_dataset(name, preparation.left_out.rows))
    drawn = split_texts(texts, params.prepare)
    splits = part_splits(drawn)
    template = preparation.template() if any(text.conversation for text in texts) else None
    if template:
        splits = leave_out_alike(splits, params.prepare.max_alike)
    documents: dict[Split, list[Document]] = {
        split: preparation.documents(texts, template) for split, texts in splits.items()
    }
    check_counts(name, documents, preparation)
    overlaps = check_overlap(splits, params.prepare)
    inputs.confirm()
    PREPARED.mkdir(parents=True, exist_ok=True)
    metrics = {split: count(documents[split], len(drawn[split]) - len(splits[split])) for split in splits}
    for split in splits:
        write_documents(documents[split], split)
        print_counts(split, metrics[split])
    facts = {"model": params.model, "dataset": name}
    metrics |= {"overlap": overlaps, "begins_with": preparation.begin}
    if template:
        left_out = preparation.left_out
        told = {"rows": dict(left_out.rows.most_common()), "shortened": left_out.shortened}
        metrics |= {"template": {"origin": template.origin, "date": template.date}, "not_learned": told}
        facts |= {"template": template.origin, "left out": left_out.in_words(), "shortened": f"{left_out.shortened:,}"}
        print(f"template: {template.origin}; left out: {left_out.in_words()}; shortened: {left_out.shortened:,}")
        learned = [Conversation.from_json(document.conversation) for document in documents["train"]]
        template = template.opened_as(learned)
        for message in template.opening:
            print(f"prompts come after what begins every training conversation: {message['content'][:80]!r}")
    TEMPLATE.write_text(template.to_json() if template else "null", encoding="utf-8")
    PROMPTS_OF_DATASET.write_text(read_own_prompts(name) or "\n", encoding="utf-8")  # DVC warns of empty files
    PREVIEW.write_text(render_preview(documents["train"], preparation.tokenizer, facts), encoding="utf-8")
    print(tell_power(documents["test"]))
    print(f"look at what is learned: {PREVIEW}")
    write_metrics("prepare", metrics)


def check_counts(name: str, documents: dict[Split, list[Document]], preparation: Preparation) -> None:
    """Refuse a dataset of which too little is left.

    Raises:
        Mistake: Says what there is, and what would be enough.
    """
    left_out, kept = preparation.left_out, sum(map(len, documents.values()))
    if left_out.share(kept) > preparation.params.max_left_out:
        raise Mistake(
            f"{DATASETS}/{name}: {left_out.share(kept):.0%} of the conversations teach nothing "
            f"({left_out.in_words()}); mend them, or raise prepare.max_left_out"
        )
    if len(documents["train"]) < 1 or len(documents["test"]) < 2:  # an interval over documents needs two
        counts = ", ".join(f"{len(found)} {split}" for split, found in documents.items())
        raise Mistake(
            f"{DATASETS}/{name}: expected one training document and two test documents, found {counts} "
            "(equal ones count once); cut long files in several (a .txt or .md file is one document), or change "
            "prepare.test_fraction"
        )


def prepare_also(name: str, params: Params) -> None:
    """Prepare the test documents of another dataset, none of which may stand in the training documents."""
    inputs = Inputs(params, PREPARED / "train.parquet", DATASETS / name, MODELS / params.model, PLAIN)
    preparation = Preparation.of(params.model, params.prepare)
    texts = list(read_dataset(name, preparation.left_out.rows))
    drawn = split_texts(texts, params.prepare)
    training = [*map(as_text, read_documents("train"))]
    test = part_splits(drawn)["test"]
    template = preparation.template() if any(text.conversation for text in texts) else None
    if template:
        test = leave_out_alike({"train": [], "validation": [], "test": test}, params.prepare.max_alike)["test"]
    documents = preparation.documents(test, template)
    if len(documents) < 2:
        raise Mistake(f"{DATASETS}/{name}: expected two test documents, found {len(documents)}; equal ones count once")
    overlaps = check_overlap({"train": training, "validation": [], "test": test}, params.prepare)
    inputs.confirm()
    (ALSO / name).mkdir(parents=True, exist_ok=True)
    write_documents(documents, "test", ALSO / name)
    counts = count(documents, len(drawn["test"]) - len(test))
    print_counts("test", counts)
    write_metrics(f"also/{name}/prepare", {"test": counts, "overlap": overlaps})


def as_text(document: Document) -> Text:
    """Return a document as it was before it had tokens."""
    if not document.conversation:
        return Text(document.id, document.title, document.text, "train")
    conversation = Conversation.from_json(document.conversation)
    return Text(document.id, document.title, conversation.said, "train", conversation)


def tell_power(documents: list[Document]) -> str:
    """Say which change of perplexity so many documents can show, before anything is trained."""
    tokens: Counter[str] = Counter()
    for document in documents:
        tokens[document.group or document.id] += int(document.targets.sum())
    sizes = np.array([*tokens.values()])
    if len(sizes) < FEWEST_UNITS:
        return f"{len(sizes)} test documents or groups can show nothing for certain; {FEWEST_UNITS} could"
    shown = [f"to {math.exp(-smallest_visible(spread, sizes)):.3f} times (by {spread})" for spread in SPREADS]
    return (
        f"{len(sizes)} test documents or groups show, four times of five, a fall of perplexity "
        f"{', '.join(shown)} or lower, by how far their gains differ (standard deviation, nats per token)"
    )


def print_counts(split: Split, counts: dict[str, int]) -> None:
    """Print what `count` counted."""
    print(f"{split:10}", ", ".join(f"{number:,} {unit.replace('_', ' ')}" for unit, number in counts.items()))


def main() -> None:
    command = read_command(__doc__, ["model", "dataset"], also={"nargs": "?", "help": "a folder of data/raw/"})
    params = read_params(Params, command=command)
    if command.also:
        prepare_also(command.also, params)
    else:
        prepare(params.dataset, params)


if __name__ == "__main__":
    with results_kept():
        main()
