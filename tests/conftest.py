"""What several tests share: a two-layer model, and documents that need no tokenizer."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from dvc.utils.hydra import apply_overrides
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
)

from stages.lib.data.documents import Document, write_documents

REPOSITORY = Path(__file__).parents[1]
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs, and by what they start
BOS, EOS, PAD = 0, 1, 2
VOCABULARY = 97
TEXT = {  # what tests run on, where they name nothing else: a small model and text, as `make encyclopedia` sets them
    "model": "wiki-mini",
    "dataset": "encyclopedia",
    "train.epochs": 3,
    "train.learning_rate": 2e-4,
    "train.evaluations": 6,
}
SHORTER = {"train.block_tokens": 48, "run.checkpoint_minutes": 1e-9}  # of the parameters of a `Project`
FAMILIES = ["llama", "qwen2", "mistral", "gemma", "gemma2", "gpt2"]

LLAMA_1B = LlamaConfig(  # Llama-3.2-1B
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)
QWEN_HALF_B = Qwen2Config(  # Qwen2.5-0.5B
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)

MARKED = {  # files of tests, by marker; `make check` runs the fast ones, `make test-all` adds the slow ones
    "fast": "compare draw examples formats history loss overlap params patches pipeline preview rate release "
    "result score seeds serving sheet source subfolder targets tasks texts units workflows",
    "slow": "every_day lock padding",
    "browser": "page plots",
    "gpu": "compiled",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the files they are in."""
    for item in items:
        for marker, names in MARKED.items():
            if item.path.stem.removeprefix("test_") in names.split():
                item.add_marker(marker)


def write_params(folder: Path, changes: Mapping[str, object] = MappingProxyType({})) -> Path:
    """Write a params.yaml, which is the shipped one but for `TEXT` and these changes; return its path."""
    path = folder / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", path)
    change_params(path, {**TEXT, **changes})
    return path


def change_params(path: Path, changes: Mapping[str, object]) -> None:
    """Change a params.yaml as `dvc exp run -S` does."""
    apply_overrides(path, [f"{name}={value}" for name, value in changes.items()])


def tiny(family: str) -> PreTrainedModel:
    """A random two-layer model of an architecture, in evaluation mode, the same for the same name."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model(family, **sizes, **heads, bos_token_id=BOS, eos_token_id=EOS)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A random two-layer Llama in evaluation mode, with a context of 64 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.4,  # far from uniform predictions, so that mistakes move the numbers
    )
    return LlamaForCausalLM(config).eval()


def document(name: str, num_tokens: int) -> Document:
    """A document of BOS and random tokens, the same for the same arguments."""
    rng = np.random.default_rng([num_tokens, *name.encode()])
    tokens = rng.integers(3, VOCABULARY, num_tokens).astype(np.int32)
    return as_document(name, tokens)


def as_document(name: str, tokens: np.ndarray) -> Document:
    """A document of BOS and these tokens, which are targets."""
    targets = np.arange(len(tokens) + 1) > 0
    return Document(name, name.title(), " ".join(map(str, tokens)), np.array([BOS, *tokens], np.int32), targets)


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def documents() -> list[Document]:
    """Documents shorter than, as long as, and much longer than a window of 16."""
    return [document("a", 5), document("b", 16), document("c", 61), document("d", 1), document("e", 40)]


def steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class Project:
    """A folder in which `python -m stages.train` trains wiki-mini for 18 steps on a few random words.

    They are texts, or conversations, the second half of each an answer.
    """

    def __init__(
        self, folder: Path, changes: Mapping[str, object] = MappingProxyType({}), conversations: bool = False
    ) -> None:
        self.folder = folder
        (folder / "models").mkdir(parents=True)
        (folder / "data/prepared").mkdir(parents=True)
        for name in ("dvc.yaml", "stages", "models/base"):
            (folder / name).symlink_to(REPOSITORY / name)
        write_params(folder, {**SHORTER, **changes})
        rng = np.random.default_rng(0)
        for split, number in (("train", 22 if conversations else 5), ("validation", 1)):
            lengths = rng.integers(20, 60, number) if conversations else [200] * number
            documents = [as_document(f"{n}", rng.integers(3, 8192, length)) for n, length in enumerate(lengths)]
            if conversations:
                halves = [np.arange(len(one.tokens)) > len(one.tokens) // 2 for one in documents]
                answered = zip(documents, halves, strict=True)
                documents = [replace(one, targets=half, conversation="{}") for one, half in answered]
            write_documents(documents, split, folder / "data/prepared")

    def start(self, launcher: Sequence[str] = (sys.executable, "-m"), **settings) -> subprocess.Popen:
        return subprocess.Popen(
            [*launcher, "stages.train"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def run(self, expect: int = 0, **settings) -> str:
        ran = self.start(**settings)
        stdout, stderr = ran.communicate(timeout=6000)
        assert ran.returncode == expect, stderr
        return stdout + stderr

    def whole(self) -> list[Path]:
        """List the finished checkpoints, oldest first."""
        seals = self.folder.glob("models/checkpoints/*/checkpoint-*/seal.json")
        return sorted((seal.parent for seal in seals), key=steps_of)

    def steps(self) -> int:
        """Return how many steps the newest finished checkpoint has; without one none."""
        return max(map(steps_of, self.whole()), default=0)

    def stop_after(self, number: int, sent: signal.Signals) -> str:
        """Run until so many steps, and one of this run, have a checkpoint; send a signal; return what it printed."""
        number = max(number, self.steps() + 1)
        ran = self.start()
        while self.steps() < number:
            assert ran.poll() is None, ran.communicate()
            time.sleep(0.002)
        ran.send_signal(sent)
        return "".join(ran.communicate(timeout=60))

    def results(self) -> dict[str, bytes]:
        tops = ("metrics", "plots", "models/adapter")
        paths = [path for top in tops for path in (self.folder / top).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths if "cost" not in path.parts}
