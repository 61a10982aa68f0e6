"""Settings of a measurement on preference pairs; importing them costs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from burnish.core.settings import CheckpointRef, Settings


class PairMeasurement(Settings):
    """How a reward model, or a policy as the reward model that it implies, is measured on preference pairs."""

    reference: CheckpointRef | None = Field(
        default=None, description="pairs: what a policy was trained from; its reward is beta times the log-ratio"
    )
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="pairs: of a policy's implied reward")
    max_length: int = Field(default=2048, ge=8, description="pairs: tokens; longer ones are left out and counted")
    batch: int = Field(default=8, ge=1, description="pairs: answers that a reward model reads at once")
    chat: bool = Field(default=False, description="pairs: write text pairs out by the chat template")
    subset: str = Field(default="subset", description="pairs: the column whose values have a row each")
    columns: str | None = Field(default=None, description="pairs: as prompt=THEIRS,chosen=THEIRS,rejected=THEIRS")
    on_bad_pair: Literal["refuse", "drop"] = Field(
        default="refuse", description="pairs: what to do with empty or identical ones"
    )
    limit: int | None = Field(default=None, ge=1, description="pairs: measure on the first so many")
