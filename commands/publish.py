"""Put an artifact on the Hugging Face Hub, with a card that says how good it is.   models/adapter -> the Hub

Not a stage: `make publish REPO=owner/name` runs it. It publishes the adapter; or, with `FOLDER=models/release`, what
`make release` or another command made there, with a card whose metadata has the artifact's own scores. The repository
is private unless --public says otherwise. Whatever is published belongs to the commit that is checked out.
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token

from commands.release import write_template
from commands.result import GRADED, LETTERS, SCORES, pick
from stages.lib.conversations.template import read_template
from stages.lib.git import git
from stages.lib.history import ADAPTER, list_outdated
from stages.lib.lines import read_lines
from stages.lib.markdown import cell, shorten
from stages.lib.metrics import read_metrics
from stages.lib.params import PARAMS, Mistake, read_params
from stages.lib.publishing.card import (
    CARD,
    MADE_OF,
    Card,
    describe_artifact,
    describe_origin,
    hub_name,
    joint_licence,
    loss_scores,
    made_of,
    read_card,
    read_licences,
    tabulate,
    tell_settings,
    title,
)
from stages.lib.publishing.upload import upload
from stages.lib.records import read_record
from stages.lib.scoring.comparison import compare, describe
from stages.lib.scoring.document_scores import Evaluation, read_scores
from stages.lib.scoring.protocol import ARMS, CompareParams
from stages.lib.sources.source import DATASETS, MODELS, find, read_source
from stages.lib.training.recipe import Recipe


class Params(Recipe):
    dataset: str
    compare: CompareParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="where to, owner/name")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(ADAPTER), help="what; the adapter unless named")
    parser.add_argument("--public", action="store_true", help="for all to see, three held-out answers in its card too")
    options = parser.parse_args()
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", options.repo):
        raise Mistake(f"{options.repo!r}: expected a repository on the Hub, owner/name: make publish REPO=owner/name")
    params = read_params(Params)
    commit = find_commit()
    card = adapter_card(params, options.repo) if options.folder == Path(ADAPTER) else made_card(options.folder)
    card = complete(card, params, commit)
    if (token := get_token()) is None:
        raise Mistake("no token of the Hugging Face Hub here: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as written:
        (Path(written) / CARD).write_text(str(card), encoding="utf-8")
        if options.folder == Path(ADAPTER) and (template := read_template()):
            write_template(template, Path(written))
        files = list_files(options.folder) | list_files(Path(written))
        published = upload(api, options.repo, files, not options.public, f"Publish {params.model} of {commit[:7]}")
        size = sum(file.stat().st_size for file in files.values()) / 1e6
    seen = "public" if options.public else "private"
    print(f"{api.endpoint}/{options.repo}: {seen}, commit {published[:7]}: {len(files)} files, {size:,.1f} MB")


def find_commit() -> str:
    """Return the commit that is checked out.

    Raises:
        Mistake: Files, or the results, are not those of the commit.
    """
    if changed := [line[3:] for line in git("status", "--porcelain", ".").splitlines()]:
        raise Mistake(f"not committed: {', '.join(changed[:5])}; commit, so that the card can name what made this")
    if outdated := list_outdated():
        raise Mistake(
            f"{', '.join(outdated[:5])}: not what code, data and {PARAMS} of this commit make; `dvc pull` or `make "
            "repro` brings them up to date, then commit"
        )
    return git("rev-parse", "HEAD").strip()


def made_card(folder: Path) -> Card:
    """Read the card of a folder that another command made.

    Raises:
        Mistake: It has none, or one of other results than those that are here.
    """
    card = read_card(folder / CARD)
    if not {"model-index", MADE_OF} <= card.metadata.keys():
        raise Mistake(f"{folder}: no {CARD} there that has its scores; `make release` makes models/release")
    now = made_of()
    if others := [path for path, made in card.metadata[MADE_OF].items() if now.get(path) != made]:
        raise Mistake(f"{folder}: made with other results ({', '.join(others)}); make it anew")
    return card


def adapter_card(params: Params, repo: str) -> Card:
    """Write the card of the adapter: what it is, how it is loaded, and its scores on the base it was trained on."""
    found = {arm: read_record(Evaluation, read_metrics(f"evaluate/{arm}")) for arm in ARMS}
    arms, grades = {arm: evaluation.document for arm, evaluation in found.items()}, read_metrics("answers")
    answers = {name: grades[name]["tuned"] for name in SCORES if name in grades}
    verdict = describe("full to tuned", compare(read_scores("full"), read_scores("tuned"), params.compare))
    return Card(
        describe_artifact(params.model, params.dataset, "peft", answers | loss_scores(arms["tuned"])),
        f"""
# {title(params.model, params.dataset)}

A LoRA adapter (rank {params.lora.r}; in dvc.lock `{made_of()[ADAPTER]}`), trained on the frozen base in
{params.quantization.bits} bit and scored on that same base: {found["tuned"].precision}.
On other weights of the base its scores differ. Load the base, then `PeftModel.from_pretrained(base, "{repo}")`.
Held-out documents of the dataset, each scored whole:

{tabulate(arms)}

`full` is the base model, `base` the same in {params.quantization.bits} bit, `tuned` is that with this adapter.

- {verdict}

{tell_settings(params)}
""",
    )


def complete(card: Card, params: Params, commit: str) -> Card:
    """Add to a card what tuning changed, with some answers, the licences, and the commit.

    Raises:
        Mistake: The base model or the text has no licence.
    """
    folders = {"base model": find(MODELS, params.model), "text": find(DATASETS, params.dataset)}
    licences = {what: read_licences(folder) for what, folder in folders.items()}
    names = {"base model": hub_name(params.model), "text": read_source(folders["text"]).repo}
    origins = {what: describe_origin(folder, names[what] or folder.name) for what, folder in folders.items()}
    rows = [f"| {what} | {origins[what]} | {', '.join(one.name for one in licences[what])} |" for what in folders]
    verdicts = [f"- {line}" for name in ("answers", "compare") if (line := read_metrics(name).get("in_words"))]
    parts = [
        card.text.rstrip(),
        f"## What tuning changed\n\nThe adapter, on its base in {params.quantization.bits} bit:",
        "\n".join(verdicts),
        tabulate_answers(),
        f"## Origin\n\nCommit `{commit}` of the project that trained and scored it. Both licences hold:",
        "\n".join(["| | | licence |", "|---|---|---|", *rows]),
    ]
    known = joint_licence([licence for found in licences.values() for licence in found])
    return Card(card.metadata | known | {"commit": commit}, "\n\n".join(parts) + "\n")


def tabulate_answers() -> str:
    """Put some answers of both models side by side: to held-out conversations, or else to the prompts."""
    columns, rows = ["prompt", "base", "tuned"], []
    if read_metrics("answers")["answers"]:
        columns.append("reference")
        rows = [row | {"prompt": ask(row)} for row in pick(read_lines(GRADED))]
    else:
        base, tuned = (read_metrics(f"generate/{arm}")["samples"] for arm in ("base", "tuned"))
        rows = pick([{"prompt": b["prompt"], "base": b["text"], "tuned": t["text"]} for b, t in zip(base, tuned)])
    lines = [f"| {' | '.join(cell(shorten(row[name], LETTERS)) for name in columns)} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines])


def ask(row: dict[str, Any]) -> str:
    """Return what was asked last in a graded conversation."""
    return row["messages"][-1]["content"] if row["messages"] else ""


def list_files(folder: Path) -> dict[str, Path]:
    """Find the files of a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


if __name__ == "__main__":
    main()
