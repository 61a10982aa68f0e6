"""What stands out in a model, and biases of channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import burnish
from burnish.arch import layers
from burnish.core.checkpoint import Model
from burnish.core.errors import SettingsError
from burnish.quantize.channel_bias import fold, foldable
from burnish.quantize.maths.channel_bias import LEVELS, learned_bias, product_error, rounded_by_token
from burnish.quantize.maths.outliers import InputSums, kurtosis, of_weights
from small_models import make, small_llama, small_tokenizer

TEXT = ["the cat sat on the mat and looked at the dog. " * 60]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def summed(x: torch.Tensor, *, pieces: int = 3) -> InputSums:
    sums = InputSums.empty(x.shape[1])
    begins = torch.arange(len(x)) % 10 == 0
    for some, first in zip(x.chunk(pieces), begins.chunk(pieces), strict=True):
        sums.add(some, first)
    return sums


def test_what_is_told_is_what_numpy_and_scipy_tell_of_all_of_it():
    x = drawn(0, 50, 7) + 0.3
    x[20, 4] = 40.0
    told = summed(x).told()
    flat = x.numpy()
    largest, by_channel, by_token = np.abs(flat).max(), np.abs(flat).max(0), np.abs(flat).max(1)
    assert told["max_over_rms"] == pytest.approx(largest / np.sqrt((flat**2).mean()))
    assert told["max_over_median"] == pytest.approx(float(by_channel.max() / torch.from_numpy(by_channel).median()))
    assert told["kurtosis"] == pytest.approx(scipy.stats.kurtosis(flat.ravel()))
    assert told["energy"] == pytest.approx((flat**2).sum(0).max() / (flat**2).sum())
    assert told["channel"] == 4
    assert told["tokens"] == (by_token > largest / 2).mean() == 1 / 50
    assert told["begin"] == 1.0  # token 20 begins a text
    steps = by_token / LEVELS
    error = flat - np.rint(flat / steps[:, None]) * steps[:, None]
    assert told["error_8_bits"] == pytest.approx(np.sqrt((error**2).sum() / (flat**2).sum()))


def test_pieces_of_text_do_not_matter_and_the_middle_of_the_range_is_that():
    x = drawn(1, 40, 5)
    one, many = summed(x, pieces=1), summed(x, pieces=8)
    assert one.told() == pytest.approx(many.told())
    torch.testing.assert_close(one.mean, x.mean(0))
    torch.testing.assert_close(one.mid_range, (x.amin(0) + x.amax(0)) / 2)


def test_weights_that_are_normal_have_the_kurtosis_of_a_normal_and_one_great_weight_is_spread_by_a_rotation():
    weight = drawn(2, 64, 256)
    assert kurtosis(weight) == pytest.approx(float(scipy.stats.kurtosis(weight.numpy().ravel())))
    assert abs(of_weights(weight, 64)["weight_kurtosis"]) < 0.15
    weight[:, 3] *= 30
    told = of_weights(weight, 64)
    assert told["weight_kurtosis"] > 100 > 5 > told["rotated_kurtosis"]
    assert told["incoherence"] == pytest.approx(float(weight.abs().max() * (64 * 256) ** 0.5 / weight.norm()))


@given(st.integers(0, 1000))
def test_at_the_middle_of_the_range_the_range_is_what_it_was_and_its_largest_number_is_half_of_it(seed: int):
    x = drawn(seed, 9, 4) + drawn(seed + 1, 4)
    middle = x - (x.amin(0) + x.amax(0)) / 2
    reach = x.amax(0) - x.amin(0)
    torch.testing.assert_close(middle.amax(0) - middle.amin(0), reach)
    torch.testing.assert_close(middle.abs().amax(0), reach / 2)


def test_rounding_by_token_is_to_nearest_on_a_grid_that_the_largest_number_ends():
    x = torch.tensor([[127.0, 0.4, -0.6], [0.0, 0.0, 0.0]])
    assert rounded_by_token(x).tolist() == [[127.0, 0.0, -1.0], [0.0, 0.0, 0.0]]


def test_a_learned_bias_is_no_worse_than_where_it_began_and_finds_a_channel_that_lies_aside():
    x = drawn(3, 200, 8)
    x[:, 5] += 50.0
    gram = torch.eye(8, dtype=torch.float64)

    def error(bias: torch.Tensor) -> float:
        return float((rounded_by_token(x - bias) - (x - bias)).square().sum())

    nothing = torch.zeros(8, dtype=torch.float64)
    at_the_mean = learned_bias(x, gram, x.mean(0))
    assert error(at_the_mean) <= error(x.mean(0)) < 0.01 * error(nothing)
    assert error(learned_bias(x, gram, nothing)) < error(nothing)
    assert torch.equal(learned_bias(x, gram, nothing, steps=0), nothing)


def test_one_massive_token_is_most_of_the_whole_error_and_one_of_many_in_the_error_of_each():
    x, weight = drawn(4, 100, 6), drawn(5, 9, 6)
    x[0] *= 1000
    gram, bias = weight.T @ weight, 0.1 * drawn(6, 6)
    lost = ((rounded_by_token(x - bias) - (x - bias)) @ weight.T).square().sum(1)
    each = lost / (x @ weight.T).square().sum(1)
    torch.testing.assert_close(product_error(x, gram, bias), lost.sum() / (x @ weight.T).square().sum())
    torch.testing.assert_close(product_error(x, gram, bias, relative=True), each.mean())
    assert lost[0] > 0.9 * lost.sum() and each[0] < 0.1 * each.sum()


@pytest.mark.parametrize("kind", ["gpt2", "starcoder2"])
def test_any_bias_of_channels_leaves_the_function_as_it_is(kind: str):
    module = make(kind, dtype=torch.float64, disturbed=True)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    before = module(ids).logits
    names = foldable(module)
    assert len(names) == 2 * len(layers(module))
    norms = {name: drawn(place, module.config.hidden_size) for place, name in enumerate(names)}
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fold(module, norms)
    torch.testing.assert_close(module(ids).logits, before, rtol=1e-10, atol=1e-10)
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, state[name])}
    assert len(changed) >= 4 and all(name.endswith("bias") for name in changed)


def test_a_model_whose_norms_have_no_bias_has_no_place_for_one():
    module = small_llama()
    assert foldable(module) == []
    with pytest.raises(SettingsError, match="has no place for a bias of its channels"):
        fold(module, {"model.layers.0.mlp_input": torch.zeros(64)})


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_table_names_the_channel_that_was_planted_and_quantizing_is_what_it_was(method: str):
    module = small_llama()
    with torch.no_grad():
        module.model.layers[1].input_layernorm.weight[9] = 60.0
    model = Model(module=module, tokenizer=small_tokenizer())
    settings: dict[str, Any] = {"method": method, "tokens": 1024, "length": 64, "group_size": 32, "refit": 0}
    with_table = burnish.Quantize(outliers=True, **settings)
    ledger_rows: list[dict[str, Any]] = []

    from burnish.core.ledger import Ledger

    original = Ledger.table

    def kept(self: Ledger, name: str, rows: Any) -> None:
        if name == "outliers":
            ledger_rows.extend(rows)
        original(self, name, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "table", kept)
        found = with_table(model, calibration=TEXT)
    plain = burnish.Quantize(**settings)(model, calibration=TEXT)
    assert len(ledger_rows) == 14
    assert {row["name"].split(".")[-2] for row in ledger_rows[:3]} == {"q_proj", "k_proj", "v_proj"}
    assert {(row["layer"], row["channel"]) for row in ledger_rows[:3]} == {(1, 9)}
    assert found.packed.keys() == plain.packed.keys()
    for name, tensors in plain.packed.items():
        for key, tensor in tensors.items():
            assert torch.equal(found.packed[name][key], tensor)


def test_with_stream_it_is_refused():
    model = Model(module=small_llama(), tokenizer=small_tokenizer())
    with pytest.raises(SettingsError, match="outliers is true, but it needs the whole model at once"):
        burnish.Quantize(method="gptq", outliers=True, stream=True, tokens=1024, length=64, group_size=32)(
            model, calibration=TEXT
        )
