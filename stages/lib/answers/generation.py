"""Generation: prompts continued, each as if it were alone, and what is counted in the answers."""

import hashlib
from dataclasses import dataclass
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

from stages.lib.answers.prompts import Prompt
from stages.lib.answers.prose import Prose, describe
from stages.lib.answers.sampling import GenerateParams
from stages.lib.model.compiled import graphed_decoding
from stages.lib.model.loading import base_of, bos_eos, context_tokens
from stages.lib.params import Mistake

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # cuDNN's does not repeat
BATCH_SIZE = 32  # prompts continued at once


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


def answer_all(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, prompts: list[str], params: GenerateParams
) -> list[Answer]:
    """Continue any number of prompts, `BATCH_SIZE` at once."""
    batches = [prompts[start : start + BATCH_SIZE] for start in range(0, len(prompts), BATCH_SIZE)]
    return [answer for batch in batches for answer in continue_prompts(model, tokenizer, batch, params)]


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
    base = base_of(model)
    with sdpa_kernel(ATTENTION), graphed_decoding(base, longest + params.max_new_tokens) as cache:
        outputs = model.generate(  # pyright: ignore[reportCallIssue]  # of a mixin that transformers adds
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
