"""Phases of GRPO: their ends, their guard, what is mixed in, what is kept of them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from burnish import Curriculum, Train
from burnish.align.envs import ChainEnv, MixedEnv, TableEnv
from burnish.core.checkpoint import Model
from burnish.core.errors import DataError, SettingsError
from burnish.curriculum import rewarded
from burnish.curriculum.rewarded import AskedEnvironment, Environments
from burnish.curriculum.watching import Looking
from burnish.data.chain import Chains, chain_rows
from burnish.data.draws import json_lines
from small_models import untaught_reasoner
from told import Told, same

GRPO: dict[str, Any] = {"problems": 6, "prompts": 2, "rollouts": 4, "lr": 1e-3, "save_every": 2}
ONE, TWO = ({"modulus": 5, "steps": [n, n], "operations": "+", "repeat": 0.0, "direct": 0.0} for n in (1, 2))


@pytest.fixture(scope="module")
def start() -> Model:
    """It ends its answers, in the form of an answer, and is right by chance: so rewards differ."""
    rows = [{"messages": row["messages"]} for row in chain_rows(Chains(**ONE), 200, seed=5)]
    train = Train(context=48, batch=8, lr=0.01, steps=40, schedule="constant")
    return train(untaught_reasoner(), data=rows)


def phase(name: str, kind: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": name, "env": "chain", "grpo": {"kind": kind}, "steps": 4} | settings


def stage_of(*phases: dict[str, Any], **settings: Any) -> Curriculum:
    common = {"max_new_tokens": 20, "held_out_rows": 4, "every": 2, "grpo": GRPO, "guard": "none"}
    return Curriculum.parse({"phases": list(phases)} | common | settings, where="here")


def values(monkeypatch: pytest.MonkeyPatch, *looks: dict[str, float]) -> None:
    """What is measured at one look after the other; the last of them stays."""
    left, seen = list(looks), list[str]()

    def measure(self: AskedEnvironment, module: Any, tokenizer: Any) -> dict[str, float]:
        if self.name in seen:
            seen.clear()
            if len(left) > 1:
                left.pop(0)
        seen.append(self.name)
        value = left[0][self.name]
        return {"value": value, "low": 0.0, "high": 1.0}

    monkeypatch.setattr(AskedEnvironment, "measure", measure)


@pytest.mark.slow
def test_phases_of_rewards_follow_each_other_and_all_sets_are_measured(start, tmp_path):
    told = Told(stage_of(phase("one", ONE), phase("two", TWO, steps=2)), start, tmp_path)
    assert [(row["phase"], row["from_step"], row["to_step"]) for row in told.tables["phases"]] == [
        ("one", 0, 4),
        ("two", 4, 6),
    ]
    looks = told.tables["held out"]
    assert [(row["at_step"], row["held_out"]) for row in looks if row["boundary"]] == [
        (step, name) for step in (0, 4, 6) for name in ("one", "two")
    ]
    assert [row["at_step"] for row in looks if not row["boundary"]] == [2]
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in looks)
    assert [row["step"] for row in told.tables["rl_training"]] == [1, 2, 3, 4, 5, 6]
    parts = {row["part"] for row in told.tables["rl_solved"]}
    assert parts == {f"{name}: {part} quarter" for name in ("one", "two") for part in ("first", "last")}
    start_weights = list(start.module.state_dict().values())
    assert any(not torch.equal(a, b) for a, b in zip(told.weights, start_weights, strict=True))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_weights(start, tmp_path, monkeypatch):
    stage = stage_of(phase("one", ONE), phase("two", TWO, steps=6), reset_optimizer=False)
    whole = Told(stage, start, tmp_path / "whole")
    look, number = Looking.look, 0

    def dying(self: Any, step: int, model: Any) -> bool:
        nonlocal number
        number += 1
        if number == 4:  # step 4 of the second phase; the state of its step 2 is saved
            raise KeyboardInterrupt
        return look(self, step, model)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Looking, "look", dying)
        Told(stage, start, tmp_path / "killed")
    resumed = Told(stage, start, tmp_path / "killed")
    assert same(whole, resumed)
    for name in ("held out", "phases"):
        assert resumed.tables[name] == whole.tables[name]
    timeless = [
        [{key: value for key, value in row.items() if "seconds" not in key} for row in told.tables["rl_training"]]
        for told in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_phase_ends_by_its_solve_rate(start, tmp_path, monkeypatch):
    values(monkeypatch, {"one": 0.1}, {"one": 0.9})
    told = Told(stage_of(phase("one", ONE, steps=8, until={"solve_rate": 0.8})), start, tmp_path)
    assert told.tables["phases"][0]["to_step"] == 2
    assert told.tables["phases"][0]["ended"] == "solve rate 0.900 reached 0.8"
    assert [row["step"] for row in told.tables["rl_training"]] == [1, 2]


@pytest.mark.slow
def test_the_guard_mixes_questions_of_earlier_phases(start, tmp_path, monkeypatch):
    trained, real = [], rewarded.run
    monkeypatch.setattr(rewarded, "run", lambda *a, env, **k: trained.append(env) or real(*a, env=env, **k))
    looks = [{"one": 0.9, "two": 0.0}, {"one": 0.9, "two": 0.0}, {"one": 0.5, "two": 0.1}]
    values(monkeypatch, *looks)
    stage = stage_of(phase("one", ONE, steps=2), phase("two", TWO, steps=4), guard="mix", share=0.5)
    told = Told(stage, start, tmp_path)
    row = told.tables["phases"][1]
    assert (row["mixed_from"], row["to_step"]) == (4, 6) and "one is 0.4 below" in row["forgotten"]
    assert [type(env) for env in trained] == [ChainEnv, ChainEnv, MixedEnv]
    steps = [problem["num_steps"] for problem in trained[-1].problems]
    assert steps == [2] * 6 + [1] * 6


@pytest.mark.slow
def test_the_guard_stops_with_the_weights_of_before_the_phase(start, tmp_path, monkeypatch):
    values(monkeypatch, {"one": 0.9, "two": 0.0}, {"one": 0.9, "two": 0.0}, {"one": 0.5, "two": 0.1})
    stopped = Told(stage_of(phase("one", ONE, steps=2), phase("two", TWO), guard="stop"), start, tmp_path / "stopped")
    values(monkeypatch, {"one": 0.9})
    before = Told(stage_of(phase("one", ONE, steps=2)), start, tmp_path / "before")
    assert same(stopped, before)
    assert stopped.tables["phases"][1]["ended"].startswith("the guard: one is")


@pytest.mark.slow
def test_a_phase_of_rewards_follows_one_of_data(start, tmp_path):
    asked = list(chain_rows(Chains(**ONE), 6, seed=1, distinct=True))
    rows = list(chain_rows(Chains(**ONE), 20, seed=2, apart_from={row["question"] for row in asked}))
    files = {"held_out": asked, "data": rows}
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json_lines(iter(content)))
    worked = {"name": "worked", "steps": 4} | {name: str(tmp_path / f"{name}.jsonl") for name in files}
    train = {"context": 48, "batch": 8, "lr": 0.01}
    stage = stage_of(worked, phase("rewarded", TWO), verifier="chain", train=train)
    told = Told(stage, start, tmp_path / "work")
    assert [row["to_step"] for row in told.tables["phases"]] == [4, 8]
    losses = [row["loss"] for row in told.tables["held out"] if row["held_out"] == "worked"]
    assert len(losses) == len(set(losses)) == 5  # of the start, and two looks in each phase
    assert [row["step"] for row in told.tables["loss"]] == [1, 2, 3, 4]
    assert [row["step"] for row in told.tables["rl_training"]] == [5, 6, 7, 8]
    leak = stage_of(worked | {"data": worked["held_out"]}, phase("rewarded", TWO), verifier="chain", train=train)
    with pytest.raises(DataError, match="are items that phase 'worked' is measured on"):
        Told(leak, start, tmp_path / "leak")


def test_nothing_is_trained_on_that_any_phase_is_measured_on():
    stage = stage_of(phase("one", ONE), phase("two", TWO), phase("again", ONE, grpo={"kind": ONE, "problems": 8}))
    plain = Environments(stage, set(), set())
    rows = {min(plain.questions["two"])}
    found = Environments(stage, rows, {"0a+1"})
    assert rows.isdisjoint(found.questions["two"])
    measured = {"0a+1"}.union(*found.questions.values())
    assert len(found.questions["two"]) == 4
    assert all(measured.isdisjoint(env.questions) for env in found.trained.values())


def test_a_prompt_writes_the_question_of_an_environment():
    tables = {"name": "told", "env": "table", "prompt": "{description}?{asked}"}
    found = Environments(stage_of(tables, tables | {"name": "grid", "prompt": "{grid}?{asked}"}), set(), set())
    for env in (found.trained[0], found.asked[0].env):
        assert isinstance(env, TableEnv)
        assert [one["question"] for one in env.problems] == [f"{r['description']}?{r['asked']}" for r in env.problems]
    assert found.asked[1].env.problems[0]["question"] in found.questions["told"]
    with pytest.raises(DataError, match="has no 'picture' for the prompt"):
        Environments(stage_of(tables | {"prompt": "{picture}"}), set(), set())


def test_a_prompt_of_fields_that_an_environment_lacks_is_refused_before_anything_runs(start):
    asked = {"name": "told", "env": "table", "prompt": "{description}?{asked}"}
    stage_of(asked).preflight(start, start.plan())
    with pytest.raises(DataError, match=r"phase 'told', env: .* has no 'picture' for the prompt"):
        stage_of(asked | {"prompt": "{picture}"}).preflight(start, start.plan())


DATA = {"name": "d", "data": "x", "held_out": "y"}


@pytest.mark.parametrize(
    ("phases", "settings", "said"),
    [
        ([{"name": "a", "env": "chain", "data": "x"}], {}, "phase 'a' has an env, which brings its own data"),
        ([{"name": "a", "env": "chain", "train": {"lr": 1}}], {}, "whose settings are those of grpo and not of train"),
        ([{"name": "a", "env": "chain", "until": {"loss": 1}}], {}, "where no loss could end it"),
        ([{"name": "a", "data": "x", "grpo": {"lr": 1}}], {}, "has settings of GRPO but no env"),
        ([{"name": "a", "env": "chian"}], {}, "did you mean 'chain'"),
        ([{"name": "a", "env": "chain", "grpo": {"lrr": 1}}], {}, "phase 'a', grpo: there is no setting 'lrr'"),
        ([{"name": "a", "env": "chain", "grpo": {"updates": 1}}], {}, "updates is no setting that a phase gives"),
        ([{"name": "a", "env": "chain", "grpo": {"rollouts": 1}}], {}, "phase 'a', grpo: rollouts is 1"),
        ([DATA, {"name": "a", "env": "chain"}], {}, "have solve rates beside those of environments only with a ver"),
        ([DATA, {"name": "a", "env": "chain"}], {"verifier": "chain", "guard": "mix"}, "no common rows of data and"),
        ([DATA, {"name": "a", "env": "chain"}], {"verifier": "chain", "reset_optimizer": False}, "set reset_optimizer"),
        (
            [{"name": "a", "env": "chain"}, {"name": "b", "env": "calculator"}],
            {"guard": "mix"},
            "cannot mix episodes of different tools",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_place(start, phases, settings, said):
    with pytest.raises(SettingsError, match=said):
        stage_of(*phases, **settings).plan(start.plan())
