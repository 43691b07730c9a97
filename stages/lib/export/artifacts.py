"""Artifacts: what leaves, and what each was found to be worth."""

from dataclasses import dataclass

from stages.lib.records import Interval


@dataclass(frozen=True)
class Ran:
    """What llama.cpp did with a file.

    Attributes:
        prompts: Answered.
        threads: That it had.
        same_answers: Share of them that the merged model answers alike in transformers.
        ended: Share of answers that it ended by itself.
        same_tokens: Share of its new tokens that transformers finds likeliest too, with the file's tensors.
        log_prob: Mean of these in llama.cpp, in nats.
        expected_log_prob: The same in transformers.
        tokens_per_second: Generated.
    """

    prompts: int
    threads: int
    same_answers: float
    ended: float
    same_tokens: float
    log_prob: float
    expected_log_prob: float
    tokens_per_second: float


@dataclass(frozen=True)
class Proof:
    """What an artifact is worth.

    Attributes:
        name: Of the artifact.
        megabytes: Of its weights, in files: 10^6 bytes.
        nll: Nats per token of the held-out documents.
        nll_change: From the merged model; None of itself.
        score: Mean of the deciding score over the conversations that were asked; None where texts are continued.
        score_change: From the merged model.
        verdict: How it compares with the base model that was not quantised, in words.
        llama_cpp: What it did with the file; None where it was not tried.
    """

    name: str
    megabytes: float
    nll: float
    nll_change: Interval | None = None
    score: float | None = None
    score_change: Interval | None = None
    verdict: str = ""
    llama_cpp: Ran | None = None
