"""The stage `grpo` and its command: refusals before anything runs, its tables, going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import burnish
import warm
from burnish.core.errors import BurnishError, DataError

SMALL: dict[str, Any] = {
    "problems": 6,
    "held_out": 8,
    "prompts": 4,
    "rollouts": 2,
    "max_new_tokens": 12,
    "updates": 4,
    "floor": 0.0,
    "redundant": 0.0,
    "save_every": 2,
    "lr": 1e-3,
}


def weights(model: burnish.Model) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.module.parameters()])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env": "chian"}, "did you mean 'chain'"),
        ({"env": "reasoning_gym"}, "there is no environment"),
        ({"env": "reasoning_gym:chain_sums"}, "did you mean .chain_sum."),
        ({"shaping": "shortarc"}, "did you mean 'short_arc'"),
        ({"shaping": "kimi", "shaping_options": {"wait": 1}}, "do not fit 'kimi'"),
        ({"shaping": "kimi", "shaping_options": {"weight": "heavy"}}, "do not fit 'kimi'"),
        ({"max_new_tokens": 100_000}, "max_new_tokens"),
        ({"rollouts": 1}, "rollouts"),
        ({"micro_batch": 5}, "does not divide"),
        ({"alpha": 0.95}, "above alpha_max"),
        ({"alpha_max": 1.0}, "alpha_max"),
        ({"problems": 4}, "fewer than the 12 prompts"),
        ({"temperature": 0.0}, "temperature"),
        ({"max_staleness": 3}, "max_staleness counts for nothing without replay"),
        ({"max_turns": 3}, "max_turns counts for nothing without env calculator or python"),
        ({"env": "table", "kind": {"steps": (1, 2)}}, "kind counts for nothing without env chain"),
        ({"env": "calculator", "kind": {"slips": 0.1}}, "kind counts for nothing without env chain"),
        ({"tables": {"rows": 2}}, "tables counts for nothing without env table"),
        ({"shaping": "kimi", "tolerance": 0.02}, "tolerance counts for nothing without shaping short_arc"),
        ({"acc_target": 0.9}, "acc_target counts for nothing without shaping short_arc"),
        ({"replay": 4, "max_staleness": 1, "iterations": 2}, "so that none would be replayed"),
        ({"replay": 4, "max_staleness": 2, "staleness": 2}, "iterations and staleness 2 the groups of the draw before"),
        ({"staleness": 1, "iterations": 2}, "no multiple of the 2 updates"),
        ({"staleness": 1, "refill": 1}, "refill draws when answers have been judged"),
        ({"asynchronous": True, "refill": 1}, "refill draws when answers have been judged"),
        ({"share_prefixes": True}, "share_prefixes counts for nothing without packing"),
        ({"correction_bound": 3.0}, "correction_bound counts for nothing without correction truncated or icepop"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    settings: dict[str, Any], said: str, checkpoint: Path
) -> None:
    with pytest.raises((BurnishError, ValueError), match=said):
        burnish.Grpo(**settings).plan(burnish.load(checkpoint).plan())


def test_a_model_without_a_chat_template_is_refused(checkpoint: Path) -> None:
    start = burnish.load(checkpoint)
    burnish.Grpo(**SMALL).preflight(start, start.plan())
    start.tokenizer.chat_template = None
    with pytest.raises(DataError, match="tokenizer has no chat template"):
        burnish.Grpo(**SMALL).preflight(start, start.plan())


def test_a_start_that_was_refused_may_be_tried_with_a_lower_floor() -> None:
    """It decides whether a training begins, not how it ends, so what a refused run has kept holds below it too."""
    lower = burnish.Grpo(**SMALL | {"floor": 0.1, "redundant": 0.0})
    assert lower.canonical() == burnish.Grpo(**SMALL | {"floor": 0.8}).canonical()


def test_a_run_that_drew_in_turn_goes_on_in_two_processes_and_one_with_another_staleness_does_not() -> None:
    turn = burnish.Grpo(staleness=1)
    assert turn.canonical() == burnish.Grpo(staleness=1, asynchronous=True).canonical()
    assert turn.canonical() != burnish.Grpo(staleness=2).canonical()


def test_the_plan_counts_the_models_of_who_draws_beside_the_training(checkpoint: Path) -> None:
    before = burnish.load(checkpoint).plan()
    plain, beside = (burnish.Grpo(staleness=1, asynchronous=one).plan(before) for one in (False, True))
    assert beside.peak_memory_bytes - plain.peak_memory_bytes == 3 * 4 * before.num_parameters


@pytest.mark.slow
def test_a_start_below_the_floor_is_not_trained(checkpoint: Path) -> None:
    with pytest.raises(DataError, match="right too seldom for RL"):
        burnish.Grpo(**SMALL | {"floor": 0.8})(burnish.load(checkpoint))


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    from burnish.align import grpo_run

    # a reward that random weights earn sometimes
    monkeypatch.setattr(grpo_run.ChainEnv, "score", lambda self, text, number: float(len(text) % 2))
    model = burnish.load(checkpoint)
    stage = burnish.Grpo(**SMALL | {"shaping": "short_arc", "target_updates": 1})
    whole = weights(stage(model))
    assert not torch.equal(whole, weights(model))
    moved = grpo_run.Bar.on_step_end

    def interrupted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt
        moved(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(grpo_run.Bar, "on_step_end", interrupted)
        stage(model, work_dir=tmp_path)
    assert torch.equal(weights(stage(model, work_dir=tmp_path)), whole)


@pytest.mark.slow
def test_the_command_leaves_a_checkpoint_and_tables_by_difficulty(checkpoint: Path, tmp_path: Path) -> None:
    settings = SMALL | {"iterations": 2, "refill": 1}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    out = tmp_path / "out"
    warm.run(tmp_path / "log", "align", "grpo", checkpoint, "--env", "chain", "--shaping", "kimi", *options, "-o", out)
    rows = [json.loads(line) for line in (tmp_path / "out.run" / "ledger.jsonl").read_text().splitlines()]
    tables = {row["name"]: row["rows"] for row in rows if row["row"] == "table"}
    assert [row["step"] for row in tables["rl_training"]] == [1, 2, 3, 4]
    of_update = {"ratio furthest from 1", "clipped", "seconds of the update"}
    for row in tables["rl_training"]:  # every second one is on the answers of the one before
        assert of_update <= set(row) and ("accuracy" in row) == ("tokens" in row) == (row["step"] in (1, 3))
    drawing, answers = tables["rl_training"][::2], SMALL["prompts"] * SMALL["rollouts"]
    assert all(0 <= row["refilled"] <= row["without variance"] for row in drawing)
    again = {row["what"]: row["number"] for row in tables["rl_counts"]}["answers to problems in the places of others"]
    assert again == sum(row["without variance"] for row in drawing) * answers > 0
    shown = (tmp_path / "out.run" / "drawn" / "grpo" / "episodes.html").read_text()
    assert [f"update {step}" in shown for step in (1, 2, 3, 4)] == [True, False, True, False]
    kinds = {(row["when"], row["drawn"]) for row in tables["rl_difficulty"]}
    assert kinds == {(when, how) for when in ("before", "after") for how in ("sampled", "greedy")}
    assert sum(row["difficulty"] == "8 steps" for row in tables["rl_difficulty"]) == 4
    assert burnish.load(out).module.num_parameters() == burnish.load(checkpoint).module.num_parameters()


def test_the_bar_counts_from_the_state_that_training_goes_on_from() -> None:
    from transformers import TrainerState

    from burnish.align.around_trainer import Bar
    from burnish.core.progress import Progress

    given: Any = {"args": None, "control": None, "state": TrainerState(global_step=80, max_steps=400)}
    with Progress().task("grpo") as task:
        bar = Bar(task)
        bar.on_train_begin(**given)
        bar.on_step_end(**given)
        assert (task.done, task.before, task.total) == (81, 80, 400)


def test_updates_in_which_all_earn_the_same_are_told_of_once() -> None:
    from burnish.align.around_trainer import NothingToLearn

    said: list[str] = []
    watch: Any = NothingToLearn(said.append)
    for share in [1.0] * 9 + [0.9] + [1.0] * 9:
        watch.on_log(None, None, None, {"frac_reward_zero_std": share})
    assert not said
    for logs in ({"train_loss": 0.0}, *[{"frac_reward_zero_std": 1.0}] * 20):
        watch.on_log(None, None, None, logs)
    assert len(said) == 1 and "nothing is learned" in said[0]
