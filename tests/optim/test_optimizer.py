"""What every optimizer of the room promises as a torch optimizer."""

import copy
import subprocess
import sys

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import COSMOS, SOAP, AdamW, Muon, NorMuon, optimizer_class
from burnish.optim.maths.rounding import stochastic_bfloat16

EVERY = [optimizer_class(name) for name in OPTIMIZER_CLASSES]
MATRIX = [NorMuon, Muon, COSMOS, SOAP]


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).to(dtype)


def groups(network):
    matrices = [p for p in network.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": rest, "algorithm": "adamw", "weight_decay": 0.0}]


def train(network, optimizer, steps, first=0):
    for step in range(first, first + steps):
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).to(network[0].weight.dtype)
        optimizer.zero_grad()
        network(inputs).float().square().mean().backward()
        optimizer.step()


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("optimizer_class", EVERY)
@pytest.mark.parametrize(
    "dtype, low", [(torch.float32, "master"), (torch.bfloat16, "master"), (torch.bfloat16, "stochastic")]
)
def test_a_state_dict_in_the_middle_continues_bit_identically(optimizer_class, dtype, low):
    network = model(dtype)
    optimizer = optimizer_class(groups(network), lr=0.01, low_precision=low)
    train(network, optimizer, 3)
    saved, other = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(network)
    train(network, optimizer, 3, first=3)
    resumed = optimizer_class(groups(other), lr=0.5)
    resumed.load_state_dict(saved)
    train(other, resumed, 3, first=3)
    assert torch.equal(weights(network), weights(other))


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_learns(optimizer_class):
    network = model()
    optimizer = optimizer_class(groups(network), lr=0.01, weight_decay=0.0)
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(9))
    before = network(inputs).square().mean()
    train(network, optimizer, 30)
    assert network(inputs).square().mean() < 0.5 * before


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_a_closure_is_evaluated_with_gradients(optimizer_class):
    network = model()
    optimizer = optimizer_class(groups(network), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = network(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_a_parameter_without_gradient_is_left_alone(optimizer_class):
    network = model()
    optimizer = optimizer_class(groups(network), lr=0.01, weight_decay=0.5)
    train(network, optimizer, 2)
    before = network[2].weight.detach().clone()
    optimizer.zero_grad()
    network[0](torch.ones(2, 6)).square().mean().backward()
    optimizer.step()
    assert torch.equal(network[2].weight, before)


@pytest.mark.parametrize("optimizer_class", MATRIX)
def test_schedulers_act_on_the_groups(optimizer_class):
    network = model()
    optimizer = optimizer_class(groups(network), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = weights(network)
    train(network, optimizer, 2)
    scheduler.step()
    assert torch.equal(weights(network), before)


def test_adamw_equals_torch():
    ours, theirs = model(torch.float64), model(torch.float64)
    inside = AdamW(ours.parameters(), lr=0.01, weight_decay=0.1)
    torch_optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    train(ours, inside, 5)
    train(theirs, torch_optimizer, 5)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-13)


def test_the_adamw_groups_of_a_matrix_optimizer_are_adamw():
    ours, theirs = model(torch.float64), model(torch.float64)
    inside = NorMuon([{"params": list(ours.parameters()), "algorithm": "adamw"}], lr=0.01)
    train(ours, inside, 5)
    train(theirs, AdamW(theirs.parameters(), lr=0.01), 5)
    assert torch.equal(weights(ours), weights(theirs))


def test_every_group_may_name_its_algorithm():
    network = model()
    optimizer = NorMuon(
        [
            {"params": [network[0].weight], "algorithm": "cosmos", "rank": 2},
            {"params": [network[2].weight]},
            {"params": [network[0].bias, network[2].bias], "algorithm": "adamw"},
        ],
        lr=0.01,
    )
    train(network, optimizer, 3)
    assert set(optimizer.state[network[0].weight]) > {"basis0"}
    assert set(optimizer.state[network[2].weight]) == {"momentum", "second_moment"}


@pytest.mark.parametrize("low", ["master", "stochastic"])
def test_updates_below_half_a_unit_are_not_lost_in_bfloat16(low):
    parameter = torch.nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16))
    optimizer = NorMuon([parameter], lr=1e-3, weight_decay=0.0, low_precision=low)
    gradient = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).abs()
    for _ in range(40):
        parameter.grad = gradient.bfloat16()
        optimizer.step()
    # One step moves about 2e-4, half a unit in the last place of 1 is 2e-3.
    moved = 1 - parameter.detach().double().mean().item()
    assert 0.0005 < moved < 0.01


def test_state_of_bfloat16_weights_is_float32():
    parameter = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = NorMuon([parameter], lr=1e-3)
    optimizer.load_state_dict(optimizer.state_dict())
    assert {tensor.dtype for tensor in optimizer.state[parameter].values()} == {torch.float32}


def test_stochastic_rounding_is_right_on_average_and_always_a_neighbour():
    value = torch.full((100_000,), 1.0 + 0.3 * 2**-7)
    rounded = stochastic_bfloat16(value, torch.Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    share = (rounded > 1).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 100_000) ** 0.5  # five standard errors


def test_stochastic_rounding_keeps_what_bfloat16_can_hold():
    exact = torch.tensor([0.0, 1.0, -2.5, float("inf"), float("-inf")])
    assert torch.equal(stochastic_bfloat16(exact).float(), exact)


# -- bad input ---------------------------------------------------------------------------------------------------------


def matrix(dtype=torch.float32):
    return torch.nn.Parameter(torch.ones(4, 3, dtype=dtype))


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("nan")])
@pytest.mark.parametrize("optimizer_class", EVERY)
def test_a_learning_rate_must_be_positive(optimizer_class, lr):
    with pytest.raises(SettingsError, match="must be positive"):
        optimizer_class([matrix()], lr=lr)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (-0.1, 0.9), (0.9, 1.5)])
@pytest.mark.parametrize("optimizer_class", [NorMuon, COSMOS, SOAP, AdamW])
def test_betas_out_of_range_are_refused(optimizer_class, betas):
    with pytest.raises(SettingsError, match="betas are"):
        optimizer_class([matrix()], lr=1e-3, betas=betas)


def test_a_parameter_in_two_groups_is_refused():
    shared = matrix()
    with pytest.raises(SettingsError, match="given twice"):
        NorMuon([{"params": [shared]}, {"params": [shared]}], lr=1e-3)


def test_a_vector_without_an_algorithm_is_refused():
    with pytest.raises(SettingsError, match='put it into a group with algorithm="adamw"'):
        NorMuon([torch.nn.Parameter(torch.ones(4))], lr=1e-3)


def test_an_unknown_algorithm_suggests_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'normuon'"):
        NorMuon([{"params": [matrix()], "algorithm": "normoun"}], lr=1e-3)


def test_float16_is_refused():
    with pytest.raises(SettingsError, match="weights are float16"):
        NorMuon([matrix(torch.float16)], lr=1e-3)


def test_flattened_parameters_of_fsdp1_are_refused():
    flat = torch.nn.Parameter(torch.ones(12))
    flat._is_flat_param = True
    with pytest.raises(SettingsError, match="FSDP1 has flattened"):
        NorMuon([{"params": [flat], "algorithm": "adamw"}], lr=1e-3)


def test_an_empty_group_is_refused():
    with pytest.raises(SettingsError, match="has no parameters"):
        NorMuon([{"params": []}], lr=1e-3)


def test_an_explicit_zero_decay_is_honoured():
    optimizer = NorMuon([{"params": [matrix()], "weight_decay": 0.0}], lr=1e-3, weight_decay=0.3)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_importing_the_room_needs_neither_pydantic_nor_transformers():
    code = "import sys, burnish.optim; print([m for m in ('pydantic', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
