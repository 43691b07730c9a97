"""Generation: prompts continued, each as if it were alone, and what is counted in the answers."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from stages.lib.answers.prompts import Prompt
from stages.lib.answers.prose import Prose, describe
from stages.lib.answers.sampling import GenerateParams
from stages.lib.data.tokenizer import begin_ids, check_ids
from stages.lib.data.words import first_pieces, pieces_of
from stages.lib.model.compiled import graphed_decoding
from stages.lib.model.loading import Model, base_of, context_tokens, end_ids, unpacked_weights
from stages.lib.model.logits import num_entries
from stages.lib.params import Mistake

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # cuDNN's does not repeat
BATCH_SIZE = 32  # prompts continued at once
BAR = "{l_bar}{bar}| {n:.0f}/{total} answers [{elapsed}<{remaining}]"


class Drawing(NamedTuple):
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: always the likeliest
    top_p: float = 1.0


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


class Progress(LogitsProcessor):
    """Moves a bar of answers on by a share of a batch's at each of its tokens."""

    def __init__(self, bar: tqdm, num_answers: int, max_new_tokens: int) -> None:
        self.bar, self.share, self.end = bar, num_answers / max_new_tokens, bar.n + num_answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.bar.update(min(self.share, self.end - self.bar.n))
        return scores


def continue_prompts(model: Model, tokenizer: Tokenizer, prompts: list[str], params: GenerateParams) -> list[Answer]:
    """Continue texts, with draws that depend on the seed and the text alone.

    Raises:
        Mistake: A text and its continuation do not fit the model's context, or a token has no embedding.
    """
    ids = [text_ids(tokenizer, prompt) for prompt in prompts]
    check_room(model, ids, prompts, "generate.max_new_tokens", params.max_new_tokens)
    drawing = Drawing(params.max_new_tokens, params.temperature, params.top_p)
    return continue_ids(model, tokenizer, ids, [seed_of(prompt, params.seed) for prompt in prompts], drawing)


def leaves_room(model: Model, tokenizer: Tokenizer, new_tokens: int, prompt: str) -> bool:
    """Return whether so many tokens fit into the model's context after a prompt."""
    return len(text_ids(tokenizer, prompt)) + new_tokens <= context_tokens(model.config)


def text_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the token ids of a text that is to be continued."""
    return [*begin_ids(tokenizer), *tokenizer.encode(prompt, add_special_tokens=False).ids]


def seed_of(prompt: str, seed: int) -> int:
    """Return the seed of the draws for a prompt: no other prompt has a part in it."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:4])


def check_room(model: Model, ids: list[list[int]], names: list[str], parameter: str, new_tokens: int) -> None:
    """Refuse a prompt after which there is no room for an answer.

    Raises:
        Mistake: Names the longest.
    """
    context, longest = context_tokens(model.config), max(range(len(ids)), key=lambda number: len(ids[number]))
    if len(ids[longest]) + new_tokens > context:
        raise Mistake(
            f"params.yaml: {parameter}: {new_tokens} after the {len(ids[longest])} tokens of {names[longest][:40]!r} "
            f"exceed the model's context of {context}"
        )


def continue_ids(
    model: Model,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    seeds: list[int],
    drawing: Drawing,
    ends: Iterable[int] = (),
    streamer: BaseStreamer | None = None,
) -> list[Answer]:
    """Continue token ids, `BATCH_SIZE` at once, prompts of about one length together.

    Args:
        model: A causal language model.
        tokenizer: Its own.
        prompts: Token ids, complete.
        seeds: Of each prompt's draws.
        drawing: How tokens are chosen.
        ends: What ends an answer besides the model's own ends.
        streamer: Is given the tokens of a single prompt's answer as they come.

    Raises:
        Mistake: A token has no embedding.
    """
    base = base_of(model)
    check_ids(chain.from_iterable(prompts), tokenizer, num_entries(base))
    ends = [*dict.fromkeys([*end_ids(model.config, model.generation_config), *ends])]
    answers: dict[int, Answer] = {}
    bar = partial(tqdm, desc="answer", leave=False, disable=True if streamer else None, bar_format=BAR)
    with unpacked_weights(base), bar(total=len(prompts)) as progress:
        for batch in _batches([len(prompt) for prompt in prompts], padded=not _keeps_states(base)):
            given = [prompts[n] for n in batch], [seeds[n] for n in batch]
            progress.update(len(answers) - progress.n)
            told = Progress(progress, len(batch), drawing.max_new_tokens)
            rows = _continue_batch(model, base, *given, drawing, ends, told, streamer)
            for number, new in zip(batch, rows, strict=True):
                end = next((place for place, id in enumerate(new) if id in ends), len(new))
                answers[number] = Answer(decode(tokenizer, new[:end]), min(end + 1, len(new)), end < len(new))
    return [answers[number] for number in range(len(prompts))]


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of an answer, or of its beginning, without half a character at its end."""
    return tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "")


def _batches(lengths: list[int], padded: bool) -> list[list[int]]:
    """Put up to `BATCH_SIZE` prompts together, the longest first; with equal lengths where none may be padded."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    groups = [order] if padded else [list(same) for _, same in groupby(order, key=lengths.__getitem__)]
    return [group[start : start + BATCH_SIZE] for group in groups for start in range(0, len(group), BATCH_SIZE)]


def _keeps_states(model: PreTrainedModel) -> bool:
    """Return whether a layer keeps a state instead of attending to tokens: not every family masks padding there."""
    return "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or [])


def _continue_batch(
    model: Model,
    base: PreTrainedModel,
    prompts: list[list[int]],
    seeds: list[int],
    drawing: Drawing,
    ends: list[int],
    progress: Progress,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    """Return the new tokens of each prompt, perhaps with more after one that ends it."""
    longest = max(map(len, prompts))
    inputs = torch.tensor([[0] * (longest - len(row)) + row for row in prompts], device=model.device)
    lengths = torch.tensor([len(row) for row in prompts], device=model.device)
    real = torch.arange(longest, device=model.device) >= longest - lengths[:, None]  # what is before is not attended to
    sampling = LogitsProcessorList([progress])
    if drawing.temperature:
        noise = SeededNoise(seeds, model.device)
        sampling += [TemperatureLogitsWarper(drawing.temperature), TopPLogitsWarper(drawing.top_p), noise]
    config = GenerationConfig(
        max_new_tokens=drawing.max_new_tokens,
        do_sample=False,  # the likeliest, after noise
        eos_token_id=ends or None,
        pad_token_id=0,
        disable_compile=True,  # compiling takes longer than generating this much
    )
    generate = partial(
        model.generate,  # pyright: ignore[reportArgumentType]  # of a mixin that transformers adds
        inputs,
        attention_mask=real.long(),
        generation_config=config,
        logits_processor=sampling,
        streamer=streamer,
    )
    with sdpa_kernel(ATTENTION), graphed_decoding(base, longest + drawing.max_new_tokens) as cache:
        try:
            outputs = generate(past_key_values=cache)
        except ValueError:  # transformers makes some families, such as xLSTM, a cache that these cannot use
            if len(prompts) > 1:
                alone = zip(prompts, seeds, strict=True)
                return [
                    _continue_batch(model, base, [row], [seed], drawing, ends, progress, None)[0] for row, seed in alone
                ]
            outputs = generate(use_cache=False)
    return outputs[:, longest:].tolist()


def summarize(prompts: list[Prompt], answers: list[Answer]) -> Summary:
    """Count what was generated, and describe it beside what people wrote, where that is known."""
    known = [(prompt.reference, answer.text) for prompt, answer in zip(prompts, answers) if prompt.reference]
    references = [first_pieces(reference, len(pieces_of(text))) for reference, text in known]
    return Summary(
        counts=Counts(
            prompts=len(answers),
            tokens=sum(answer.tokens for answer in answers),
            ended=sum(answer.ended for answer in answers) / len(answers),
        ),
        prose=describe([answer.text for answer in answers]),
        people=describe(references) if references else None,
    )
