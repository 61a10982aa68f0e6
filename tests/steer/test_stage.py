"""The stage: vectors as a node of a recipe makes them, with the strength that problems have chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.core.checkpoint import Lineage, Model
from burnish.core.errors import DataError, SettingsError
from burnish.core.kinds import Kind
from burnish.data.chain import Chains, chain_rows
from burnish.steer import read_vectors
from burnish.steer import run as stage_run
from burnish.steer.sweep import PLAIN, Comparison, Outcome, SteeringStrength, sweep
from small_models import make, small_tokenizer

MARKS: dict[str, Any] = {"verifier": "chain", "separator": ";", "cues": ["re:^W"], "think_end": "#"}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(module=make("llama"), tokenizer=small_tokenizer())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(chain_rows(Chains(steps=(2, 4), direct=0), 60, seed=0))


def test_vectors_of_a_model_in_memory_are_saved_as_a_checkpoint_of_their_kind(
    model: Model, rows: list[dict[str, Any]], tmp_path: Path
):
    made = burnish.Steer(**MARKS, permutations=9, force=True)(model, traces=rows)
    made.save(tmp_path / "vectors")
    assert read_vectors(tmp_path / "vectors").model == model.identity
    lineage = Lineage.read(tmp_path / "vectors")
    assert lineage is not None and lineage.kind is Kind.STEERING and lineage.parents == {"model": model.identity}
    assert "strength" not in made.vectors.made_of


def test_the_strength_that_problems_choose_is_written_beside_the_vectors(
    model: Model, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    """A random model is right nowhere, so a strength that takes fewer tokens is made up."""

    def chosen(cells: Any, *arguments: Any, **more: Any) -> Any:
        tuned, _, _ = sweep(cells, *arguments, **more)
        return tuned, tuned[0], []

    monkeypatch.setattr(stage_run, "sweep", chosen)
    stage = burnish.Steer(**MARKS, permutations=1, force=True, max_new_tokens=3, coef=[-2], top=[0.5], mode="mean")
    made = stage(model, traces=rows[6:], strengths=rows[:6])
    assert made.vectors.made_of["strength"] == {"coef": -2.0, "top": 0.5, "mode": "mean"}


def test_no_strength_is_tried_on_a_question_that_vectors_are_made_from(
    model: Model, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    tried = []

    def looked_at(cells: Any, *arguments: Any, **more: Any) -> Any:
        tried.extend(problem["question"] for part in cells.parts.values() for problem in part)
        return [], None, []

    monkeypatch.setattr(stage_run, "sweep", looked_at)
    stage = burnish.Steer(**MARKS, permutations=1, force=True)
    stage(model, traces=rows[4:], strengths=rows[:6])
    assert tried == [row["question"] for row in rows[:4]]
    with pytest.raises(DataError, match="0 of 6 questions are not those of traces, and 4 are needed"):
        stage(model, traces=rows, strengths=rows[:6])


def test_a_row_of_the_table_has_intervals_but_for_the_plain_model():
    plain = Outcome([1.0, 0.0, 1.0], [10, 12, 14], [2, 2, 2], [1, 0, 2], {})
    mine = Outcome([1.0, 1.0, 1.0], [9, 11, 13], [2, 2, 2], [0, 0, 1], {})
    assert "lost" not in stage_run.told_of(Comparison.of(PLAIN, plain, plain))
    told = stage_run.told_of(Comparison.of(SteeringStrength("steered", -1.0, 0.38), mine, plain))
    assert told["tokens"] == 11 and told["of plain"].startswith("0.92 (")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"traces": "a.jsonl", "mode": "mean"}, "mode: counts for nothing without problems to try strengths on"),
        ({}, "give either traces or problems"),
        ({"traces": "a.jsonl", "problems": "b.jsonl"}, "give either traces or problems"),
    ],
)
def test_what_is_missing_is_told_in_the_plan(model: Model, given: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        burnish.Steer(**given).plan(model.plan())


def test_a_strength_that_no_head_can_have_is_refused_before_answers_are_written():
    with pytest.raises(SettingsError, match="top"):
        burnish.Steer.parse({"traces": "a.jsonl", "strengths": "b.jsonl", "top": [0.1, 0.0]}, where="node")
