"""Continue the prompts with the base model or the tuned one.   data/prompts.txt, models/ -> data/generated

With `generate.held_out`, the first sentences of so many held-out documents too, beside how these really go on.
Run by `dvc repro generate`; alone: `python -m stages.generate tuned`.
"""

import json
from pathlib import Path

from stages.lib.answers.sampling import GenerateParams
from stages.lib.inputs import Inputs, read_command
from stages.lib.model.quantization import Quantization
from stages.lib.params import Section, read_params
from stages.lib.sources.source import MODELS
from stages.lib.training.processes import die_with_dvc

ARMS = ("base", "tuned")
GENERATED = Path("data/generated")


class Params(Section):
    model: str
    quantization: Quantization
    generate: GenerateParams


def main() -> None:
    command = read_command(__doc__, ["model"], arm={"choices": ARMS})
    arm, params = command.arm, read_params(Params, command=command)

    from stages.lib.answers.generation import (  # ten seconds, which no mistake above should take
        continue_prompts,
        summarize,
    )
    from stages.lib.answers.prompts import PROMPTS, add_first_sentences, read_prompts
    from stages.lib.data.documents import PREPARED, read_documents
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.metrics import measure_cost, write_metrics
    from stages.lib.model.loading import ADAPTER, load_model, precision
    from stages.lib.records import to_metrics

    weights = [MODELS / params.model, *([ADAPTER] if arm == "tuned" else [])]
    inputs = Inputs(params, PROMPTS, PREPARED / "test.parquet", *weights)
    texts = (document.text for document in read_documents("test"))
    prompts = add_first_sentences(read_prompts(), texts, params.generate.held_out)
    tokenizer = load_tokenizer(params.model)
    model = load_model(params.model, params.quantization, ADAPTER if arm == "tuned" else None)
    with measure_cost(f"generate/{arm}") as cost:
        answers = continue_prompts(model, tokenizer, [prompt.text for prompt in prompts], params.generate)
        cost["tokens"] = sum(answer.tokens for answer in answers)
        inputs.confirm()
    stored = precision(model, params.quantization)
    settings = params.generate.model_dump() | {"model": params.model, "precision": stored}
    samples = [
        {"prompt": prompt.text, "reference": prompt.reference, **answer._asdict(), "settings": settings}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    GENERATED.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (GENERATED / f"{arm}.jsonl").write_text("".join(lines), encoding="utf-8")
    shown = [{name: sample[name] for name in ("prompt", "text")} for sample in samples]
    found = summarize(prompts, answers)
    metrics = to_metrics(found.counts) | to_metrics(found.prose)
    if found.people:
        metrics["people"] = to_metrics(found.people)
    write_metrics(f"generate/{arm}", metrics | {"settings": settings, "samples": shown})


if __name__ == "__main__":
    die_with_dvc()
    main()
