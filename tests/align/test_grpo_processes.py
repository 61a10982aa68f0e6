"""GRPO in several processes, and killed: groups stay whole, a step is the same however it is cut, no draw is lost."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import burnish
import warm
from burnish.align.envs import ChainEnv
from burnish.align.length_control import ShortARCConfig, ShortARCTrainer
from burnish.core.errors import SettingsError
from burnish.data.chain import Chains
from processes import together
from small_models import SMALL_TRAINER, untaught_reasoner

LONG, SHORT = 90, 10
"""Tokens of the answers of the first and of the second problem."""
LOGGED = ("accuracy", "ratio/mean", "ratio/furthest", "entropy", "kl/sampler", "clip_ratio/region_mean")
GENERAL: dict[str, Any] = {
    "num_generations": 2,
    "max_completion_length": LONG,
    "max_steps": 1,
    # gradient descent: Adam would make a large step of a gradient that is only rounding
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_grad_norm": 1e9,
    **SMALL_TRAINER,
    "mask_truncated_completions": False,
    "shuffle_dataset": False,
    "alpha": 0.0,
}


class Unequal(ShortARCTrainer):
    """Draws nothing: the answers of every other problem are long."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> tuple[list[list[int]], list[list[float]]]:
        found, logps = list[list[int]](), list[list[float]]()
        for place, prompt in enumerate(prompt_ids):
            number = self.accelerator.process_index * len(prompt_ids) + place
            length = LONG if (number // 2) % 2 == 0 else SHORT
            draw = torch.Generator().manual_seed(sum(prompt) * 7 + number)
            found.append(torch.randint(20, 200, (length,), generator=draw).tolist())
            logps.append((torch.rand(length, generator=draw) * -6).tolist())
        return found, logps


def first_is_right(completions: list[Any], **_: Any) -> list[float]:
    return [float(place % 2 == 0) for place in range(len(completions))]


def odd_differ(completions: list[Any], row: list[int], **_: Any) -> list[float]:
    """Answers to problems of even numbers are all right."""
    return [float(number % 2 == 0 or place % 2 == 0) for place, number in enumerate(row)]


REWARDS = {"first": first_is_right, "odd": odd_differ}


def train(rank: int, checkpoint: Path, tokenizer: Any, place: Path, settings: dict[str, Any], reward="first") -> Any:
    """The weights after one step on four problems, two answers each, and what was logged."""
    from transformers import AutoModelForCausalLM

    del rank
    trainer = Unequal(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        reward_funcs=[REWARDS[reward]],
        args=ShortARCConfig(output_dir=str(place), **GENERAL | settings),
        train_dataset=Dataset.from_list(ChainEnv(4, 0, Chains(steps=(1, 2))).rows),
        processing_class=copy.deepcopy(tokenizer),
    )
    trainer.train()
    module = trainer.accelerator.unwrap_model(trainer.model)
    logged = {name: trainer.state.log_history[0][name] for name in LOGGED}
    imbalance = trainer.state.log_history[0].get("imbalance")
    return torch.cat([one.detach().flatten() for one in module.parameters()]), logged, trainer.forwarded_rows, imbalance


def one_of_two(rank: int, *arguments: Any) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    return train(rank, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "dr_grpo"])
def test_a_step_is_the_same_in_one_piece_in_four_and_in_two_processes(checkpoint, tokenizer, tmp_path, loss):
    given = (checkpoint, tokenizer, tmp_path)

    def cut(rows: int, times: int) -> dict[str, Any]:
        return {"loss_type": loss, "per_device_train_batch_size": rows, "gradient_accumulation_steps": times}

    whole, logged, forwarded, _ = train(0, *given, cut(8, 1))
    four, in_four, _, _ = train(0, *given, cut(2, 4))
    two, other = together(2, one_of_two, *given, cut(2, 2))
    assert float((whole - train(0, *given, cut(8, 1) | {"learning_rate": 0.0})[0]).abs().max()) > 1e-4
    torch.testing.assert_close(four, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(two[0], whole, rtol=0, atol=1e-6)
    assert torch.equal(two[0], other[0])
    assert two[2] == forwarded == 8
    assert two[3] == other[3] < 1.1
    assert in_four == pytest.approx(logged, rel=1e-5)
    assert two[1] == pytest.approx(logged, rel=1e-5)


@pytest.mark.slow
def test_problems_drawn_in_the_places_of_others_are_the_same_in_two_processes(checkpoint, tokenizer, tmp_path):
    given, settings = (checkpoint, tokenizer, tmp_path), {"refill": 3}
    rows = {"per_device_train_batch_size": 8}
    whole, logged, forwarded, _ = train(0, *given, rows | settings, "odd")
    two, other = together(2, one_of_two, *given, {"per_device_train_batch_size": 4} | settings, "odd")
    torch.testing.assert_close(two[0], whole, rtol=0, atol=1e-6)
    assert torch.equal(two[0], other[0])
    assert two[2] == forwarded == 8 > train(0, *given, rows, "odd")[2]
    assert two[1] == pytest.approx(logged, rel=1e-5)


def test_a_group_that_would_be_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShortARCConfig, "world_size", property(lambda self: 2))
    with pytest.raises(SettingsError, match="a group would be split"):
        ShortARCConfig(output_dir=str(tmp_path), **GENERAL | {"num_generations": 4, "per_device_train_batch_size": 6})


TRAINING = """
import json, sys, time
from pathlib import Path
import burnish
from burnish.align import grpo_run
from burnish.data.chain import Chains

model, work, out, stop, ahead = sys.argv[1:6]
grpo_run.ChainEnv.score = lambda self, text, number: float(len(text) % 2)  # that random weights earn sometimes
moved = grpo_run.Bar.on_step_end

def held(self, args, state, control, **kwargs):
    moved(self, args, state, control, **kwargs)
    if state.global_step == int(stop):
        Path(work, "reached").touch()
        time.sleep(600)

grpo_run.Bar.on_step_end = held
stage = burnish.Grpo(
    problems=8, held_out=0, prompts=4, rollouts=4, micro_batch=8, iterations=2, updates=6, max_new_tokens=12,
    kind=Chains(steps=(1, 2)), shaping="short_arc", target_updates=1, save_every=1, lr=1e-3, **json.loads(ahead),
)
stage(burnish.load(model), work_dir=Path(work)).save(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [{}, {"staleness": 2, "asynchronous": True}], ids=["in turn", "drawn ahead"])
def test_a_run_that_is_killed_between_two_updates_on_the_same_answers_ends_bit_equal(checkpoint, tmp_path, ahead):
    log, work, given = tmp_path / "log", tmp_path / "work", json.dumps(ahead)
    work.mkdir()
    killed = warm.Script(log, TRAINING, checkpoint, work, tmp_path / "killed", "4", given)
    assert killed.wait_until((work / "reached").exists), killed.output
    (state,) = work.glob("trainer/checkpoint-*")
    assert state.name == "checkpoint-3" and (state / "drawn-0.safetensors").is_file()
    assert json.loads((state / "length_control.json").read_text())["controller"]["updates"] == 1
    assert (state / "ahead-0.json").is_file() == bool(ahead)
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    warm.run_script(log, TRAINING, checkpoint, work, tmp_path / "killed", "0", given)
    warm.run_script(log, TRAINING, checkpoint, tmp_path / "other", tmp_path / "whole", "0", given)
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")]
    start = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(ends[0].values(), ends[1].values(), strict=True))
    assert any(not torch.equal(one, start[name]) for name, one in ends[1].items() if name in start)


RECIPE = """
start: {start}
nodes:
  - name: rewarded
    stage: grpo
    kind: {{modulus: 3, steps: [1, 2]}}
    shaping: short_arc
    target_updates: 1
    problems: 8
    held_out: 4
    prompts: 4
    rollouts: 4
    micro_batch: 4
    updates: 2
    max_new_tokens: 8
    floor: 0.0
    redundant: 0.0
    lr: 0.001
    launch: {{processes: {processes}}}{ahead}
"""


@pytest.fixture(scope="module")
def guesser(tmp_path_factory) -> Path:
    """A reasoner that has learned the form of an answer, and so is right in one of three."""
    rows = [
        {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": f"#{number % 3}"}]}
        for number, row in enumerate(ChainEnv(60, 1, Chains(modulus=3, steps=(1, 2))).problems)
    ]
    place = tmp_path_factory.mktemp("guesser") / "model"
    train_stage = burnish.Train(steps=40, batch=8, context=32, lr=0.01, holdout=0.0)
    train_stage(untaught_reasoner(), data=rows).save(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("ahead", ["", "\n    staleness: 1"], ids=["in turn", "drawn ahead"])
def test_a_recipe_in_two_processes_draws_the_same_and_learns_the_same(guesser, tmp_path, ahead):
    ends, tables = [], []
    for processes in (1, 2):
        recipe, run = tmp_path / "recipe.yaml", tmp_path / f"run{processes}"
        recipe.write_text(RECIPE.format(start=guesser, processes=processes, ahead=ahead))
        warm.run(tmp_path / "log", "run", recipe, "-o", run)
        ends.append(load_file(run / "nodes" / "rewarded" / "model.safetensors"))
        rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        tables.append({row["name"]: row["rows"] for row in rows if row["row"] == "table"})
        assert (run / "drawn" / "rewarded" / "episodes.html").is_file()
    accuracy = [[row["accuracy"] for row in table["rl_training"]] for table in tables]
    assert accuracy[0] == accuracy[1] and 0 < accuracy[0][0] < 1
    assert tables[0]["rl_counts"] == tables[1]["rl_counts"]
    start = load_file(guesser / "model.safetensors")
    moved = max(float((ends[0][name] - one).abs().max()) for name, one in start.items())
    apart = max(float((ends[0][name] - one).abs().max()) for name, one in ends[1].items())
    assert apart < 1e-2 * moved  # AdamW makes a large step of a gradient that is rounding
