"""Proof: what an export scores and answers, beside the merged model that it was made of.

A GGUF is run twice. transformers scores its tensors, dequantised, on every held-out document. llama.cpp reads the file
itself and answers a sample of them; it tells the probabilities of tokens that it generates, and of no others. Both must
find those alike, and both must make the same tokens of the same messages.
"""

import datetime
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedModel

from stages.lib.answers.conversing import Answered, answer_start, reference_of
from stages.lib.answers.generation import Answer, Drawing, continue_ids, decode
from stages.lib.answers.grading import grade, score_answers, units_of
from stages.lib.answers.protocol import GradeParams
from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template
from stages.lib.data.documents import IGNORED, Document
from stages.lib.export.artifacts import Proof, Ran
from stages.lib.export.gguf_files import load_tensors
from stages.lib.export.llama_cpp import Completion, LlamaCpp, serving, version_here
from stages.lib.params import Mistake
from stages.lib.scoring.comparison import compare, describe
from stages.lib.scoring.intervals import FEWEST_UNITS, change
from stages.lib.scoring.protocol import CompareParams
from stages.lib.scoring.score import score_tokens
from stages.lib.scoring.windows import score_documents

TEXT_TOKENS = 64  # of a text that is continued
BATCH_SIZE = 4  # answers scored at once
TOLERANCE = 0.005  # by which llama.cpp's mean log-probability may differ from that of the dequantised tensors
LEAST_AGREED = 0.8  # share of tokens that both find likeliest; what rounding leaves of it was 0.97 and more
LEAST = 1e-4  # nats per token that they may differ by, however sure the model is


@dataclass(frozen=True)
class HeldOut:
    """What every artifact is asked, and how what it says is compared.

    Attributes:
        documents: Those that are scored.
        full: Their scores by the base model that was not quantised.
        asked: Those that are answered or continued.
        tokenizer: The model's own; it finds special tokens where there is a template.
        template: Of conversations, as they were learned; None where texts were.
        ends: The ids that end a text or a turn.
        max_tokens: Of an answer.
        window_tokens: In which documents are scored.
        stride_tokens: From the end of one window to that of the next.
        threads: Of llama.cpp.
        compare: Parameters of comparisons of losses.
        grade: Likewise of answers.
    """

    documents: list[Document]
    full: pd.DataFrame
    asked: list[Document]
    tokenizer: Tokenizer
    template: Template | None
    ends: list[int]
    max_tokens: int
    window_tokens: int
    stride_tokens: int
    threads: int
    compare: CompareParams
    grade: GradeParams

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids up to the answer, or of the beginning of a text."""
        return [prompt_of(document) for document in self.asked]

    def score(self, model: PreTrainedModel) -> pd.DataFrame:
        """Score all documents in transformers: a row each."""
        return score_documents(model, self.documents, self.window_tokens, self.stride_tokens, BATCH_SIZE)

    def answer(self, model: PreTrainedModel) -> list[Answer]:
        """Answer the prompts in transformers, with the likeliest tokens."""
        prompts = self.prompts
        return continue_ids(model, self.tokenizer, prompts, [0] * len(prompts), Drawing(self.max_tokens), self.ends)

    def rows(self, answers: list[Answer]) -> list[dict[str, Any]]:
        """Lay out answers to conversations as `generate` does; nothing where texts are continued."""
        if self.template is None:
            return []
        references = [reference_of(document, self.tokenizer) for document in self.asked]
        return [Answered(*row).to_json("test") for row in zip(self.asked, references, answers, strict=True)]


@dataclass(frozen=True)
class Merged:
    """The merged model's own scores of documents and answers to prompts, in transformers."""

    scores: pd.DataFrame
    answers: list[Answer]

    def compare(
        self, held_out: HeldOut, name: str, megabytes: float, scores: pd.DataFrame, rows: list[dict[str, Any]]
    ) -> Proof:
        """Compare an artifact's scores, and its answers if it has any."""
        found = Proof(
            name,
            megabytes,
            scores["nll"].sum() / scores["tokens"].sum(),
            compare(self.scores, scores, held_out.compare).nll_difference,
            verdict=describe(f"full to {name}", compare(held_out.full, scores, held_out.compare)),
        )
        if not rows:
            return found
        own = held_out.rows(self.answers)
        grades = grade(*score_answers(own, rows, held_out.grade.pattern), units_of(own), held_out.grade)
        graded = getattr(grades, held_out.grade.metric)
        return replace(found, score=graded.tuned, score_change=graded.difference)

    def prove(self, held_out: HeldOut, megabytes: float) -> Proof:
        """Return what it is worth itself."""
        own = self.compare(held_out, "merged", megabytes, self.scores, held_out.rows(self.answers))
        return replace(own, nll_change=None, score_change=None)


def sample(documents: list[Document], number: int) -> list[Document]:
    """Return so many documents, evenly spread, or all where there are fewer; without those too short to be asked."""
    fit = [document for document in documents if len(document.tokens) > 1]
    return [fit[place] for place in np.unique(np.linspace(0, len(fit) - 1, min(number, len(fit))).astype(int))]


def prompt_of(document: Document) -> list[int]:
    """Return the token ids of a conversation up to its last answer, or of the beginning of a text."""
    place = answer_start(document) if document.conversation else min(TEXT_TOKENS, len(document.tokens) // 2)
    return document.tokens[:place].tolist()


def prove_gguf(path: Path, model: PreTrainedModel, held_out: HeldOut, merged: Merged) -> Proof:
    """Run a GGUF file in transformers, and in llama.cpp where that is installed.

    Args:
        path: The file.
        model: Whose weights are replaced by the file's.
        held_out: What it is asked.
        merged: What it is compared with.

    Raises:
        Mistake: The two do not do the same.
    """
    load_tensors(path, model)
    rows, ran = [], None
    if version_here():
        with serving(path, max(map(len, held_out.prompts)) + held_out.max_tokens, held_out.threads) as server:
            check_prompts(server, held_out, path)
            answers, ran = run(server, model, held_out, merged, path)
        rows = held_out.rows(answers)
    kind = path.stem.rpartition("-")[2]
    found = merged.compare(held_out, kind, path.stat().st_size / 1e6, held_out.score(model), rows)
    return replace(found, llama_cpp=ran)


def run(
    server: LlamaCpp, model: PreTrainedModel, held_out: HeldOut, merged: Merged, path: Path
) -> tuple[list[Answer], Ran]:
    """Let llama.cpp answer the prompts, and transformers say how likely it finds these answers.

    Raises:
        Mistake: Their log-probabilities differ.
    """
    prompts = held_out.prompts
    found = [
        server.complete(prompt, held_out.max_tokens)
        for prompt in tqdm(prompts, desc="llama.cpp", leave=False, disable=None)
    ]
    said = [[id for id in one.ids if id not in held_out.ends] for one in found]
    answers = [
        Answer(decode(held_out.tokenizer, ids), len(one.ids), one.ended) for one, ids in zip(found, said, strict=True)
    ]
    log_prob, expected, agreed = check_log_probs(model, prompts, found, held_out.compare, path)
    same = [ours.text == theirs.text for ours, theirs in zip(answers, merged.answers, strict=True)]
    seconds, tokens = sum(one.seconds for one in found), sum(len(one.ids) for one in found)
    ended = float(np.mean([one.ended for one in found]))
    return answers, Ran(
        len(found), held_out.threads, float(np.mean(same)), ended, agreed, log_prob, expected, tokens / seconds
    )


def check_log_probs(
    model: PreTrainedModel, prompts: list[list[int]], found: list[Completion], params: CompareParams, path: Path
) -> tuple[float, float, float]:
    """Compare how likely llama.cpp and transformers find llama.cpp's answers, given the same weights.

    The means are of tokens that both find likeliest. Where two are about as likely, rounding chooses, and llama.cpp's
    choice would look likelier to it than it is. With quantised weights llama.cpp rounds activations to 8 bits as well,
    so what is judged is the interval of the difference, answer by answer.

    Returns:
        The mean log-probability of a token in llama.cpp and in transformers, and the share that both find likeliest.

    Raises:
        Mistake: They differ by more than `TOLERANCE` of the mean, beyond chance, or find other tokens likeliest.
    """
    sizes = [len(one.ids) for one in found]
    answer = np.repeat(np.arange(len(found)), sizes)
    log_probs, is_likeliest = score_answers_of(model, prompts, [one.ids for one in found])
    theirs = np.concatenate([one.log_probs for one in found])
    told = ~np.isnan(theirs)
    both = told & is_likeliest
    agreed = float(both.sum() / told.sum())
    if agreed < LEAST_AGREED:
        raise Mistake(
            f"{path}: llama.cpp and transformers, with the same weights, find the same token likeliest {agreed:.0%} of "
            "the time: llama.cpp does not compute this model"
        )
    units, place = np.unique(answer[both], return_inverse=True)
    tokens, differences = np.bincount(place).astype(float), np.bincount(place, (theirs - log_probs)[both])
    mean, expected = float(theirs[both].mean()), float(log_probs[both].mean())
    interval = change(differences, tokens, params.resamples, params.seed).interval
    low, high = interval[1:] if len(units) >= FEWEST_UNITS else (interval.value, interval.value)
    allowed = max(TOLERANCE * abs(expected), LEAST)
    if low > allowed or high < -allowed:
        raise Mistake(
            f"{path}: llama.cpp finds its own answers {mean:.5f} nats per token likely, transformers with the same "
            f"weights {expected:.5f}: more than {TOLERANCE:.1%} apart, so llama.cpp does not compute this model"
        )
    return mean, expected, agreed


def check_prompts(server: LlamaCpp, held_out: HeldOut, path: Path) -> None:
    """Compare the token ids of prompts: of messages as a server is given them, or of texts.

    A template that writes today's date is told the one that llama.cpp tells it. Conversations with tools are left out,
    because llama.cpp describes tools to a model in its own way.

    Raises:
        Mistake: Some differ; shows where.
    """
    told_today = held_out.template and replace(held_out.template, date=datetime.date.today().isoformat())
    encoder = told_today and Encoder.of(told_today, held_out.tokenizer)
    for document in held_out.asked:
        if encoder:
            conversation = Conversation.from_json(document.conversation)
            if conversation.tools:
                continue
            expected = encoder.prompt(conversation)
            found = server.tokenize(server.render(conversation.messages[:-1]))
        else:
            expected = document.tokens.tolist()
            found = server.tokenize(document.text, special=False)
        if found != expected:
            at = next((n for n, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            part = slice(max(0, at - 3), at + 5)
            shown, wanted = (
                held_out.tokenizer.decode(ids[part], skip_special_tokens=False) for ids in (found, expected)
            )
            raise Mistake(
                f"{path}: llama.cpp makes other tokens of {document.id} than the model learned, from number {at} on: "
                f"expected {wanted!r}, found {shown!r}"
            )


def score_answers_of(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probability in nats of each token of answers to prompts, and whether none is likelier.

    Both are arrays [tokens], one answer after the other.
    """
    log_probs, likeliest = [], []
    for start in range(0, len(prompts), BATCH_SIZE):
        some = list(zip(prompts, answers, strict=True))[start : start + BATCH_SIZE]
        inputs = [np.array([*prompt, *ids[:-1]]) for prompt, ids in some]
        labels = [np.array([IGNORED] * (len(prompt) - 1) + ids) for prompt, ids in some]
        scores = score_tokens(model, inputs, labels)[0]
        log_probs.append(-scores.nll.cpu().numpy())
        likeliest.append(scores.top1.cpu().numpy() > 0)
    return np.concatenate(log_probs), np.concatenate(likeliest)
