"""Shrinkage by measured divergence: what it measures, what it leaves alone, and what it says."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from burnish.arch import matrices
from burnish.calibrate import Calibration, collect
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize import tuning
from burnish.quantize.formats import FORMATS
from burnish.quantize.maths import shrinkage
from burnish.quantize.method import Rounding
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.run import calibration_windows
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import Original, candidates, choose_rounding, filled, rounded_under

YAQA = RULES["yaqa"]
TWO_BITS = Rounding(YAQA, FORMATS["int"](2, 32, True), torch.float32)


@pytest.fixture
def views(model):
    return [view for view in matrices(model.module) if view.layer is not None]


def test_the_divergence_is_zero_until_a_weight_changes(model, views, ids):
    original = Original(model.module, ids)
    assert original.divergence() == [0.0, 0.0]
    with filled(views[:1], {views[0].name: views[0].tensor * 30}):
        assert min(original.divergence()) > 1e-5
    assert original.divergence() == [0.0, 0.0]


def test_the_divergence_is_that_of_the_whole_distribution(model, views, ids):
    with torch.no_grad():
        p = model.module(ids).logits[:, :-1].log_softmax(-1)
    original = Original(model.module, ids)
    with filled(views[:1], {views[0].name: views[0].tensor * 30}):
        with torch.no_grad():
            q = model.module(ids).logits[:, :-1].log_softmax(-1)
        expected = (p.exp() * (p - q)).sum(-1).mean(-1)
        torch.testing.assert_close(torch.tensor(original.divergence()), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [((0.3, 0.2, 0.1), 2), ((0.3, 0.1, 0.2), 1), ((0.1002, 0.2, 0.1), 0), ((9e-6, 8e-6, 0.0), 0)],
)
def test_the_simplest_rounding_with_in_effect_the_smallest_divergence_is_chosen(measured, chosen, monkeypatch):
    assert chosen_of([[kl, kl * 1.1, kl * 0.9] for kl in measured], monkeypatch) == chosen


def test_what_windows_cannot_tell_apart_is_a_tie_for_the_simplest(monkeypatch):
    """Ten percent less on average, by one window of four; and the same ten percent on every window."""
    simple = [0.2, 0.2, 0.2, 0.2]
    assert chosen_of([simple, [0.21, 0.21, 0.21, 0.09], [1.0] * 4], monkeypatch) == 0
    assert chosen_of([simple, [0.181, 0.179, 0.18, 0.18], [1.0] * 4], monkeypatch) == 1


def chosen_of(windows, monkeypatch) -> int:
    """Number of the candidate that is chosen when these are the divergences of three."""
    monkeypatch.setattr(tuning, "rounded_under", lambda _, roundings, *__: {name: {} for name in roundings})
    answers = iter(windows)
    original = SimpleNamespace(divergence=lambda: next(answers), windows=torch.zeros(4, 2))
    three = dict(list(candidates(TWO_BITS, YAQA.compared, ("a", "b")).items())[:3])
    rounding, rows = choose_rounding([], three, None, original)
    assert [row["chosen"] for row in rows] == [one is rounding for one in three.values()]
    return list(three.values()).index(rounding)


def test_a_tie_is_measured_on_more_windows_by_those_that_tie_alone(model, views, tmp_path, monkeypatch):
    """Sixteen windows cannot tell the first from the second, which is smaller; more of them can."""
    few = {"a": [0.2, 0.2, 0.2, 0.2], "b": [0.21, 0.21, 0.21, 0.09], "c": [1.0] * 4}
    more = {"a": [0.2] * 8, "b": [0.1] * 8}
    asked = []

    three = candidates(TWO_BITS, (Strength(), Strength(0.1, 0.1), HELD_OUT), "a").values()
    roundings = dict(zip(few, three, strict=True))

    def measured(_, one, *__):
        asked.append(next(name for name, rounding in roundings.items() if rounding is one[""]))
        return {"": {}}

    class Remembered:
        def __init__(self, module, windows):
            self.module, self.windows = module, windows

        def divergence(self):
            return (few if len(self.windows) == 4 else more)[asked[-1]]

    monkeypatch.setattr(tuning, "rounded_under", measured)
    monkeypatch.setattr(tuning, "Original", Remembered)
    windows = torch.zeros(12, 2, dtype=torch.long)
    first = Remembered(None, windows[:4])
    chosen, rows = choose_rounding([], roundings, None, first, reserve=windows[4:])
    assert asked == ["a", "b", "c", "a", "b"] and chosen is roundings["b"]
    assert {row["rule"]: row["windows"] for row in rows} == {"a": 12, "b": 12, "c": 4}
    assert [row["chosen"] for row in rows] == [False, True, False]
    alone, _ = choose_rounding([], roundings, None, first)
    assert alone is roundings["a"], "without more windows it is a tie for the simpler"


@pytest.mark.parametrize(("of_b", "tried"), [([0.3, 0.31, 0.29, 0.3], 4), ([0.3, 0.1, 0.3, 0.2], 5)])
def test_a_sketch_that_is_behind_under_one_strength_is_not_tried_under_the_next(of_b, tried, monkeypatch):
    """Behind on all windows alike, and on average alone."""
    monkeypatch.setattr(tuning, "rounded_under", lambda *_: {"": {}})
    answers = iter([[0.4] * 4, [0.2, 0.21, 0.2, 0.19], of_b, [0.1, 0.11, 0.1, 0.09], [0.15] * 4])
    original = SimpleNamespace(divergence=lambda: next(answers), windows=torch.zeros(4, 2))
    chosen, rows = choose_rounding([], candidates(TWO_BITS, YAQA.compared, ("a", "b")), None, original)
    assert (chosen.strength, chosen.sketch, len(rows)) == (HELD_OUT, "a", tried)


def test_what_held_out_folds_choose_for_a_matrix_is_found_out_once(model, views, tmp_path, monkeypatch):
    views = views[:2]
    windows = torch.randint(0, 384, (8, 32), generator=torch.Generator().manual_seed(0))
    statistics = collect(model.module, views, Calibration(windows), tmp_path, key={}, sketches=("a",))
    truly, asked = shrinkage.choose_shrinkage, []
    monkeypatch.setattr(shrinkage, "choose_shrinkage", lambda *given, **how: asked.append(1) or truly(*given, **how))

    def asked_by(sums, **changes):
        before = len(asked)
        values = rounded_under(views, {"": replace(TWO_BITS, sketch="a", **changes)}, sums)[""]
        return len(asked) - before, values

    sides = 2 * len(views)
    assert asked_by(statistics)[0] == sides
    wider, refitted = {"scheme": FORMATS["int"](3, 32, True)}, {"refit": 2}
    for changes in (refitted, wider):  # three bits have the steps of two, all of them halved
        number, values = asked_by(statistics, **changes)
        fresh, wanted = asked_by(statistics.part(statistics.folds), **changes)
        assert (number, fresh) == (0, sides)
        assert all(torch.equal(values[name], tensor) for name, tensor in wanted.items())
    assert asked_by(statistics, scheme=FORMATS["int"](2, 32, False))[0] == sides, "with zero points steps differ"


def test_what_roundings_are_compared_on_was_not_collected_from(model, views, texts):
    ctx = Context({"calibration": texts}, Path(), "cpu", seeded_generator(3), Progress(False), Ledger(None))
    stage = Quantize(method="yaqa", group_size=32, tokens=512, length=16)
    text, few, more = calibration_windows(stage, model, ctx, views)
    seen, few_, more_ = ({tuple(row.tolist()) for row in rows} for rows in (text.tokens, few, more))
    assert len(few) == 16 and len(more_) == len(more) > 0 and not more_ & (seen | few_)
    fixed = Quantize(method="yaqa", group_size=32, tokens=512, length=16, sketch="a", damping=0.1)
    ctx = Context({"calibration": texts}, Path(), "cpu", seeded_generator(3), Progress(False), Ledger(None))
    alone, _, none = calibration_windows(fixed, model, ctx, views)
    assert torch.equal(alone.tokens, text.tokens) and not len(none), "more windows change what is collected from"


def test_one_sided_candidates_have_no_sketch_and_two_sided_ones_every():
    found = candidates(TWO_BITS, (Strength(), Strength(0.1, 0.1)), ("a", "b"))
    assert list(found) == ["one-sided 0.01", "0.1 and 0.1, sketch a", "0.1 and 0.1, sketch b"]
    assert [rounding.sketch for rounding in found.values()] == ["a", "a", "b"]


def test_strengths_are_measured_and_weights_left_alone(model, views, tmp_path):
    windows = torch.randint(0, 384, (20, 64), generator=torch.Generator().manual_seed(0))
    statistics = collect(model.module, views, Calibration(windows[:16]), tmp_path, key={}, sketches=("b",))
    before = [view.tensor.clone() for view in views]
    strengths = (Strength(), Strength(0.3, 0.3), Strength(1e9, 1e9))
    original = Original(model.module, windows[16:])
    rounding, rows = choose_rounding(views, candidates(TWO_BITS, strengths, ("b",)), statistics, original)
    assert [row["rule"] for row in rows] == [str(one) for one in strengths]
    assert str(rounding.strength) == next(row["rule"] for row in rows if row["chosen"])
    assert min(row["ratio"] for row in rows) == 1.0
    assert all(torch.equal(one, view.tensor) for one, view in zip(before, views, strict=True))


@pytest.mark.slow
def test_strengths_are_compared_on_the_grids_of_overrides(model, texts, tmp_path):
    overrides = {"re:.*down_proj": {"bits": 8}}
    stage = Quantize(method="yaqa", bits=2, group_size=32, tokens=1024, length=64, overrides=overrides)
    quantized = stage(model, calibration=texts, work_dir=tmp_path)
    assert {group["weights"]["num_bits"] for group in quantized.quantization_config["config_groups"].values()} == {2, 8}


@pytest.mark.slow
def test_a_choice_that_was_interrupted_is_made_again_as_it_would_have_been(model, texts, tmp_path, monkeypatch):
    stage = Quantize(method="yaqa", bits=2, group_size=32, tokens=1024, length=64)

    def run(place):
        place.mkdir(exist_ok=True)
        ctx = Context({"calibration": texts}, place, "cpu", seeded_generator(0), Progress(False), Ledger(None))
        packed = stage.run(model, ctx).packed
        return packed, next(row["rows"] for row in ctx.ledger.rows if row.get("name") == "shrinkage")

    uninterrupted, wanted = run(tmp_path / "whole")
    truly, rounded = tuning.rounded_under, []

    def killed(*given):
        rounded.append(given)
        if len(rounded) == 3:
            raise KeyboardInterrupt
        return truly(*given)

    monkeypatch.setattr(tuning, "rounded_under", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    assert list((tmp_path / "killed").rglob("key.json")), "what was collected is kept"
    again, rows = run(tmp_path / "killed")
    assert rows == wanted
    for weight, tensors in uninterrupted.items():
        assert all(torch.equal(tensor, again[weight][name]) for name, tensor in tensors.items())


@pytest.mark.slow
def test_the_curve_has_a_point_for_each_part_of_the_text_and_method(model, texts, tmp_path, monkeypatch):
    stage = Quantize(method="yaqa", bits=3, group_size=32, tokens=2048, length=64, curve=True)
    ctx = Context({"calibration": texts}, tmp_path, "cpu", seeded_generator(0), Progress(False), Ledger(None))
    measured_on = []

    class Watched(Original):
        def __init__(self, module, windows):
            measured_on.append({tuple(row.tolist()) for row in windows})
            super().__init__(module, windows)

    monkeypatch.setattr("burnish.quantize.run.Original", Watched)
    stage.run(model, ctx)
    chose, drawn = measured_on
    assert chose and drawn and not chose & drawn, "the curve is drawn on windows that chose"
    tables = {row["name"]: row["rows"] for row in ctx.ledger.rows if row["row"] == "table"}
    assert [(row["method"], row["tokens"]) for row in tables["calibration"]] == [
        (method, tokens) for tokens in (512, 1024, 2048) for method in ("yaqa", "gptq")
    ]
    assert all(row["low"] <= row["kl"] <= row["high"] for row in tables["calibration"])
    assert sum(row["chosen"] for row in tables["shrinkage"]) == 1
