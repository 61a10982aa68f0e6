"""`AsStored`: settings of a training of quantized weights on the original's predictions, for `Tune` and `Qat`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from burnish.distill.stage import Distill


class AsStored(Distill):
    """Trains weights as they will be stored: they are a function of what is trained, which AdamW moves.

    Attributes:
        not_here: {setting of a training: why it does not go with this one}.
    """

    beside_packed: ClassVar[bool] = False
    not_here: ClassVar[Mapping[str, str]] = {
        "sharpness": "the weights are a function of what is trained",
        "split_fused": "there are no matrices to step",
        "bound_data": "its loss is of dense weights",
    }

    context: int = Field(default=256, ge=2, description="tokens of a row")
    optimizer: Literal["adamw"] = Field(default="adamw", description="what follows the gradient")  # pyright: ignore[reportIncompatibleVariableOverride]
    holdout: float = Field(default=0.1, ge=0, lt=1, description="share of the rows kept for measuring, the last ones")
    validation_rows: int | None = Field(
        default=16, ge=1, description="most rows that are measured on, spread over those held out; null for all"
    )
    alpha: float = Field(default=1.0, ge=0, le=1, description="share of the divergence; the rest is cross-entropy")

    @model_validator(mode="before")
    @classmethod
    def _validation_in_place_of_holdout(cls, given: Any) -> Any:
        return {"holdout": 0.0} | given if isinstance(given, dict) and given.get("validation") is not None else given

    @model_validator(mode="after")
    def _has_one_training(self) -> Self:
        for name, reason in self.not_here.items():
            if getattr(self, name):
                raise ValueError(f"{name} does not go with {self.name}: {reason}")
        return self
