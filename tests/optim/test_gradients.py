"""One policy for gradients that no update can be made of."""

import copy

import pytest
import torch

from burnish.core.errors import NumericalError, SettingsError
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import COSMOS, SOAP, Muon, NorMuon, optimizer_class

EVERY = [optimizer_class(name) for name in OPTIMIZER_CLASSES]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bad_gradient_is_refused_before_anything_is_changed(kind, bad, dtype):
    parameters = [torch.nn.Parameter(torch.ones(4, 3, dtype=dtype)) for _ in range(2)]
    optimizer = kind([("good", parameters[0]), ("bad", parameters[1])], lr=0.01)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
        optimizer.step()
    before = copy.deepcopy(parameters), copy.deepcopy(optimizer.state_dict())
    parameters[1].grad[1, 2] = bad
    with pytest.raises(NumericalError, match="the gradient of bad is not finite, or too large"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before[0], strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], before[1]["state"], rtol=0, atol=0)
    assert optimizer.state_dict()["param_groups"] == before[1]["param_groups"]


def test_a_norm_that_is_known_saves_reading_the_gradients_and_one_that_is_too_large_does_not(monkeypatch):
    import burnish.optim.optimizer as module

    read = []
    monkeypatch.setattr(module, "without_norm", lambda gradients: read.append(len(gradients)) or [])
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    optimizer = NorMuon([parameter])
    for norm in (3.5, 0.0, 1e30, float("inf"), float("nan"), -1.0, None):
        optimizer.step(gradient_norm=norm)
    assert read == [1] * 5
    with pytest.raises(SettingsError, match="closure"):
        optimizer.step(lambda: None, gradient_norm=1.0)


def test_adamw_in_stretches_takes_the_steps_of_the_whole(monkeypatch):
    import burnish.optim.adamw as module

    def trained():
        generator = torch.Generator().manual_seed(2)
        shapes = [(37, 29), (3,), (), (64, 64), (0,), (130,)]
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in shapes]
        optimizer = optimizer_class("adamw")(parameters, lr=0.01)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
            optimizer.step()
        return [*parameters, *(tensor for state in optimizer.state.values() for tensor in state.values())]

    whole = trained()
    monkeypatch.setattr(module, "SLICE_ELEMENTS", {"cpu": 256})
    for ours, theirs in zip(trained(), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_gradients_of_any_other_size_are_stepped(kind, size):
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    optimizer = kind([parameter], lr=0.01, weight_decay=0.0)
    for step in range(4):
        parameter.grad = size * torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    assert parameter.isfinite().all() and not torch.equal(parameter, torch.zeros(4, 3))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("option", [{"lr": float("inf")}, {"weight_decay": float("inf")}, {"weight_decay": True}])
def test_options_that_are_no_numbers_are_refused_everywhere(kind, option):
    with pytest.raises(SettingsError, match="must be"):
        kind([torch.nn.Parameter(torch.ones(4, 3))], **option)


@pytest.mark.parametrize(
    "kind, option",
    [
        (NorMuon, {"eps": -1.0}),
        (NorMuon, {"ns_steps": 2.5}),
        (Muon, {"ns_steps": 0}),
        (Muon, {"ns_eps": -1e-7}),
        (Muon, {"ns_eps": "small"}),
        (Muon, {"ns_clamp": 1}),
        (COSMOS, {"eps": -1e-8}),
        (COSMOS, {"gamma": float("inf")}),
        (SOAP, {"eps": float("nan")}),
        (SOAP, {"precondition_frequency": 2.5}),
        (NorMuon, {"adamw_eps": -1.0}),
        (NorMuon, {"adamw_lr": float("inf")}),
    ],
)
def test_options_out_of_range_are_refused(kind, option):
    parameters = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(4))]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "algorithm": "adamw"}]
    with pytest.raises(SettingsError, match="must"):
        kind(groups, **option)


def test_ns_eps_moves_where_small_matrices_end():
    small = 1e-11 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = {}
    for eps in (None, 1e-14):
        parameter = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
        parameter.grad = small
        Muon([parameter], lr=1.0, scale="none", weight_decay=0.0, ns_eps=eps).step()
        steps[eps] = torch.linalg.svdvals(parameter.detach())
    assert steps[1e-14].min() > 0.6 and steps[None].max() < 0.6
