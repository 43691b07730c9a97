"""Packing: rows end to end in one sequence, each of which comes out as if it were alone.

Nothing is padded, and no row attends to another. Not every family can be packed: layers that keep a state run on from
row to row, and some attention cannot be told where rows end, or does more than is done here. So each model is tried
before it is trusted.

Shapes: N tokens of all rows together, R rows, H heads, D features of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from stages.lib.model.compiled import attended_tokens
from stages.lib.model.logits import hidden_states, logits_of, most_rounding, num_entries

PACKED = "packed_rows"
PROBE = (7, 13)  # tokens of the rows that a model is tried with
OTHER_ATTENTION = ("softcap", "s_aux", "position_bias")  # what layers ask of attention that is not computed here


def attend_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    longest: int,
    cu_seq_lens_q: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within each row to what came before; return [1, N, H, D], as transformers asks of attention.

    Args:
        query: [1, H, N, D]; `key` and `value` alike, perhaps of fewer heads.
        longest: Tokens of the longest row.
        cu_seq_lens_q: Where rows begin, and the end of the last: [R + 1]. None: inputs are padded, not packed.
    """
    wanted = [name for name in OTHER_ATTENTION if others.get(name) is not None]
    if wanted := wanted + ["dropout"] * bool(dropout):
        raise NotImplementedError(f"attention with {', '.join(wanted)} to packed rows")
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)
    if not query.is_cuda:  # nothing waits for a CPU's values
        lengths = [length for length in cu_seq_lens_q.diff().tolist() if length]
        rows = zip(*(part.float().split(lengths, dim=2) for part in (query, key, value)), strict=True)
        causal = partial(sdpa_attention_forward, module, attention_mask=None, scaling=scaling, is_causal=True)
        with torch.autocast("cpu", enabled=False):  # a CPU is no sooner at short rows in bf16
            return torch.cat([causal(query=q, key=k, value=v)[0] for q, k, v in rows], dim=1).to(value.dtype), None
    if has_flash(value):
        heads = query.shape[1] // key.shape[1]
        parts = (query.to(value), repeat_kv(key.to(value), heads), repeat_kv(value, heads))
        q, k, v = (part[0].transpose(0, 1) for part in parts)
        ends = cu_seq_lens_q, cu_seq_lens_q, longest, longest
        attended = varlen_attn(q, k, v, *ends, scale=scaling, window_size=(-1, 0))
        assert isinstance(attended, Tensor)  # nothing else is asked for
        return attended[None], None
    place_N = torch.arange(query.shape[2], device=query.device)
    row_N = torch.bucketize(place_N, cu_seq_lens_q[1:], right=True)
    within_NN = (row_N[:, None] == row_N) & (place_N[:, None] >= place_N)
    return sdpa_attention_forward(module, query, key, value, within_NN[None, None], scaling=scaling)


def has_flash(states: Tensor) -> bool:
    """Return whether the GPU has flash attention for numbers of this precision: not before compute capability 8.0."""
    return states.dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability() >= (8, 0)


@contextmanager
def packed_rows(model: PreTrainedModel, longest: int) -> Iterator[None]:
    """Let a decoder attend within rows for a while; inputs that are not packed are attended to as ever.

    Args:
        longest: Tokens of the longest row.
    """
    attention = model.config._attn_implementation
    assert attention
    AttentionInterface.register(PACKED, partial(attend_rows, longest=longest))
    model.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


@torch.inference_mode()
def can_pack(model: PreTrainedModel, longest: int) -> bool:
    """Return whether packed rows of up to so many tokens come out as if each were alone: two are tried.

    Their predictions may differ by rounding at most, whatever stands in the row before.

    Args:
        model: A causal language model; its layers may be quantised and adapted.
    """
    if model.config._attn_implementation != "sdpa" or longest > attended_tokens(model):
        return False
    first, second = PROBE
    ids_1N = torch.arange(first + second, device=model.device)[None] * 7919 % num_entries(model)
    other_1N = ids_1N.clone()
    other_1N[:, :first] = (ids_1N[:, :first] + 1) % num_entries(model)
    ends = torch.tensor([0, first, first + second], dtype=torch.int32, device=model.device)
    positions = torch.cat([torch.arange(length, device=model.device) for length in PROBE])[None]
    training = model.training
    model.eval()
    try:
        alone = logits_of(model, hidden_states(model, ids_1N[:, first:])[0]).float()
        with packed_rows(model, max(PROBE)):
            packing = {"position_ids": positions, "cu_seq_lens_q": ends}
            packed = [hidden_states(model, ids, **packing)[0, first:] for ids in (ids_1N, other_1N)]
            hidden_states(model.train(), ids_1N, **packing)  # in training alone attention may drop something
        found = [logits_of(model, states).float() for states in packed]
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
    allowed = most_rounding(model, alone)
    return all((logits.log_softmax(-1) - alone.log_softmax(-1)).abs().max().item() <= allowed for logits in found)
