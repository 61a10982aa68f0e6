"""Phases of training: their ends, their guard, what is kept of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from burnish import Curriculum, Train
from burnish.cli import main
from burnish.core.checkpoint import Model
from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.recipe import read_recipe
from burnish.core.runner.plan import Planner
from burnish.core.stage import Context, seeded_generator
from burnish.curriculum import run as phases_run
from burnish.curriculum.watching import Looking, Values
from burnish.data.chain import Chains, chain_rows
from burnish.data.draws import json_lines
from burnish.report.curriculum import figures
from burnish.report.run import run_of
from burnish.stages import ROOMS
from burnish.train.state import load_optimizer
from small_models import untaught_reasoner
from told import Told, same

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = Chains(modulus=5, steps=(1, 1), operations="+", repeat=0.0, direct=0.0)
TWO = Chains(modulus=5, steps=(2, 2), operations="+", repeat=0.0, direct=0.0)
TRAIN: dict[str, Any] = {"context": 48, "batch": 8, "lr": 0.01, "warmup": 0.0, "save_every": 4}


@pytest.fixture(scope="module")
def start() -> Model:
    return untaught_reasoner()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Chains of one step and of two, and the latter with 0 for an answer, to train on and, others, to measure on."""
    place, found = tmp_path_factory.mktemp("chains"), {}
    for name, kind, sizes in (("one", ONE, (6, 40)), ("two", TWO, (16, 60))):
        asked: set[str] = set()
        for what, size in zip(("test", "train"), sizes, strict=True):
            distinct = what == "test"
            rows = list(chain_rows(kind, size, seed=len(found), apart_from=asked, distinct=distinct))
            asked |= {row["question"] for row in rows}
            path = place / f"{name}-{what}.jsonl"
            path.write_text(json_lines(iter(rows)))
            found[f"{name} {what}"] = str(path)
            zeros = [row | {"messages": [row["messages"][0], {"role": "assistant", "content": "#0"}]} for row in rows]
            (place / f"zero-{what}.jsonl").write_text(json_lines(iter(zeros)))
            found[f"zero {what}"] = str(place / f"zero-{what}.jsonl")
    return found


def phase(files: dict[str, str], which: str, **settings: Any) -> dict[str, Any]:
    sources = {"data": files[f"{which} train"], "held_out": files[f"{which} test"]}
    return {"name": which, **sources, "steps": 8} | settings


def stage_of(*phases: dict[str, Any], **settings: Any) -> Curriculum:
    common = {"verifier": "chain", "max_new_tokens": 24, "every": 4, "train": TRAIN}
    return Curriculum.parse({"phases": list(phases)} | common | settings, where="here")


def test_phases_are_trained_one_after_the_other_and_all_sets_are_measured_at_every_boundary(start, files, tmp_path):
    told = Told(stage_of(phase(files, "one"), phase(files, "two")), start, tmp_path)
    assert [(row["phase"], row["from_step"], row["to_step"]) for row in told.tables["phases"]] == [
        ("one", 0, 8),
        ("two", 8, 16),
    ]
    looks = told.tables["held out"]
    boundaries = [(row["at_step"], row["held_out"]) for row in looks if row["boundary"]]
    assert boundaries == [(step, name) for step in (0, 8, 16) for name in ("one", "two")]
    assert [(row["at_step"], row["held_out"]) for row in looks if not row["boundary"]] == [
        (4, "one"),
        (12, "one"),
        (12, "two"),
    ]
    assert [row["step"] for row in told.tables["loss"]] == list(range(1, 17))
    assert all(0 <= row["low"] <= row["value"] <= row["high"] <= 1 and row["loss"] > 0 for row in looks)


def test_one_phase_is_the_training_that_it_names(start, files, tmp_path):
    told = Told(stage_of(phase(files, "one")), start, tmp_path)
    alone = Train(**TRAIN | {"schedule": "constant", "steps": 8})(start, data=files["one train"])
    for ours, theirs in zip(told.weights, alone.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("dies_in", ["training", "measuring"])
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_weights(start, files, tmp_path, monkeypatch, dies_in):
    stage = stage_of(phase(files, "one"), phase(files, "two"), reset_optimizer=False)
    whole = Told(stage, start, tmp_path / "whole")
    look, number = phases_run.Looking.look, 0

    def dying(self: Any, step: int, model: Any) -> bool:
        nonlocal number
        number += 1
        if number == 4:  # at the end of the second phase, whose state of step 4 is saved
            raise KeyboardInterrupt
        return look(self, step, model)

    if dies_in == "measuring":
        monkeypatch.setattr(phases_run.Looking, "look", dying)
    else:
        monkeypatch.setattr(phases_run.Looking, "begin", _interrupted_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        Told(stage, start, tmp_path / "killed")
    monkeypatch.undo()
    trained = []
    real = phases_run.training.run
    monkeypatch.setattr(phases_run.training, "run", lambda *a, **k: trained.append(1) or real(*a, **k))
    resumed = Told(stage, start, tmp_path / "killed")
    assert same(whole, resumed) and len(trained) == 1
    assert resumed.tables["held out"] == whole.tables["held out"]
    assert [row["loss"] for row in resumed.tables["loss"]] == [row["loss"] for row in whole.tables["loss"]]


def _interrupted_in_the_second(self: Any, optimizer: Any) -> None:
    if self.place == 1:
        raise KeyboardInterrupt
    assert self.before is None


@pytest.mark.slow
def test_a_later_phase_that_is_changed_leaves_the_earlier_one_as_it_is(start, files, tmp_path, monkeypatch):
    Told(stage_of(phase(files, "one"), phase(files, "two")), start, tmp_path)
    trained = []
    real = phases_run.training.run
    monkeypatch.setattr(phases_run.training, "run", lambda *a, **k: trained.append(a[0].steps) or real(*a, **k))
    Told(stage_of(phase(files, "one"), phase(files, "two", steps=4)), start, tmp_path)
    assert trained == [4]


def test_a_phase_ends_where_its_rule_holds_and_says_so(start, files, tmp_path):
    easy = phase(files, "one", steps=200, until={"loss": 2.0}, train={"lr": 0.02})
    row = Told(stage_of(easy), start, tmp_path / "loss").tables["phases"][0]
    assert row["to_step"] < 200 and "reached 2" in row["ended"]
    flat = phase(files, "one", steps=100, until={"plateau": 0.5, "looks": 2})
    row = Told(stage_of(flat), start, tmp_path / "plateau").tables["phases"][0]
    assert row["to_step"] == 8 and "less than 0.5" in row["ended"]


def test_a_phase_that_never_reaches_its_end_is_capped_and_says_so(start, files, tmp_path):
    told = Told(stage_of(phase(files, "two", until={"solve_rate": 1.0})), start, tmp_path)
    assert told.tables["phases"][0]["to_step"] == 8
    assert told.tables["phases"][0]["ended"] == "its steps were done before what it was to end by"
    assert any("before what it was to end by" in line for line in told.lines)


def forgetting(files: dict[str, str], **settings: Any) -> Curriculum:
    """A second phase that teaches one answer to everything, so that the first one's loss, which is watched, rises."""
    second = phase(files, "zero", steps=12)
    return stage_of(phase(files, "one", steps=16), second, verifier=None, fall=1e-3, **settings)


def test_the_guard_mixes_earlier_rows_in(start, files, tmp_path):
    plain = Told(forgetting(files, guard="none"), start, tmp_path / "none")
    mixed = Told(forgetting(files, guard="mix", share=0.5), start, tmp_path / "mix")
    row, other = mixed.tables["phases"][1], plain.tables["phases"][1]
    assert row["mixed_from"] == 20 and row["to_step"] == 28 and other["mixed_from"] is None
    assert "one is" in other["forgotten"]
    last = {
        name: [r["loss"] for r in told.tables["held out"] if r["held_out"] == "one"][-1]
        for name, told in (("none", plain), ("mix", mixed))
    }
    assert last["mix"] < last["none"]


def test_the_guard_stops_with_the_weights_of_before_the_phase(start, files, tmp_path):
    stopped = Told(forgetting(files, guard="stop"), start, tmp_path / "stop")
    before = Told(stage_of(phase(files, "one", steps=16), verifier=None), start, tmp_path / "before")
    assert same(stopped, before)
    assert stopped.tables["phases"][1]["ended"].startswith("the guard: one is")
    assert any("ends here, with the weights of before zero" in line for line in stopped.lines)


def test_a_phase_that_forgets_is_not_kept_although_it_has_reached_what_it_was_to_end_by(files):
    stage = stage_of(phase(files, "one"), phase(files, "two", until={"solve_rate": 0.8}), guard="stop")
    now = {"one": {"value": 0.5}, "two": {"value": 0.9}}
    values = Values(1, {"one": [0.9], "two": [0.0]}, [0.0])
    watch = Looking(stage, 1, 8, 8, lambda name, model: now[name], values, mixed=False, before=None, after=None)
    assert watch.look(4, torch.nn.Identity())
    assert watch.guarded and watch.why == "the guard: one is 0.4 below its best"


@pytest.mark.parametrize(
    ("until", "step", "why"),
    [
        ({"solve_rate": 0.8}, 4, "solve rate 0.900 reached 0.8"),
        ({"solve_rate": 0.95}, 8, "its steps were done before what it was to end by"),
        ({}, 8, "its steps were done"),
    ],
)
def test_a_phase_that_ends_where_the_guard_would_have_mixed_says_so(files, until, step, why):
    stage = stage_of(phase(files, "one"), phase(files, "two", until=until), guard="mix")
    now = {"one": {"value": 0.5}, "two": {"value": 0.9}}
    for mixed in (False, True):  # where rows are mixed in already the guard has spoken
        values = Values(1, {"one": [0.9], "two": [0.0]}, [0.0])
        watch = Looking(stage, 1, 8, 8, lambda name, model: now[name], values, mixed=mixed, before=None, after=None)
        assert watch.look(step, torch.nn.Identity())
        late = "" if mixed else "; too late for the guard to mix: one is 0.4 below its best"
        assert watch.why == why + late and not watch.guarded


def test_the_share_of_earlier_rows_is_what_is_asked_for(start, files, tmp_path):
    stage = stage_of(phase(files, "one"), phase(files, "two"), share=0.4)
    inputs = {place: value for place, _, value in stage.named()}
    ctx = Context(inputs, tmp_path, "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
    found, settings = phases_run._Phases(stage, ctx, start, None), stage.training(stage.phases[1])
    rows = phases_run.packed(settings, start.tokenizer, files["two train"], ctx, where="data")
    both = found._with_earlier(rows, 1, settings)
    assert len(rows) / len(both) == pytest.approx(0.6, abs=0.02)
    assert (both.input_ids[: len(rows)] == rows.input_ids).all()


@pytest.mark.slow
def test_an_optimizer_goes_on_where_it_is_not_reset(start, files, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "burnish.curriculum.watching.load_optimizer",
        lambda path, optimizer: (load_optimizer(path, optimizer), taken.append(optimizer.state_dict())),
    )
    both = phase(files, "one"), phase(files, "two")
    kept = Told(stage_of(*both, reset_optimizer=False), start, tmp_path / "kept")
    assert len(taken) == 1 and {group["num_steps"] for group in taken[0]["param_groups"]} == {8}
    assert not same(kept, Told(stage_of(*both), start, tmp_path / "reset")) and len(taken) == 1


def test_a_prompt_writes_the_question_of_the_rows(start, files, tmp_path, monkeypatch):
    seen = []
    real = phases_run.training.run
    monkeypatch.setattr(
        phases_run.training, "run", lambda s, m, ctx, **k: seen.append(ctx.inputs["data"]) or real(s, m, ctx, **k)
    )
    shown = phase(files, "one", prompt="{num_steps} step: {question}", train={"context": 64})
    Told(stage_of(shown), start, tmp_path)
    rows = [json.loads(line) for line in Path(files["one train"]).read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in seen[0]] == [f"1 step: {row['question']}" for row in rows]
    assert [row["messages"][1] for row in seen[0]] == [row["messages"][1] for row in rows]


# -- what is refused -----------------------------------------------------------------------------------------------


def test_a_prompt_of_fields_that_rows_do_not_have_is_refused(start, files, tmp_path):
    with pytest.raises(DataError, match=r"has no 'hint' for the prompt \(it has id, question"):
        Told(stage_of(phase(files, "one", prompt="{question} {hint}")), start, tmp_path)


@pytest.mark.parametrize("place", [0, 1])
def test_held_out_rows_that_any_phase_trains_on_are_refused(start, files, tmp_path, place):
    phases = [phase(files, "one"), phase(files, "two")]
    phases[place]["held_out"] = files["two train"]
    with pytest.raises(DataError, match=rf"phase 'two' trains on are items that phase '{phases[place]['name']}' is"):
        Told(stage_of(*phases), start, tmp_path)


def test_data_that_changes_between_phases_is_refused(start, files, tmp_path, monkeypatch):
    changing = tmp_path / "two.jsonl"
    shutil.copy(files["two train"], changing)
    real = phases_run.training.run

    def changed(*args: Any, **kwargs: Any) -> Model:
        changing.write_text("".join(changing.read_text().splitlines(keepends=True)[:30]))
        return real(*args, **kwargs)

    monkeypatch.setattr(phases_run.training, "run", changed)
    with pytest.raises(DataError, match="has changed since the curriculum began") as error:
        Told(stage_of(phase(files, "one"), phase(files, "two", data=str(changing))), start, tmp_path)
    assert error.value.where == f"phases.1.data ({changing})"


@pytest.mark.parametrize(
    ("phases", "settings", "said"),
    [
        ([], {}, "no phases are named"),
        ([{"name": "a", "data": "x"}], {}, "phase 'a': has no held_out"),
        ([{"name": "a", "held_out": "x"}], {}, "phase 'a': has no data"),
        ([{"name": "a"}, {"name": "a"}], {}, "two phases are called 'a'"),
        ([{"name": "a b"}], {}, "a name is made of letters"),
        ([{"name": "a", "prompt": "{question"}], {}, "'{question' asks the same of every row; name fields of it"),
        ([{"name": "a", "step": 3}], {}, r"phase 'a': there is no setting 'step' here; did you mean 'steps'"),
        ([{"name": "a", "until": {"plato": 1}}], {}, r"phase 'a', until: there is no setting 'plato' here"),
        ([{"name": "a", "steps": 0}], {}, "steps is 0, but"),
        ([{"name": "a", "until": {"solve_rate": 0.5}}], {"verifier": None}, "which needs a verifier"),
        ([{"name": "a", "data": "x", "held_out": "y", "train": {"lrr": 1}}], {}, "^phase 'a', train: there is no set"),
        ([{"name": "a", "data": "x", "held_out": "y", "train": {"steps": 1}}], {}, "steps is no setting that a phase"),
        ([{"name": "a"}], {"verifier": "chainz"}, "there is no verifier 'chainz'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_place(start, phases, settings, said):
    with pytest.raises(SettingsError, match=said):
        stage_of(*phases, **settings).plan(start.plan())


def test_a_phase_without_rows_is_refused(start, files, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no text"):
        Told(stage_of(phase(files, "one", data=str(tmp_path / "empty.jsonl"))), start, tmp_path / "work")


def test_problems_alone_need_a_verifier(start, files, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "1a+1", "answer": "2"}\n{"question": "1a+2", "answer": "3"}\n')
    with pytest.raises(DataError, match="answers need a verifier"):
        Told(stage_of(phase(files, "two", held_out=str(asked)), verifier=None), start, tmp_path / "work")
    told = Told(stage_of(phase(files, "two", held_out=str(asked))), start, tmp_path / "work")
    assert "loss" not in told.tables["held out"][0]


def test_an_optimizer_of_other_parameters_is_refused(start, files, tmp_path):
    both = phase(files, "one"), phase(files, "two", train={"optimizer": "adamw"})
    with pytest.raises(BurnishError, match="the optimizer before trained other parameters"):
        Told(stage_of(*both, reset_optimizer=False), start, tmp_path)


# -- recipes -------------------------------------------------------------------------------------------------------


def test_phases_name_rows_of_nodes_which_are_made_first_and_decide_the_key(start, tmp_path):
    """Of what settings inside a list name, names decide nothing and content does."""
    start.save(tmp_path / "start")

    def planned(names: dict[str, str], seed: int = 0) -> Planner:
        nodes = [
            {"name": names["phase"], "from": "start", "stage": "curriculum", "train": TRAIN}
            | {"phases": [{"name": "one", "data": names["rows"], "held_out": names["asked"]}]},
            {"name": names["rows"], "from": "start", "stage": "chain", "seed": seed, "apart_from": names["asked"]},
            {"name": names["asked"], "from": "start", "stage": "chain", "seed": 1, "distinct": True},
        ]
        recipe = {"name": "phases", "start": str(tmp_path / "start"), "nodes": nodes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return Planner(read_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", ROOMS)

    names = {"phase": "taught", "rows": "rows", "asked": "asked"}
    planner, other = planned(names), planned({"phase": "taught", "rows": "train", "asked": "test"})
    assert [node.name for node in planner.recipe.nodes] == ["asked", "rows", "taught"]
    assert planner.stages["taught"].named() == [
        ("phases.0.data", "data", "rows"),
        ("phases.0.held_out", "data", "asked"),
    ]
    planner.hashes = {"start": "s", "rows": "r", "asked": "a"}
    other.hashes = {"start": "s", "train": "r", "test": "a"}
    key = planner._key(planner.recipe.node("taught"))
    assert key is not None and key == other._key(other.recipe.node("taught"))
    planner.hashes["asked"] = "b"
    assert key != planner._key(planner.recipe.node("taught"))
    del planner.hashes["asked"]
    assert planner._key(planner.recipe.node("taught")) is None


def test_the_picture_has_every_held_out_set_and_where_phases_end(start, files, tmp_path):
    told = Told(stage_of(phase(files, "one"), phase(files, "two")), start, tmp_path / "work")
    ledger = Ledger(tmp_path, node="taught")
    for name, rows in told.tables.items():
        ledger.table(name, rows)
    (figure,) = figures(run_of(ledger))
    assert [one.name for one in figure.series] == ["one", "two", "one ends", "two ends"]
    assert [datum.x for datum in figure.series[0].data] == [0, 4, 8, 12, 16]
    assert [datum.x for datum in figure.series[1].data] == [0, 8, 12, 16]
    assert figure.title == "Held-out sets over the phases, taught" and "one to step 8: its steps" in figure.note


def test_a_phase_on_the_command_line_is_json(start, files, tmp_path, capsys):
    start.save(tmp_path / "start")
    given = {"name": "one", "data": files["one train"], "held_out": files["one train"]}
    words = ["curriculum", str(tmp_path / "start"), "-o", str(tmp_path / "out"), "--phases", json.dumps(given)]
    with pytest.raises(SystemExit):
        main(words)
    assert "40 of the rows that phase 'one' trains on are items" in capsys.readouterr().err
