"""Write GGUF files of the released model, and prove each.   models/release/ -> models/export/

Not a stage: `make export` runs it, and makes models/release/ first where that is not of this adapter. models/export/
holds a file for each type of weights, a Modelfile for Ollama beside it, and a card that says what each costs: its loss
on the held-out documents, and its answers in llama.cpp, beside the released model's. A file with which llama.cpp
computes something else than transformers does with its weights is an error, and then nothing is kept.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from commands.release import RELEASE, Params, is_released, release, stored_dtype
from stages.lib.answers.protocol import GradeParams
from stages.lib.answers.sampling import GenerateParams
from stages.lib.conversations.template import load_template, read_template
from stages.lib.data.protocol import PrepareParams
from stages.lib.export.adapter import check_base, vllm_lines
from stages.lib.export.artifacts import Proof
from stages.lib.export.card import card, table
from stages.lib.export.kinds import check_types, sixteen_bits
from stages.lib.export.llama_cpp import version_here
from stages.lib.export.whole import whole_folder
from stages.lib.history import current_adapter
from stages.lib.lines import read_lines
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake, read_params
from stages.lib.publishing.card import CARD, Card, describe_artifact, title
from stages.lib.records import read_record, to_metrics
from stages.lib.scoring.document_scores import Evaluation, read_scores

ANSWERS = Path("data/answers")
EXPORT, PROOF = Path("models/export"), "proof.json"
PROMPTS = 50


class ExportParams(Params):
    prepare: PrepareParams
    generate: GenerateParams
    answers: GradeParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=[], help="of weights: by default F16 or BF16, and Q8_0")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="that llama.cpp answers (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp (default: %(default)s)")
    options = parser.parse_args()
    if min(options.prompts, options.threads) < 1:
        raise Mistake(f"--prompts {options.prompts} --threads {options.threads}: expected one of each at least")
    params = read_params(ExportParams)

    check_types(options.types)
    trained = current_adapter()

    from stages.lib.model.loading import ADAPTER  # ten seconds, which no mistake above should take

    check_base(ADAPTER, params.model)
    if not is_released(trained):
        release(params, trained)
    types = options.types or [sixteen_bits(stored_dtype(RELEASE)), "Q8_0"]
    runtime = version_here()
    with whole_folder(EXPORT) as folder:
        files = write_files(folder, types, params)
        proofs = prove(files, params, options.prompts, options.threads)
        told = {"adapter": trained, "xllamacpp": runtime, "artifacts": [to_metrics(proof) for proof in proofs]}
        (folder / PROOF).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        commands = vllm_lines(ADAPTER, params.model, RELEASE)
        text = card(title(params.model, params.dataset), trained, proofs, params.answers.metric, runtime, commands)
        scores = gather_scores(proofs[-len(files) :], params.answers.metric)
        metadata = describe_artifact(params.model, params.dataset, "gguf", scores)
        (folder / CARD).write_text(str(Card(metadata, text)), encoding="utf-8")
    print(*table(proofs, params.answers.metric), f"{EXPORT}/{CARD} says more", sep="\n")


def write_files(folder: Path, types: list[str], params: ExportParams) -> list[Path]:
    """Write the released model as a GGUF of each type of weights, with its Modelfile; return the files."""
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.export.ends import find_ends
    from stages.lib.export.gguf_files import drawing, write_gguf
    from stages.lib.export.ollama import modelfile

    learned = read_template()
    served = learned and replace(
        load_template(RELEASE, "", None, params.prepare.date), opening=learned.opening, tools=learned.tools
    )
    tokenizer = load_tokenizer(params.model, special=learned is not None)
    ends = find_ends(RELEASE, tokenizer, learned)
    stops = [str(tokenizer.id_to_token(number)) for number in ends.ids]
    begin = str(tokenizer.id_to_token(ends.bos)) if ends.begins and ends.bos is not None else ""
    name, files = f"{params.model}-{params.dataset}", []
    for kind in types:
        files.append(folder / f"{name}-{kind}.gguf")
        write_gguf(RELEASE, files[-1], kind, name, served, ends)
        text = modelfile(files[-1].name, served, begin, stops, drawing(RELEASE))
        (folder / f"Modelfile.{kind}").write_text(text, encoding="utf-8")
    return files


def prove(files: list[Path], params: ExportParams, num_prompts: int, threads: int) -> list[Proof]:
    """Return what the adapter on the quantised base, the released model and each file are worth.

    Raises:
        Mistake: llama.cpp does not compute with a file what transformers computes with its weights.
    """
    import torch

    from stages.lib.data.documents import read_documents
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.export.ends import find_ends
    from stages.lib.export.proof import HeldOut, Merged, prove_gguf, sample
    from stages.lib.model.loading import ADAPTER, device, read_weights
    from stages.lib.model.logits import vouch

    template = read_template()
    tokenizer = load_tokenizer(params.model, special=template is not None)
    documents = list(read_documents("test"))
    scored = read_record(Evaluation, read_metrics("evaluate/tuned")).document
    held_out = HeldOut(
        documents=documents,
        full=read_scores("full"),
        asked=sample(documents, num_prompts),
        tokenizer=tokenizer,
        template=template,
        ends=find_ends(RELEASE, tokenizer, template).ids,
        max_tokens=params.generate.answer_tokens,
        window_tokens=scored.window_tokens,
        stride_tokens=scored.stride_tokens,
        threads=threads,
        compare=params.compare,
        grade=params.answers,
    )
    model = read_weights(RELEASE, dtype=torch.float32, device_map={"": device()}).eval()
    vouch(model)
    merged = Merged(held_out.score(model), held_out.answer(model))
    quantized = {16: "16 bit", 8: "8 bit", 4: params.quantization.kind.upper()}[params.quantization.bits]
    answered = {row["id"]: row for row in read_lines(ANSWERS / "tuned.jsonl") if row["split"] == "test"}
    rows = [answered[document.id] for document in held_out.asked] if template else []
    return [
        merged.compare(held_out, f"adapter on {quantized}", weigh(ADAPTER), read_scores("tuned"), rows),
        merged.prove(held_out, weigh(RELEASE)),
        *(prove_gguf(path, model, held_out, merged) for path in files),
    ]


def gather_scores(proofs: list[Proof], metric: str) -> dict[str, float]:
    """Name the scores of files, as a card's metadata has them."""
    scores: dict[str, float] = {}
    for proof in proofs:
        scores[f"perplexity_{proof.name}"] = math.exp(proof.nll)
        if proof.score is not None:
            scores[f"{metric}_{proof.name}"] = proof.score
    return scores


def weigh(folder: Path) -> float:
    """Return the size of the weights in a folder, in megabytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    main()
