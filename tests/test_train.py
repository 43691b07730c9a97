"""Training: the adapter learns, the base does not, and what is saved is what was trained."""

import copy
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EOS, LLAMA_1B, REPOSITORY, Project, change_params, document, tiny
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from support.training import PARAMS, Silent, conversations, settled
from transformers import LlamaForCausalLM, set_seed

from stages.lib.model.adapter import add_adapter, keep_initial, save_adapter
from stages.lib.model.loading import load_model, load_weights
from stages.lib.model.packing import can_pack
from stages.lib.params import Mistake
from stages.lib.training import fit as fitting
from stages.lib.training.checkpoints import Checkpoints
from stages.lib.training.curves import draw_losses
from stages.lib.training.examples import Blocks
from stages.lib.training.fit import check_dtypes, fit
from stages.lib.training.trainer import LoraTrainer, summed_nll


@pytest.fixture
def blocks() -> Blocks:
    return Blocks([document("a", 40)] * 4, [EOS], 32)  # one text, repeated: soon learned


def train(model, blocks, lora=PARAMS.lora, validation=None, checkpoints=None, **changes) -> tuple[PeftModel, Silent]:
    params = settled(**changes)
    set_seed(params.seed)
    live = Silent()
    tuned = add_adapter(model, lora)
    live.initial = keep_initial(tuned)
    fit(tuned, blocks, validation or blocks, params, live, checkpoints)
    return tuned, live


def mean_nll(model, blocks) -> float:
    return summed_nll(model, blocks, 4) / blocks.num_targets


def weights(model: PeftModel) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]


def test_the_adapter_learns_and_the_base_stays_as_it_was(model, blocks):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    untuned = mean_nll(model, blocks)
    tuned, _ = train(model, blocks)
    assert mean_nll(tuned, blocks) < untuned - 0.5
    with tuned.disable_adapter():
        assert mean_nll(tuned, blocks) == pytest.approx(untuned, rel=1e-6)
    frozen = {n.replace("base_model.model.", "").replace("base_layer.", ""): w for n, w in tuned.named_parameters()}
    assert all(torch.equal(before[name], frozen[name]) for name in before)


@pytest.mark.parametrize(("evaluations", "steps"), [(1, [0, 24]), (2, [0, 12, 24]), (5, [0, 5, 10, 15, 20, 24])])
def test_the_validation_loss_is_measured_as_often_as_asked(model, blocks, evaluations, steps):
    _, live = train(model, blocks, evaluations=evaluations)
    assert [step for step, _ in live.points["validation/loss"]] == steps


def test_how_long_it_will_take_is_said_and_without_a_terminal_there_are_no_bars(model, blocks, capfd):
    train(model, blocks, epochs=4)
    told = capfd.readouterr()
    assert told.out.splitlines()[-1] == "about a minute to go, or less" and told.err == ""


def test_packed_rows_are_learned_as_padded_ones(model, monkeypatch):
    rows, curves = conversations(), []
    for packed in (True, False):
        monkeypatch.setattr(fitting, "can_pack", lambda *given, packed=packed: packed and can_pack(*given))
        lora = PARAMS.lora.model_copy(update={"dropout": 0.0})
        _, live = train(copy.deepcopy(model), rows, lora, batch_size=4, micro_batch_size=2, epochs=3)
        curves.append([loss for name in ("train", "validation") for _, loss in live.points[f"{name}/loss"]])
    assert can_pack(model, rows.block_tokens) and curves[0][-1] < curves[0][0] - 0.1
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_rows_that_cannot_be_packed_are_neither_compiled_nor_offloaded(model, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "can_pack", lambda *_: False)
    monkeypatch.setattr(fitting, "activations_offloaded", None)  # a call would fail
    plan = {"compile": True, "gradient_checkpointing": True, "activation_offloading": True}
    _, live = train(copy.deepcopy(model), conversations(), batch_size=4, micro_batch_size=2, epochs=3, **plan)
    assert "cannot be given packed rows" in capsys.readouterr().out
    assert live.points["validation/loss"][-1][1] < live.points["validation/loss"][0][1]


def test_the_curves_share_the_axis_of_optimizer_steps(model, blocks):
    _, live = train(model, blocks)
    steps_an_epoch = -(-len(blocks) // 2)
    assert [step for step, _ in live.points["train/loss"]] == list(range(1, 8 * steps_an_epoch + 1))
    evaluated = [step for step, _ in live.points["validation/loss"]]
    assert evaluated[0] == 0 and evaluated[-1] == 8 * steps_an_epoch and len(evaluated) == 1 + settled().evaluations


def test_equal_runs_save_equal_files_and_another_seed_does_not(model, blocks, tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        tuned, _ = train(copy.deepcopy(model), blocks, epochs=1, seed=seed)
        save_adapter(tuned, "llama-3.2-1b", tmp_path / name, None)
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    weights = "adapter_model.safetensors"
    assert (tmp_path / "first" / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs: only there are weights packed")
def test_evaluation_leaves_four_bit_layers_as_exact_and_as_differentiable_as_they_were(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # where they would be packed for it
    model = load_model("wiki-mini", PARAMS.quantization)
    embedded = model.get_input_embeddings()(torch.arange(3, 43).view(2, 20)).requires_grad_()

    def logits_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(inputs_embeds=embedded).logits
        return logits, torch.autograd.grad(logits.logsumexp(2).sum(), embedded)[0]

    before = logits_and_gradient()
    with torch.no_grad():
        evaluated = model(inputs_embeds=embedded.detach()).logits
    after = logits_and_gradient()
    assert torch.equal(before[0], evaluated)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


@pytest.mark.parametrize("bits", [4, 16])
def test_a_saved_adapter_gives_the_logits_it_was_saved_with(bits, blocks, tmp_path):
    quantization = PARAMS.quantization.model_copy(update={"bits": bits})
    base = load_model("wiki-mini", quantization)
    tuned, _ = train(load_model("wiki-mini", quantization), blocks, epochs=2)
    save_adapter(tuned, "wiki-mini", tmp_path, None)
    ids = torch.randint(3, 8192, (2, 20))
    with torch.inference_mode():
        saved = tuned.eval()(ids).logits
        untuned = base(ids).logits
        loaded = PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits
    assert torch.equal(loaded, saved)
    assert not torch.allclose(untuned, saved, atol=0.1)


def test_the_reference_recipe_trains_the_parameters_it_should():
    """Llama-3.2-1B: r (in + out) for q, k, v and o of 16 layers."""
    with torch.device("meta"):
        tuned = add_adapter(LlamaForCausalLM(LLAMA_1B), PARAMS.lora)
    trainable, total = tuned.get_nb_trainable_parameters()
    assert trainable == 16 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 512))
    assert (trainable, total, round(100 * trainable / total, 4)) == (1_703_936, 1_237_518_336, 0.1377)


def test_a_layer_that_is_not_there_is_refused(model):
    lora = PARAMS.lora.model_copy(update={"target_modules": ["q_proj", "query"]})
    with pytest.raises(
        Mistake,
        match=r"lora.target_modules: the model has no linear layer named query; it has down_proj, ",
    ):
        add_adapter(model, lora)


def test_an_adapter_on_the_output_layer_is_refused(model, blocks):
    tuned = add_adapter(model, PARAMS.lora.model_copy(update={"target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(Mistake, match=r"lm_head\.\S+ would be trained, but .* leave it out of lora.target_modules"):
        fit(tuned, blocks, blocks, settled(), Silent())


@pytest.mark.parametrize("batch_size", [3, 4])  # of 7 blocks: the last batch is filled with blocks without targets
def test_micro_batches_train_as_their_batch_does(batch_size, model):
    blocks = Blocks([document("a", 30), document("b", 60), document("c", 104)], [EOS], 32)
    assert len(blocks) == 7 and blocks.num_targets % 31  # blocks of unequal numbers of targets
    lora = PARAMS.lora.model_copy(update={"dropout": 0.0})
    runs = [
        train(copy.deepcopy(model), blocks, lora, batch_size=batch_size, micro_batch_size=size, epochs=2)
        for size in (batch_size, 1)
    ]
    (whole, whole_live), (parts, parts_live) = runs
    for one, other in zip(weights(whole), weights(parts)):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)  # Adam enlarges what rounding did to small ones
    for name, rtol in (("train/loss", 1e-5), ("train/grad_norm", 1e-4)):
        np.testing.assert_allclose(parts_live.points[name], whole_live.points[name], rtol=rtol)
    assert len(whole_live.points["train/loss"]) == 2 * -(-7 // batch_size)


def test_recomputing_activations_changes_nothing(model, blocks):
    kept, _ = train(copy.deepcopy(model), blocks, epochs=2)
    recomputed, _ = train(model, blocks, epochs=2, gradient_checkpointing=True)
    for one, other in zip(weights(kept), weights(recomputed)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("targets", [["gate_proj"], "all-linear"])
def test_offloading_activations_changes_nothing(targets, model, monkeypatch):
    """Tiles smaller than a block, the last one shorter; an adapter within them alone, or before them too."""
    monkeypatch.setattr("stages.lib.model.long_inputs.TILE_TOKENS", 12)
    away, empty_like = [], torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *given, **named: away.append(named) or empty_like(*given, **named))
    blocks = Blocks([document(str(number), 40) for number in range(4)], [EOS], 32)
    lora = PARAMS.lora.model_copy(update={"target_modules": targets, "dropout": 0.0})
    alike = {"epochs": 2, "gradient_checkpointing": True, "learning_rate": 1e-3}
    kept, live = train(copy.deepcopy(model), blocks, lora, **alike)
    assert not any(named.get("device") == "cpu" for named in away)
    offloaded, other = train(model, blocks, lora, activation_offloading=True, compile=True, **alike)
    assert any(named.get("device") == "cpu" for named in away)
    np.testing.assert_allclose(other.points["train/loss"], live.points["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(other.points["validation/loss"], live.points["validation/loss"], rtol=1e-5)
    for one, another in zip(weights(kept), weights(offloaded)):
        torch.testing.assert_close(one, another, rtol=0, atol=2e-4)


@pytest.mark.parametrize("rows", [False, True])
def test_a_cpu_trains_in_bf16_and_is_judged_in_fp32(rows):
    """On 4-bit weights, whose products have gradients in either precision: those of bf16 are nearly those of fp32."""
    examples = conversations() if rows else Blocks([document("a", 40)] * 4, [EOS], 32)
    base, found = load_model("wiki-mini", PARAMS.quantization), {}
    lora = PARAMS.lora.model_copy(update={"dropout": 0.0})
    for bf16 in (False, True):
        tuned, live = train(copy.deepcopy(base), examples, lora, bf16_on_cpu=bf16, learning_rate=2e-3, epochs=4)
        check_dtypes(tuned)
        assert live.points["validation/loss"][-1][1] == pytest.approx(mean_nll(tuned, examples), rel=1e-6)
        found[bf16] = live.points
    start, end = (found[False]["validation/loss"][place][1] for place in (0, -1))
    assert found[True]["validation/loss"][0][1] == start  # of the same model, scored alike
    assert found[True]["validation/loss"][-1][1] == pytest.approx(end, abs=0.02 * (start - end))
    norms = [np.array(points["train/grad_norm"])[:, 1] for points in found.values()]
    assert norms[0].min() > 0 and not np.array_equal(*norms)
    np.testing.assert_allclose(norms[1][:3], norms[0][:3], rtol=0.03)


def test_out_of_memory_means_smaller_micro_batches_from_the_start(model, blocks, monkeypatch, capsys):
    expected, expected_live = train(copy.deepcopy(model), blocks, batch_size=6, micro_batch_size=2)
    step = LoraTrainer.training_step

    def out_of_memory(self, model, inputs, num_items_in_batch=None):
        if len(inputs["input_ids"]) > 2 and self.state.global_step == 1:
            raise torch.OutOfMemoryError
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(LoraTrainer, "training_step", out_of_memory)
    found, found_live = train(model, blocks, batch_size=6, micro_batch_size=6)
    assert [line for line in capsys.readouterr().out.splitlines() if "memory" in line] == [
        "out of memory with 6 blocks at once; trying 3",
        "out of memory with 3 blocks at once; trying 2",
    ]
    assert all(torch.equal(one, other) for one, other in zip(weights(found), weights(expected)))
    for name in ("validation/loss", "train/loss"):  # the first points came before
        np.testing.assert_allclose(found_live.points[name], expected_live.points[name], rtol=1e-6)


def test_out_of_memory_with_a_single_block_is_said_in_a_line(model, blocks, monkeypatch):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(LoraTrainer, "training_step", out_of_memory)
    message = r"train: out of memory with 1 blocks at once; try train.gradient_checkpointing: true, a smaller train.bl"
    with pytest.raises(Mistake, match=message):
        train(model, blocks, micro_batch_size=1)


def test_training_stops_early_and_keeps_the_best_adapter(model, blocks, tmp_path):
    stops = {"epochs": 8, "evaluations": 8, "early_stopping_patience": 2, "learning_rate": 0.03}
    other = Blocks([document("a", 40), document("b", 160)], [EOS], 32)  # helped at first, then harmed
    tuned, live = train(model, blocks, validation=other, checkpoints=Checkpoints("run", tmp_path), **stops)
    losses = [loss for _, loss in live.points["validation/loss"]]
    best = min(losses)
    assert 0 < losses.index(best) == len(losses) - 3 < 6
    assert mean_nll(tuned, other) == pytest.approx(best, rel=1e-6) != losses[-1]


def test_where_training_only_does_harm_the_adapter_stays_as_it_began(model, blocks, tmp_path, capsys):
    stops = {"epochs": 8, "evaluations": 8, "early_stopping_patience": 2}
    other = Blocks([document("b", 200)], [EOS], 32)  # what is learned helps nothing here
    untouched = mean_nll(model, other)
    tuned, live = train(model, blocks, validation=other, checkpoints=Checkpoints("run", tmp_path), **stops)
    losses = [loss for _, loss in live.points["validation/loss"]]
    assert min(losses) == losses[0] and len(losses) == 3  # stops after two that are worse than the start
    assert mean_nll(tuned, other) == pytest.approx(untouched, rel=1e-6)
    assert "the adapter stays as it began" in capsys.readouterr().out


def test_a_training_that_diverges_is_stopped_in_a_line(model, blocks):
    with pytest.raises(
        Mistake, match=r"step \d+: (eval_)?loss is (nan|inf): training diverged; try a smaller train.learn"
    ):
        train(model, blocks, learning_rate=1e30)


def test_what_is_trained_is_fp32_and_what_is_frozen_is_not_trained(model):
    def halve(module: torch.nn.Module) -> None:
        if hasattr(module, "lora_A"):
            module.lora_A.half()

    tuned = add_adapter(model, PARAMS.lora)
    check_dtypes(tuned)
    with pytest.raises(AssertionError, match=r"lora_A.* is trained in torch.float16"):
        check_dtypes(copy.deepcopy(tuned).apply(halve))
    tuned.get_input_embeddings().half()
    with pytest.raises(AssertionError, match=r"embed_tokens.* is torch.float16, the device computes in torch.float32"):
        check_dtypes(tuned)


VARIANTS = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "loftq": {"init": "loftq"},
    "pissa": {"init": "pissa"},
    "pissa-rslora": {"init": "pissa", "rslora": True},
    "all-linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_learns_and_is_saved_as_it_was_trained(variant, tmp_path):
    lora = PARAMS.lora.model_copy(update=VARIANTS[variant])
    quantization = PARAMS.quantization.model_copy(update={"bits": 16 if lora.init == "pissa" else 4})
    blocks = Blocks([document("a", 40)] * 4, [1], 32)
    base, original = (load_model("wiki-mini", quantization) for _ in range(2))
    tuned, live = train(base, blocks, lora, learning_rate=0.01, epochs=4)
    check_dtypes(tuned)
    losses = [loss for _, loss in live.points["validation/loss"]]
    assert losses[-1] < losses[0] - 0.2
    if variant != "loftq":  # which is there to begin elsewhere
        assert losses[0] == pytest.approx(mean_nll(original, blocks), rel=1e-4)
    save_adapter(tuned, "wiki-mini", tmp_path, live.initial)
    loaded = PeftModel.from_pretrained(original, tmp_path)
    assert mean_nll(loaded, blocks) == pytest.approx(mean_nll(tuned, blocks), rel=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("family", "target"), [("llama", "q_proj"), ("gpt2", "c_fc")])
def test_loftq_starts_with_the_best_update_of_its_rank(family, target, rslora, tmp_path):
    whole = tiny(family)
    whole.save_pretrained(tmp_path)
    lora = PARAMS.lora.model_copy(update={"init": "loftq", "target_modules": [target], "rslora": rslora})
    layers = [module for module in add_adapter(load_weights(tmp_path, PARAMS.quantization), lora).modules()]
    adapted = [module for module in layers if hasattr(module, "lora_A")]
    weights = [weight for name, weight in whole.named_parameters() if name.endswith(f"{target}.weight")]
    assert len(adapted) == len(weights) == 2
    for layer, weight in zip(adapted, weights):
        error = (weight.T if family == "gpt2" else weight) - dequantize_module_weight(layer.base_layer)
        left = torch.linalg.matrix_norm(error - layer.get_delta_weight("default"))
        best = torch.linalg.svdvals(error)[lora.r :].square().sum().sqrt()  # Eckart and Young
        torch.testing.assert_close(left, best, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw_8bit"])
def test_each_optimizer_learns(optimizer, blocks, model):
    before = mean_nll(model, blocks)
    assert mean_nll(train(model, blocks, optimizer=optimizer)[0], blocks) < before - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("conversations", [False, True])
def test_two_processes_train_as_one_does(conversations, tmp_path):
    """With the gloo backend, on a CPU: the same steps on the same blocks, added up; one goes on where two stopped."""
    one, two = (Project(tmp_path / name, {"lora.dropout": 0.0}, conversations) for name in ("one", "two"))
    one.run()
    change_params(two.folder / "params.yaml", {"run.processes": 2})
    printed = two.stop_after(4, signal.SIGTERM)
    assert printed.count("micro_batch_size: 2, ") == printed.count("processes: 2") == 1
    printed = two.stop_after(9, signal.SIGINT)  # in the midst of the second epoch
    assert "going on from models/checkpoints/" in printed
    assert printed.count("stopped; run the same again") == 1 and "Traceback" not in printed
    change_params(two.folder / "params.yaml", {"run.processes": 1, "run.checkpoint_minutes": 60})
    printed = two.stop_after(12, signal.SIGKILL)
    assert "going on from models/checkpoints/" in printed and "micro_batch_size: 4, " in printed
    torchrun = (f"{Path(sys.executable).parent}/torchrun", "--nproc_per_node=2", "-m")
    printed = two.run(launcher=torchrun, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert "going on from models/checkpoints/" in printed and printed.count("processes: 2") == 1
    names = [name for name in one.results() if name.endswith("loss.tsv")]
    assert len(names) == 2
    for name in names:
        curves = [np.loadtxt(project.folder / name, skiprows=1) for project in (one, two)]
        np.testing.assert_allclose(curves[1], curves[0], rtol=2e-4)
    assert one.results().keys() == two.results().keys()


@pytest.mark.slow
def test_two_machines_train_as_one_does(tmp_path):
    """Each in a folder of its own; they meet at an address."""
    one, first, second = (Project(tmp_path / name, {"lora.dropout": 0.0}) for name in ("one", "first", "second"))
    one.run()
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = f"--master-addr=127.0.0.1 --master-port={free.getsockname()[1]} --nnodes=2 --nproc-per-node=1"
    torchrun = [f"{Path(sys.executable).parent}/torchrun", *meeting.split()]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = [machine.start([*torchrun, f"--node-rank={n}", "-m"], env=alone) for n, machine in enumerate((first, second))]
    printed = ["".join(machine.communicate(timeout=300)) for machine in ran]
    assert [machine.returncode for machine in ran] == [0, 0], printed
    assert "processes: 2" in printed[0] and not second.results()
    for name in (name for name in one.results() if name.endswith("loss.tsv")):
        curves = [np.loadtxt(project.folder / name, skiprows=1) for project in (one, first)]
        np.testing.assert_allclose(curves[1], curves[0], rtol=2e-4)


def test_each_run_of_a_queue_takes_a_gpu_of_its_own_while_there_are_any(monkeypatch, tmp_path):
    code = (
        "import os, sys, stages.lib.training.processes as p; p.gpu_ids = lambda: ['GPU-a', 'GPU-b']; "
        "p.take_gpu(); print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def start() -> tuple[subprocess.Popen, str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        run = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, text=True, **pipes)
        return run, run.stdout.readline().strip()

    runs = [start() for _ in range(3)]
    assert [taken for _, taken in runs] == ["GPU-a", "GPU-b", "None"]
    runs[0][0].communicate("")
    runs.append(start())
    assert runs[-1][1] == "GPU-a"
    for run, _ in runs[1:]:
        run.communicate("")


def test_a_mistake_that_all_processes_make_is_said_once(tmp_path):
    project = Project(tmp_path / "three", {"run.processes": 3})
    printed = project.run(expect=1)
    assert printed == "params.yaml: train.batch_size: 4 is no multiple of 3 processes\n"


def test_the_picture_shows_every_point():
    losses, held_out = [{"step": 1, "loss": 3.9}, {"step": 2, "loss": 3.5}], [{"step": 0, "eval_loss": 4.0}]
    training, validation = draw_losses([*held_out, *losses]).axes[0].lines
    np.testing.assert_array_equal(training.get_xydata(), [(1, 3.9), (2, 3.5)])
    np.testing.assert_array_equal(validation.get_xydata(), [(0, 4.0)])
