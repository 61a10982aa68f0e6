"""WSAM as ATorch's program takes it, and its limits: the base optimizer, and sharpness-aware minimisation."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.core.errors import NumericalError, SettingsError
from burnish.optim import WSAM, AdamW

NUMBERS = np.load(Path(__file__).parents[1] / "reference" / "optim" / "wsam_atorch_f64.npz", allow_pickle=False)


class Bowl(torch.nn.Module):
    """A curved loss of a matrix and a vector."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.w, self.b = (torch.nn.Parameter(torch.tensor(NUMBERS[key], dtype=dtype)) for key in ("w0", "b0"))
        self.a = torch.tensor(NUMBERS["A"], dtype=dtype)

    def forward(self):
        x = self.w + self.b
        return ((x @ self.a) * x).sum() / 2 + x.pow(4).sum() / 4

    def closure(self):
        self.zero_grad()
        loss = self()
        loss.backward()
        return loss


def adamw(model, kind=torch.optim.AdamW, **options):
    return kind(model.parameters(), **{"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1} | options)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, AdamW])
@pytest.mark.parametrize(
    "name, options",
    [
        ("decoupled", {"gamma": 0.88}),
        ("coupled", {"gamma": 0.5, "decouple": False}),
        ("coupled9", {"gamma": 0.9, "decouple": False}),
        ("adaptive", {"gamma": 0.88, "adaptive": True, "rho": 0.2}),
    ],
)
def test_wsam_follows_atorch(kind, name, options):
    model = Bowl()
    optimizer = WSAM(adamw(model, kind), **options)
    for step in range(1, 7):
        optimizer.step(model.closure)
        for key, parameter in (("w", model.w), ("b", model.b)):
            expected = torch.tensor(NUMBERS[f"{name}/{key}{step}"])
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("decouple", [True, False])
def test_gamma_0_is_the_base_optimizer(decouple):
    ours, theirs = Bowl(), Bowl()
    optimizer, base = WSAM(adamw(ours), gamma=0.0, decouple=decouple), adamw(theirs)
    for _ in range(4):
        assert optimizer.step(ours.closure) == base.step(theirs.closure)
    assert torch.equal(ours.w, theirs.w) and torch.equal(ours.b, theirs.b)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("fault", ["nan", "error"])
def test_a_failed_pass_changes_nothing(call, fault):
    model, calls = Bowl(), 0
    optimizer = WSAM(adamw(model))
    before = model.w.detach().clone()

    def closure():
        nonlocal calls
        calls += 1
        loss = model.closure()
        if calls == call and fault == "error":
            raise KeyError("data")
        if calls == call:
            model.b.grad[0] = float("nan")
        return loss

    with pytest.raises(KeyError if fault == "error" else NumericalError):
        optimizer.step(closure)
    assert torch.equal(model.w, before) and not optimizer.base.state


def test_schedulers_new_groups_and_saved_states_are_those_of_the_base_optimizer():
    model, other = Bowl(), Bowl()
    optimizer, again = WSAM(adamw(model)), WSAM(adamw(other))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step(model.closure)
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.01
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((optimizer, model), (again, other)):
        one.step(its.closure)
    assert torch.equal(model.w, other.w)
    late = torch.nn.Parameter(torch.ones(2))
    again.add_param_group({"params": [late], "lr": 0.5})
    assert again.base.param_groups[-1]["params"] == [late] and len(again.param_groups) == 2
    again.param_groups[-1]["lr"] = 0.25
    assert again.base.param_groups[-1]["lr"] == 0.25


def test_a_copy_steps_its_own_model():
    model = Bowl()
    optimizer = WSAM(adamw(model, AdamW))
    optimizer.step(model.closure)
    other, again = copy.deepcopy((model, optimizer))
    for one, its in ((optimizer, model), (again, other)):
        one.step(its.closure)
    assert other.w is not model.w and torch.equal(other.w, model.w)
    assert again.param_groups is again.base.param_groups


def test_batch_norms_see_a_batch_once():
    def seen(make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        inputs = torch.randn(8, 3)

        def closure():
            model.zero_grad()
            loss = model(inputs).pow(3).sum()
            loss.backward()
            return loss

        make(model).step(closure)
        return model[1]

    plain = seen(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    ours = seen(lambda model: WSAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model))
    assert ours.num_batches_tracked == 1 and torch.equal(ours.running_mean, plain.running_mean)
    assert ours.track_running_stats


@pytest.mark.parametrize("options", [{"rho": -1.0}, {"rho": float("nan")}, {"gamma": 1.0}, {"gamma": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        WSAM(adamw(Bowl()), **options)


def test_what_it_cannot_step_is_refused():
    with pytest.raises(SettingsError, match="neither float32 nor float64"):
        WSAM(torch.optim.SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], lr=0.1))
    with pytest.raises(SettingsError, match="two gradients"):
        WSAM(adamw(Bowl())).step()
