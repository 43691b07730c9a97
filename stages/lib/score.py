"""Scoring: how likely a model finds given tokens, without the logits of more than a chunk of them.

Shapes: B sequences, T positions, D features, N targets, V entries of the vocabulary.
"""

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

CHUNK_TARGETS = 1024  # whose logits exist at once, in fp32: 0.5 GB for a vocabulary of 128,000


@torch.inference_mode()
def score_batch(model: PreTrainedModel | PeftModel, inputs: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """Score the last tokens of each input.

    Args:
        model: A causal language model.
        inputs: B arrays of token ids, of any lengths.
        targets: B arrays: the tokens that follow the last positions of each input.

    Returns:
        [N, 3] in float64, in the order of the targets: nll in nats, whether the target ranks first
        (no logit is above its own), whether it ranks in the first five.
    """
    inputs_BT = np.zeros((len(inputs), max(map(len, inputs))), np.int64)
    scored_BT = np.zeros(inputs_BT.shape, bool)
    for row, (ids, after) in enumerate(zip(inputs, targets)):
        inputs_BT[row, : len(ids)] = ids
        scored_BT[row, len(ids) - len(after) : len(ids)] = True
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden_BTD = base.get_decoder()(torch.from_numpy(inputs_BT).to(model.device), use_cache=False).last_hidden_state
    hidden_ND = hidden_BTD[torch.from_numpy(scored_BT).to(model.device)]
    targets_N = torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(model.device)
    chunks = zip(hidden_ND.split(CHUNK_TARGETS), targets_N.split(CHUNK_TARGETS))
    return torch.cat([score_logits(logits_of(base, hidden), target) for hidden, target in chunks]).cpu().numpy()


def logits_of(model: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Return the logits [N, V] of hidden states, in fp32."""
    logits_NV = model.get_output_embeddings()(hidden_ND).float()
    cap = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def score_logits(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return nll, top-1 and top-5 hits of the targets, [N, 3] in float64."""
    target_N1 = logits_NV.gather(1, targets_N[:, None])
    nll_N = logits_NV.logsumexp(1).double() - target_N1[:, 0].double()
    rank_N = (logits_NV > target_N1).sum(1)
    return torch.stack([nll_N, (rank_N < 1).double(), (rank_N < 5).double()], dim=1)
