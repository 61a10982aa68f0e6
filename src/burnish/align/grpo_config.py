"""Settings of GRPO whose answers the package's own sampler draws, and what cannot work together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from burnish.align.maths.reduction import Normaliser
from burnish.core.errors import SettingsError, refuse

NORMALISERS: dict[str, Normaliser] = {"dapo": "token", "dr_grpo": "constant"}
"""TRL's names of losses that differ in their denominator; its others average over micro-batches."""


@dataclass
class SampledGRPOConfig(GRPOConfig):
    """GRPOConfig for `SampledGRPOTrainer`, with defaults under which its numbers can be checked."""

    loss_type: str = field(default="dapo", metadata={"help": "Denominator: dapo (tokens of the step) or dr_grpo."})
    scale_rewards: str = field(default="none", metadata={"help": "Divide by the group's deviation, or not."})
    mask_truncated_completions: bool = field(default=True, metadata={"help": "No loss on answers that were cut off."})
    policy_loss: Literal["clip", "dual", "cispo", "importance", "gspo"] = field(
        default="clip", metadata={"help": "Loss of a token; see burnish.align.maths.policy_loss."}
    )
    dual_clip: float = field(default=3.0, metadata={"help": "dual: what a bad token costs at most, in |A|."})
    sampler_rows: int = field(default=256, metadata={"help": "Answers that are drawn at a time."})
    most_unscorable: float = field(
        default=0.1, metadata={"help": "Share of answers without a reward that stops a run."}
    )
    replay: int = field(
        default=0, metadata={"help": "Groups kept to be learned from again where fresh ones have no variance."}
    )
    max_staleness: int = field(default=4, metadata={"help": "replay: updates since a group was drawn, at most."})
    reuse: int = field(default=1, metadata={"help": "replay: how often a group may be learned from again."})
    refill: int = field(
        default=0, metadata={"help": "Times that the place of a group without variance is given to another problem."}
    )
    staleness: int = field(
        default=0, metadata={"help": "Updates that the weights which draw answers are behind those that learn."}
    )
    asynchronous: bool = field(
        default=False, metadata={"help": "Draw in a process of its own, beside the updates, not in turn with them."}
    )
    heartbeat: float = field(
        default=300.0, metadata={"help": "asynchronous: seconds without a sign of life after which a run ends."}
    )
    correction: Literal["ratio", "truncated", "icepop"] = field(
        default="ratio", metadata={"help": "How the loss allows for the weights that drew; see `_corrected`."}
    )
    correction_bound: float = field(
        default=2.0, metadata={"help": "truncated, icepop: largest ratio of the learner to who drew."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Forward rows one after the other in full lines, and not side by side."}
    )
    share_prefixes: bool = field(
        default=False, metadata={"help": "packing: what answers to a problem begin with in common is forwarded once."}
    )
    skip_unmoved: bool = field(default=True, metadata={"help": "Do not forward rows whose advantage is zero."})

    def __post_init__(self) -> None:
        if self.loss_type not in NORMALISERS:
            raise SettingsError(
                f"is {self.loss_type!r}, which depends on how a step is cut into micro-batches or is not known here",
                where="loss_type",
                fix="use dapo (tokens of the whole step) or dr_grpo (a constant)",
            )
        if self.use_vllm:
            raise SettingsError("needs an engine that this trainer does not speak to", where="use_vllm")
        if not 0 <= self.most_unscorable < 1:
            raise SettingsError(f"is {self.most_unscorable}, but a share below 1 is needed", where="most_unscorable")
        if self.refill < 0:
            raise SettingsError(f"is {self.refill}, but 0 is the least", where="refill")
        if (self.num_generations or 0) < 2:
            raise SettingsError(
                f"is {self.num_generations}, and an answer alone has nothing to be better than",
                where="num_generations",
                fix="use 2 or more; 8 is usual",
            )
        if self.staleness < 0:
            raise SettingsError(f"is {self.staleness}, but 0 is the least", where="staleness")
        if not self.correction_bound > 1:
            raise SettingsError(f"is {self.correction_bound:g}, but more than 1 is needed", where="correction_bound")
        if self.share_prefixes and not self.packing:
            raise SettingsError("is for rows that are packed", where="share_prefixes", fix="switch packing on")
        super().__post_init__()
        if self.draws_ahead:
            self._check_ahead()
        rows, several = self.per_device_train_batch_size * (self.steps_per_generation or 1), self.num_generations or 1
        if rows % several:
            raise SettingsError(
                f"is {several}, which does not divide the {rows} answers that each of {self.world_size} processes "
                "draws: a group would be split",
                where="num_generations",
            )

    @property
    def draws_ahead(self) -> bool:
        """Whether answers are asked for by a schedule, and not when they are needed."""
        return self.asynchronous or self.staleness > 0

    @property
    def updates_of_a_draw(self) -> int:
        """How many updates learn from the answers of one draw."""
        return (self.steps_per_generation or 1) * self.num_iterations // self.gradient_accumulation_steps

    def _check_ahead(self) -> None:
        passes = (self.steps_per_generation or 1) * self.num_iterations
        each = self.updates_of_a_draw
        wrong = {
            "shuffle_dataset is on, but answers are drawn ahead to problems in an order that is known: shuffle the "
            "data set, and switch it off": self.shuffle_dataset,
            "refill draws when answers have been judged, and staleness before": self.refill > 0,
            f"a draw is for {passes} forward passes, which is no whole number of updates of "
            f"{self.gradient_accumulation_steps}": each * self.gradient_accumulation_steps != passes,
            f"staleness is {self.staleness}, no multiple of the {each} updates that share a draw": each > 0
            and self.staleness % each > 0,
            f"replay keeps groups for {self.max_staleness} updates, and fresh ones are {self.staleness} old": (
                self.replay > 0 and self.max_staleness < self.staleness
            ),
        }
        refuse(wrong, where="drawing ahead")
