"""A sweep: what its cells are, that they are paired and kept, and what a choice may be made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from burnish.core.checkpoint import Model
from burnish.core.errors import CheckpointError, DataError
from burnish.core.statistics import Interval
from burnish.data.chain import Chains, chain_rows
from burnish.steer import Vectors
from burnish.steer.sweep import PLAIN, Comparison, Outcome, SteeringStrength, Sweep, choice, grid, of_arm, sweep
from burnish.verify import verifier
from made_vectors import MARKS, some_vectors
from small_models import make, small_tokenizer

MANY = replace(MARKS, separator_ids=tuple(range(0, 384, 3)), think_end_ids=(), cues=("re:[aeiou]",))
"""Every third token ends a step, so that a random model writes some."""


@pytest.fixture
def model() -> Model:
    return Model(module=make("llama"), tokenizer=small_tokenizer())


@pytest.fixture
def vectors(model: Model) -> Vectors:
    return some_vectors(model.module, marks=MANY)


def cells(model: Model, vectors: Vectors, place: Path, number: int = 8, **options: Any) -> Sweep:
    problems = list(chain_rows(Chains(), number, seed=0))
    more = {"max_new_tokens": 10, "tuning": 0.25, **options}
    return Sweep(model, vectors, problems, verifier("chain"), place, **more)


def test_a_coefficient_of_zero_is_the_plain_model_problem_by_problem(model: Model, vectors: Vectors, tmp_path: Path):
    some = cells(model, vectors, tmp_path)
    plain, same = some.outcome(PLAIN, "reporting"), some.outcome(SteeringStrength("steered", 0.0, 1.0), "reporting")
    assert replace(same, counts={}) == plain
    assert same.counts["moved"] == 0 < same.counts["flagged"]
    assert len(plain.tokens) == 6 and sum(plain.checking) > 0 < sum(plain.linear)
    (row,) = some.rows([SteeringStrength("steered", 0.0, 1.0)], "reporting")
    assert (row.lost.value, row.ratio.value, row.checks.value) == (0, 1, 1)


def test_what_is_measured_is_kept_and_belongs_to_its_settings(model: Model, vectors: Vectors, tmp_path: Path):
    cell = SteeringStrength("steered", -4.0, 1.0)
    first = cells(model, vectors, tmp_path).outcome(cell, "tuning")
    again = cells(model, vectors, tmp_path)
    again._measure = lambda *_: pytest.fail("was measured before")  # type: ignore[method-assign]
    assert again.outcome(cell, "tuning") == first
    for other in ({"seed": 1}, {"temperature": 0.5}, {"mode": "soft"}, {"tuning": 0.5}):
        with pytest.raises(CheckpointError):
            cells(model, vectors, tmp_path, **other).outcome(cell, "tuning")


def test_controls_are_of_the_same_strength(vectors: Vectors):
    best = of_arm(vectors, SteeringStrength("steered", -1.0, 3), 0)
    directions = of_arm(vectors, SteeringStrength("random directions", -1.0, 3), 0)
    heads = of_arm(vectors, SteeringStrength("random heads", -1.0, 3), 0)
    assert best.heads == directions.heads == vectors.heads[:3]
    assert torch.equal(best.probes, directions.probes)
    assert not torch.isclose(best.directions, directions.directions).all(1).any()
    torch.testing.assert_close(directions.directions.norm(dim=1), torch.ones(3))
    assert len(heads.heads) == 3 and set(heads.heads) <= set(vectors.heads[3:])
    whole = of_arm(vectors, SteeringStrength("random heads", -1.0, len(vectors.heads) - 1), 0)
    assert len(set(whole.heads)) == len(vectors.heads) - 1  # where others are too few, of all
    assert of_arm(vectors, SteeringStrength("random heads", -4.0, 3), 0).heads == heads.heads
    assert of_arm(vectors, SteeringStrength("random heads", -1.0, 3), 1).heads != heads.heads


@pytest.mark.parametrize("whole", [1.0, 8.0, 1e9])
def test_a_grid_has_random_heads_only_where_others_are_left(vectors: Vectors, whole: float):
    found = grid(vectors, [-1], [0.5, whole], ("steered", "random directions", "random heads"))
    assert [(cell.arm, cell.top) for cell in found] == [
        ("steered", 0.5),
        ("random directions", 0.5),
        ("random heads", 0.5),
        ("steered", whole),
        ("random directions", whole),
    ]


def row(tokens: float, lost: float, of_plain: float) -> Comparison:
    def point(value: float) -> Interval:
        return Interval(value, value, value)

    return Comparison(
        SteeringStrength("steered", -1.0, tokens), 1.0, point(lost), tokens, point(of_plain), 0.0, point(1.0), 0.0
    )


def test_the_fewest_tokens_are_chosen_among_what_loses_little_and_saves_some():
    rows = [row(50, 0.3, 0.5), row(80, 0.01, 0.8), row(70, 0.005, 0.7), row(101, -0.2, 1.01)]
    assert choice(rows, 0.01) is rows[2]
    assert choice(rows, 0.5) is rows[0]
    assert choice(rows[3:], 0.01) is None


def test_rows_are_paired_by_problem():
    plain = Outcome([1, 1, 0, 1], [100, 50, 80, 70], [4, 4, 4, 4], [2, 2, 2, 2], {})
    mine = Outcome([1, 0, 0, 1], [50, 25, 40, 35], [4, 4, 4, 3], [1, 1, 1, 1], {})
    found = Comparison.of(SteeringStrength("steered", -1.0, 1.0), mine, plain)
    assert (found.accuracy, found.lost.value) == (0.5, 0.25)
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.checks.value == pytest.approx(0.5)
    assert (found.tokens, found.checking, found.linear) == (37.5, 1, 3.75)
    without = Comparison.of(SteeringStrength("steered", -1.0, 1.0), mine, replace(plain, checking=[0] * 4))
    assert np.isnan(without.checks.value)


def test_a_sweep_reports_what_it_has_chosen_with_controls(
    model: Model, vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Texts of a random model run to their limit and save nothing, so the choice is made by hand."""
    some = cells(model, vectors, tmp_path)
    tuned, chosen, told = sweep(some, [-4.0], [0.5, 1.0])
    assert [one.cell.top for one in tuned] == [0.5, 1.0]
    assert chosen is None and told == []
    _, _, told = sweep(some, [-4.0], [0.5, 1.0], whole=True)
    assert len(told) == 5
    monkeypatch.setattr("burnish.steer.sweep.choice", lambda rows, lose: rows[0])
    _, chosen, told = sweep(some, [-4.0], [0.5, 1.0])
    assert chosen is not None
    assert [one.cell for one in told] == grid(vectors, [-4.0], [0.5], ("steered", "random directions", "random heads"))


def test_too_few_problems_are_refused(model: Model, vectors: Vectors, tmp_path: Path):
    with pytest.raises(DataError, match="3 problems are too few"):
        cells(model, vectors, tmp_path, number=3)
