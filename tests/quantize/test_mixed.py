"""Widths for a size: what a target means, what it makes, and what it refuses."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.arch import matrices
from burnish.calibrate import Calibration, collect
from burnish.calibrate.vocabulary import collect_vocabulary
from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.core.store import Store
from burnish.quantize import mixed
from burnish.quantize.budget import ByteBudget, groups_of
from burnish.quantize.formats import FORMATS
from burnish.quantize.method import Rounding
from burnish.quantize.mixed import Mixing, foretelling, frontier_line, kinds_of
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import Original, rounded_under
from burnish.quantize.vocabulary import VocabularyRounding

SMALL = {"group_size": 32, "tokens": 512, "length": 32, "method": "gptq"}


def weights_bytes(directory):
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def run(stage, model, texts, work_dir):
    ctx = Context({"calibration": texts}, work_dir, "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
    return stage.run(model, ctx), {row["name"]: row["rows"] for row in ctx.ledger.rows if row["row"] == "table"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["3.4bits", "45%"])
def test_a_target_is_reached_and_loads_in_a_stock_loader(model, texts, ids, tmp_path, target):
    before = model.plan()
    quantized, tables = run(Quantize(target=target, **SMALL), model, texts, tmp_path)
    quantized.save(tmp_path / "out")
    allowed = Quantize(target=target, **SMALL).plan(before).num_bytes
    assert weights_bytes(tmp_path / "out") <= allowed
    if target.endswith("%"):
        assert allowed <= 0.45 * before.num_bytes
    assert len({row["bits"] for row in tables["widths"]}) > 1
    sizes = [row["bytes"] for row in tables["frontier"]]
    assert sizes == sorted(sizes) and len(sizes) > 3 and sum(row["chosen"] for row in tables["frontier"]) == 1
    assert max(sizes) > allowed > min(sizes)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, quantized.module(input_ids=ids).logits)


def test_roundings_are_compared_at_the_width_nearest_to_the_target(model, texts, tmp_path, monkeypatch):
    """At the four bits that nobody asked for another one may be the best; further refits would cost a rounding each."""
    compared = []

    def choose(views, roundings, *_, **__):
        compared.extend(({one.scheme_of(view).bits for view in views}, one.refit) for one in roundings.values())
        raise KeyboardInterrupt

    monkeypatch.setattr("burnish.quantize.run.choose_rounding", choose)
    with pytest.raises(KeyboardInterrupt):
        run(Quantize(**SMALL | {"target": "2.6bits", "method": "yaqa"}), model, texts, tmp_path)
    assert compared == [({3}, 1)] * 5


@pytest.mark.slow
def test_another_target_takes_what_was_rounded_for_the_first(model, texts, tmp_path, monkeypatch):
    run(Quantize(target="3.4bits", **SMALL), model, texts, tmp_path)
    monkeypatch.setattr(mixed, "rounded_batch", None)
    again = run(Quantize(target="3.1bits", **SMALL), model, texts, tmp_path)[1]
    monkeypatch.undo()
    assert again["widths"] == run(Quantize(target="3.1bits", **SMALL), model, texts, tmp_path / "anew")[1]["widths"]


@pytest.mark.slow
def test_an_interrupted_search_ends_with_the_same_widths(model, texts, tmp_path):
    stage = Quantize(target="3.4bits", **SMALL)
    first, second = (run(stage, model, texts, tmp_path)[1] for _ in range(2))  # that finds what this has rounded
    assert first["widths"] == second["widths"] and first["frontier"] == second["frontier"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "1.5bits"}, r"target is 1.5bits, but the widths give .* \(2 bits\) to .* \(8 bits\)"),
        ({"target": "9bits"}, r"\(2 bits\) to .* \(8 bits\).*choose a target between"),
        (
            {"target": "10KB"},
            r"stay dense, of which model.embed_tokens alone takes .*, and no stock loader reads a packed embedding "
            r".transformers 5.17 stops, 5.24",
        ),
        ({"target": "400%"}, r"target is 400% of \d.*B, which is \d.*B, but .*choose a target between"),
        ({"target": "3M parameters"}, r"a share of the weights' files .45%., a size .24GB, 100MB. or bits per weight"),
        ({"target": "3.5bits", "engine": "vllm"}, r"the widths that vllm has kernels for give .* \(4 bits\)"),
        ({"target": "3.5bits", "overrides": {"re:.*": {"bits": 8}}}, "use one of them"),
        ({"target": "3.5bits", "bits": 8}, "bits is 8, but a target chooses the widths"),
        ({"target": "3.5bits", "scheme": "fp8-dynamic"}, "fp8-dynamic has one alone"),
        ({"target": "3.5bits", "propagate": True}, "leave propagate and stream out"),
        ({"target": "3.5bits", "stream": True}, "leave propagate and stream out"),
    ],
)
def test_impossible_targets_are_refused_when_planned(model, settings, message):
    settings = SMALL | settings
    if "scheme" in settings:
        del settings["group_size"]
    with pytest.raises(SettingsError, match=message):
        Quantize(**settings).plan(model.plan())


def test_a_target_without_a_method_takes_two_sided_rounding():
    assert [Quantize(target=size).method for size in ("3.0bits", None)] == ["yaqa", "gptq"]
    assert Quantize(target="3.0bits", method="rtn").method == "rtn"
    assert Quantize(**Quantize(target="3.0bits").canonical()) == Quantize(target="3.0bits", method="yaqa")


def test_a_target_in_bits_is_the_size_of_that_width_and_both_counts_are_told(model):
    before = model.plan()
    told = [
        [note for note in Quantize(**settings, **SMALL).plan(before).notes if " with scales" in note]
        for settings in ({"target": "3.0bits"}, {"bits": 3})
    ]
    assert told[0] == told[1] and " matrices at 3.00 bits per weight, " in told[0][0]
    row = {"bits": 3.0, "bits_with_scales": 3.25, "bytes": 100_000_000, "kl": 0.5, "vllm": False, "chosen": True}
    assert frontier_line(row).startswith("100 MB, 3.00 bits per weight, 3.25 with scales: KL 0.5000")


@pytest.mark.smollm2
def test_what_an_embedding_leaves_no_room_for_is_refused_with_the_loaders_that_cannot_read_it_packed(smollm2):
    before = load(smollm2).plan()
    settings = {"method": "yaqa", "sketch": "a", "damping": 0.1}
    with pytest.raises(SettingsError, match=r"75MB, .*embed_tokens alone takes 56.6 MB, .*5.17 stops, 5.24"):
        Quantize(target="75MB", **settings).plan(before)
    packed = Quantize(target="75MB", quantize_embedding=8, **settings).plan(before)
    assert packed.num_bytes <= 75_000_000 and "210 matrices at 3.19 bits" in " ".join(packed.notes)
    notes = " ".join(Quantize(target="100MB", **settings).plan(before).notes)
    assert "210 matrices at 3.00 bits per weight, 3.25 with scales" in notes


def test_an_engine_leaves_the_widths_that_it_has_kernels_for(model):
    notes = " ".join(Quantize(target="5bits", engine="vllm", **SMALL).plan(model.plan()).notes)
    assert "chosen among 4, 8 bits" in notes and "no built-in kernel" not in notes
    notes = " ".join(Quantize(target="5bits", **SMALL).plan(model.plan()).notes)
    assert "no built-in kernel for 3, 5, 6, 7 bits" in notes and "to each of them: " in notes


FOUR = (2, 3, 4, 5)


def rounding_by(rule, **others):
    return Rounding(RULES[rule], FORMATS["int"](4, 32, True), torch.float32, **{"sketch": "a", **others})


@pytest.fixture
def mixing(model, tmp_path):
    """Of one layer's four groups, at three bits: 2 to 5 bits can be had."""

    def of(rounding, place="widths", with_embedding=False):
        every = matrices(model.module)
        views = [view for view in every if view.layer == 0]
        text = Calibration(torch.randint(0, 384, (8, 16), generator=torch.Generator().manual_seed(0)), 0, 2)
        statistics = collect(model.module, views, text, tmp_path / "statistics", key={}, sketches=["a"])
        groups, vocabulary = groups_of(views, rounding.scheme, None, 4), None
        if with_embedding:
            rows = [view for view in every if view.role == "embedding"]
            groups += groups_of(rows, rounding.scheme, None, 4, dense_bytes=4)
            sums = collect_vocabulary(model.module, rows, text, tmp_path / "vocabulary", key={})
            vocabulary = VocabularyRounding.of(Quantize(**SMALL), rounding, sums)
        budget = ByteBudget(tuple(groups), dense=0)
        budget = replace(budget, allowed=budget.at(3.0)).near()
        return Mixing(budget, rounding, statistics, Store(tmp_path / place), {"of": "this"}, vocabulary=vocabulary)

    return of


ROUNDINGS = [
    rounding_by("rtn", refit=1),
    rounding_by("gptq"),
    rounding_by("yaqa", strength=Strength(0.1, 0.2), refit=1),
]


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda one: one.rule.name)
def test_the_first_answer_is_the_best_of_all_choices_for_what_the_rounding_itself_leaves(mixing, rounding):
    search = mixing(rounding)
    expected = np.zeros((4, 4))
    for width, bits in enumerate(FOUR):
        everything = rounded_under(
            search.views, {"": replace(rounding, scheme=replace(rounding.scheme, bits=bits))}, search.statistics
        )[""]
        for place, group in enumerate(search.budget.groups):
            for view in group.views:
                sums = search.statistics.read(view, search.statistics.folds)
                input_side, output_side = (side.double() for side in sums.sketches["a"])
                error = (view.tensor - everything[view.name]).double()
                form = torch.trace(output_side @ error @ input_side @ error.T) / input_side.trace()
                expected[place, width] += float(form) / 2 / sums.num_tokens
    costs = search.forecast()
    np.testing.assert_allclose(costs, expected, rtol=1e-6)
    sizes, allowed = [group.sizes for group in search.budget.groups], search.budget.allowed
    fits = [c for c in itertools.product(range(4), repeat=4) if sum(sizes[g][w] for g, w in enumerate(c)) <= allowed]
    best = min(fits, key=lambda c: sum(expected[g, w] for g, w in enumerate(c)))
    choices = search.solve(costs)
    assert tuple(choices) == best and len(set(choices)) > 1
    chosen = search.budget.applied(choices, rounding)
    wanted = rounded_under(search.views, {"": chosen}, search.statistics)[""]
    torch.testing.assert_close(search.values(choices), wanted, rtol=1e-6, atol=1e-7)
    widths = {
        view.name: FOUR[c] for c, group in zip(choices, search.budget.groups, strict=True) for view in group.views
    }
    assert {view.name: chosen.scheme_of(view).bits for view in search.views} == widths


def test_the_embedding_is_one_more_group_with_all_widths_and_none(mixing):
    rounding = rounding_by("gptq")
    search, layers = mixing(rounding, with_embedding=True), mixing(rounding, "without")
    *inside, embedding = search.budget.groups
    assert len(inside) == 4 and not embedding.is_inside and embedding.roles == "embedding"
    assert [embedding.width(place) for place in range(8)] == [2, 3, 4, 5, 6, 7, 8, 32]
    costs = search.forecast()
    assert costs[:4] == layers.forecast() and costs[4][:-1] == sorted(costs[4][:-1], reverse=True)
    assert costs[4][-1] == 0
    sizes = [group.sizes for group in search.budget.groups]
    for allowed in (search.budget.allowed, sum(map(max, sizes))):
        every = itertools.product(*(range(len(some)) for some in sizes))
        fits = [c for c in every if sum(sizes[g][w] for g, w in enumerate(c)) <= allowed]
        best = min(fits, key=lambda c: sum(costs[g][w] for g, w in enumerate(c)))
        choices = search.solve(costs, allowed)
        assert tuple(choices) == best
        assert search.budget.size(choices) <= allowed
        as_it_is = choices[4] == 7
        assert (embedding.views[0].name in search.values(choices)) != as_it_is
        assert bool(search.budget.outside(choices)) != as_it_is
    assert as_it_is  # with that much room
    assert set(search.budget.applied(choices, rounding).overrides) == {view.name for view in layers.views}
    assert kinds_of(search.budget.groups)["embedding"] == [4]
    assert 4 not in kinds_of(search.budget.groups).get("the first third", [])


def test_an_embedding_is_put_on_the_scale_of_the_layers_by_measuring_both_apart(model, mixing, ids):
    search = mixing(rounding_by("gptq"), with_embedding=True)
    costs, original = search.forecast(), Original(model.module, ids)
    near, (view,) = search.budget.nearest_width, search.budget.groups[-1].views
    assert search.budget.widths[near] == search.budget.groups[-1].width(1) == 3 and near == 1
    layers = sum(search.divergence([1] * 4 + [7], original)) / 2 / sum(some[1] for some in costs[:4])
    alone = sum(original.divergence([view], search.values([1] * 5))) / 2 / costs[4][1]
    found = search.comparable(costs, original)
    assert found[:4] == costs[:4]
    np.testing.assert_allclose(found[4], np.multiply(costs[4], alone / layers), rtol=1e-9)
    without = mixing(rounding_by("gptq"), "other")
    assert without.comparable(costs[:4], original) == costs[:4]


def test_what_a_killed_forecast_has_rounded_is_not_rounded_again(mixing, monkeypatch):
    wanted = mixing(ROUNDINGS[1], "uninterrupted").forecast()
    calls, kills, truly = [], ["in the sixth"], mixed.rounded_batch

    def noted(batch, rounding, sums):
        if len(calls) == 5 and kills:
            raise KeyboardInterrupt(kills.pop())
        calls.append([(view.name, rounding.scheme.bits) for view in batch])
        return truly(batch, rounding, sums)

    monkeypatch.setattr(mixed, "rounded_batch", noted)
    with pytest.raises(KeyboardInterrupt):
        mixing(ROUNDINGS[1]).forecast()
    search = mixing(ROUNDINGS[1])
    assert search.forecast() == wanted
    search.values([0, 1, 2, 3])  # what whole models are put together from
    assert sorted(itertools.chain(*calls)) == sorted((view.name, bits) for view in search.views for bits in FOUR)


def test_the_frontier_away_from_the_target_is_as_foretold_whatever_was_corrected_at_it(
    model, texts, tmp_path, monkeypatch
):
    """Every trial is taken here, so that a kind counts many times at the target."""
    measured, found = [], {}
    forecast = Mixing.forecast

    def foretold(self):
        found.update(search=self, costs=forecast(self))
        return found["costs"]

    def better_each_time(_, choices, original):
        measured.append(tuple(choices))
        return [(1 + window / 100) / len(measured) for window in range(len(original.windows))]

    monkeypatch.setattr(Mixing, "forecast", foretold)
    monkeypatch.setattr(Mixing, "divergence", better_each_time)
    tables = run(Quantize(target="3.0bits", **SMALL), model, texts, tmp_path)[1]
    search, tried, frontier = found["search"], tables["widths tried"], tables["frontier"]
    assert sum(row["accepted"] for row in tried) == len(tried) > 3
    chosen = tuple(search.budget.widths.index(row["bits"]) for row in tables["widths"])
    assert chosen != tuple(search.solve(found["costs"]))
    bits = search.budget.bits(chosen)
    around = {tuple(search.solve(found["costs"], search.budget.at(bits + step))) for step in (-0.5, -0.25, 0.25, 0.5)}
    assert set(measured[-len(frontier) :]) == around | {chosen}


def test_learned_rounding_is_foretold_by_two_sided_rounding_and_others_by_themselves():
    for rule in ("rtn", "gptq", "yaqa"):
        assert foretelling(rounding_by(rule), RULES[rule]) == rounding_by(rule)
        found = foretelling(rounding_by(rule), RULES["learned"])
        assert (found.rule.name, found.refit, found.sketch) == ("yaqa", 1, "a")
        assert found.strength == Strength(0.1, 0.1) != HELD_OUT


@pytest.mark.parametrize(
    ("bits", "engine", "widths"),
    [
        (2.0, None, [2, 3, 4]),
        (3.0, None, [2, 3, 4, 5]),
        (3.5, None, [2, 3, 4, 5]),
        (4.0, None, [2, 3, 4, 5, 6]),
        (8.0, None, [6, 7, 8]),
        (4.0, "vllm", [4, 8]),
        (7.9, "vllm", [4, 8]),
    ],
)
def test_widths_far_from_the_target_are_not_considered_but_those_on_both_sides_are(model, bits, engine, widths):
    views = [view for view in matrices(model.module) if view.layer is not None]
    whole = ByteBudget(tuple(groups_of(views, rounding_by("gptq").scheme, engine, 4)), dense=0)
    budget = replace(whole, allowed=whole.at(bits)).near()
    assert budget.widths == widths
    assert budget.at(bits) == whole.at(bits) and budget.mean_width == pytest.approx(bits, abs=1e-3)


def test_the_frontier_shows_beside_all_widths_those_that_vllm_has_kernels_for(mixing, monkeypatch):
    monkeypatch.setattr(Mixing, "divergence", lambda *_: [1.0, 2.0])
    search = mixing(rounding_by("rtn"))
    search.budget = replace(search.budget, allowed=search.budget.at(3.8))
    costs = search.forecast()
    rows = search.frontier(search.solve(costs), costs, None)
    run = [row for row in rows if row["vllm"]]
    assert [row["bits"] for row in run] == [4.0] and len(rows) > 3 and not run[0]["chosen"]
    assert frontier_line(run[0]).endswith("with kernels in vLLM")
    places = search.budget.with_kernels("vllm")
    assert search.budget.least(places) == search.budget.at(4.0)
    assert mixing(rounding_by("rtn"), with_embedding=True).budget.with_kernels("vllm") == [*places, [7]]  # as it is
