"""A state is a contract: what is not of this algorithm, these parameters and these shapes is refused, in words."""

import copy

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.optim import COSMOS, AdamW, Muon, NorMuon, import_state


def matrices(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def run(optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def refused(optimizer, saved, words):
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(SettingsError, match=words):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "saved, loads",
    [(AdamW, NorMuon), (NorMuon, Muon), (Muon, NorMuon), (NorMuon, AdamW), (COSMOS, Muon)],
)
def test_state_of_another_algorithm_is_refused(saved, loads):
    refused(loads(matrices((4, 3))), saved(matrices((4, 3))).state_dict(), "algorithm of the saved group 0 is")


def test_another_rank_is_refused():
    saved = COSMOS(matrices((8, 6)), rank=4).state_dict()
    refused(COSMOS(matrices((8, 6)), rank=2), saved, r"saved basis0 of parameter 0 has shape \(6, 4\)")


def test_another_layout_is_refused():
    saved = NorMuon([{"params": matrices((6, 6)), "neuron_dim": -1}]).state_dict()
    refused(NorMuon(matrices((6, 6))), saved, "neuron_dim of the saved group 0 is -1")


def test_another_order_of_names_is_refused_also_where_shapes_are_equal():
    first, second = matrices((4, 4), (4, 4))
    saved = NorMuon([("a", first), ("b", second)]).state_dict()
    refused(NorMuon([("b", second), ("a", first)]), saved, "has a where there is b here")


def test_another_order_of_shapes_is_refused():
    saved = NorMuon(matrices((4, 3), (3, 4))).state_dict()
    refused(NorMuon(matrices((3, 4), (4, 3))), saved, "saved momentum of parameter 0 has shape")


def test_a_state_without_one_of_the_parameters_is_refused():
    saved = copy.deepcopy(NorMuon(matrices((4, 3), (4, 3))).state_dict())
    del saved["state"][1]
    refused(NorMuon(matrices((4, 3), (4, 3))), saved, "holds nothing of parameter 1")


def test_the_state_of_a_foreign_optimizer_is_refused_with_the_way_to_take_it_over():
    saved = torch.optim.Muon(matrices((4, 3))).state_dict()
    refused(Muon(matrices((4, 3))), saved, "names no algorithm.*import_state")


@pytest.mark.parametrize("there", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low", ["master", "stochastic"])
def test_state_goes_between_float32_and_bfloat16_weights(there, here, low):
    optimizer = NorMuon(matrices((4, 3), dtype=there), low_precision=low)
    run(optimizer, 2)
    other = NorMuon(matrices((4, 3), dtype=here))
    other.load_state_dict(optimizer.state_dict())
    run(other, 2)
    (state,) = other.state.values()
    assert ("master" in state) == (here is torch.bfloat16 and low == "master")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


# -- bfloat16 weights that others write into ---------------------------------------------------------------------------


def pair(low="master"):
    """A bfloat16 matrix and its optimizer, some steps on."""
    (parameter,) = matrices((8, 6), dtype=torch.bfloat16)
    optimizer = NorMuon([parameter], lr=1e-3, low_precision=low)
    run(optimizer, 2)
    return parameter, optimizer


def moved(parameter, before):
    return (parameter.detach().float() - before.float()).abs().max().item()


@pytest.mark.parametrize("write", ["load", "data", "mask", "one number", "numpy", "rows", "columns", "other memory"])
def test_weights_that_somebody_else_changed_are_stepped_from_where_they_are(write):
    parameter, optimizer = pair()
    other = torch.randn(8, 6, generator=torch.Generator().manual_seed(9)).bfloat16()
    with torch.no_grad():
        match write:
            case "load":
                parameter.copy_(other)
            case "data":
                parameter.data.clamp_(-0.1, 0.1)
            case "mask":
                parameter.mul_(other > 0)
            case "one number":
                parameter.data[3, 2] = 0.25
            case "numpy":
                parameter.detach().view(torch.int16).numpy()[2] += 40
            case "rows":
                parameter.data.copy_(parameter.data.roll(1, 0))
            case "columns":
                parameter.data.copy_(parameter.data.roll(1, 1))
            case "other memory":
                parameter.data = other
    before = parameter.detach().clone()
    run(optimizer, 1, first=2)
    # An update has RMS 2e-4, and bfloat16 rounds a weight of 3 by up to 8e-3.
    assert moved(parameter, before) < 0.02


@pytest.mark.parametrize("shape", [(8, 8), (8, 6), (3, 4, 8), (7,), (), (5, 0), (1, 4)])
def test_one_changed_number_changes_the_sums_of_the_bits_in_any_layout(shape):
    from burnish.optim.masters import bit_sums

    whole = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    turned = whole[1].mT if len(shape) > 1 else whole[1]
    for weight in (whole[1], turned, whole.flatten()[1:]):
        kept = bit_sums(weight)
        for place in range(weight.numel()):
            changed = weight.clone(memory_format=torch.contiguous_format)
            changed.view(-1)[place] *= 1.01
            assert torch.equal(changed, weight) or not torch.equal(bit_sums(changed), kept)
        assert torch.equal(bit_sums(weight), kept)


def test_an_untouched_weight_is_not_compared_with_its_copy_again(monkeypatch):
    import burnish.optim.masters as masters

    _, optimizer = pair()
    compared = []
    monkeypatch.setattr(masters, "_take_over", lambda weight, copy: compared.append(weight))
    run(optimizer, 1, first=2)
    assert not compared
    optimizer.load_state_dict(optimizer.state_dict())
    run(optimizer, 1, first=3)
    assert len(compared) == 1


def test_only_what_was_changed_loses_its_float32_digits():
    parameter, optimizer = pair()
    other, its_optimizer = copy.deepcopy((parameter, optimizer))
    with torch.no_grad():
        parameter[0] = 0.5
    run(optimizer, 1, first=2)
    run(its_optimizer, 1, first=2)
    ours, theirs = optimizer.state[parameter]["master"], its_optimizer.state[other]["master"]
    assert torch.equal(ours[1:], theirs[1:]) and not torch.equal(ours[0], theirs[0])


def test_untouched_weights_keep_their_float32_digits():
    (parameter,) = matrices((8, 6), dtype=torch.bfloat16)
    optimizer = NorMuon([parameter], lr=1e-6, weight_decay=0.0)
    start = optimizer.state[parameter]["master"].clone()
    run(optimizer, 3)
    assert not torch.equal(optimizer.state[parameter]["master"], start)
    assert torch.equal(parameter, start.bfloat16())


# -- other people's state ----------------------------------------------------------------------------------------------


def goes_on_alike(theirs, ours, their_parameters, our_parameters, *, tolerance=1e-12, **options):
    run(theirs, 3)
    with torch.no_grad():
        for one, other in zip(our_parameters, their_parameters, strict=True):
            one.copy_(other)
    import_state(ours, theirs.state_dict(), **options)
    run(theirs, 3, first=3)
    run(ours, 3, first=3)
    for one, other in zip(our_parameters, their_parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_adamw_of_torch_goes_on_here():
    theirs, ours = (matrices((4, 3), (5,), dtype=torch.float64) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    goes_on_alike(torch.optim.AdamW(theirs, **options), AdamW(ours, **options), theirs, ours)


@pytest.mark.parametrize("scale", [("original", "reference"), ("match_rms_adamw", "rms_moonlight")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_of_torch_goes_on_here_by_its_own_convention(scale, nesterov, monkeypatch):
    # torch orthogonalises in bfloat16 always; its cast is replaced by a copy, so that rounding does not hide the rest.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    theirs, ours = (matrices((6, 4), (4, 6), dtype=torch.float64) for _ in range(2))
    their_optimizer = torch.optim.Muon(theirs, lr=0.01, adjust_lr_fn=scale[0], nesterov=nesterov)
    our_optimizer = Muon(ours, lr=0.01, scale=scale[1], nesterov=nesterov, ns_clamp=True)
    goes_on_alike(their_optimizer, our_optimizer, theirs, ours)


def test_the_convention_of_torch_is_another_than_that_of_the_published_code():
    ours, theirs = (matrices((6, 4), dtype=torch.float64) for _ in range(2))
    run(Muon(ours, lr=0.01, ns_clamp=True), 3)
    run(Muon(theirs, lr=0.01), 3)
    difference = (ours[0] - theirs[0]).abs().max().item()
    assert 1e-12 < difference < 1e-7


def saved_elsewhere(optimizer, keys, group=None, scale=1.0):
    """A state as another library would have saved it."""
    saved = copy.deepcopy(optimizer.state_dict())
    state = {
        number: {keys[key]: value * (scale if key == "momentum" else 1) for key, value in entries.items()}
        for number, entries in saved["state"].items()
    }
    groups = [{"params": one["params"], **(group or {})} for one in saved["param_groups"]]
    return {"state": state, "param_groups": groups}


@pytest.mark.parametrize(
    "keys, group, scale",
    [
        ({"momentum": "momentum_buffer", "second_moment": "second_momentum_buffer"}, {"use_muon": True}, 1.0),
        ({"momentum": "momentum", "second_moment": "variance_neuron"}, {"mu": 0.95, "step": 3}, 1 / 0.05),
    ],
)
def test_normuon_of_its_authors_and_of_dion_goes_on_here(keys, group, scale):
    theirs, ours = (matrices((6, 4), (4, 6), dtype=torch.float64) for _ in range(2))
    origin = NorMuon(theirs, lr=0.01)
    run(origin, 3)
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            one.copy_(other)
    goes_on = NorMuon(ours, lr=0.01)
    import_state(goes_on, saved_elsewhere(origin, keys, group, scale))
    run(origin, 3, first=3)
    run(goes_on, 3, first=3)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_two_optimizers_become_one_by_the_names_of_their_parameters():
    matrix, vector = matrices((4, 3), (5,))
    one, two = torch.optim.Muon([("m", matrix)]), torch.optim.AdamW([vector])
    run(one, 2)
    run(two, 2)
    ours = Muon([{"params": [("v", vector)], "algorithm": "adamw"}, {"params": [("m", matrix)]}])
    import_state(ours, two.state_dict(), one.state_dict(), names=[["v"], ["m"]])
    assert torch.equal(ours.state[matrix]["momentum"], one.state[matrix]["momentum_buffer"])
    assert torch.equal(ours.state[vector]["exp_avg"], two.state[vector]["exp_avg"])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: torch.optim.SGD(matrices((4, 3)), momentum=0.9), "momentum_buffer, which is not known as adamw"),
        (lambda: torch.optim.AdamW(matrices((4, 3)), amsgrad=True), "max_exp_avg_sq"),
        (lambda: torch.optim.AdamW(matrices((4, 4))), "has shape"),
        (lambda: torch.optim.AdamW(matrices((4, 3), (4, 3))), "no parameter 1 here"),
    ],
)
def test_what_is_not_the_same_is_not_taken_over(make, words):
    theirs = make()
    run(theirs, 1)
    with pytest.raises(SettingsError, match=words):
        import_state(AdamW(matrices((4, 3))), theirs.state_dict())


def test_names_must_be_known_on_both_sides():
    theirs = torch.optim.AdamW(matrices((4, 3)))
    run(theirs, 1)
    with pytest.raises(SettingsError, match="holds nothing of w"):
        import_state(AdamW([("w", matrices((4, 3))[0])]), theirs.state_dict())
