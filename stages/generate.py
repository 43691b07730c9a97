"""Continue the prompts with the base model or the tuned one.   data/prompts.txt, models/ -> data/generated

With `generate.held_out`, the first sentences of so many held-out documents too, beside how these really go on.
Run by `dvc repro generate`; alone: `python -m stages.generate tuned`.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.lib.inputs import Inputs, read_command
from stages.lib.model.quantization import Quantization
from stages.lib.params import Mistake, Section, read_params
from stages.lib.training.processes import die_with_dvc

Arm = Literal["base", "tuned"]
ARMS = ("base", "tuned")


class GenerateParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat  # 0: always the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)]  # draw from the likeliest tokens that have this share together
    held_out: NonNegativeInt  # documents whose first sentence is continued too


class Params(Section):
    model: str
    quantization: Quantization
    generate: GenerateParams


def read_arm() -> tuple[Arm, Params]:
    """Read the arm from the command line, and the parameters."""
    command = read_command(__doc__, ["model"], arm={"choices": ARMS})
    return command.arm, read_params(Params, command=command)


if __name__ == "__main__":
    die_with_dvc()
    read_arm()  # refuses a mistake at once: the imports below take ten seconds

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from stages.lib.data.documents import PREPARED, read_documents
from stages.lib.data.prompts import PROMPTS, read_prompts
from stages.lib.data.prose import SENTENCE_END, Prose, describe
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.data.units import distinct
from stages.lib.metrics import measure_cost, write_metrics
from stages.lib.model.compiled import graphed_decoding
from stages.lib.model.loading import ADAPTER, bos_eos, context_tokens, load_model, precision
from stages.lib.records import to_metrics
from stages.lib.sources.source import MODELS

GENERATED = Path("data/generated")
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # cuDNN's does not repeat
BATCH_SIZE = 32  # prompts continued at once
ABBREVIATION = re.compile(r"\b(?:[A-Za-z]|St|Mr|Mrs|Dr|Prof|vs|etc|cf|[A-Z]\.[A-Z])\.$")  # ends no sentence


class Prompt(NamedTuple):
    """What is to be continued, and how it really goes on, if that is known."""

    text: str
    reference: str | None = None


class Answer(NamedTuple):
    """A continuation without its prompt, its tokens, and whether the model ended it by itself."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Counts:
    """What was generated."""

    prompts: int
    tokens: int
    ended: float  # share of answers that the model ended by itself


@dataclass(frozen=True)
class Summary:
    """What was generated, and how it is written beside how people went on."""

    counts: Counts
    prose: Prose
    people: Prose | None  # of the references, each cut to the length of its answer; None where none is known


class SeededNoise(LogitsProcessor):
    """Noise that makes the likeliest token a sample of what the logits say, by a seed for each sequence.

    The largest of logits plus Gumbel noise is a sample of their softmax (Maddison, Tarlow and Minka 2014, section 2).
    """

    def __init__(self, seeds: list[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()


def first_sentence(text: str) -> Prompt | None:
    """Part a text, without its heading, after its first sentence; None where nothing follows one."""
    heading, _, rest = text.strip().partition("\n")
    body = text.strip() if SENTENCE_END.search(heading) else rest.strip()
    ends = (match.end() for match in SENTENCE_END.finditer(body) if not ABBREVIATION.search(body[: match.end()]))
    end = next((end for end in ends if len(body[:end].split()) >= 4), len(body))
    return Prompt(body[:end].strip(), body[end:].strip()) if body[end:].strip() else None


def add_first_sentences(prompts: list[str], texts: Iterable[str], number: int) -> list[Prompt]:
    """Add the first sentences of so many texts to the prompts; texts that would repeat a prompt are passed over."""
    sentences = (prompt for prompt in map(first_sentence, texts) if prompt)
    return distinct([*map(Prompt, prompts), *sentences], lambda prompt: prompt.text)[: len(prompts) + number]


def continue_prompts(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, prompts: list[str], params: GenerateParams
) -> list[Answer]:
    """Continue prompts, all at once, with draws that depend on the seed and the prompt alone.

    Raises:
        Mistake: A prompt and its continuation do not fit the model's context.
    """
    bos, eos = bos_eos(model.config)
    ids = [[bos, *tokenizer.encode(prompt, add_special_tokens=False).ids] for prompt in prompts]
    longest = max(map(len, ids))
    if longest + params.max_new_tokens > context_tokens(model.config):
        prompt = prompts[max(range(len(ids)), key=lambda number: len(ids[number]))]
        raise Mistake(
            f"params.yaml: generate.max_new_tokens: {params.max_new_tokens} after the {longest} tokens of "
            f"{prompt[:40]!r} exceed the model's context of {context_tokens(model.config)}"
        )
    inputs = torch.tensor([[bos] * (longest - len(row)) + row for row in ids], device=model.device)
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    real = torch.arange(longest, device=model.device) >= longest - lengths[:, None]  # what is before is not attended to
    seeds = [int.from_bytes(hashlib.sha256(f"{params.seed}\n{prompt}".encode()).digest()[:4]) for prompt in prompts]
    sampling = LogitsProcessorList()
    if params.temperature:
        noise = SeededNoise(seeds, model.device)
        sampling += [TemperatureLogitsWarper(params.temperature), TopPLogitsWarper(params.top_p), noise]
    config = GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        do_sample=False,  # the likeliest, after noise
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=bos,
        disable_compile=True,  # compiling takes longer than generating this much
    )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with sdpa_kernel(ATTENTION), graphed_decoding(base, longest + params.max_new_tokens) as cache:
        outputs = model.generate(
            input_ids=inputs,
            attention_mask=real.long(),
            generation_config=config,
            logits_processor=sampling,
            past_key_values=cache,
        )
    answers = []
    for new in outputs[:, longest:].tolist():
        ended = eos in new
        new = new[: new.index(eos)] if ended else new
        answers.append(Answer(tokenizer.decode(new, skip_special_tokens=True), len(new) + ended, ended))
    return answers


def main() -> None:
    arm, params = read_arm()
    weights = [MODELS / params.model, *([ADAPTER] if arm == "tuned" else [])]
    inputs = Inputs(params, PROMPTS, PREPARED / "test.parquet", *weights)
    texts = (document.text for document in read_documents("test"))
    prompts = add_first_sentences(read_prompts(), texts, params.generate.held_out)
    tokenizer = load_tokenizer(params.model)
    model = load_model(params.model, params.quantization, ADAPTER if arm == "tuned" else None)
    with measure_cost(f"generate/{arm}") as cost:
        answers = []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = [prompt.text for prompt in prompts[start : start + BATCH_SIZE]]
            answers += continue_prompts(model, tokenizer, batch, params.generate)
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


def summarize(prompts: list[Prompt], answers: list[Answer]) -> Summary:
    """Count what was generated, and describe it beside what people wrote, where that is known."""
    known = [(prompt.reference, answer.text) for prompt, answer in zip(prompts, answers) if prompt.reference]
    references = [" ".join(reference.split()[: len(text.split())]) for reference, text in known]
    return Summary(
        counts=Counts(
            prompts=len(answers),
            tokens=sum(answer.tokens for answer in answers),
            ended=sum(answer.ended for answer in answers) / len(answers),
        ),
        prose=describe([answer.text for answer in answers]),
        people=describe(references) if references else None,
    )


if __name__ == "__main__":
    main()
