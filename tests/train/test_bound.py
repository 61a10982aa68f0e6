"""Training under a bound: the multiplier's arithmetic, resuming, what the ledger says, and refusals."""

import pytest
import torch

import burnish
from burnish.core.errors import DataError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.distill.stage import Distill
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
        ([{"loss_bound": {"level": 1.0}}], "needs data and level"),
        ([{"loss_bound": {"data": "a", "level": 1.0, "rate": 2}}], "needs data and level"),
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
    with pytest.raises(SettingsError, match="a bound needs bound_data"):
        Train(**SMALL, steps=1, bound_level=1.0)(tiny, data=[PROSE * 8], work_dir=tmp_path)


def test_bounding_what_is_trained_on_or_too_little_is_refused(tiny, tmp_path):
    stage = Train(**SMALL, steps=1, bound_level=1.0)
    with pytest.raises(DataError, match="shares 1 of its texts"):
        trained(stage, tiny, tmp_path, bound_data=[PROSE * 8])
    with pytest.raises(DataError, match="leaves none to train on"):
        trained(stage, tiny, tmp_path, bound_data=["Call me Ishmael."])
