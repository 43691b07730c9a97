"""Read a dataset as documents, split them, and turn them into tokens.   data/raw -> data/prepared

Run by `dvc repro prepare`; alone: `python -m stages.prepare`. With the name of a dataset it prepares the test documents
of that one alone, to data/also/<name>/test.parquet, for scores on a text that is not the one learned.
"""

import hashlib
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from tqdm import tqdm

from stages.lib.data.documents import PREPARED, Document, read_documents, write_documents
from stages.lib.data.overlap import overlap
from stages.lib.data.texts import Split, Text, read_dataset
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.data.units import distinct, normalized
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import write_metrics
from stages.lib.params import Mistake, Section, read_params
from stages.lib.scoring.document_scores import ALSO
from stages.lib.sources.source import DATASETS, MODELS


class PrepareParams(Section):
    train_fraction: Annotated[float, Field(gt=0, le=1)]  # of the training documents, kept
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]  # of the documents, where the dataset names no split
    test_fraction: Annotated[float, Field(gt=0, lt=1)]  # likewise
    max_overlap: Annotated[float, Field(ge=0, le=1)]  # of any held-out document with training ones, or with another

    @model_validator(mode="after")
    def _leaves_training(self) -> "PrepareParams":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must leave something to train on")
        return self


class Params(Section):
    model: str
    dataset: str
    prepare: PrepareParams


def split_texts(texts: list[Text], params: PrepareParams) -> dict[Split, list[Text]]:
    """Put every document in a split, and leave out the training documents that `train_fraction` does not keep.

    What the dataset itself names test or validation stays so. A split it does not name is drawn from
    the rest by a hash of the text: no document's place depends on another's.
    """
    named = {text.split for text in texts}
    test_fraction = 0 if "test" in named else params.test_fraction
    validation_fraction = 0 if "validation" in named else params.validation_fraction
    splits: dict[Split, list[Text]] = {"train": [], "validation": [], "test": []}
    for text in texts:
        position = hash_position(text.text, "split")
        if text.split in ("validation", "test"):
            splits[text.split].append(text)
        elif position < test_fraction:
            splits["test"].append(text)
        elif position < test_fraction + validation_fraction:
            splits["validation"].append(text)
        elif hash_position(text.text, "keep") < params.train_fraction:
            splits["train"].append(text)
    return splits


def part_splits(splits: dict[Split, list[Text]]) -> dict[Split, list[Text]]:
    """Keep each held-out text once, and no text in two splits: test comes before validation, and both before training.

    Equal texts are one document, and would otherwise count as independent evidence. Training texts may be repeated.
    """
    test = distinct(splits["test"], lambda text: text.text)
    held_out = distinct([*test, *splits["validation"]], lambda text: text.text)
    known = {normalized(text.text) for text in held_out}
    train = [text for text in splits["train"] if normalized(text.text) not in known]
    return {"train": train, "validation": held_out[len(test) :], "test": test}


def hash_position(text: str, purpose: str) -> float:
    """Map a text to [0, 1), evenly, and differently for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{text}".encode()).digest()[:8]) / 2**64


def tokenize(texts: list[Text], tokenizer: Tokenizer, batch_size: int = 64) -> list[Document]:
    """Turn texts into documents."""
    documents = []
    for start in tqdm(range(0, len(texts), batch_size), desc="tokenize", unit=" batches", leave=False):
        batch = texts[start : start + batch_size]
        encodings = tokenizer.encode_batch_fast([text.text for text in batch], add_special_tokens=False)
        documents += [Document(t.id, t.title, t.text, np.array(e.ids, np.int32)) for t, e in zip(batch, encodings)]
    return documents


def count(documents: list[Document], left_out: int) -> dict[str, int]:
    """Count what a split holds, how many of it equal an earlier one, and how many equal texts were left out."""
    return {
        "documents": len(documents),
        "bytes": sum(d.num_bytes for d in documents),
        "words": sum(d.num_words for d in documents),
        "tokens": sum(len(d.tokens) for d in documents),
        "repeated": len(documents) - len(distinct(documents, lambda d: d.text)),
        "left_out": left_out,
    }


def print_counts(split: Split, counts: dict[str, int]) -> None:
    """Print what `count` counted."""
    print(f"{split:10}", ", ".join(f"{number:,} {unit.replace('_', ' ')}" for unit, number in counts.items()))


def check_overlap(splits: dict[Split, list[Text]], max_overlap: float) -> dict[Split, dict[str, float]]:
    """Measure how much of the held-out documents stands in training ones too, or in others of their split.

    Returns:
        By split: the mean over documents of the share of their 13-word sequences that stand in training; the largest
        overlap of a document, by that measure or by the 5-word sequences it shares with one training document; and
        the largest overlap of two documents of the split, by 5-word sequences.

    Raises:
        Mistake: Documents overlap by more than `max_overlap`; names them.
    """
    found, copies, twins = {}, [], []
    for split in ("validation", "test"):
        if not splits[split]:
            continue
        table = overlap([text.text for text in splits["train"]], [text.text for text in splits[split]])
        worst = table[["copied", "alike"]].max(axis=1)
        found[split] = {"copied": float(table["copied"].mean()), "largest": float(worst.max())}
        found[split]["largest_within"] = float(table["twin_alike"].max())
        for number in worst.index[worst > max_overlap]:
            twin = splits["train"][table["nearest"][number]].id
            copies.append(f"{splits[split][number].id} ({worst[number]:.0%}, mostly as in {twin})")
        for number in table.index[table["twin_alike"] > max_overlap]:
            twin = splits[split][table["twin"][number]].id
            twins.append(f"{splits[split][number].id} ({table['twin_alike'][number]:.0%} as in {twin})")
    if copies:
        raise Mistake(
            f"{DATASETS}: held-out documents that stand in training ones too: {some(copies)}; scores on them would be "
            "too good: remove one of each two, put both into one split, or raise prepare.max_overlap"
        )
    if twins:
        raise Mistake(
            f"{DATASETS}: held-out documents that stand in one another: {some(twins)}; they would count as independent "
            "evidence: remove one of each two, make them one document, or raise prepare.max_overlap"
        )
    return found


def some(names: list[str]) -> str:
    """List the first five names, and count the rest."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def prepare_also(name: str, params: Params) -> None:
    """Prepare the test documents of another dataset, none of which may stand in the training documents."""
    inputs = Inputs(params, PREPARED / "train.parquet", DATASETS / name, MODELS / params.model)
    training = [Text(d.id, d.title, d.text, "train") for d in read_documents("train")]
    drawn = split_texts(list(read_dataset(name)), params.prepare)
    test = part_splits(drawn)["test"]
    if len(test) < 2:
        raise Mistake(f"{DATASETS}/{name}: expected two test documents, found {len(test)}; equal ones count once")
    overlaps = check_overlap({"train": training, "validation": [], "test": test}, params.prepare.max_overlap)
    documents = tokenize(test, load_tokenizer(params.model))
    inputs.confirm()
    (ALSO / name).mkdir(parents=True, exist_ok=True)
    write_documents(documents, "test", ALSO / name)
    counts = count(documents, len(drawn["test"]) - len(test))
    print_counts("test", counts)
    write_metrics(f"also/{name}/prepare", {"test": counts, "overlap": overlaps})


def main() -> None:
    command = read_command(__doc__, ["model", "dataset"], also={"nargs": "?", "help": "a folder of data/raw/"})
    params = read_params(Params, command=command)
    if command.also:
        prepare_also(command.also, params)
        return
    inputs = Inputs(params, DATASETS / params.dataset, MODELS / params.model)
    tokenizer = load_tokenizer(params.model)
    drawn = split_texts(list(read_dataset(params.dataset)), params.prepare)
    splits = part_splits(drawn)
    if len(splits["train"]) < 1 or len(splits["test"]) < 2:  # an interval over documents needs two
        counts = ", ".join(f"{len(texts)} {split}" for split, texts in splits.items())
        raise Mistake(
            f"{DATASETS}/{params.dataset}: expected one training document and two test documents, found {counts} "
            "(equal ones count once); cut long files in several (a .txt or .md file is one document), or change "
            "prepare.test_fraction"
        )
    overlaps = check_overlap(splits, params.prepare.max_overlap)
    documents = {split: tokenize(texts, tokenizer) for split, texts in splits.items()}
    inputs.confirm()
    PREPARED.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, texts in splits.items():
        write_documents(documents[split], split)
        counts[split] = count(documents[split], len(drawn[split]) - len(texts))
        print_counts(split, counts[split])
    write_metrics("prepare", counts | {"overlap": overlaps})


if __name__ == "__main__":
    main()
