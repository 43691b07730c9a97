"""The card of an export: what each artifact costs, and how to run it."""

from stages.lib.export.artifacts import Proof
from stages.lib.records import Interval


def table(proofs: list[Proof], metric: str) -> list[str]:
    """Lay out artifacts as the rows of a table."""
    score = metric.replace("_", " ")
    lines = [
        f"| artifact | MB | held-out loss | change from merged | {score} | change, points | answers as merged "
        "| tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for proof in proofs:
        ran = proof.llama_cpp
        cells = [
            proof.name,
            f"{proof.megabytes:,.0f}",
            f"{proof.nll:.4f}",
            _change(proof.nll_change, proof.nll, "+.2%"),
            "" if proof.score is None else f"{proof.score:.1%}",
            "" if proof.score_change is None else _points(proof.score_change),
            "" if ran is None else f"{ran.same_answers:.0%} of {ran.prompts}",
            "" if ran is None else f"{ran.tokens_per_second:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _change(change: Interval | None, value: float, form: str) -> str:
    """Write a change of the loss as a share of the merged model's loss."""
    if change is None:
        return ""
    shares = Interval(*(part / (value - change.value) for part in change))
    return f"{shares.value:{form}} ({shares.bounds(form)})"


def _points(change: Interval) -> str:
    points = Interval(*(100 * part for part in change))
    return f"{points.value:+.1f} ({points.bounds('+.1f')})"


def card(
    title: str,
    trained: str,
    proofs: list[Proof],
    metric: str,
    llama_cpp: str | None,
    vllm: list[str],
) -> str:
    """Write the card.

    Args:
        title: What it is.
        trained: The adapter, as dvc.lock calls it.
        proofs: Of the adapter, the merged model, and each GGUF.
        metric: The score of answers that decides.
        llama_cpp: The version of xllamacpp that ran the files; None where none did.
        vllm: Commands.
    """
    rows = "\n".join(table(proofs, metric))
    ran = next((proof.llama_cpp for proof in proofs if proof.llama_cpp), None)
    if ran is None:
        tried = "llama.cpp itself was not tried: xllamacpp is not installed."
    else:
        tried = (
            f"llama.cpp (xllamacpp {llama_cpp}, {ran.prompts} prompts, threads: {ran.threads}) reads each file itself. "
            "It makes the same token ids of the same documents as the model learned, and finds its own answers as "
            "likely as transformers does with the file's weights:"
        )
    means = "\n".join(
        f"| {proof.name} | {proof.llama_cpp.same_tokens:.1%} | {proof.llama_cpp.log_prob:.5f} "
        f"| {proof.llama_cpp.expected_log_prob:.5f} | {proof.llama_cpp.ended:.0%} |"
        for proof in proofs
        if proof.llama_cpp
    )
    if means:
        head = (
            "| file | tokens that both find likeliest | their log-probability in llama.cpp, nats | in transformers "
            "| ended by itself |\n|---|---|---|---|---|"
        )
        tried += f"\n\n{head}\n{means}"
    commands = "\n".join(f"    {line}" for line in vllm)
    verdicts = "\n".join(f"- {proof.verdict}" for proof in proofs)
    return f"""
# {title}: GGUF

The adapter that dvc.lock calls `{trained}`, merged into the base model's own weights and written as GGUF.

{rows}

Every artifact was scored on the same held-out documents, in nats per token: a GGUF by its tensors, dequantised, in
transformers. Changes are in pairs, with 95 % intervals. Answers are greedy: those of the adapter and of the merged
model come from transformers, those of a GGUF from llama.cpp. Beside `full`, the base model that was not quantised:

{verdicts}

{tried}

Run it:

    llama-server -m FILE.gguf
    ollama create NAME -f Modelfile.TYPE         # not tried
{commands}

vLLM was not tried. K-quants are made of the 16-bit file by `llama-quantize` or `ollama create --quantize q4_K_M`;
nobody has scored those. The licences of the base model and of the text hold for these files too.
"""
