"""Read a dataset as documents, split them, and turn them into tokens.   data/raw -> data/prepared

Run by `dvc repro prepare`; alone: `python -m stages.prepare`. With the name of a dataset it prepares the test documents
of that one alone, to data/also/<name>/test.parquet, for scores on a text that is not the one learned.
"""

from pathlib import Path

from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.template import TEMPLATE
from stages.lib.data.documents import PREPARED, PROMPTS_OF_DATASET, Document, read_documents, write_documents
from stages.lib.data.overview import count_scripts, tabulate
from stages.lib.data.preparation import Preparation, count
from stages.lib.data.preview import PREVIEW, render_preview
from stages.lib.data.protocol import ALSO, PrepareParams
from stages.lib.data.shortcomings import tell_power, too_few, too_much_left_out
from stages.lib.data.splits import divide, find_overlap, leave_out_alike, part_splits, split_texts
from stages.lib.data.texts import Text, read_dataset, read_own_prompts
from stages.lib.data.tokenizer import num_positions
from stages.lib.inputs import Inputs, read_command
from stages.lib.metrics import write_metrics
from stages.lib.params import CHECKED, Mistake, Section, read_params
from stages.lib.results import results_kept
from stages.lib.sources.source import DATASETS, MODELS, Split

PLAIN = Path("stages/lib/conversations/plain.jinja")  # the template of base models


class Params(Section):
    model: str
    dataset: str
    prepare: PrepareParams


def prepare(name: str, params: Params) -> None:
    """Prepare the dataset that is learned."""
    folder = DATASETS / name
    inputs = Inputs(params, CHECKED, folder, MODELS / params.model, PLAIN)
    preparation = Preparation.of(params.model, params.prepare)
    left_out = preparation.left_out
    texts = list(read_dataset(name, left_out.rows))
    drawn, splits = divide(texts, params.prepare)
    template = preparation.template() if any(text.conversation for text in texts) else None
    documents: dict[Split, list[Document]] = {
        split: preparation.documents(texts, template) for split, texts in splits.items()
    }
    counts = {split: count(documents[split], len(drawn[split]) - len(splits[split])) for split in splits}
    scripts = count_scripts(text.text for texts in splits.values() for text in texts)
    print(tabulate(f"{folder}: {len(texts):,} documents were read", counts, scripts))
    overlaps, complaints = find_overlap(folder, splits, params.prepare.max_overlap)
    kept = sum(map(len, documents.values()))
    refuse(
        too_much_left_out(folder, kept, left_out, params.prepare, num_positions(params.model))
        + too_few(folder, texts, documents, params.prepare)
        + complaints
    )
    inputs.confirm()
    PREPARED.mkdir(parents=True, exist_ok=True)
    for split in splits:
        write_documents(documents[split], split)
    facts = {"model": params.model, "dataset": name}
    metrics = {"read": len(texts), **counts, "scripts": scripts, "overlap": overlaps, "begins_with": preparation.begin}
    if template:
        told = {"rows": dict(left_out.rows.most_common()), "shortened": left_out.shortened}
        metrics |= {"template": {"origin": template.origin, "date": template.date}, "not_learned": told}
        facts |= {"template": template.origin, "left out": left_out.in_words(), "shortened": f"{left_out.shortened:,}"}
        print(f"template: {template.origin}; left out: {left_out.in_words()}; shortened: {left_out.shortened:,}")
        learned = [Conversation.from_json(document.conversation) for document in documents["train"]]
        template = template.opened_as(learned)
        for message in template.opening:
            print(f"prompts are asked after what opens every training conversation: {message['content'][:80]!r}")
    TEMPLATE.write_text(template.to_json() if template else "null", encoding="utf-8")
    PROMPTS_OF_DATASET.write_text(read_own_prompts(name) or "\n", encoding="utf-8")  # DVC warns of empty files
    PREVIEW.write_text(render_preview(documents["train"], preparation.tokenizer, facts), encoding="utf-8")
    if not documents["validation"]:
        print(f"{folder}: no validation documents, by which `make best` ranks experiments")
    print(tell_power(folder, texts, documents["test"], params.prepare))
    print(f"look at what is learned: {PREVIEW}")
    write_metrics("prepare", metrics)


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
    overlaps, complaints = find_overlap(
        DATASETS / name, {"train": training, "validation": [], "test": test}, params.prepare.max_overlap
    )
    refuse(complaints)
    inputs.confirm()
    (ALSO / name).mkdir(parents=True, exist_ok=True)
    write_documents(documents, "test", ALSO / name)
    counts = count(documents, len(drawn["test"]) - len(test))
    scripts = count_scripts(text.text for text in test)
    print(tabulate(f"{DATASETS / name}: {len(texts):,} documents were read", {"test": counts}, scripts))
    write_metrics(f"also/{name}/prepare", {"test": counts, "overlap": overlaps})


def as_text(document: Document) -> Text:
    """Return a document as it was before it had tokens."""
    if not document.conversation:
        return Text(document.id, document.title, document.text, "train")
    conversation = Conversation.from_json(document.conversation)
    return Text(document.id, document.title, conversation.said, "train", conversation)


def refuse(complaints: list[str]) -> None:
    """Raise a `Mistake` where there are complaints, a line each."""
    if complaints:
        raise Mistake("\n".join(complaints))


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
