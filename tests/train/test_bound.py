"""Training under a bound: the multiplier's arithmetic, resuming, what the ledger says, and refusals."""

import pytest
import torch

import burnish
from burnish.core.errors import DataError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.distill.stage import Distill
from burnish.train.bound import Bound
from burnish.train.run import run
from burnish.train.stage import Train

PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
OTHER = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse. "
SMALL = {"context": 32, "batch": 4, "lr": 0.01, "optimizer": "adamw"}


@pytest.fixture
def tiny(tiny_llama):
    return burnish.load(tiny_llama)


def trained(stage, model, work_dir, **inputs):
    """The result, and its tables of the ledger by name."""
    ledger = Ledger(None)
    ctx = Context(
        {"data": [PROSE * 8], "bound_data": [OTHER * 24]} | inputs,
        work_dir,
        "cpu",
        seeded_generator(0),
        Progress(enabled=False),
        ledger,
    )
    result = run(stage, model, ctx)
    return result, {row["name"]: row["rows"] for row in ledger.rows if row["row"] == "table"}


def weights(model):
    return list(model.module.state_dict().values())


@pytest.mark.slow
def test_a_bound_that_plain_training_breaks_is_kept(tiny, tmp_path):
    """The tiny model starts near the uniform loss on both texts; learning one alone makes it worse at the other."""
    more = SMALL | {"steps": 60}
    _, tables = trained(Train(**more, bound_level=100.0, bound_every=5), tiny, tmp_path / "loose")
    (loose,) = tables["bound"]
    assert loose["status"] == "met"
    assert loose["multiplier"] == 0
    level = loose["held_out_before"] / 2
    assert loose["held_out_after"] > level
    _, tables = trained(Train(**more, bound_level=level, bound_every=5), tiny, tmp_path / "bounded")
    (bounded,) = tables["bound"]
    assert bounded["held_out_after"] < loose["held_out_after"] - 0.5
    assert bounded["status"] == "met"
    assert max(row["multiplier"] for row in tables["constraints"]) > 0
    assert bounded["bound_tokens"] == tables["constraints"][-1]["bound_tokens"] > 0
    assert [row["step"] for row in tables["constraints"]] == list(range(5, 61, 5))


def test_a_bound_that_never_binds_changes_nothing(tiny, tmp_path):
    loose, _ = trained(Train(**SMALL, steps=4, bound_level=100.0), tiny, tmp_path / "loose")
    free = Train(**SMALL, steps=4)(tiny, data=[PROSE * 8], work_dir=tmp_path / "free")
    assert all(torch.equal(a, b) for a, b in zip(weights(loose), weights(free), strict=True))


def test_the_multiplier_moves_by_the_penalty_times_the_mean_violation(tiny, tmp_path):
    _, tables = trained(Train(**SMALL, steps=6, bound_level=1.0, bound_every=2, bound_penalty=3.0), tiny, tmp_path)
    multiplier = 0.0
    for row in tables["constraints"]:
        multiplier = max(0.0, multiplier + 3.0 * (row["bound_loss"] - 1.0))
        assert row["multiplier"] == pytest.approx(multiplier, rel=1e-12)


def test_a_stopped_training_goes_on_to_the_same_bits(tiny, tmp_path):
    options = SMALL | {"steps": 7, "bound_level": 2.0, "bound_every": 2}
    whole, tables = trained(Train(**options, save_every=0), tiny, tmp_path / "whole")
    trained(Train(**options, save_every=5), tiny, tmp_path / "stopped")  # leaves the state after 5 steps
    rest, again = trained(Train(**options, save_every=5), tiny, tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(rest), strict=True))
    assert again["constraints"] == tables["constraints"]
    assert again["bound"] == tables["bound"]


def test_a_rise_is_counted_from_the_start_row_by_row(tiny, tmp_path):
    """Nothing has changed in the first step, so its violation is the room that the rise leaves, without noise."""
    options = SMALL | {"steps": 1, "bound_rise": 0.25, "bound_every": 1, "bound_batch": 3}
    _, tables = trained(Train(**options), tiny, tmp_path)
    (row,), (found,) = tables["constraints"], tables["bound"]
    assert row["bound_loss"] == pytest.approx(found["held_out_before"], rel=1e-6)
    assert row["loss_bound"] == found["level"] == found["held_out_before"] + 0.25
    assert row["bound_tokens"] == 3 * 32


def test_a_rise_is_kept_and_a_stopped_training_goes_on_to_the_same_bits(tiny, tmp_path):
    options = SMALL | {"steps": 40, "bound_rise": 0.05, "bound_every": 2, "bound_batch": 2}
    whole, tables = trained(Train(**options, save_every=0), tiny, tmp_path / "whole")
    (found,) = tables["bound"]
    assert found["held_out_after"] <= found["level"] + 0.05
    trained(Train(**options, save_every=25), tiny, tmp_path / "stopped")  # leaves the state after 25 steps
    rest, again = trained(Train(**options, save_every=25), tiny, tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(rest), strict=True))
    assert again["constraints"] == tables["constraints"]
    assert again["bound"] == tables["bound"]


def test_pstorm_on_the_same_rows_every_step_is_gradient_descent(tiny, tmp_path, monkeypatch):
    """With one batch of each text for every step, and one weight of the bound, the estimate is the gradient itself
    whatever b: as with b = 1, which needs no second gradient."""
    monkeypatch.setattr(Bound, "pull", 0.7)
    options = SMALL | {"optimizer": "pstorm", "steps": 5, "lr": 0.05, "batch": 1, "context": 64, "weight_decay": 0.0}
    options |= {"schedule": "constant", "warmup": 0.0, "max_grad_norm": None, "bound_level": 1.0, "bound_holdout": 0.5}
    texts = {"data": [PROSE[:40]], "bound_data": [OTHER[:60], OTHER[20:80]]}
    ours, plain = (
        trained(Train(**options, optimizer_options={"b": b}), tiny, tmp_path / str(b), **texts)[0] for b in (0.3, 1.0)
    )
    assert any(not torch.equal(a, b) for a, b in zip(weights(tiny), weights(ours), strict=True))
    for one, other in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_pstorm_goes_on_to_the_same_bits_and_learns(tiny, tmp_path):
    options = SMALL | {"optimizer": "pstorm", "steps": 12, "lr": 0.3, "bound_rise": 0.1, "bound_every": 2}
    whole, tables = trained(Train(**options, save_every=0), tiny, tmp_path / "whole")
    assert tables["loss"][-1]["loss"] < tables["loss"][0]["loss"] - 0.2
    trained(Train(**options, save_every=7), tiny, tmp_path / "stopped")
    rest, again = trained(Train(**options, save_every=7), tiny, tmp_path / "stopped")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(rest), strict=True))
    assert again["constraints"] == tables["constraints"]


def test_pstorm_skips_a_step_whose_second_gradient_is_not_finite(tiny, tmp_path, monkeypatch):
    from burnish.optim.constrained import PStorm

    taken, before = [], PStorm.gradients_before

    def spoiled(self, closure):
        found = before(self, closure)
        taken.append(len(found))
        if len(taken) == 2:
            next(iter(found.values())).fill_(float("nan"))
        return found

    monkeypatch.setattr(PStorm, "gradients_before", spoiled)
    options = SMALL | {"optimizer": "pstorm", "steps": 3, "bound_level": 100.0}
    _, tables = trained(Train(**options, on_nonfinite="skip"), tiny, tmp_path)
    assert [row["step"] for row in tables["skipped steps"]] == [2]


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"adamw_lr": 0.1}, "adamw_lr does not go with pstorm"),
        ({"split_fused": True}, "split_fused does not go with pstorm"),
        ({"sharpness": 0.5}, "sharpness does not go with pstorm"),
        ({"optimizer_options": {"momentum": 0.9}}, "pstorm has no option 'momentum'"),
        ({"optimizer_options": {"b": 2.0}}, "b is 2.0"),
    ],
)
def test_settings_that_pstorm_does_not_know_are_refused(tiny, settings, named):
    with pytest.raises(SettingsError, match=named):
        Train.parse({"data": "a.txt", "context": 32, "optimizer": "pstorm"} | settings, where="node").plan(tiny.plan())


def test_more_steps_than_the_losses_at_the_start_were_taken_for_are_refused(tiny, tmp_path):
    options = SMALL | {"bound_rise": 0.1, "bound_batch": 1, "save_every": 1}
    trained(Train(**options, steps=2), tiny, tmp_path)
    ledger = Ledger(None)
    inputs = {"data": [PROSE * 8], "bound_data": [OTHER * 24]}
    ctx = Context(inputs, tmp_path, "cpu", seeded_generator(0), Progress(enabled=False), ledger)
    ctx.may_change = Train.changeable
    with pytest.raises(SettingsError, match="losses at the start of 3 rows of bound_data"):
        run(Train(**options, steps=5), tiny, ctx)


def test_micro_batches_of_the_bound_change_nothing_but_rounding(tiny, tmp_path):
    options = SMALL | {"steps": 1, "bound_level": 1.0, "bound_every": 1}
    _, whole = trained(Train(**options), tiny, tmp_path / "whole")
    _, cut = trained(Train(**options, micro_batch=2), tiny, tmp_path / "cut")
    assert cut["constraints"][0]["bound_loss"] == pytest.approx(whole["constraints"][0]["bound_loss"], rel=1e-5)


def test_distillation_takes_a_bound(tiny, tmp_path):
    result = Distill(**SMALL, steps=2, bound_level=1.0)(
        tiny, data=[PROSE * 8], bound_data=[OTHER * 24], teacher=tiny, work_dir=tmp_path
    )
    assert any(not torch.equal(a, b) for a, b in zip(weights(tiny), weights(result), strict=True))


def test_a_recipe_says_constraints():
    found = Train.parse(
        {"data": "a.txt", "constraints": [{"loss_bound": {"data": "old.txt", "level": 3.0, "every": 5}}]}, where="node"
    )
    assert (found.bound_data, found.bound_level, found.bound_every) == ("old.txt", 3.0, 5)
    assert Train.parse(found.model_dump(), where="node") == found
    assert Train.references()["bound_data"] == "data"


@pytest.mark.parametrize(
    "constraints, named",
    [
        ("old.txt", "must be one loss bound"),
        ([{"parity": {}}], "must be one loss bound"),
        ([{"loss_bound": {"level": 1.0}}], "needs data and a level or rise"),
        ([{"loss_bound": {"data": "a"}}], "needs data and a level or rise"),
        ([{"loss_bound": {"data": None, "level": 1.0}}], "needs data and a level or rise"),
        ([{"loss_bound": {"data": "a", "level": 1.0, "rise": 0.1}}], "needs data and a level or rise"),
        ([{"loss_bound": {"data": "a", "level": 1.0, "rate": 2}}], "needs data and a level or rise"),
        ([{"loss_bound": {"data": "a", "rise": -0.1}}], "bound_rise is -0.1"),
        ([{"loss_bound": {"data": "a", "level": -1.0}}], "bound_level is -1"),
    ],
)
def test_constraints_that_are_none_are_refused(constraints, named):
    with pytest.raises(SettingsError, match=named):
        Train.parse({"data": "a.txt", "constraints": constraints}, where="node 'train'")


def test_a_bound_said_twice_or_by_half_is_refused(tiny, tmp_path):
    twice = {"bound_level": 1.0, "constraints": [{"loss_bound": {"data": "a", "level": 2.0}}]}
    with pytest.raises(SettingsError, match="the same thing twice"):
        Train.parse(twice, where="node")
    with pytest.raises(SettingsError, match="needs a bound_level"):
        Train.parse({"data": "a", "bound_data": "b"}, where="node")
    with pytest.raises(SettingsError, match="two ways of the same thing"):
        Train.parse({"data": "a", "bound_data": "b", "bound_level": 1.0, "bound_rise": 0.1}, where="node")
    with pytest.raises(SettingsError, match="a bound needs bound_data"):
        Train(**SMALL, steps=1, bound_level=1.0)(tiny, data=[PROSE * 8], work_dir=tmp_path)


def test_bounding_what_is_trained_on_or_too_little_is_refused(tiny, tmp_path):
    stage = Train(**SMALL, steps=1, bound_level=1.0)
    with pytest.raises(DataError, match="shares 1 of its texts"):
        trained(stage, tiny, tmp_path, bound_data=[PROSE * 8])
    with pytest.raises(DataError, match="leaves none to train on"):
        trained(stage, tiny, tmp_path, bound_data=["Call me Ishmael."])
