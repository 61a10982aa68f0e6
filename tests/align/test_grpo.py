"""GRPO on TRL's trainer: the seam, the ratio against stored log-probabilities, what is not forwarded, resuming."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from burnish.align.envs import ChainEnv, text_of
from burnish.align.grpo_config import SampledGRPOConfig
from burnish.align.grpo_seam import SampledGRPOTrainer
from burnish.align.length_control import ShortARCConfig, ShortARCTrainer
from burnish.align.maths.length_rules import Kimi, LaserD
from burnish.core.errors import DataError, SettingsError
from burnish.data.chain import Chains
from small_models import SMALL_TRAINER
from trainers import logged, weights

SEAM = {
    "_generate_single_turn": "self prompt_ids images multimodal_fields num_generations has_tool_images",
    "_calculate_rewards": "self inputs prompts completions completion_ids_list",
    "_generate_and_score_completions": "self inputs",
    "_prepare_inputs": "self generation_batch",
    "_compute_loss": "self model inputs",
    "_save_checkpoint": "self model trial",
    "_load_optimizer_and_scheduler": "self checkpoint",
}
"""What of TRL is replaced, with the arguments that its own code passes."""
READ = ("_get_per_token_logps_and_entropies", "_get_output_dir")


def length_parity(completions: list[Any], **_: Any) -> list[float]:
    """A reward that a random model earns sometimes, and within a group not always."""
    return [float(len(text_of(one)) % 2) for one in completions]


def config(kind: type[SampledGRPOConfig], place: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(place),
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 2,
        "learning_rate": 1e-3,
        **SMALL_TRAINER,
        "mask_truncated_completions": False,
    }
    return kind(**settings | changes)


@pytest.fixture
def made(tokenizer, checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM

    def make(kind=ShortARCTrainer, settings=ShortARCConfig, reward=length_parity, **changes) -> Any:
        env = ChainEnv(16, 0, Chains(steps=(1, 2)))
        return kind(
            AutoModelForCausalLM.from_pretrained(checkpoint),
            reward_funcs=[reward],
            args=config(settings, tmp_path, **changes),
            train_dataset=Dataset.from_list(env.rows),
            processing_class=copy.deepcopy(tokenizer),
        )

    return make


def test_the_private_methods_that_are_replaced_have_the_arguments_they_had() -> None:
    found = {name: " ".join(inspect.signature(getattr(GRPOTrainer, name)).parameters) for name in SEAM}
    assert found == SEAM
    ours = {name: " ".join(inspect.signature(getattr(SampledGRPOTrainer, name)).parameters) for name in SEAM}
    assert ours == SEAM
    assert all(hasattr(GRPOTrainer, name) for name in READ)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_generations": 1}, "nothing to be better than"),
        ({"loss_type": "grpo"}, "cut into micro-batches"),
        ({"length_shaping": "kimmi"}, "did you mean 'kimi'"),
        ({"length_shaping": "kimi", "shaping_options": {"wait": 1}}, "do not fit 'kimi'"),
        ({"length_shaping": "laser"}, "do not fit 'laser'"),
        ({"shaping_options": {"weight": 1}}, "published rules"),
        ({"alpha_max": 1.0}, "no more than a wrong one"),
        ({"alpha": 0.95}, "alpha is 0.95"),
        ({"p_min": 1.0}, "p_min is 1"),
        ({"tolerance": 0.0}, "tolerance is 0"),
        ({"most_unscorable": 1.0}, "most_unscorable"),
        ({"acc_target": 1.5}, "acc_target"),
        ({"refill": -1}, "0 is the least"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        config(ShortARCConfig, tmp_path, **changes)


def test_settings_of_a_rule_may_be_texts_as_the_command_line_gives_them(tmp_path: Path) -> None:
    given = config(ShortARCConfig, tmp_path, length_shaping="kimi", shaping_options={"weight": "0.3"})
    assert given.rule == Kimi(weight=0.3)
    bins = config(ShortARCConfig, tmp_path, length_shaping="laser_d", shaping_options={"limits": [10, 20, 30]})
    assert bins.rule == LaserD((10, 20, 30))


@pytest.mark.slow
def test_with_frozen_weights_the_ratio_to_what_the_sampler_stored_is_one(made) -> None:
    trainer = made(learning_rate=0.0)
    trainer.train()
    assert max(logged(trainer, "ratio/furthest")) < 2e-5
    assert len(logged(trainer, "ratio/furthest")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("warper", [{"top_p": 0.8}, {"top_k": 20}])
def test_a_warper_that_the_trainer_does_not_know_of_shows_in_the_ratio(made, warper: dict[str, Any]) -> None:
    trainer = made(learning_rate=0.0, **warper)
    trainer.train()
    assert min(logged(trainer, "ratio/furthest")) > 0.05


@pytest.mark.slow
def test_a_temperature_is_the_samplers_and_the_trainers(made) -> None:
    trainer = made(learning_rate=0.0, temperature=0.7)
    trainer.train()
    assert max(logged(trainer, "ratio/furthest")) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "dr_grpo"])
def test_the_loss_of_a_batch_and_its_gradient_are_those_of_stock_grpo(made, loss: str) -> None:
    trainer = made(loss_type=loss)
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)][:16])
    trainer.current_gradient_accumulation_steps = 1
    drift = torch.randn(batch["old_per_token_logps"].shape, generator=torch.Generator().manual_seed(0)) * 0.2
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + drift  # so that the clip acts
    found = []
    for compute in (trainer._compute_loss, lambda *given: GRPOTrainer._compute_loss(trainer, *given)):
        trainer.model.zero_grad()
        value = compute(trainer.model, batch)
        value.backward()
        found.append((value.detach(), torch.cat([one.grad.flatten() for one in trainer.model.parameters()])))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)
    assert trainer.left_out_rows > 0 or bool((batch["advantages"] != 0).all())


@pytest.mark.slow
def test_rows_without_advantage_are_not_forwarded_and_change_nothing(made) -> None:
    def mostly_alike(completions: list[Any], **_: Any) -> list[float]:
        return [float(index == 0) for index, _ in enumerate(completions)]

    ends = []
    for skip in (True, False):
        # gradient descent: Adam would make a large step of a gradient that is only rounding
        trainer = made(reward=mostly_alike, skip_unmoved=skip, length_shaping="none", optim="sgd", learning_rate=1.0)
        trainer.train()
        ends.append(weights(trainer))
        assert (trainer.forwarded_rows, trainer.left_out_rows) == ((8, 24) if skip else (32, 0))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "dr_grpo"])
def test_a_step_is_the_same_in_one_piece_and_in_four(made, loss: str) -> None:
    # gradient descent: Adam would make a large step of a gradient that is only rounding
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "loss_type": loss}
    start = weights(made())
    whole, cut = made(**plain), made(**plain, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for trainer in (whole, cut):
        trainer.train()
    assert not torch.equal(weights(whole), start)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_stopped(made, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "target_updates": 1}
    whole = made(**settings)
    whole.train()
    again = made(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))
    assert again.control_state() == whole.control_state()
    assert again.controller is not None and again.controller.updates == 3


@pytest.mark.slow
def test_a_draw_for_two_updates_gives_each_half_of_its_rows_and_goes_on_between_them(made, tmp_path: Path) -> None:
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "target_updates": 1, "skip_unmoved": False}
    whole = made(**cut, **settings)
    whole.train()
    assert (whole.forwarded_rows, whole.left_out_rows) == (2 * 16, 0)
    again = made(**cut, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(again), weights(whole))
    assert again.control_state() == whole.control_state()


@pytest.mark.slow
def test_rewards_that_are_no_numbers_are_counted_and_stop_a_run_above_a_share(made) -> None:
    def some_missing(completions: list[Any], **_: Any) -> list[float | None]:
        return [None if index == 0 else float(index % 2) for index, _ in enumerate(completions)]

    trainer = made(reward=some_missing)
    trainer.train()
    assert logged(trainer, "unscorable") == [1 / 16, 1 / 16]
    assert torch.isfinite(weights(trainer)).all()
    with pytest.raises(DataError, match="100% of the answers of a step have no reward"):
        made(reward=lambda completions, **_: [float("nan")] * len(completions)).train()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dual", "cispo", "importance", "gspo"])
def test_every_policy_loss_trains(made, loss: str) -> None:
    trainer = made(policy_loss=loss)
    before = weights(trainer).clone()
    trainer.train()
    assert torch.isfinite(weights(trainer)).all() and not torch.equal(weights(trainer), before)


@pytest.mark.slow
def test_pressure_begins_when_the_starts_accuracy_is_known(made) -> None:
    trainer = made(max_steps=3, target_updates=2)
    trainer.train()
    accuracy = logged(trainer, "accuracy")
    assert trainer.controller is not None
    assert trainer.controller.target == pytest.approx(max(sum(accuracy[:2]) / 2 - 0.01, 0.0))
    assert len(logged(trainer, "alpha")) == 2


class OnlyAtFirst:
    """Rewards that differ in the first update alone."""

    __name__ = "only_at_first"

    def __call__(self, completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
        return [float(place % 2 and not trainer_state.global_step) for place in range(len(completions))]


@pytest.mark.slow
def test_a_replayed_group_moves_the_weights_and_what_is_told_is_of_fresh_answers(made) -> None:
    settings = {"reward": OnlyAtFirst(), "length_shaping": "none", "max_steps": 4}
    plain, replaying = made(**settings), made(**settings, replay=4, max_staleness=2)
    for trainer in (plain, replaying):
        trainer.train()
    assert not torch.equal(weights(plain), weights(replaying))
    assert logged(replaying, "staleness/max") == [0, 1, 0, 0]  # each once
    assert logged(replaying, "replayed") == [0, 1, 0, 0]
    assert logged(replaying, "accuracy") == logged(plain, "accuracy") == [0.5, 0, 0, 0]
    assert logged(replaying, "ratio/furthest")[0] < 2e-5 < 1e-3 < logged(replaying, "ratio/furthest")[1]


@pytest.mark.slow
def test_with_staleness_0_a_run_is_the_one_without_replay_bit_for_bit(made) -> None:
    settings = {"max_steps": 3, "target_updates": 1}
    ends = []
    for replay in ({}, {"replay": 8, "max_staleness": 0}):
        trainer = made(**settings, **replay)
        trainer.train()
        ends.append(weights(trainer))
    assert torch.equal(*ends)


@pytest.mark.slow
def test_a_queue_is_part_of_a_state(made, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"reward": OnlyAtFirst(), "length_shaping": "none", "max_steps": 4}
    settings |= {"replay": 2, "max_staleness": 4, "reuse": 2, "save_strategy": "steps", "save_steps": 2}
    whole = made(**settings)
    whole.train()
    assert (tmp_path / "checkpoint-2" / "replay-0.safetensors").is_file()
    again = made(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))
    assert logged(whole, "staleness/max") == [0, 1, 2, 0]


class SomeDiffer:
    """Rewards that differ within the groups of odd problems alone; the others' answers are all right."""

    __name__ = "some_differ"

    def __call__(self, completions: list[Any], row: list[int], **_: Any) -> list[float]:
        return [float(number % 2 == 0 or place % 2) for place, number in enumerate(row)]


class AllAlike:
    __name__ = "all_alike"

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        return [1.0 for _ in completions]


FROZEN: dict[str, Any] = {"learning_rate": 0.0, "length_shaping": "none", "reward": SomeDiffer()}


@pytest.mark.slow
def test_a_batch_is_filled_and_what_is_told_is_of_the_first_answers(made) -> None:
    plain, filled = made(**FROZEN), made(**FROZEN, refill=9)
    for trainer in (plain, filled):
        trainer.train()
    empty = logged(plain, "frac_reward_zero_std")
    assert max(empty) > 0
    for name in ("accuracy", "reward", "frac_reward_zero_std", "completions/mean_length", "solved/all"):
        assert logged(filled, name) == logged(plain, name)
    assert logged(filled, "unmoved_groups") == [0, 0]
    assert logged(filled, "refilled") == empty
    assert filled.left_out_rows == 0 < plain.left_out_rows
    drawn = sum(4 / share for share in logged(filled, "accepted"))
    assert drawn == pytest.approx(2 * 4 + filled.answers_drawn_again / 4)
    assert max(logged(filled, "ratio/furthest")) < 2e-5


@pytest.mark.slow
def test_no_place_is_drawn_more_often_than_asked_and_what_cannot_be_filled_stays(made) -> None:
    settings = {"length_shaping": "none", "reward": AllAlike()}
    plain, filled = made(**settings), made(**settings, refill=3)
    for trainer in (plain, filled):
        trainer.train()
    assert filled.answers_drawn_again == 2 * 3 * 16
    assert logged(filled, "refilled") == [0, 0] and logged(filled, "unmoved_groups") == [1, 1]
    assert logged(filled, "accepted") == [0, 0]
    assert torch.equal(weights(plain), weights(filled))


@pytest.mark.slow
def test_a_run_that_refills_goes_on_from_a_checkpoint_with_the_same_draws(made, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "target_updates": 1, "reward": SomeDiffer()}
    whole = made(**settings, refill=2, p_min=0.0)
    whole.train()
    again = made(**settings, refill=2, p_min=0.0)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(again), weights(whole))
    assert again.control_state() == whole.control_state()
    assert whole.controller.updates == 3  # it hears of every update once


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dapo", "dr_grpo"])
def test_packed_rows_give_the_step_of_rows_side_by_side(made, loss: str) -> None:
    # gradient descent: Adam would make a large step of a gradient that is only rounding
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 2, "loss_type": loss}
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    cuts = [{}, cut, {"share_prefixes": True}, cut | {"share_prefixes": True}]
    whole = made(**plain)
    whole.train()
    assert min(logged(whole, "packing")) < 0.95
    for changes in cuts:
        packed = made(**plain, **changes, packing=True)
        packed.train()
        torch.testing.assert_close(weights(packed), weights(whole), rtol=0, atol=1e-6)
        assert logged(packed, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-6)
        assert logged(packed, "entropy") == pytest.approx(logged(whole, "entropy"), rel=1e-5)
        assert min(logged(packed, "packing")) >= (1.05 if "share_prefixes" in changes else 0.95)
        # a pass whose problem has nothing to teach forwards one row, so that there is a gradient
        assert 0 <= packed.forwarded_rows - whole.forwarded_rows <= 2 * ("share_prefixes" in changes)
