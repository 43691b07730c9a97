"""Training: the adapter learns, the base does not, and what is saved is what was trained."""

import copy

import numpy as np
import pytest
import torch
from conftest import BOS, EOS, document
from dvclive import Live
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from stages.lib.blocks import Blocks
from stages.lib.curves import draw_losses
from stages.lib.model import load_model
from stages.lib.params import Mistake, read_params
from stages.train import Params, add_adapter, fit, mean_nll, save_adapter

PARAMS = read_params(Params)


class Silent(Live):
    """Keeps what is logged in memory."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}
        self.summary = {}

    def log_metric(self, name, val, **kwargs) -> None:
        self.points.setdefault(name, []).append((self._step, val))

    step = property(lambda self: self._step, lambda self, value: setattr(self, "_step", value))


@pytest.fixture
def blocks() -> Blocks:
    return Blocks([document("a", 40)] * 4, BOS, EOS, 32)  # one text, repeated: soon learned


def train(model, blocks, **changes) -> tuple[PeftModel, Silent]:
    params = PARAMS.train.model_copy(update={"learning_rate": 0.02, "epochs": 8, "batch_size": 2} | changes)
    set_seed(params.seed)
    live = Silent()
    tuned = add_adapter(model, PARAMS.lora)
    fit(tuned, blocks, blocks, params, live)
    return tuned, live


def test_the_adapter_learns_and_the_base_stays_as_it_was(model, blocks):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    untuned = mean_nll(model, blocks, 4)
    tuned, _ = train(model, blocks)
    assert mean_nll(tuned, blocks, 4) < untuned - 0.5
    with tuned.disable_adapter():
        assert mean_nll(tuned, blocks, 4) == pytest.approx(untuned, rel=1e-6)
    frozen = {n.replace("base_model.model.", "").replace("base_layer.", ""): w for n, w in tuned.named_parameters()}
    assert all(torch.equal(before[name], frozen[name]) for name in before)


@pytest.mark.parametrize(("evaluations", "steps"), [(1, [0, 24]), (2, [0, 12, 24]), (5, [0, 5, 10, 15, 20, 24])])
def test_the_validation_loss_is_measured_as_often_as_asked(model, blocks, evaluations, steps):
    _, live = train(model, blocks, evaluations=evaluations)
    assert [step for step, _ in live.points["validation/loss"]] == steps


def test_the_curves_share_the_axis_of_optimizer_steps(model, blocks):
    _, live = train(model, blocks)
    steps_an_epoch = -(-len(blocks) // 2)
    assert [step for step, _ in live.points["train/loss"]] == list(range(1, 8 * steps_an_epoch + 1))
    evaluated = [step for step, _ in live.points["validation/loss"]]
    assert evaluated[0] == 0 and evaluated[-1] == 8 * steps_an_epoch and len(evaluated) == 1 + PARAMS.train.evaluations


def test_equal_runs_save_equal_files_and_another_seed_does_not(model, blocks, tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        tuned, _ = train(copy.deepcopy(model), blocks, epochs=1, seed=seed)
        save_adapter(tuned, "llama-3.2-1b", tmp_path / name)
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    weights = "adapter_model.safetensors"
    assert (tmp_path / "first" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


@pytest.mark.parametrize("bits", [4, 16])
def test_a_saved_adapter_gives_the_logits_it_was_saved_with(bits, blocks, tmp_path):
    quantization = PARAMS.quantization.model_copy(update={"bits": bits})
    base = load_model("wiki-mini", quantization)
    tuned, _ = train(load_model("wiki-mini", quantization), blocks, epochs=2)
    save_adapter(tuned, "wiki-mini", tmp_path)
    ids = torch.randint(3, 8192, (2, 20))
    with torch.inference_mode():
        saved = tuned.eval()(ids).logits
        untuned = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits
    assert torch.equal(loaded, saved)
    assert not torch.allclose(untuned, saved, atol=0.1)


def test_the_reference_recipe_trains_the_parameters_it_should():
    """Llama-3.2-1B: r (in + out) for q, k, v and o of 16 layers."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        tuned = add_adapter(LlamaForCausalLM(config), PARAMS.lora)
    trainable, total = tuned.get_nb_trainable_parameters()
    assert trainable == 16 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 512))
    assert (trainable, total, round(100 * trainable / total, 4)) == (1_703_936, 1_237_518_336, 0.1377)


def test_a_layer_that_is_not_there_is_refused(model):
    lora = PARAMS.lora.model_copy(update={"target_modules": ["q_proj", "query"]})
    with pytest.raises(Mistake, match=r"lora.target_modules: the model has no layer named query$"):
        add_adapter(model, lora)


def test_an_adapter_on_the_output_layer_is_refused(model, blocks):
    tuned = add_adapter(model, PARAMS.lora.model_copy(update={"target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(Mistake, match=r"expected an output layer that is a frozen matrix.*lora.target_modules"):
        fit(tuned, blocks, blocks, PARAMS.train, Silent())


def test_the_picture_shows_every_point():
    losses, held_out = [{"step": 1, "loss": 3.9}, {"step": 2, "loss": 3.5}], [{"step": 0, "eval_loss": 4.0}]
    training, validation = draw_losses([*held_out, *losses]).axes[0].lines
    np.testing.assert_array_equal(training.get_xydata(), [(1, 3.9), (2, 3.5)])
    np.testing.assert_array_equal(validation.get_xydata(), [(0, 4.0)])
