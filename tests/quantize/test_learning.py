"""Learned rounding: where it begins, how far it may go, what its gradient is, and that it never ends worse."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.arch import matrices
from burnish.calibrate.blocks import blocks
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import Model
from burnish.core.errors import CheckpointError, SettingsError
from burnish.quantize.maths.grid import IntegerGrid, integer_grid
from burnish.quantize.maths.learning import LearnedWeight, descend
from burnish.quantize.stage import Quantize
from small_models import make

SMALL = {
    "method": "learned",
    "sketch": "a",
    "bits": 3,
    "damping": 0.1,
    "iterations": 4,
    "group_size": 32,
    "tokens": 512,
    "length": 32,
}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_codes(grid: IntegerGrid, shape: tuple[int, int], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(grid.lowest, grid.highest + 1, shape, generator=generator, dtype=torch.int8)


@given(bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 1000))
def test_it_begins_at_any_codes_whatever(bits, symmetric, seed):
    weight = gaussian(6, 16, seed=seed)
    grid = integer_grid(weight, bits=bits, group_size=8, symmetric=symmetric, scale_dtype=torch.bfloat16)
    for codes in (some_codes(grid, (6, 16), seed), grid.codes(weight)):
        start = LearnedWeight.of(weight, codes, grid, torch.bfloat16)
        torch.testing.assert_close(start.values().detach(), grid.values(codes), rtol=1e-12, atol=1e-15)
        found, same = start.result()
        assert torch.equal(found, codes) and torch.equal(same.scale, grid.scale)


def test_codes_move_by_one_step_at_most():
    weight = gaussian(20, 32)
    grid = integer_grid(weight, bits=4, group_size=8)
    codes = some_codes(grid, (20, 32), 1)
    learned = LearnedWeight.of(weight, codes, grid, torch.float64)
    direction = gaussian(20, 32, seed=2)
    learned.factor.requires_grad_(True)
    descend([learned], lambda _: (learned.values() * direction).sum(), iterations=50)
    with torch.no_grad():
        learned.factor.fill_(1.0)
    moved = learned.result()[0].int() - codes.int()
    assert moved.abs().max() == 1
    assert (moved * direction.sign() <= 0).all(), "a code moved against its gradient"


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_is_that_of_straight_through_rounding(symmetric, coupled):
    """Against autograd through the same formula, written with x + (round(x) - x) as a constant."""
    weight, direction = gaussian(5, 16), gaussian(5, 16, seed=1)
    grid = integer_grid(weight, bits=3, group_size=8, symmetric=symmetric)
    codes = grid.codes(weight) if coupled else some_codes(grid, (5, 16), 3)
    learned = LearnedWeight.of(weight, codes, grid, torch.float64)
    assert learned.coupled is coupled
    with torch.no_grad():
        learned.offset.copy_(0.3 * gaussian(5, 16, seed=4))
        learned.factor.copy_(1 + 0.1 * gaussian(5, 2, seed=5))
    ours = torch.autograd.grad((learned.values() * direction).sum(), [learned.offset, learned.factor])

    scale = (grid.scale * learned.factor).repeat_interleave(8, dim=1)
    zero = grid.parameters()[1]
    divisor = scale if coupled else grid.scale.repeat_interleave(8, dim=1)
    place = weight / divisor + learned.shift + learned.offset
    levels = (place + (place.round() - place).detach()).clamp(grid.lowest - zero, grid.highest - zero)
    theirs = torch.autograd.grad((levels * scale * direction).sum(), [learned.offset, learned.factor])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_scales_leave_the_codes_of_a_rule_with_feedback_alone():
    weight = gaussian(6, 16)
    grid = integer_grid(weight, bits=3, group_size=8)
    codes = some_codes(grid, (6, 16), 1)
    learned = LearnedWeight.of(weight, codes, grid, torch.float64)
    with torch.no_grad():
        learned.factor.copy_(1 + 0.2 * gaussian(6, 2, seed=1).tanh())
    found, moved = learned.result()
    assert torch.equal(found, codes)
    torch.testing.assert_close(moved.scale, grid.scale * learned.factor.detach())


def test_scales_are_numbers_that_the_checkpoint_can_hold():
    weight = gaussian(4, 16)
    grid = integer_grid(weight, bits=4, group_size=8, scale_dtype=torch.bfloat16)
    learned = LearnedWeight.of(weight, grid.codes(weight), grid, torch.bfloat16)
    with torch.no_grad():
        learned.factor.fill_(0.8123)
    scale = learned.result()[1].scale
    assert torch.equal(scale, scale.to(torch.bfloat16).double())
    assert torch.equal(learned.result()[1].values(learned.result()[0]), learned.values().detach())


@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_a_convex_error_falls_below_that_of_nearest_codes(optimizer):
    weight, inputs = gaussian(8, 32), gaussian(64, 32, seed=1) @ gaussian(32, 32, seed=2)
    grid = integer_grid(weight, bits=3, group_size=8)
    learned = LearnedWeight.of(weight, grid.codes(weight), grid, torch.float64)

    def loss(_: int) -> torch.Tensor:
        return (inputs @ (learned.values() - weight).T).square().sum()

    before = float(loss(0).detach())
    descend([learned], loss, iterations=100, optimizer=optimizer)
    assert float(loss(0).detach()) < 0.7 * before


def test_blocks_see_the_changed_network_and_aim_at_the_original(model):
    """The second layer's inputs are what the changed first layer gives; its targets are those of the original."""
    tokens = torch.randint(0, 384, (6, 16), generator=torch.Generator().manual_seed(0))
    module = model.module.eval()
    with torch.no_grad():
        original = module(input_ids=tokens, output_hidden_states=True).hidden_states
    views = [view for view in matrices(module) if view.role == "down"]
    inputs, targets = [], []
    for block in blocks(module, views, Calibration(tokens, num_folds=2), batch_tokens=32):
        inputs.append(torch.cat([states.hidden for states in block.inputs]))
        targets.append(torch.cat(list(block.targets)))
        assert torch.equal(block.weights[block.views[0].name], block.views[0].tensor)
        block.views[0].write_(2 * block.views[0].tensor)
    with torch.no_grad():
        changed = module(input_ids=tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(inputs[0], original[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets[0], original[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inputs[1], changed[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(inputs[1], original[1], rtol=1e-3)


def packed(quantized) -> dict[str, torch.Tensor]:
    return {name: tensor for parts in quantized.packed.values() for name, tensor in parts.items()}


def rows_of(place) -> list[dict]:
    files = sorted((place / "learned").glob("*/rows.json"))
    return [json.loads(file.read_text())["block"] for file in files]


def test_a_layer_never_ends_with_a_larger_error_and_an_interrupted_run_goes_on(model, texts, ids, tmp_path):
    stage = Quantize(**SMALL | {"start": "rtn", "iterations": 20})
    whole = stage(model, calibration=texts, work_dir=tmp_path / "whole")
    rows = rows_of(tmp_path / "whole")
    assert len(rows) == 2 and all(row["error_after"] <= row["error_before"] for row in rows)
    assert any(row["codes_moved"] > 0 for row in rows)
    shutil.rmtree(tmp_path / "whole" / "learned" / "layer001")
    kept = (tmp_path / "whole" / "learned" / "layer000" / "learned.safetensors").stat().st_mtime_ns
    again = packed(stage(model, calibration=texts, work_dir=tmp_path / "whole"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in packed(whole).items())
    assert (tmp_path / "whole" / "learned" / "layer000" / "learned.safetensors").stat().st_mtime_ns == kept
    whole.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, whole.module(input_ids=ids).logits)
    with pytest.raises(CheckpointError, match="iterations"):
        Quantize(**SMALL | {"start": "rtn", "iterations": 5})(model, calibration=texts, work_dir=tmp_path / "whole")


def test_what_an_iteration_that_helps_nothing_leaves_is_the_start(model, texts, tmp_path):
    """One step of the largest size throws every code over; that is worse, so the layer keeps what it had."""
    start = packed(Quantize(**SMALL | {"method": "yaqa", "refit": 0})(model, calibration=texts))
    learned = packed(Quantize(**SMALL | {"iterations": 1})(model, calibration=texts, work_dir=tmp_path))
    assert all(row["codes_moved"] == 0 for row in rows_of(tmp_path))
    assert all(torch.equal(tensor, start[name]) for name, tensor in learned.items())


@pytest.mark.slow
def test_experts_are_learned_inside_their_layer(model, texts, tmp_path):
    mixtral = Model(module=make("mixtral"), tokenizer=model.tokenizer)
    Quantize(**SMALL | {"start": "rtn", "iterations": 20})(mixtral, calibration=texts, work_dir=tmp_path)
    assert any(row["codes_moved"] > 0 for row in rows_of(tmp_path))
    assert all(row["error_after"] <= row["error_before"] for row in rows_of(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "fp8-dynamic", "group_size": None, "bits": 8}, "moves integers"),
        ({"stream": True, "damping": None}, "compares whole models unless damping and sketch are given"),
        ({"propagate": True}, "propagate is for gptq"),
        ({"curve": True}, "curve"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_planned(model, settings, message):
    with pytest.raises(SettingsError, match=message):
        Quantize(**SMALL | settings).plan(model.plan())
