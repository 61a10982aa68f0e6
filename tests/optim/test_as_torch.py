"""What torch's own test suite asks of every optimizer, asked of ours: copies, pickles, hooks, groups, shapes, state.

The list of facts is that of `test/test_optim.py` of PyTorch; the bad constructions come from its testing package.
"""

import copy
import io
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LinearLR, ReduceLROnPlateau, StepLR

from burnish.core.errors import BurnishError, SettingsError
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import optimizer_class

EVERY = [optimizer_class(name) for name in OPTIMIZER_CLASSES]
every = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
LR = 0.01


def problem(*, dtype=torch.float32, transposed=False):
    """Two parameters, groups for them, and a closure's loss; the matrix may be stored the other way round."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(10, 5, generator=generator)
    weight = torch.nn.Parameter((weight.T.contiguous().T if transposed else weight).to(dtype))
    bias = torch.nn.Parameter(torch.randn(10, generator=generator).to(dtype))
    inputs = torch.randn(5, generator=generator).to(dtype)
    groups = [{"params": [weight]}, {"params": [bias], "algorithm": "adamw"}]
    return [weight, bias], groups, lambda: (weight.mv(inputs) + bias).square().sum()


def stepped(optimizer, loss, steps=3):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        value = optimizer.step(closure)
    return value


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def copied(parameters):
    """Equal parameters with a loss of their own, made by the same seed."""
    others, groups, loss = problem(dtype=parameters[0].dtype)
    with torch.no_grad():
        for other, parameter in zip(others, parameters, strict=True):
            other.copy_(parameter)
    return others, groups, loss


# -- copies ------------------------------------------------------------------------------------------------------------


@every
def test_a_copy_with_its_model_goes_on_alike_and_alone(kind):
    model = torch.nn.Linear(5, 4)
    optimizer = kind([{"params": [model.weight]}, {"params": [model.bias], "algorithm": "adamw"}], lr=LR)
    inputs = torch.ones(3, 5)
    stepped(optimizer, lambda: model(inputs).square().sum())
    other, its_optimizer = copy.deepcopy((model, optimizer))
    stepped(its_optimizer, lambda: other(inputs).square().sum())
    assert not torch.equal(model.weight, other.weight)
    stepped(optimizer, lambda: model(inputs).square().sum())
    assert same(model.parameters(), other.parameters())


@every
def test_a_pickle_with_its_model_goes_on_alike(kind):
    model = torch.nn.Linear(5, 4)
    optimizer = kind([{"params": [model.weight]}, {"params": [model.bias], "algorithm": "adamw"}], lr=LR)
    inputs = torch.ones(3, 5)
    stepped(optimizer, lambda: model(inputs).square().sum())
    other, its_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    for module, one in ((model, optimizer), (other, its_optimizer)):
        stepped(one, lambda module=module: module(inputs).square().sum())
    assert same(model.parameters(), other.parameters())


@every
@pytest.mark.parametrize("through", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), lambda it: it])
def test_a_group_can_be_added_after_the_start_also_to_a_copy(kind, through):
    _, groups, loss = problem()
    optimizer = kind(groups[:1], lr=LR)
    stepped(optimizer, loss)
    optimizer = through(optimizer)
    late = torch.nn.Parameter(torch.ones(4, 3))
    optimizer.add_param_group({"params": [late], "lr": 0.05})
    for _ in range(2):
        late.grad = torch.ones(4, 3)
        optimizer.step()
    assert not torch.equal(late, torch.ones(4, 3)) and late in optimizer.state


@every
def test_a_copy_has_all_public_attributes(kind):
    optimizer = kind(problem()[1], lr=LR)
    copied, public = copy.deepcopy(optimizer), [name for name in vars(optimizer) if not name.startswith("_")]
    assert public == [name for name in vars(copied) if not name.startswith("_")]
    assert repr(copy.deepcopy(optimizer)) == repr(optimizer)


@every
def test_a_group_that_was_refused_leaves_nothing_behind(kind):
    optimizer = kind(problem()[1], lr=LR)
    late = torch.nn.Parameter(torch.ones(4, 3))
    with pytest.raises(SettingsError, match="lr is -1"):
        optimizer.add_param_group({"params": [late], "lr": -1.0})
    optimizer.add_param_group({"params": [late]})
    assert len(optimizer.param_groups) == 3


# -- state -------------------------------------------------------------------------------------------------------------


@every
def test_a_saved_state_is_deterministic_and_left_as_it_is(kind):
    parameters, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    stepped(optimizer, loss)
    others, their_groups, their_loss = copied(parameters)
    other = kind(their_groups, lr=LR)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other.load_state_dict(saved)
    stepped(other, their_loss)
    assert_equal_states(saved, before)
    stepped(optimizer, loss)
    assert same(parameters, others)
    assert_equal_states(optimizer.state_dict(), other.state_dict())


def assert_equal_states(one, two):
    assert one["param_groups"] == two["param_groups"]
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)


@every
def test_a_state_survives_a_file_that_holds_weights_only(kind):
    parameters, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    stepped(optimizer, loss)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_equal_states(loaded, optimizer.state_dict())
    _, groups, _ = copied(parameters)
    kind(groups, lr=LR).load_state_dict(loaded)


@every
def test_steps_that_were_saved_as_plain_numbers_are_loaded(kind):
    _, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    stepped(optimizer, loss)
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in saved["state"].values():
        for key in ("step", "started"):
            if key in entries:
                entries[key] = float(entries[key])
    optimizer.load_state_dict(saved)
    stepped(optimizer, loss)
    assert all(isinstance(value, torch.Tensor) for state in optimizer.state.values() for value in state.values())


@every
def test_a_state_without_a_newer_option_is_loaded_with_the_option_as_it_is_here(kind):
    _, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["num_steps"]
        del group["weight_decay"]
    optimizer.load_state_dict(saved)
    stepped(optimizer, loss)
    assert optimizer.param_groups[0]["weight_decay"] == kind.defaults()["weight_decay"]


@every
def test_another_number_of_groups_or_parameters_is_refused_as_torch_does(kind):
    _, groups, _ = problem()
    saved = kind(groups, lr=LR).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        kind(problem()[1][:1], lr=LR).load_state_dict(saved)
    more = problem()[1]
    more[0]["params"].append(torch.nn.Parameter(torch.ones(3, 3)))
    with pytest.raises(ValueError, match="doesn't match the size"):
        kind(more, lr=LR).load_state_dict(saved)


# -- hooks -------------------------------------------------------------------------------------------------------------


@every
def test_hooks_are_called_around_steps_and_around_saving_and_loading(kind):
    _, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before step"))
    optimizer.register_step_post_hook(lambda *_: called.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("before save"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("after save"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("after load"))
    stepped(optimizer, loss, steps=1)
    optimizer.load_state_dict(optimizer.state_dict())
    moments = ["step", "save", "load"]
    assert called == [f"{when} {moment}" for moment in moments for when in ("before", "after")]


@every
def test_a_hook_can_replace_the_state_that_is_loaded(kind):
    optimizer = kind(problem()[1], lr=LR)

    def other_rate(_, state):
        state = copy.deepcopy(state)
        for group in state["param_groups"]:
            group["lr"] = 0.25
        return state

    optimizer.register_load_state_dict_pre_hook(other_rate)
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# -- groups and rates --------------------------------------------------------------------------------------------------


@every
def test_a_group_has_its_own_rate_and_decay(kind):
    still = [torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2)]
    optimizer = kind([{"params": still[:1], "weight_decay": 0.5}, {"params": still[1:], "lr": 1e-12}], lr=0.1)
    for _ in range(2):
        for parameter in still:
            parameter.grad = torch.zeros(4, 3)
        optimizer.step()
    assert still[0].max() < 1 and torch.allclose(still[1], torch.ones(4, 3), rtol=0, atol=1e-6)


SCHEDULES = [
    lambda optimizer: StepLR(optimizer, gamma=0.9, step_size=10),
    lambda optimizer: LinearLR(optimizer, start_factor=0.4, total_iters=4),
    lambda optimizer: ExponentialLR(optimizer, gamma=0.99),
    lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
]


@every
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("transposed", [False, True])
def test_goes_down_with_schedules_whatever_the_storage(kind, schedule, transposed):
    _, groups, loss = problem(transposed=transposed)
    optimizer = kind(groups, lr=LR, weight_decay=0.0)
    scheduler, plateau = schedule(optimizer), ReduceLROnPlateau(optimizer)
    first = loss().item()
    for _ in range(10):
        value = stepped(optimizer, loss, steps=1)
        scheduler.step()
        plateau.step(value)
    assert loss().item() < first


@every
def test_the_rate_may_be_a_tensor(kind):
    parameters, groups, loss = problem()
    others, their_groups, their_loss = copied(parameters)
    stepped(kind(groups, lr=LR), loss)
    stepped(kind(their_groups, lr=torch.tensor(LR, dtype=torch.float64)), their_loss)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(parameters, others, strict=True))


# -- gradients ---------------------------------------------------------------------------------------------------------


@every
def test_without_gradients_nothing_happens(kind):
    parameters, groups, _ = problem()
    optimizer = kind(groups, lr=LR, weight_decay=0.5)
    before, state = copy.deepcopy(parameters), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step()
    assert same(parameters, before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@every
def test_zero_gradients_from_the_start_move_nothing(kind):
    parameters, groups, _ = problem()
    optimizer = kind(groups, lr=LR, weight_decay=0.0)
    before = copy.deepcopy(parameters)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert same(parameters, before)


@every
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_clears(kind, to_none):
    parameters, groups, loss = problem()
    optimizer = kind(groups, lr=LR)
    loss().backward()
    optimizer.zero_grad(set_to_none=to_none)
    assert all(p.grad is None if to_none else not p.grad.any() for p in parameters)


def strange(gradient, how):
    """Equal numbers with other strides."""
    match how:
        case "transposed":
            return gradient.T.contiguous().T
        case "cut out":
            return torch.stack([gradient, gradient], dim=-1)[..., 0]
        case "flipped":
            return gradient.flip(0).as_strided(gradient.shape, gradient.stride()).flip(0)


@every
@pytest.mark.parametrize("how", ["transposed", "cut out", "flipped"])
def test_strides_of_a_gradient_do_not_matter(kind, how):
    parameters, groups, _ = problem()
    others, their_groups, _ = copied(parameters)
    groups[1]["params"].append(extra := torch.nn.Parameter(torch.ones(6, 4)))
    their_groups[1]["params"].append(its_extra := torch.nn.Parameter(torch.ones(6, 4)))
    ours, theirs = kind(groups, lr=0.1), kind(their_groups, lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for one, other in zip([*parameters, extra], [*others, its_extra], strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = strange(one.grad, how) if one.ndim == 2 else one.grad.clone()
        ours.step()
        theirs.step()
    assert same(others, parameters) and torch.equal(extra, its_extra)


@every
def test_an_expanded_gradient_is_stepped_like_a_whole_one(kind):
    ours, theirs = ([torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2)] for _ in range(2))

    def groups(parameters):
        return [{"params": parameters[:1]}, {"params": parameters[1:], "algorithm": "adamw"}]

    optimizers = kind(groups(ours), lr=0.1), kind(groups(theirs), lr=0.1)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            other.grad = torch.tensor([[0.3]]).expand(6, 4)
            one.grad = other.grad.contiguous()
        for optimizer in optimizers:
            optimizer.step()
    assert same(ours, theirs) and all(p.isfinite().all() for p in theirs)


@every
def test_a_parameter_that_is_cut_out_of_another_tensor_is_stepped_like_a_whole_one(kind):
    base = torch.arange(24.0).reshape(4, 3, 2)
    part, whole = torch.nn.Parameter(base[..., 0]), torch.nn.Parameter(base[..., 0].clone())
    for algorithm in ({}, {"algorithm": "adamw"}):
        part, whole = torch.nn.Parameter(base[..., 0].detach()), torch.nn.Parameter(base[..., 0].clone())
        optimizers = [kind([{"params": [parameter], **algorithm}], lr=0.1) for parameter in (part, whole)]
        for step in range(3):
            gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            for parameter, optimizer in zip((part, whole), optimizers, strict=True):
                parameter.grad = gradient.clone()
                optimizer.step()
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)


def test_a_state_that_was_saved_contiguous_is_laid_out_as_the_parameter():
    ours, theirs = (torch.nn.Parameter(torch.ones(4, 3).T) for _ in range(2))
    optimizers = [optimizer_class("adamw")([parameter], lr=0.1) for parameter in (ours, theirs)]
    for step in range(4):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        saved = copy.deepcopy(optimizers[1].state_dict())
        for key in ("exp_avg", "exp_avg_sq"):
            saved["state"][0][key] = saved["state"][0][key].contiguous()
        optimizers[1].load_state_dict(saved)
    assert torch.equal(ours, theirs)


# -- shapes and kinds --------------------------------------------------------------------------------------------------


@every
def test_empty_and_scalar_parameters_are_stepped_beside_others(kind):
    empty, scalar = torch.nn.Parameter(torch.empty(0, 5)), torch.nn.Parameter(torch.tensor(2.0))
    parameters, groups, loss = problem()
    groups[1]["params"] += [empty, scalar]
    optimizer = kind(groups, lr=LR)
    for _ in range(3):
        optimizer.zero_grad()
        (loss() + scalar.square() + empty.sum()).backward()
        optimizer.step()
    assert scalar < 2 and all(p.isfinite().all() for p in parameters)


@every
def test_an_empty_matrix_is_stepped(kind):
    empty, other = torch.nn.Parameter(torch.empty(0, 5)), torch.nn.Parameter(torch.ones(4, 5))
    optimizer = kind([empty, other], lr=LR)
    for _ in range(3):
        for parameter in (empty, other):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert other.isfinite().all() and not torch.equal(other, torch.ones(4, 5))


@every
def test_complex_parameters_are_refused(kind):
    with pytest.raises(SettingsError, match="weights are complex64"):
        kind([torch.nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))], lr=LR)


@every
def test_sparse_parameters_and_gradients_are_refused(kind):
    with pytest.raises(SettingsError, match="sparse"):
        kind([torch.nn.Parameter(torch.eye(3).to_sparse())], lr=LR)
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = kind([parameter], lr=LR)
    parameter.grad = torch.eye(3).to_sparse()
    with pytest.raises(SettingsError, match="gradients are sparse"):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(3, 3))


@every
def test_options_of_torch_that_do_not_exist_here_are_refused(kind):
    torchs = {"foreach", "fused", "capturable", "differentiable", "maximize", "amsgrad"}
    for option in sorted(torchs - set(kind.option_names())):
        with pytest.raises(TypeError, match=option):
            kind([torch.nn.Parameter(torch.ones(3, 3))], lr=LR, **{option: True})


@every
@pytest.mark.slow
def test_what_torch_refuses_is_refused(kind):
    from torch.testing._internal.common_optimizers import get_error_inputs_for_all_optims

    for case in get_error_inputs_for_all_optims("cpu", torch.float32):
        given = case.optimizer_error_input
        parameters = [torch.nn.Parameter(torch.ones(2, 2))] if given.params is None else given.params
        with pytest.raises((BurnishError, TypeError, ValueError)):
            kind(parameters, **given.kwargs)
