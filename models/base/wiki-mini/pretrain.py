"""Pretrain wiki-mini, a Llama of 15.7 M parameters, on one GPU in ten minutes.   articles.txt.xz -> out/

    python models/base/wiki-mini/pretrain.py articles.txt.xz out/              # needs CUDA
    python models/base/wiki-mini/pretrain.py articles.txt.xz out/ --evaluate   # scores out/ again; a CPU will do

`articles.txt.xz` holds one article after another: a `# Title` line, its paragraphs one a line, a blank line.
One article in a hundred, chosen by a hash of its text, is held out: neither the tokenizer nor the model learns
from it, and the bits per byte that the script prints last are measured on those articles alone.

Shape suffixes: B sequences in a batch, T positions, V vocabulary, H heads, D head dimension,
N matrices of one shape, R rows, C columns.
"""

import argparse
import copy
import hashlib
import json
import lzma
import math
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

BOS, EOS, PAD = SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
# Contractions, words with the sign before them, up to three digits, punctuation, line ends, other space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 8192  # tokens
CONTEXT = 512  # tokens
SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
SEED = 0

NUM_STEPS = 18_500
BATCH = 128  # sequences of CONTEXT tokens a step
WARMUP_STEPS = 200
DECAY_SHARE = 0.6  # of the steps: the last ones, over which the learning rate falls to zero
MUON_LR = 0.02  # for the matrices inside the layers
MUON_MOMENTUM = 0.95
# A step takes the share rate x decay off every weight, so at the peak the weights are the work of the last 625 steps
# or so. The articles are read 23 times, 805 steps a time: a memory this short should not learn them by heart.
MUON_WEIGHT_DECAY = 0.08
ADAM_LR = 3e-3  # for the embeddings, which are the output matrix too, and the norms
ADAM_WEIGHT_DECAY = 0.1
LOG_INTERVAL = 250  # steps between points of the loss curve
SAVE_INTERVAL = 3000  # steps between checkpoints

SCORE_STRIDE = 256  # tokens; after its first window, an article's tokens are scored with at least as many before them
SCORE_BATCH = 32  # windows
UNSCORED = -100  # as a target: skipped by F.cross_entropy


class LossPoint(NamedTuple):
    step: int
    tokens: int
    train_loss: float  # nats per token, mean since the point before
    heldout_loss: float  # nats per token, over BATCH fixed blocks of held-out text


def read_articles(path: Path) -> tuple[list[str], list[str]]:
    """Return the training and the held-out articles; a hash keeps the split the same in any order."""
    splits: tuple[list[str], list[str]] = ([], [])
    for article in filter(None, lzma.decompress(path.read_bytes()).decode().split("\n\n")):
        is_heldout = int(hashlib.sha256(article.encode()).hexdigest(), 16) % 100 == 0
        splits[is_heldout].append(article)
    return splits


def as_markdown(article: str) -> str:
    """Separate paragraphs by a blank line: that is how people write, and hence how they prompt."""
    return article.replace("\n", "\n\n")


def train_tokenizer(articles: list[str]) -> Tokenizer:
    """Learn byte-level BPE, which can spell any bytes: no text is ever out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    split_words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    spell_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_words, spell_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(as_markdown, articles), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    config |= {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "clean_up_tokenization_spaces": False}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def encode(tokenizer: Tokenizer, articles: list[str]) -> Tensor:
    """Return the articles as one stream of tokens on the GPU: BOS article EOS BOS article EOS ..."""
    encodings = tokenizer.encode_batch_fast([as_markdown(article) for article in articles])
    return torch.from_numpy(np.concatenate([np.array([*encoding.ids, EOS_ID]) for encoding in encodings])).cuda()


def blocks_at(stream: Tensor, starts_B: Tensor) -> Tensor:
    """Cut out blocks of CONTEXT tokens and one more, the last target."""
    return stream[starts_B[:, None] + torch.arange(CONTEXT + 1, device=stream.device)]


def training_batches(stream: Tensor) -> Iterator[Tensor]:
    """Yield batches for ever; each epoch cuts the stream elsewhere, so that no block comes back as it was."""
    while True:
        starts = torch.arange(int(torch.randint(CONTEXT, ())), len(stream) - CONTEXT, CONTEXT, device=stream.device)
        shuffled = starts[torch.randperm(len(starts), device=stream.device)]
        for starts_B in shuffled[: len(shuffled) // BATCH * BATCH].split(BATCH):
            yield blocks_at(stream, starts_B)


def causal_attention(
    _layer: torch.nn.Module, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, *_: object, **__: object
) -> tuple[Tensor, None]:
    """Attend without a mask in memory; transformers writes one out when it is compiled, and loses flash attention."""
    mixed_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, enable_gqa=True)
    return mixed_BHTD.transpose(1, 2), None


def new_model() -> PreTrainedModel:
    """Return a model with random weights in float32."""
    AttentionInterface.register("causal", causal_attention)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=VOCABULARY,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="causal").cuda()


def save_model(model: PreTrainedModel, out: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)


@torch.compile
def mean_loss(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Return the mean nats per token of every token but the first of each block."""
    with torch.autocast("cuda", torch.bfloat16):
        # Autocast would leave the embeddings, and so all sums of layers, in float32: twice the memory traffic.
        embeddings = model.get_input_embeddings()(ids_BT[:, :-1]).bfloat16()
        logits_BTV = model(inputs_embeds=embeddings, use_cache=False).logits
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten())


def orthogonalize(update_NRC: Tensor) -> Tensor:
    """Bring all singular values near 1 by five Newton-Schulz steps (coefficients: Keller Jordan's Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = update_NRC.size(1) > update_NRC.size(2)
    x_NRC = update_NRC.mT if is_tall else update_NRC
    x_NRC = (x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC.mT if is_tall else x_NRC


class Muon:
    """Momentum with orthogonalized updates: a matrix learns its rare directions as fast as its common ones.

    torch.optim.Muon takes the matrices one by one; here those of one shape go together, to keep the GPU busy.
    """

    def __init__(self, matrices: list[Tensor]) -> None:
        by_shape = groupby(sorted(matrices, key=lambda m: m.shape), key=lambda m: m.shape)
        self.stacks = [list(stack) for _, stack in by_shape]
        self.momenta = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for stack, momentum_NRC in zip(self.stacks, self.momenta, strict=True):
            grad_NRC = torch.stack([matrix.grad for matrix in stack])
            momentum_NRC.lerp_(grad_NRC, 1 - MUON_MOMENTUM)
            update_NRC = orthogonalize(grad_NRC.lerp_(momentum_NRC, MUON_MOMENTUM))  # Nesterov: looks a step ahead
            rows, columns = stack[0].shape
            for matrix_RC, update_RC in zip(stack, update_NRC.float(), strict=True):
                matrix_RC.mul_(1 - lr * MUON_WEIGHT_DECAY)
                matrix_RC.sub_(update_RC, alpha=lr * math.sqrt(max(1, rows / columns)))


def rate_at(step: int) -> float:
    """Return the share of the peak learning rate: it warms up, stays, and falls in a line to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (NUM_STEPS - step) / (DECAY_SHARE * NUM_STEPS))


def pretrain(model: PreTrainedModel, train_stream: Tensor, heldout_stream: Tensor, out: Path) -> list[LossPoint]:
    """Train `model` in place and return its loss curve; checkpoints go to `out`, should the machine not last."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [model.get_input_embeddings().weight, *(p for p in model.parameters() if p.ndim == 1)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=ADAM_WEIGHT_DECAY, fused=True)
    heldout_starts_B = torch.linspace(0, len(heldout_stream) - CONTEXT - 1, BATCH).long().cuda()
    heldout_BT = blocks_at(heldout_stream, heldout_starts_B)
    curve, train_loss, began = [], torch.zeros((), device="cuda"), time.perf_counter()
    for step, ids_BT in zip(range(NUM_STEPS), training_batches(train_stream), strict=False):
        loss = mean_loss(model, ids_BT)
        loss.backward()
        adam.param_groups[0]["lr"] = rate_at(step) * ADAM_LR
        adam.step()
        muon.step(rate_at(step) * MUON_LR)
        model.zero_grad()
        train_loss += loss.detach() / LOG_INTERVAL
        if (step + 1) % LOG_INTERVAL == 0:
            heldout_loss = mean_loss(model, heldout_BT)  # with gradients, or it would be compiled a second time
            curve.append(LossPoint(step + 1, (step + 1) * BATCH * CONTEXT, train_loss.item(), heldout_loss.item()))
            print(curve[-1], f"{time.perf_counter() - began:.1f} s", flush=True)
            train_loss.zero_()
        if (step + 1) % SAVE_INTERVAL == 0:
            save_model(model, out)
    return curve


def save_curve(curve: list[LossPoint], out: Path) -> None:
    """Write the loss curve as a table and as a picture."""
    header, formats = ",".join(LossPoint._fields), ["%d", "%d", "%.4f", "%.4f"]
    np.savetxt(out / "loss_curve.csv", curve, formats, delimiter=",", header=header, comments="")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    tokens = [point.tokens / 1e6 for point in curve]
    axes.plot(tokens, [p.train_loss for p in curve], "-", color="#0072B2", label="training articles")
    axes.plot(tokens, [p.heldout_loss for p in curve], "--", color="#D55E00", label="held-out articles, a sample")
    axes.set(title="Pretraining of wiki-mini", xlabel="training tokens [millions]", ylabel="loss [nats per token]")
    axes.set_ylim(top=min(5.0, curve[0].train_loss))  # the first steps would squeeze all others
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "loss_curve.png", dpi=100)


def windows_of(ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield inputs and targets of overlapping windows which score every token but the first exactly once."""
    for begin in range(0, max(1, len(ids) - CONTEXT + SCORE_STRIDE), SCORE_STRIDE):
        window = ids[begin : begin + CONTEXT]
        num_known = CONTEXT - SCORE_STRIDE if begin else 1
        yield window[:-1], [UNSCORED] * (num_known - 1) + window[num_known:]


@torch.inference_mode()
def evaluate(heldout: list[str], out: Path, device: str) -> None:
    """Print the bits per byte of the weights in `out`, computed in float32, each article alone and from its beginning.

    The bytes are those of the articles as the file has them, with one line end after a paragraph, not two.
    """
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device).eval()
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    encodings = tokenizer.encode_batch_fast([as_markdown(article) for article in heldout])
    windows = sorted((w for encoding in encodings for w in windows_of(encoding.ids)), key=lambda w: len(w[0]))
    nats, num_tokens, num_bytes = 0.0, 0, sum(len(article.encode()) for article in heldout)
    for begin in range(0, len(windows), SCORE_BATCH):
        inputs, targets = zip(*windows[begin : begin + SCORE_BATCH], strict=True)
        longest = len(inputs[-1])
        inputs_BT = torch.tensor([i + [PAD_ID] * (longest - len(i)) for i in inputs], device=device)
        targets_BT = torch.tensor([t + [UNSCORED] * (longest - len(t)) for t in targets], device=device)
        logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
        nats_BT = F.cross_entropy(logits_BTV.mT, targets_BT, ignore_index=UNSCORED, reduction="none")
        nats += nats_BT.double().sum().item()
        num_tokens += int((targets_BT != UNSCORED).sum())
    print(f"held out: {len(heldout)} articles, {num_bytes} bytes, {num_tokens} tokens")
    print(f"{nats / num_bytes / math.log(2):.4f} bits per byte, {nats / num_tokens:.4f} nats per token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--evaluate", action="store_true", help="only score the model in OUT")
    arguments = parser.parse_args()
    train, heldout = read_articles(arguments.articles)
    if not arguments.evaluate:
        arguments.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer(train)
        save_tokenizer(tokenizer, arguments.out)
        train_stream, heldout_stream = encode(tokenizer, train), encode(tokenizer, heldout)
        print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
        num_bytes = sum(len(article.encode()) for article in train)
        print(f"training: {len(train)} articles, {num_bytes} bytes, {len(train_stream)} tokens with BOS and EOS")
        model = new_model()
        curve = pretrain(model, train_stream, heldout_stream, arguments.out)
        save_model(model, arguments.out)
        save_curve(curve, arguments.out)
    evaluate(heldout, arguments.out, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
