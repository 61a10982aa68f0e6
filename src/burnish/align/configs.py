"""Configurations of the pair-loss trainers: TRL's dataclasses with the settings of the losses mixed in.

`TrlParser` reads them from YAML and the command line as it reads TRL's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import DPOConfig, RewardConfig

from burnish.align.losses import check_label_smoothing, check_number, check_settings
from burnish.core.errors import SettingsError

PairLoss = Literal["bt", "aps", "aps_quadratic", "r3m", "aps_r3m"]


@dataclass
class PairLossArguments:
    """What the pair losses read; mixed into TRL's configurations, so `TrlParser` and YAML know these fields."""

    pair_loss: PairLoss = field(default="bt", metadata={"help": "Loss of a pair's margin."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Probability that a label is wrong, in [0, 0.5)."})
    rho0: float = field(default=0.1, metadata={"help": "APS: radius of the robust problem, in nats; 0.05 to 0.5."})
    tau0: float = field(default=0.1, metadata={"help": "APS: smallest scale of a pair."})
    tau_max: float = field(default=5.0, metadata={"help": "APS: largest scale of a pair (not used by aps_quadratic)."})
    aps_solver: Literal["exact", "newton"] = field(
        default="exact", metadata={"help": "APS: closed form, or the authors' Newton steps to reproduce their runs."}
    )
    newton_steps: int = field(default=3, metadata={"help": "APS: number of Newton steps."})
    lam: float = field(default=0.75, metadata={"help": "R3M: largest weight of a pair, in (0, 1)."})
    on_bad_pair: Literal["refuse", "drop"] = field(
        default="refuse",
        metadata={"help": "What to do with pairs that are empty or identical, before or after truncation."},
    )

    def check_pair_loss(self) -> None:
        """Refuses impossible settings before a model is loaded."""
        check_settings(self.pair_loss, rho0=self.rho0, tau0=self.tau0, tau_max=self.tau_max, lam=self.lam)
        if self.aps_solver not in ("exact", "newton"):
            raise SettingsError(f"it is {self.aps_solver!r}, but it is 'exact' or 'newton'", where="aps_solver")
        if self.on_bad_pair not in ("refuse", "drop"):
            raise SettingsError(f"it is {self.on_bad_pair!r}, but it is 'refuse' or 'drop'", where="on_bad_pair")
        if type(self.newton_steps) is not int or self.newton_steps < 1:
            raise SettingsError(f"it is {self.newton_steps!r}, but at least one is needed", where="newton_steps")
        check_label_smoothing(self.label_smoothing)

    def loss_settings(self) -> dict[str, Any]:
        return {
            "rho0": self.rho0,
            "tau0": self.tau0,
            "tau_max": self.tau_max,
            "solver": self.aps_solver,
            "steps": self.newton_steps,
            "lam": self.lam,
        }


@dataclass
class PairDPOConfig(PairLossArguments, DPOConfig):
    """DPOConfig with a pair loss. `label_smoothing` e makes it (1 - e) f(m) + e f(-m), for every pair loss."""

    def __post_init__(self) -> None:
        self.check_pair_loss()
        check_number("beta", self.beta, where="beta")
        if not 0 < self.beta < math.inf:
            raise SettingsError(
                f"beta is {self.beta:g}, but it must be finite and above 0", where="beta", fix="0.1 is usual"
            )
        if isinstance(self.loss_type, str):  # TRL takes one name for a list of it
            self.loss_type = [self.loss_type]
        if list(self.loss_type) != ["sigmoid"] or self.loss_weights not in (None, [1.0]):
            raise SettingsError(
                f"loss_type is {self.loss_type}, but pair_loss {self.pair_loss!r} takes its place",
                where="loss_type",
                fix="leave loss_type alone, or use trl.DPOTrainer for its own losses",
            )
        super().__post_init__()


@dataclass
class StockDPOConfig(PairLossArguments, DPOConfig):
    """DPOConfig as it is, with the checks of pairs: `loss_type` decides."""

    def __post_init__(self) -> None:
        self.check_pair_loss()
        super().__post_init__()


@dataclass
class AdaptiveDPOConfig(PairDPOConfig):
    """Settings of `AdaptiveDPOTrainer`: Ada-DPO, pair_loss aps by default."""

    pair_loss: PairLoss = field(default="aps", metadata={"help": "Loss of a pair's margin."})


@dataclass
class RobustDPOConfig(PairDPOConfig):
    """Settings of `RobustDPOTrainer`: R3M-DPO, pair_loss r3m by default."""

    pair_loss: PairLoss = field(default="r3m", metadata={"help": "Loss of a pair's margin."})


@dataclass
class PairRewardConfig(PairLossArguments, RewardConfig):
    """RewardConfig with a pair loss and label smoothing."""

    def __post_init__(self) -> None:
        self.check_pair_loss()
        super().__post_init__()


@dataclass
class AdaptiveRewardConfig(PairRewardConfig):
    """Settings of `AdaptiveRewardTrainer`: pair_loss aps by default."""

    pair_loss: PairLoss = field(default="aps", metadata={"help": "Loss of a pair's margin."})


@dataclass
class RobustRewardConfig(PairRewardConfig):
    """Settings of `RobustRewardTrainer`: pair_loss r3m by default."""

    pair_loss: PairLoss = field(default="r3m", metadata={"help": "Loss of a pair's margin."})
