"""Answers drawn ahead: which weights draw what, in turn and in a process of its own, and what goes wrong there."""

from __future__ import annotations

import copy
import inspect
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from burnish.align.drawing import AnswersAhead, DrawnBatch, DrawOrder, InTurn, SingleTurn, updates_of
from burnish.align.drawing_process import OwnProcess
from burnish.align.envs import ChainEnv, text_of
from burnish.align.episodes import DrawnEpisode
from burnish.align.length_control import ShortARCConfig, ShortARCTrainer
from burnish.core.errors import SettingsError, StageError
from burnish.data.chain import Chains
from burnish.generate import Sample
from small_models import SMALL_TRAINER
from trainers import logged, weights


@given(staleness=st.integers(0, 4), every=st.integers(1, 3), last=st.integers(1, 12))
def test_every_update_is_drawn_for_once_by_the_weights_of_so_many_updates_before(
    staleness: int, every: int, last: int
) -> None:
    staleness *= every
    by = {update: version for version in range(last) for update in updates_of(version, staleness, every, last)}
    assert by == {update: max(0, update - staleness) for update in range(0, last, every)}
    assert sum(len(updates_of(version, staleness, every, last)) for version in range(last)) == len(by)


def test_workers_are_those_of_trls_protocols() -> None:
    from trl.experimental.async_grpo.async_grpo_trainer import RolloutWorkerProtocol, WeightTransferProtocol

    for protocol, attributes in (
        (RolloutWorkerProtocol, ["rollout_buffer", "metrics_queue"]),
        (WeightTransferProtocol, []),
    ):
        methods = [name for name, one in vars(protocol).items() if inspect.isfunction(one) and name[0] != "_"]
        assert sorted(protocol.__annotations__) == sorted(attributes)
        for worker in (InTurn, OwnProcess):
            for name in methods:
                wanted = list(inspect.signature(getattr(protocol, name)).parameters)
                assert list(inspect.signature(getattr(worker, name)).parameters) == wanted, name
            made = inspect.getsource(worker.__init__)
            assert all(f"self.{name}" in made for name in attributes)


class Echo:
    """Draws the prompt."""

    def draw(self, module: Any, prompts: Any, seeds: Any, n: int) -> list[Sample]:
        return [Sample(str(seed), list(one), [-0.1 / 3], "stop") for one, seed in zip(prompts, seeds, strict=True)] * n


def in_turn(drawer: Any = Echo()) -> AnswersAhead:  # noqa: B008 - it has no state
    from contextlib import nullcontext

    return AnswersAhead(lambda orders: InTurn(drawer, orders, lambda: nullcontext(None)), heartbeat=1.0)


def order(update: int, version: int) -> DrawOrder:
    return DrawOrder(update, version, [[update, 7]], [update], 1)


def test_answers_wait_for_their_update_and_are_part_of_a_state() -> None:
    ahead = in_turn()
    ahead.tell(0, [order(0, 0), order(1, 0), order(2, 0)], iter(()))
    first = ahead.take(0, [[0, 7]])
    assert (first.update, first.version, first.drawn[0].tokens) == (0, 0, [0, 7])
    ahead.tell(1, [order(3, 1)], iter(()))
    again = in_turn()
    again.go_on(json.loads(json.dumps(ahead.state())), Sample)
    for update, version in ((1, 0), (2, 0), (3, 1)):
        whole, resumed = (one.take(update, [[update, 7]]) for one in (ahead, again))
        assert whole == resumed and whole.version == version


def test_episodes_come_back_from_a_state_as_they_were() -> None:
    episode = DrawnEpisode([1, 2], [1, 0], [-0.1, 0.0], ["a"], [1], [0], "answered")

    class Episodes(Echo):
        def draw(self, module: Any, prompts: Any, seeds: Any, n: int) -> Any:
            return [episode]

    ahead, again = in_turn(Episodes()), in_turn()
    ahead.tell(0, [order(0, 0)], iter(()))
    again.go_on(json.loads(json.dumps(ahead.state())), DrawnEpisode)
    assert again.take(0, [[0, 7]]).drawn == [episode]


class Double:
    """A worker of the protocols that does as it is told."""

    def __init__(self, orders: Any, *answers: DrawnBatch, health: str = "") -> None:
        import queue

        self.rollout_buffer: Any = queue.Queue()
        for one in answers:
            self.rollout_buffer.put(one)
        self.health = health

    def check_health(self, stale_after_s: float) -> None:
        raise StageError(f"{self.health} within {stale_after_s:g}")

    def __getattr__(self, name: str) -> Any:
        return lambda *given: None


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([DrawnBatch(2, 0, [])], "drawn with the weights after 0 updates, where those after 1"),
        ([DrawnBatch(2, 1, [], failed="ValueError: no")], "has failed: ValueError: no"),
        ([], "dead within 1"),
    ],
)
def test_what_a_worker_does_wrong_ends_the_run_with_a_sentence(
    answers: list[DrawnBatch], said: str, monkeypatch
) -> None:
    monkeypatch.setattr("burnish.align.drawing.POLL", 0.01)
    ahead = AnswersAhead(lambda orders: Double(orders, *answers, health="dead"), heartbeat=1.0)
    ahead.tell(1, [order(2, 1)], iter(()))
    with pytest.raises(StageError, match=said):
        ahead.take(2, [[2, 7]])


def test_other_problems_than_those_that_were_drawn_for_are_refused() -> None:
    ahead = in_turn()
    ahead.tell(0, [order(0, 0)], iter(()))
    with pytest.raises(StageError, match="problems of update 1 are not those"):
        ahead.take(0, [[9, 9]])


# -- training ----------------------------------------------------------------------------------------------------------


def odd_length(completions: list[Any], **_: Any) -> list[float]:
    """A reward that a random model earns sometimes."""
    return [float(len(text_of(one)) % 2) for one in completions]


@pytest.fixture
def made(tokenizer, checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM

    def make(**changes: Any) -> Any:
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            **SMALL_TRAINER,
            "mask_truncated_completions": False,
            "shuffle_dataset": False,
            "target_updates": 1,
        }
        return ShortARCTrainer(
            AutoModelForCausalLM.from_pretrained(checkpoint),
            reward_funcs=[odd_length],
            args=ShortARCConfig(output_dir=str(tmp_path), **settings | changes),
            train_dataset=Dataset.from_list(ChainEnv(16, 0, Chains(steps=(1, 2))).rows),
            processing_class=copy.deepcopy(tokenizer),
        )

    return make


def trained(trainer: Any) -> Any:
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"staleness": -1}, "0 is the least"),
        ({"staleness": 1, "shuffle_dataset": True}, "shuffle_dataset is on"),
        ({"asynchronous": True, "refill": 1}, "refill draws when answers have been judged"),
        ({"staleness": 1, "num_iterations": 2}, "no multiple of the 2 updates"),
        ({"staleness": 5, "replay": 4}, "replay keeps groups for 4 updates"),
        ({"staleness": 1, "gradient_accumulation_steps": 2, "steps_per_generation": 1}, "no whole number of updates"),
        ({"correction": "icepop", "correction_bound": 1.0}, "more than 1"),
        ({"share_prefixes": True}, "is for rows that are packed"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    general: dict[str, Any] = {"per_device_train_batch_size": 8, "num_generations": 4, "shuffle_dataset": False}
    with pytest.raises(SettingsError, match=said):
        ShortARCConfig(output_dir=str(tmp_path), **SMALL_TRAINER, **general | changes)


@pytest.mark.slow
def test_without_staleness_a_worker_gives_the_run_that_draws_by_itself_bit_for_bit(made) -> None:
    plain, ahead = trained(made()), trained(made(asynchronous=True))
    assert torch.equal(weights(plain), weights(ahead))
    assert logged(ahead, "ratio/furthest") == logged(plain, "ratio/furthest")
    assert logged(ahead, "staleness/max") == [0, 0, 0, 0]
    assert dict(ahead.ages) == {0: 64} and ahead.ahead is None


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_with_frozen_weights_the_ratio_is_one_whatever_the_staleness(made, staleness: int) -> None:
    trainer = trained(made(learning_rate=0.0, staleness=staleness))
    assert max(logged(trainer, "ratio/furthest")) < 2e-5
    assert logged(trainer, "staleness/max") == ([min(update, staleness) for update in range(4)] if staleness else [])


@pytest.mark.slow
def test_with_moving_weights_answers_are_stale_as_asked_and_two_processes_end_as_one(made) -> None:
    turn, beside = trained(made(staleness=2)), trained(made(staleness=2, asynchronous=True))
    assert logged(turn, "staleness/mean") == logged(beside, "staleness/mean") == [0, 1, 2, 2]
    assert dict(turn.ages) == dict(beside.ages) == {0: 16, 1: 16, 2: 32}
    assert torch.equal(weights(turn), weights(beside))
    ratios = logged(turn, "ratio/furthest")
    assert ratios[0] < 2e-5 < 1e-3 < min(ratios[1:])
    assert min(logged(beside, "seconds/drawn")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_that_draws_ahead_goes_on_from_a_checkpoint_with_what_was_drawn(made, tmp_path, asynchronous) -> None:
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "staleness": 2}
    settings |= {"asynchronous": asynchronous}
    whole = trained(made(**settings))
    kept = json.loads((tmp_path / "checkpoint-2" / "ahead-0.json").read_text())
    assert [(one["order"]["update"], one["version"]) for one in kept] == [(2, 0), (3, 1)]
    again = made(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))
    assert again.control_state() == whole.control_state()


@pytest.mark.slow
def test_without_staleness_a_run_that_drew_by_itself_goes_on_with_a_worker(made, tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(made(**settings))
    assert not (tmp_path / "checkpoint-2" / "ahead-0.json").exists()
    again = made(**settings, asynchronous=True)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.slow
def test_answers_for_two_updates_grow_older_between_them(made) -> None:
    trainer = trained(made(staleness=2, num_iterations=2, max_steps=6))
    assert logged(trainer, "staleness/max") == [0, 1, 2, 3, 2, 3]


@pytest.mark.slow
def test_replay_keeps_groups_by_the_weights_that_drew_them(made) -> None:
    trainer = trained(made(staleness=1, replay=8, max_staleness=3, max_steps=5))
    assert max(logged(trainer, "staleness/max")) <= 3
    assert logged(trainer, "staleness/mean")[0] == 0


@pytest.mark.slow
def test_a_correction_changes_the_gradient_where_other_weights_drew_and_nowhere_else(made) -> None:
    """Every kind: the first update is on fresh answers, where all are the plain loss; later ones are not."""
    ends = {}
    for correction in ("ratio", "truncated", "icepop"):
        changes = {"correction": correction, "correction_bound": 1.01, "optim": "sgd", "learning_rate": 2.0}
        for staleness, steps in ((1, 1), (1, 3)):
            trainer = trained(made(staleness=staleness, max_steps=steps, **changes, max_grad_norm=1e9))
            ends[correction, steps] = weights(trainer)
            cut_off = logged(trainer, "cut_off")
            assert (not cut_off) if correction == "ratio" else (cut_off[0] == 0)
            if correction != "ratio" and steps > 1:
                assert 0 < max(cut_off) < 1
    for correction in ("truncated", "icepop"):
        torch.testing.assert_close(ends[correction, 1], ends["ratio", 1], rtol=0, atol=1e-5)
        assert float((ends[correction, 3] - ends["ratio", 3]).abs().max()) > 1e-4
    assert float((ends["truncated", 3] - ends["icepop", 3]).abs().max()) > 1e-4


@pytest.mark.slow
def test_a_correction_compares_with_the_learner_as_it_was_when_it_first_saw_an_answer(made, tmp_path: Path) -> None:
    settings = {"correction": "truncated", "num_iterations": 2, "staleness": 2, "max_steps": 4}
    settings |= {"save_strategy": "steps", "save_steps": 3}
    whole = trained(made(**settings))
    again = made(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))  # between two updates on the same answers
    assert torch.equal(weights(again), weights(whole))


# -- a process that does not do its work ------------------------------------------------------------------------------


@pytest.fixture
def worker(tokenizer, checkpoint):
    """A process that has drawn once."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(checkpoint)
    drawer = SingleTurn(tokenizer, 4)
    made: list[Any] = []

    def make(orders: Any) -> OwnProcess:
        made.append(OwnProcess(module, drawer, orders, 2))
        return made[0]

    ahead = AnswersAhead(make, heartbeat=1.0)
    ahead.heartbeat = 60.0
    ahead.tell(0, [order(0, 0)], module.named_parameters())
    ahead.take(0, [[0, 7]])
    ahead.heartbeat = 1.0
    yield ahead, made[0]._process, module, drawer
    ahead.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, "killed by signal 9"), (signal.SIGSTOP, "silent for 1")])
def test_a_process_that_dies_or_hangs_is_told_of_within_the_heartbeat(worker, number: int, said: str) -> None:
    ahead, process, module, _ = worker
    os.kill(process.pid, number)
    began = time.monotonic()
    ahead.tell(1, [order(1, 1)], module.named_parameters())
    with pytest.raises(StageError, match=f"the process that draws answers .*{said}.*continues from the last saved"):
        ahead.take(1, [[1, 7]])
    assert time.monotonic() - began < 3
    os.kill(process.pid, signal.SIGCONT) if number == signal.SIGSTOP else None


def test_what_cannot_be_sent_to_another_process_is_refused(checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    class Local(Echo):
        """Of this function alone."""

    module = AutoModelForCausalLM.from_pretrained(checkpoint)
    ahead = AnswersAhead(lambda orders: OwnProcess(module, Local(), orders, 1), heartbeat=1.0)
    with pytest.raises(SettingsError, match="asynchronous: needs a model and tools that can be sent"):
        ahead.tell(0, [order(0, 0)], module.named_parameters())
    ahead.stop()


@pytest.mark.slow
def test_a_drawer_that_raises_is_told_of_and_no_process_is_left(worker) -> None:
    ahead, process, module, _ = worker
    ahead.tell(1, [DrawOrder(1, 1, [[]], [0], 1)], module.named_parameters())
    with pytest.raises(StageError, match="has failed: SettingsError: prompt 1: has no token"):
        ahead.take(1, [[]])
    ahead.stop()
    assert not process.is_alive()


@pytest.mark.slow
def test_what_a_process_draws_is_of_the_weights_that_were_sent(worker) -> None:
    ahead, _, module, drawer = worker
    asked = {"prompts": [[5, 6, 7]], "seeds": [3], "several": 2}
    found, ahead.heartbeat = [], 60.0
    for version in (1, 2, 3):  # one more than there are places
        with torch.no_grad():
            for one in module.parameters():
                one.mul_(1.1)
        ahead.tell(version, [DrawOrder(version, version, **asked)], module.named_parameters())
        found.append(ahead.take(version, asked["prompts"]).drawn)
        here = drawer.draw(module.eval(), asked["prompts"], asked["seeds"], 2)
        for one, other in zip(found[-1], here, strict=True):
            assert one.tokens == other.tokens
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert found[0] != found[2]
