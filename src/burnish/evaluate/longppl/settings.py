"""Settings of LongPPL; importing them costs no torch."""

from __future__ import annotations

from pydantic import Field

from burnish.core.settings import CheckpointRef, Settings

TASK = "longppl"


class LongPplMeasurement(Settings):
    """Which tokens of a text count."""

    evaluator: CheckpointRef | None = Field(
        default=None, description="longppl: checkpoint that chooses the tokens; the measured one where not given"
    )
    short_context: int = Field(default=4096, ge=1, description="longppl: tokens that a short context has at least")
    short_step: int = Field(default=1024, ge=1, description="longppl: tokens that share a short context")
    key_gain: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="longppl: nats that a token must gain by the long context"
    )
    key_loss: float = Field(
        default=2.0, gt=0, allow_inf_nan=False, description="longppl: loss with it that a token must be below, nats"
    )
