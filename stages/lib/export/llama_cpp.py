"""llama.cpp itself, through the package xllamacpp: how it splits and renders texts, and what it answers."""

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.lib.params import Mistake

PACKAGE = "xllamacpp"
CODE = Path(__file__).parents[3]


@dataclass(frozen=True)
class Completion:
    """What llama.cpp makes of a prompt, with the likeliest tokens.

    Attributes:
        ids: Of the new tokens, the one that ended them included.
        log_probs: Of each in nats; NaN of those that left a character half written, of which it tells none.
        ended: Whether a token that ends a turn was the likeliest.
        seconds: Generation alone took.
    """

    ids: list[int]
    log_probs: list[float]
    ended: bool
    seconds: float


def version_here() -> str | None:
    """Return which version of xllamacpp is installed, if any is."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class LlamaCpp:
    """A server of llama.cpp, with one model; it listens on this machine alone."""

    address: str

    def ask(self, path: str, **values: Any) -> dict[str, Any]:
        """Send a request to it; return its answer.

        Raises:
            Mistake: It refuses.
        """
        request = urllib.request.Request(
            f"{self.address}{path}", json.dumps(values).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Mistake(f"llama.cpp: {path}: {error.read().decode(errors='replace')[:300]}") from None

    def tokenize(self, text: str, begin: bool = True, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            begin: Put before it what the file says stands before every text.
            special: Find special tokens in it.
        """
        return self.ask("/tokenize", content=text, add_special=begin, parse_special=special)["tokens"]

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """Return the prompt that the template in the file makes of messages."""
        given = {"messages": messages} | ({"tools": tools} if tools else {})
        return self.ask("/apply-template", **given)["prompt"]

    def complete(self, ids: list[int], max_tokens: int) -> Completion:
        """Continue token ids with the likeliest tokens."""
        found = self.ask(
            "/completion",
            prompt=ids,
            n_predict=max_tokens,
            temperature=0.0,
            repeat_penalty=1.0,
            n_probs=1,
            return_tokens=True,
            cache_prompt=False,
        )
        told = iter([*found.get("completion_probabilities", []), {"id": None}])
        log_probs, following = [], next(told)
        for id in found["tokens"]:
            matches = id == following["id"]
            log_probs.append(following["logprob"] if matches else math.nan)
            following = next(told) if matches else following
        return Completion(
            found["tokens"], log_probs, found["stop_type"] == "eos", found["timings"]["predicted_ms"] / 1000
        )


@contextmanager
def serving(path: Path, context_tokens: int, threads: int = 2) -> Iterator[LlamaCpp]:
    """Load a GGUF file into llama.cpp for a while.

    It runs in a process of its own: what it refuses, it may end the process for.

    Raises:
        Mistake: llama.cpp does not load it.
    """
    command = [sys.executable, "-m", __name__, str(path.resolve()), str(context_tokens), str(threads)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=CODE, text=True, stdin=pipe, stdout=pipe, stderr=log) as process,
    ):
        assert process.stdout
        try:
            if not (address := process.stdout.readline().strip()):
                process.wait()
                log.seek(0)
                said = log.read().strip().splitlines()
                raise Mistake(f"{path}: llama.cpp does not load it: {said[-1] if said else 'it says nothing of why'}")
            yield LlamaCpp(address)
        finally:
            process.kill()


def serve(path: str, context_tokens: int, threads: int) -> None:
    """Serve a GGUF file, tell the address on stdout, and stop where stdin ends: with whoever started it."""
    xllamacpp: Any = importlib.import_module(PACKAGE)  # which is not always installed, and declares no types
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context_tokens
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.warmup = False
    params.use_jinja = True
    params.verbosity = 0
    params.port = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # its end would wait for its threads


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
