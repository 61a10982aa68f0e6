"""The learning rate as a function of the step, so that a resumed run needs no scheduler state.

warm-up   linear from 1/w to 1 over w steps
cosine    half a cosine from 1 to `final` (SGDR, 2016, arXiv:1608.03983)
wsd       constant, then linear to `final` over the last `decay` share (MiniCPM, 2024, arXiv:2404.06395)
linear    straight from 1 to `final`
constant  1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "wsd", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate of step t (from 0) of `steps`, in units of the peak.

    Attributes:
        shape: after the warm-up.
        warmup: share of the steps that rise, at least one step where it is not 0.
        final: last learning rate, in units of the peak.
        decay: share of the steps that fall (wsd only).
    """

    shape: Shape = "cosine"
    warmup: float = 0.05
    final: float = 0.0
    decay: float = 0.2

    def __call__(self, step: int, steps: int) -> float:
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        # From 0 at the first step after the warm-up to 1 just past the last step, so no step is wasted at rate `final`
        # unless `final` is above 0.
        progress = (step - rising) / max(1, steps - rising)
        match self.shape:
            case "constant":
                return 1.0
            case "linear":
                return 1 - (1 - self.final) * progress
            case "cosine":
                return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
            case "wsd":
                falling = max(1, round(self.decay * steps))
                left = (steps - step) / falling
                return self.final + (1 - self.final) * min(1.0, left)
