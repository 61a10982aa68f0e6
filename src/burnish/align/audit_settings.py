"""Settings of the label audit; importing them costs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from burnish.core.outside import MAX_SEED
from burnish.core.settings import Settings

Ranking = Literal["delta", "loss", "tau"]

RANKINGS: dict[Ranking, tuple[str, str]] = {
    "delta": ("r3m", "R3M offset (robust fit)"),
    "loss": ("bt", "Bradley-Terry loss"),
    "tau": ("aps", "APS, signed scale"),
}
"""How pairs can be sorted: the fit whose margin decides, and the name on the page."""

MARGINS = ("bt", "r3m", "aps")
"""The fits whose margins every pair has."""


class AuditSettings(Settings):
    """How pairs are scored; docs/methods/label-audit.md says what has been measured of the defaults."""

    rank_by: Ranking = Field(default="delta", description="what decides the order: R3M's delta, BT loss, APS's tau")
    lam: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="R3M: largest weight of a pair; chosen so that 5 to 30 % of the pairs reach it when not given",
    )
    rho0: float = Field(default=0.1, gt=0, description="APS: radius of the robust problem, in nats")
    tau0: float = Field(default=0.1, gt=0, description="APS: smallest scale of a pair")
    tau_max: float = Field(default=5.0, gt=0, description="APS: largest scale of a pair")
    l2: float = Field(default=1e-2, gt=0, description="penalty on the squared weights of the linear rewards")
    folds: int = Field(default=5, ge=2, description="parts of the cross-fitting")
    repeats: int = Field(default=3, ge=1, description="cross-fittings with different folds, averaged")
    words: bool = Field(default=True, description="let the answers' words count beside the model's hidden states")
    nuisance: Literal["ignore", "feature", "remove"] = Field(
        default="ignore",
        description="length, refusal and form of answers: no part of their own, features, or fitted and then "
        "left out of the margins",
    )
    depths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.5, 0.8), min_length=1, description="layers read, as shares of the model's depth"
    )
    max_length: int = Field(default=512, ge=64, description="tokens of prompt and answer that the model reads")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="seed of the folds")

    @model_validator(mode="after")
    def _fits_together(self) -> AuditSettings:
        if self.tau0 > self.tau_max:
            raise ValueError(f"tau0 is {self.tau0:g}, above tau_max {self.tau_max:g}")
        return self
