"""GRPO with a length rule: `ShortARCTrainer`, its configuration, and every published rule by name.

    trainer = ShortARCTrainer(model, reward_funcs=[env.reward], args=ShortARCConfig("out"), train_dataset=rows)

The first reward says what is correct (from 0.99 on); its column is replaced by the rule's reward, the other columns
stay as they are. Accuracy, length and the controller are logged before that: `accuracy`, `alpha`, `redundancy`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burnish.align.grpo_config import SampledGRPOConfig
from burnish.align.grpo_seam import SampledGRPOTrainer
from burnish.align.maths.short_arc import HIGHEST_ALPHA, Controller, redundancy, short_arc
from burnish.align.shaping import SHAPINGS, length_rule
from burnish.core.errors import refuse
from burnish.verify.adapter import CORRECT


@dataclass
class ShortARCConfig(SampledGRPOConfig):
    """What `ShortARCTrainer` reads besides GRPO's settings; `epsilon` is GRPO's clip, so accuracy's is `tolerance`."""

    length_shaping: str = field(default="short_arc", metadata={"help": f"One of {', '.join(SHAPINGS)}."})
    shaping_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of a published rule, such as {'weight': 0.4}."}
    )
    acc_target: float | None = field(
        default=None, metadata={"help": "Accuracy to hold; None is the first updates' own, less the tolerance."}
    )
    target_updates: int = field(default=5, metadata={"help": "Updates whose accuracy that is, without pressure."})
    tolerance: float = field(default=0.01, metadata={"help": "What accuracy may lose."})
    alpha: float = field(default=0.5, metadata={"help": "How much of its reward a long answer loses, at the start."})
    alpha_max: float = field(default=HIGHEST_ALPHA, metadata={"help": "And at most; below 1."})
    eta: float = field(default=0.02, metadata={"help": "Largest step of alpha upwards; 0 keeps alpha as it is."})
    p_min: float = field(default=0.5, metadata={"help": "Solve rate from which there is pressure."})
    token_scale: float | None = field(
        default=None, metadata={"help": "Tokens over which the reward falls; None is the shortest right answer's."}
    )
    quantile: float = field(default=0.0, metadata={"help": "Of right answers' lengths that counts as the shortest."})

    def __post_init__(self) -> None:
        self.rule = length_rule(self.length_shaping, self.shaping_options)
        wrong = {
            f"alpha is {self.alpha:g}, which is not from 0 to alpha_max": not 0 <= self.alpha <= self.alpha_max,
            f"alpha_max is {self.alpha_max:g}: from 1 on a long right answer is worth no more than a wrong one": not (
                0 <= self.alpha_max < 1
            ),
            f"p_min is {self.p_min:g}, but a share below 1 is needed": not 0 <= self.p_min < 1,
            f"tolerance is {self.tolerance:g}, but a number above 0 is needed": not self.tolerance > 0,
            f"quantile is {self.quantile:g}, which is no share": not 0 <= self.quantile <= 1,
            f"token_scale is {self.token_scale}, but a number above 0 is needed": self.token_scale is not None
            and not self.token_scale > 0,
            f"acc_target is {self.acc_target}, which is no share": self.acc_target is not None
            and not 0 <= self.acc_target <= 1,
            f"target_updates is {self.target_updates}, but 1 or more is needed": self.target_updates < 1,
        }
        refuse(wrong, where="length control")
        super().__post_init__()


class ShortARCTrainer(SampledGRPOTrainer):
    """GRPO whose reward looks at length, by Short-ARC with its controller or by a published rule."""

    args: ShortARCConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    controller: Controller | None = None
    _first: tuple[float, ...] = ()
    _pressure: float = 0.0

    def shape_rewards(self, rewards: Tensor, lengths: Tensor) -> Tensor:
        known = ~rewards[..., 0].isnan()
        correct = (rewards[..., 0].nan_to_num(nan=0.0) >= CORRECT).double()
        tokens = lengths.double()
        accuracy = float(correct[known].mean())
        if self.args.rule is not None:
            shaped = self.args.rule(correct, tokens)
        else:
            if not self.round:  # what is drawn again is of the same update
                self._pressure = self._alpha(accuracy)
            shaped = short_arc(
                correct, tokens, self._pressure, self.args.p_min, self.args.token_scale, self.args.quantile
            )
        self._report(correct, tokens, accuracy)
        return torch.cat([torch.where(known, shaped, torch.nan).to(rewards.dtype)[..., None], rewards[..., 1:]], -1)

    def _alpha(self, accuracy: float) -> float:
        """Pressure of this step; the controller hears of its accuracy for the next one."""
        if self.mode == "eval":
            return self.controller.alpha if self.controller else 0.0
        if self.controller is None:
            self._first = (*self._first, accuracy)
            target = self.args.acc_target
            if target is None and len(self._first) <= self.args.target_updates:
                if len(self._first) < self.args.target_updates:
                    return 0.0
                target = sum(self._first) / len(self._first) - self.args.tolerance
            assert target is not None, "it was given, or has been measured"
            self.controller = Controller(
                max(target, 0.0), self.args.tolerance, self.args.alpha, self.args.eta, alpha_max=self.args.alpha_max
            )
            return self.controller.alpha
        alpha = self.controller.alpha
        self.controller.update(accuracy)
        return alpha

    def _report(self, correct: Tensor, tokens: Tensor, accuracy: float) -> None:
        found = {"accuracy": accuracy, "redundancy": float(redundancy(correct, tokens))}
        if self.controller is not None:
            found |= {"alpha": self.controller.alpha, "acc_target": self.controller.target}
        rates = correct.mean(1)
        found |= {
            "solved/none": float((rates == 0).double().mean()),
            "solved/all": float((rates == 1).double().mean()),
        }
        solved = correct.sum(1)
        for count in range(correct.shape[1] + 1):
            here = solved == count
            found[f"solved/{count}"] = float(here.double().mean())
            if bool(here.any()):
                found[f"solved_tokens/{count}"] = float(tokens[here].mean())
        for name, value in found.items():
            self._metrics[self.mode][name].append(value)

    def control_state(self) -> dict[str, Any]:
        controller = None if self.controller is None else self.controller.state()
        return super().control_state() | {"controller": controller, "first": list(self._first)}

    def load_control_state(self, state: dict[str, Any]) -> None:
        super().load_control_state(state)
        self.controller = None if state["controller"] is None else Controller(**state["controller"])
        self._first = tuple(state["first"])
