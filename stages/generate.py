"""Ask the base model or the tuned one.   data/prompts.txt, data/prepared, models/ -> data/generated, data/answers

Texts are continued: the prompts and, with `generate.held_out`, the first sentences of so many held-out documents,
beside how these really go on. Where conversations are learned, prompts are what a user says, and every held-out
conversation is answered too, beside its own last answer; by the tuned model also those of validation, which `make best`
ranks by.
Run by `dvc repro generate`; alone: `python -m stages.generate tuned`.
"""

from functools import partial
from pathlib import Path
from typing import Any

from stages.lib.answers.sampling import GenerateParams
from stages.lib.inputs import Inputs, read_command
from stages.lib.lines import write_lines
from stages.lib.model.quantization import Quantization
from stages.lib.params import Section, read_params
from stages.lib.sources.source import MODELS
from stages.lib.training.processes import die_with_dvc, take_gpu

ARMS = ("base", "tuned")
GENERATED, ANSWERS = Path("data/generated"), Path("data/answers")


class Params(Section):
    model: str
    quantization: Quantization
    generate: GenerateParams


def main() -> None:
    command = read_command(__doc__, ["model"], arm={"choices": ARMS})
    arm, params = command.arm, read_params(Params, command=command)

    from stages.lib.answers.conversing import answer_conversations, answer_prompts  # ten seconds, which no mistake
    from stages.lib.answers.generation import continue_prompts, leaves_room, summarize  # above should take
    from stages.lib.answers.prompts import PROMPTS, add_first_sentences, as_prompts, read_prompts
    from stages.lib.conversations.template import TEMPLATE, read_template
    from stages.lib.data.documents import PREPARED, PROMPTS_OF_DATASET, read_documents
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.metrics import measure_cost, write_metrics
    from stages.lib.model.loading import ADAPTER, load_model, precision
    from stages.lib.records import to_metrics

    adapter = ADAPTER if arm == "tuned" else None
    weights = [MODELS / params.model, *([adapter] if adapter else [])]
    splits = ("test", "validation")
    read = (PROMPTS, PROMPTS_OF_DATASET, TEMPLATE, *(PREPARED / f"{split}.parquet" for split in splits))
    inputs = Inputs(params, *read, *weights)
    documents, template = list(read_documents("test")), read_template()
    ranked = list(read_documents("validation")) if arm == "tuned" else []
    own = PROMPTS_OF_DATASET.read_text(encoding="utf-8").strip()
    prompts = as_prompts(read_prompts(PROMPTS_OF_DATASET if own else PROMPTS))
    tokenizer = load_tokenizer(params.model, special=template is not None)
    model = load_model(params.model, params.quantization, adapter)
    with measure_cost(f"generate/{arm}") as cost:
        if template is None:
            texts = (document.text for document in documents)
            fits = partial(leaves_room, model, tokenizer, params.generate.max_new_tokens)
            prompts = add_first_sentences(prompts, texts, params.generate.held_out, fits)
            given = continue_prompts(model, tokenizer, [prompt.text for prompt in prompts], params.generate)
            answered = []
        else:
            given = answer_prompts(model, tokenizer, template, [prompt.text for prompt in prompts], params.generate)
            answered = answer_conversations(model, tokenizer, template, [*documents, *ranked], params.generate)
        cost["tokens"] = sum(answer.tokens for answer in (*given, *(row.answer for row in answered)))
        inputs.confirm()
    stored = precision(model, params.quantization)
    settings = params.generate.model_dump() | {"model": params.model, "precision": stored}
    samples = [
        {"prompt": prompt.text, "reference": prompt.reference, **answer._asdict(), "settings": settings}
        | ({"messages": template.beginning.then(prompt.text).messages[:-1]} if template else {})
        for prompt, answer in zip(prompts, given, strict=True)
    ]
    write_lines(samples, GENERATED / f"{arm}.jsonl")
    kept: list[dict[str, Any]] = [
        row.to_json(splits[number >= len(documents)]) | {"precision": stored} for number, row in enumerate(answered)
    ]
    write_lines(kept, ANSWERS / f"{arm}.jsonl")
    found = summarize(prompts, given)
    metrics = to_metrics(found.counts) | to_metrics(found.prose)
    if found.people:
        metrics["people"] = to_metrics(found.people)
    if held_out := [row for row in kept if row["split"] == "test"]:
        ended = sum(row["ended"] for row in held_out) / len(held_out)
        metrics["held_out"] = {"conversations": len(held_out), "ended": ended}
        print(
            f"{arm}: answered {len(held_out):,} held-out conversations; {ended:.0%} of the answers ended by themselves"
        )
    shown = [{name: sample[name] for name in ("prompt", "text")} for sample in samples]
    write_metrics(f"generate/{arm}", metrics | {"settings": settings, "samples": shown})


if __name__ == "__main__":
    die_with_dvc()
    take_gpu()
    main()
