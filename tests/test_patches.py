"""Patches of other people's objects leave no trace, and what they rely on is still there."""

import inspect
import pkgutil
import subprocess
import sys

import pytest
import torch
from conftest import EOS, REPOSITORY, document
from support.training import PARAMS, Silent, settled
from torch import nn
from transformers import LlamaForCausalLM, Trainer

from stages.lib.model.adapter import add_adapter
from stages.lib.model.compiled import compiled_layers, unmasked
from stages.lib.model.logits import vouch
from stages.lib.model.long_inputs import activations_offloaded
from stages.lib.model.patches import PRIVATE, replaced
from stages.lib.params import Mistake
from stages.lib.training import fit
from stages.lib.training.examples import Blocks
from stages.lib.training.loss import chunked_loss


def traces(model: nn.Module) -> list[set[str]]:
    """What each part of a model has that is its own: parameters and settings, and whatever was put on it."""
    return [set(vars(part)) - {"training"} for part in model.modules()] + [model.config._attn_implementation]


def test_a_patch_puts_back_what_it_found_nested_and_after_an_exception():
    layer = nn.Linear(2, 2)
    layer.forward = mine = lambda x: x
    with pytest.raises(KeyError), replaced(layer, forward=len, extra=1):
        with replaced(layer, forward=max):
            assert layer.forward is max
        assert (layer.forward, layer.extra) == (len, 1)
        raise KeyError
    assert layer.forward is mine and not hasattr(layer, "extra")


def test_the_private_names_that_are_relied_on_are_there():
    for path, names in PRIVATE.items():
        owner = pkgutil.resolve_name(path)
        for name in names:
            assert hasattr(owner, name) or f"self.{name}" in inspect.getsource(owner), (owner, name)
    for name in PRIVATE["transformers.Trainer"]:
        assert f"self.{name}" in inspect.getsource(Trainer), f"the Trainer no longer calls {name}"


def test_scoring_and_vouching_leave_no_trace(model):
    before = traces(model)
    vouch(model)
    assert traces(model) == before


@pytest.mark.parametrize("fails", [False, True])
def test_losses_and_compilation_leave_no_trace(model, fails):
    before, budget = traces(model), torch._functorch.config.activation_memory_budget
    try:
        whole = chunked_loss(model.requires_grad_(False)), activations_offloaded(model, 32)
        with whole[0], whole[1], unmasked(model, 32) as steady, compiled_layers(model, recompute=True):
            assert steady and model.forward.__func__ is not LlamaForCausalLM.forward
            assert "forward" in vars(model.model.layers[0].mlp)
            assert model.model.layers[0]._compiled_call_impl and model.config._attn_implementation == "sdpa_causal"
            assert torch._functorch.config.activation_memory_budget == 0.01
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert traces(model) == before and torch._functorch.config.activation_memory_budget == budget


@pytest.mark.parametrize("outcome", ["done", "smaller", "failed"])
def test_training_leaves_nothing_but_its_weights(model, outcome, monkeypatch):
    """Also after running out of memory, once or for good."""
    tuned = add_adapter(model.requires_grad_(False), PARAMS.lora)
    before, calls = traces(tuned), []
    whole = fit.LoraTrainer.training_step

    def step(trainer, *args, **kwargs):
        calls.append(trainer.args.per_device_train_batch_size)
        if outcome == "failed" or (outcome == "smaller" and calls[-1] == 2):
            raise torch.OutOfMemoryError
        return whole(trainer, *args, **kwargs)

    monkeypatch.setattr(fit.LoraTrainer, "training_step", step)
    blocks = Blocks([document("a", 40)] * 2, [EOS], 32)
    params = settled(epochs=1, micro_batch_size=2, gradient_checkpointing=True)
    if outcome == "failed":
        with pytest.raises(Mistake, match="out of memory"):
            fit.fit(tuned, blocks, blocks, params, Silent())
    else:
        fit.fit(tuned, blocks, blocks, params, Silent())
    assert set(calls) == ({2, 1} if outcome != "done" else {2})
    left = [found - known for found, known in zip(traces(tuned)[:-1], before[:-1])]
    assert not set().union(*left) & {"forward", "zero_grad", "_compiled_call_impl"}
    assert not any(getattr(part, "gradient_checkpointing", False) for part in tuned.modules())


@pytest.mark.parametrize("bits", [4, 16])
def test_a_model_without_adapter_is_loaded_without_the_compiler_and_what_adapters_need(bits):
    code = (
        "import sys; from stages.lib.scoring.evaluation import evaluate; from stages.lib.model.loading import *; "
        f"load_model('wiki-mini', Quantization(bits={bits}, kind='nf4', double=True)); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch._inductor.compile_fx", "peft", "datasets"} & {*ran.stdout.split()}


def test_training_is_imported_without_the_compiler():
    code = "import sys, stages.train, stages.lib.training.tuning; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "torch._inductor.compile_fx" not in ran.stdout.split() and ran.stderr == ""
