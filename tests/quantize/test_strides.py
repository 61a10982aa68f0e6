"""Rounding stride by stride: its limits, its exact cost, and convolutions as linear layers over patches."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from burnish.core.errors import NumericalError, SettingsError
from burnish.quantize.maths.grid import integer_grid
from burnish.quantize.maths.rounding import round_two_sided
from burnish.quantize.maths.strides import round_by_strides
from burnish.quantize.strides import (
    bit_map,
    drawn_noise,
    patch_sums,
    patches,
    round_network,
    sensitivities,
    uniform_map,
    weight_groups,
)


def problem(seed: int, rows: int = 5, columns: int = 12):
    """Weight, factor, grid, and the grid's nearest values of some columns, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64)
    factor = inputs.T @ inputs + torch.eye(columns, dtype=torch.float64)
    grid = integer_grid(weight, bits=3, group_size=columns)

    def nearest(values, part):
        return grid.nearest(values, *(parameter[:, part] for parameter in grid.parameters()))

    return weight, factor, grid, nearest


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_a_stride_of_one_column_is_gptq_in_the_same_order(seed):
    weight, factor, grid, nearest = problem(seed)
    rounded = round_by_strides(weight, factor, nearest, stride=1, order=range(11, -1, -1))
    assert torch.equal(rounded.values, round_two_sided(weight, None, factor, grid, order="natural"))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_costs_are_what_the_objective_grows_by(seed, stride):
    weight, factor, _, nearest = problem(seed)
    rounded = round_by_strides(weight, factor, nearest, stride=stride)
    error = weight - rounded.values
    torch.testing.assert_close(rounded.costs.sum(), (error @ factor * error).sum() / 2, rtol=1e-8, atol=1e-12)
    assert sorted(rounded.order.tolist()) == list(range(-(-12 // stride)))


def test_a_stride_of_all_columns_is_nearest_rounding():
    weight, factor, _, nearest = problem(0)
    rounded = round_by_strides(weight, factor, nearest, stride=12)
    assert torch.equal(rounded.values, nearest(weight, slice(0, 12)))


def test_the_first_stride_is_the_one_that_would_cost_least_as_the_first():
    weight, factor, _, nearest = problem(1)
    first = int(round_by_strides(weight, factor, nearest, stride=3).order[0])
    others = [[one, *(other for other in range(4) if other != one)] for one in range(4)]
    alone = [
        float(round_by_strides(weight, factor, nearest, stride=3, order=order).costs[order[0]]) for order in others
    ]
    assert first == min(range(4), key=alone.__getitem__)


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "padded, strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)),
    "same": nn.Conv2d(4, 6, (3, 5), padding="same"),
    "reflecting": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "one dimension": nn.Conv1d(4, 6, 3, padding=1, stride=2),
    "linear": nn.Linear(4, 6),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_is_its_weight_times_patches(kind):
    layer = copy.deepcopy(CONVOLUTIONS[kind]).double()
    shape = {"one dimension": (2, 4, 9), "linear": (2, 7, 4)}.get(kind, (2, 4, 7, 8))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, weight = patches(layer, inputs), weight_groups(layer)
    product = (rows @ weight.mT).transpose(0, 1).flatten(1)  # places of all examples, channels
    expected = layer(inputs) - (layer.bias if kind == "linear" else layer.bias.view(-1, *[1] * (inputs.dim() - 2)))
    channels_last = expected if kind == "linear" else expected.movedim(1, -1)
    torch.testing.assert_close(product, channels_last.reshape(product.shape), rtol=1e-12, atol=1e-12)


def test_a_convolution_is_rounded_as_the_linear_layer_over_its_patches():
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    inputs = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
    rows = patches(convolution, inputs)[0]
    linear = nn.Linear(27, 5, bias=False).double()
    linear.weight.data.copy_(convolution.weight.data.flatten(1))

    class Summed(nn.Module):  # so that noise, drawn for every output, is drawn for the same things
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, given):
            out = self.layer(given)
            return out if out.dim() == 2 else out.movedim(1, -1).flatten(0, 2)

    found = []
    for layer, given_ in ((convolution, inputs), (linear, rows)):
        network = Summed(layer)
        sums = patch_sums(network, [given_], loss=drawn_noise)
        sums["layer"].stride = 9
        round_network(network, sums, uniform_map(network, sums, 3))
        found.append((layer.weight.data.flatten(1), sums["layer"].input_side, sums["layer"].output_side))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class Small(nn.Module):
    """A causal convolution that pads on both sides and cuts off the end, a depthwise one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.causal = nn.Conv1d(3, 8, 4, padding=3)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, signal):
        causal = self.causal(signal)[..., : signal.shape[-1]].relu()
        return self.head(self.depthwise(causal).relu().mean(-1))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(3, 3, 2)

    def forward(self, signal):
        return self.layer(signal), None


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def signals() -> torch.Tensor:
    return torch.randn(64, 3, 20, generator=torch.Generator().manual_seed(1))


def test_places_that_are_cut_off_count_for_nothing(signals):
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(3, 8, 4, padding=3)

        def forward(self, signal):
            return self.layer(signal)[..., : signal.shape[-1]]

    found = patch_sums(Causal(), [signals], loss=drawn_noise)["layer"].covariance[0]
    kept = functional.pad(signals, (3, 0)).unfold(2, 4, 1).transpose(1, 2).flatten(2).flatten(0, 1).double()
    torch.testing.assert_close(found, kept.T @ kept, rtol=1e-10, atol=1e-10)


def test_collecting_leaves_the_network_as_it_was(network, signals):
    network.train()
    network.head.weight.requires_grad_(False)
    patch_sums(network, [signals[:8]])
    assert network.training and not network.head.weight.requires_grad and network.causal.weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("by", ["layer", "stride"])
def test_chosen_widths_keep_to_the_budget_and_foretell_no_more_than_one_width(by, network, signals):
    sums = patch_sums(network, signals.split(16))
    found = bit_map(network, sums, bits=3.0, by=by)
    total = used = chosen = uniform = 0.0
    for name, widths in found.items():
        layer = dict(network.named_modules())[name]
        weight, stride = weight_groups(layer), sums[name].stride
        each = sensitivities(weight, sums[name], range(2, 9), stride=stride)
        chosen += float(each.gather(2, (widths - 2).unsqueeze(2)).sum())
        uniform += float(each[:, :, 1].sum())
        columns = torch.tensor([min(stride, weight.shape[2] - s) for s in range(0, weight.shape[2], stride)])
        used += float((widths * columns).sum() * weight.shape[1])
        total += weight.numel()
    assert used <= 3 * total and chosen <= uniform
    if by == "layer":
        assert all(len(widths.unique()) == 1 for widths in found.values())


def test_what_is_rounded_lies_on_the_grid_of_its_width(network, signals):
    sums = patch_sums(network, [signals])
    before = weight_groups(network.causal)
    widths = bit_map(network, sums, bits=3.5, by="stride")
    rows = round_network(network, sums, widths)
    assert [row["layer"] for row in rows] == ["causal", "depthwise", "head"]
    after = weight_groups(network.causal)[0]
    for place, width in enumerate(widths["causal"][0].tolist()):
        step = integer_grid(before[0], bits=width, group_size=12, signed=True).parameters()[0]
        levels = (after / step)[:, 4 * place : 4 * place + 4]
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)


def test_other_content_gives_other_widths_over_the_same_weights(network):
    """Channels that are silent in one kind of content need no bits there."""
    generator = torch.Generator().manual_seed(2)
    loud, silent = torch.randn(64, 3, 20, generator=generator), torch.randn(64, 3, 20, generator=generator)
    loud[:, 1:], silent[:, :1] = 0, 0
    maps = [bit_map(network, patch_sums(network, [some]), bits=3.0, by="stride") for some in (loud, silent)]
    assert maps[0]["causal"][0, 0] > maps[0]["causal"][0, 1:].max()
    assert maps[1]["causal"][0, 0] < maps[1]["causal"][0, 1:].max()


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.ConvTranspose1d(3, 3, 2), "transposed"),
        (nn.Conv1d(3, 3, 2, dilation=2), "dilation 2"),
        (nn.ReLU(), "no linear"),
    ],
)
def test_what_is_no_matrix_over_patches_is_refused_in_words(layer, what):
    with pytest.raises(SettingsError, match=what):
        patch_sums(nn.Sequential(layer), [torch.randn(2, 3, 8)])


def test_wrong_settings_are_refused_in_words(network, signals):
    with pytest.raises(SettingsError, match="does not have"):
        patch_sums(network, [signals], ignore=["nowhere"])
    with pytest.raises(SettingsError, match="examples first"):
        patch_sums(nn.Sequential(network.causal), [signals[0]])
    with pytest.raises(SettingsError, match="batch without examples"):
        patch_sums(network, [signals[:0]])
    with pytest.raises(NumericalError, match="outputs that are not finite"):
        patch_sums(network, [signals * float("nan")])
    with pytest.raises(SettingsError, match="wrap it"):
        patch_sums(_Pair(), [signals])
    with pytest.raises(SettingsError, match="not reached"):
        patch_sums(network, [])
    sums = patch_sums(network, [signals])
    with pytest.raises(SettingsError, match="2 to 8"):
        bit_map(network, sums, bits=1.5)
    with pytest.raises(SettingsError, match="shape that the sums"):
        round_network(nn.Sequential(nn.Linear(3, 3)), sums, uniform_map(network, sums, 3))
    assert set(patch_sums(network, [signals], ignore=["head"])) == {"causal", "depthwise"}
