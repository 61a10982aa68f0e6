"""Rewards that look at the length of an answer: the published family, one class a rule.

All take groups of G rollouts of one prompt: c in {0, 1} says which are correct, l how many tokens each has, and
p = mean c. A rule **preserves order** when every correct rollout earns more than every wrong one of its group, whatever
their lengths; where it does not, a short wrong answer can be worth more than a long right one.

| rule | reward | source |
|---|---|---|
| truncation | c if l <= L, else 0 | ThinkPrune, 2025, arXiv 2504.01296 |
| soft_overlong | c + (0; (L - C - l)/C; -1) for l <= L - C; <= L; above | DAPO, 2025, arXiv 2503.14476 |
| kimi | s = 1/2 - (l - min)/(max - min); right: 1 + a s, wrong: a min(0, s) | Kimi k1.5, 2025, arXiv 2501.12599 |
| sigmoid | c (1 - a sigma((l - mean)/std)), over the correct ones | Arora and Zanette, 2025, arXiv 2502.04463 |
| l1_exact | c - a abs(n - l) | L1 (LCPO), 2025, arXiv 2503.04697 |
| l1_max | c clip(a (n - l) + 1/2, 0, 1) | the same |
| laser | c + [c and l <= L]/2, and -1/2 when wrong | LASER, 2025, arXiv 2505.15612 |
| laser_d | the same with L by how hard the prompt is (p >= 2/3, p >= 1/3, below) | the same |
| laser_de | and 1/2 more for a wrong answer that is long and does not repeat itself | the same |
| alp | c - b l max(p, 1/G), b = a / L | ALP, 2025, arXiv 2506.05256 |
| a_dlp | c - lambda l, with lambda of `penalty_step` | A-DLP, 2025, arXiv 2505.18298 |
| gated_efficiency | c (1 + clip(1 - l / mean correct l, 0, 1)) | prime-rl |

`kept_shortest` (GFPO, 2025, arXiv 2508.09726) and `thinking_advantage` (AdaptThink, 2025, arXiv 2505.13417) are no
rewards but change advantages; they stand below. Ours is `burnish.align.maths.short_arc`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TINY = 1e-7
"""Added to a standard deviation that is divided by."""


Rollouts = Float[Tensor, "groups rollouts"]
"""A number of each rollout; c, l and the rewards."""


class LengthRule(ABC):
    """Settings of a rule are its fields; a call gives the rewards of groups.

    Attributes:
        source: where it was published.
    """

    source: ClassVar[str]

    @property
    def preserves_order(self) -> bool:
        """Whether a correct rollout always earns more than a wrong one of its group, at these settings."""
        return False

    @abstractmethod
    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        """The rewards."""


@dataclass(frozen=True)
class Plain(LengthRule):
    """Correctness alone."""

    source: ClassVar[str] = "correctness alone"

    @property
    def preserves_order(self) -> bool:
        return True

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct.clone()


@dataclass(frozen=True)
class Truncation(LengthRule):
    """Nothing for an answer beyond the limit.

    Attributes:
        limit: L, tokens; 4k, 3k, 2k in stages as published.
    """

    limit: int
    source: ClassVar[str] = "ThinkPrune, 2025, arXiv:2504.01296"

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct * (length <= self.limit)


@dataclass(frozen=True)
class SoftOverlong(LengthRule):
    """A penalty that grows over the last `buffer` tokens before the limit, for right and wrong answers alike.

    Attributes:
        limit: L; 20,480 as published.
        buffer: C; 4,096 as published.
    """

    limit: int
    buffer: int
    source: ClassVar[str] = "DAPO, 2025, arXiv:2503.14476"

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct + ((self.limit - self.buffer - length) / self.buffer).clamp(-1, 0)


@dataclass(frozen=True)
class Kimi(LengthRule):
    """Shorter than the middle of the group earns, longer pays; a wrong answer can only pay.

    Without the 1 for a correct answer (`only_length`), which is the rule as it is often copied, the longest correct
    answer earns -a/2 and the shortest wrong one 0.

    Attributes:
        weight: a.
        only_length: leave the correctness out.
    """

    weight: float = 0.4
    only_length: bool = False
    source: ClassVar[str] = "Kimi k1.5, 2025, arXiv:2501.12599"

    @property
    def preserves_order(self) -> bool:
        return not self.only_length and 0 <= self.weight < 2

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        low, high = length.aminmax(dim=1, keepdim=True)
        spread = high - low
        share = torch.where(spread > 0, 0.5 - (length - low) / spread.clamp(min=TINY), 0.0)
        earned = self.weight * torch.where(correct > 0, share, share.clamp(max=0))
        return earned if self.only_length else correct + earned


@dataclass(frozen=True)
class Sigmoid(LengthRule):
    """A correct answer loses up to the share a, by how its length stands among the correct ones of the group.

    Attributes:
        weight: a.
    """

    weight: float = 0.4
    source: ClassVar[str] = "Training Language Models to Reason Efficiently, 2025, arXiv:2502.04463"

    @property
    def preserves_order(self) -> bool:
        return 0 <= self.weight < 1

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        mean = correct_mean(correct, length)
        spread = correct_mean(correct, (length - mean) ** 2).sqrt()
        return correct * (1 - self.weight * torch.sigmoid((length - mean) / (spread + TINY)))


@dataclass(frozen=True)
class L1Exact(LengthRule):
    """The distance from the number of tokens that the prompt asks for.

    Attributes:
        target: n.
        weight: a.
    """

    target: int
    weight: float = 3e-4
    source: ClassVar[str] = "L1: Controlling How Long a Reasoning Model Thinks, 2025, arXiv:2503.04697"

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct - self.weight * (self.target - length).abs()


@dataclass(frozen=True)
class L1Max(LengthRule):
    """A correct answer earns less the nearer it comes to the number of tokens, and nothing well beyond it.

    The published program computes (clip(a d, -1, 1) + 1)/2 with d = n - l, so its a is twice the paper's.

    Attributes:
        target: n.
        weight: a, as in the paper.
    """

    target: int
    weight: float = 3e-4
    source: ClassVar[str] = "L1: Controlling How Long a Reasoning Model Thinks, 2025, arXiv:2503.04697"

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct * (self.weight * (self.target - length) + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Laser(LengthRule):
    """A correct answer within the limit earns half more.

    Attributes:
        limit: L; 2k, 4k or 8k as published.
    """

    limit: int
    source: ClassVar[str] = "LASER, 2025, arXiv:2505.15612"

    @property
    def preserves_order(self) -> bool:
        return True

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return _stepped(correct, length <= self.limit)


@dataclass(frozen=True)
class LaserD(LengthRule):
    """The same with a limit by how many rollouts of the prompt are correct.

    Attributes:
        limits: L of easy (p >= 2/3), middling (p >= 1/3) and hard prompts; `covering_limit` finds them.
    """

    limits: tuple[int, int, int]
    source: ClassVar[str] = "LASER, 2025, arXiv:2505.15612"

    @property
    def preserves_order(self) -> bool:
        return True

    def limit(self, correct: Rollouts) -> Float[Tensor, "groups 1"]:
        easy, middling, hard = (correct.new_tensor(limit) for limit in self.limits)
        rate = correct.mean(dim=1, keepdim=True)
        return torch.where(rate >= 2 / 3, easy, torch.where(rate >= 1 / 3, middling, hard))

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return _stepped(correct, length <= self.limit(correct))


@dataclass(frozen=True)
class LaserDE(LaserD):
    """LASER-D, and a wrong answer that is beyond its limit and does not repeat itself earns half: it explores."""

    def explored(
        self,
        correct: Rollouts,
        length: Rollouts,
        repeats: Bool[Tensor, "groups rollouts"],
    ) -> Rollouts:
        """With `repeats`, which says where an answer repeats itself."""
        explores = (correct == 0) & (length > self.limit(correct)) & ~repeats
        return super().__call__(correct, length) + 0.5 * explores

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return self.explored(correct, length, torch.zeros_like(correct, dtype=torch.bool))


@dataclass(frozen=True)
class Alp(LengthRule):
    """A price per token that is higher the more often the prompt is solved; wrong answers pay it too.

    Attributes:
        limit: L, the most tokens an answer can have.
        weight: a, what an answer of L tokens pays on a prompt that is always solved.
    """

    limit: int
    weight: float = 0.5
    source: ClassVar[str] = "ALP: Just Enough Thinking, 2025, arXiv:2506.05256"

    @property
    def preserves_order(self) -> bool:
        return 0 <= self.weight < 1

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        rate = correct.mean(dim=1, keepdim=True).clamp(min=1 / correct.shape[1])
        return correct - self.weight / self.limit * length * rate


@dataclass(frozen=True)
class FixedPenalty(LengthRule):
    """A price per token, for right and wrong answers alike; moved by `penalty_step` it is A-DLP.

    Attributes:
        price: lambda, per token.
    """

    price: float
    source: ClassVar[str] = "A-DLP, 2025, arXiv:2505.18298"

    @property
    def preserves_order(self) -> bool:
        return self.price == 0

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        return correct - self.price * length


@dataclass(frozen=True)
class GatedEfficiency(LengthRule):
    """A correct answer earns up to twice, by how far it stays below the mean length of the correct ones."""

    source: ClassVar[str] = "prime-rl"

    @property
    def preserves_order(self) -> bool:
        return True

    def __call__(self, correct: Rollouts, length: Rollouts) -> Rollouts:
        mean = correct_mean(correct, length).clamp(min=TINY)
        return correct * (1 + (1 - length / mean).clamp(0, 1))


RULES: dict[str, type[LengthRule]] = {
    "none": Plain,
    "truncation": Truncation,
    "soft_overlong": SoftOverlong,
    "kimi": Kimi,
    "sigmoid": Sigmoid,
    "l1_exact": L1Exact,
    "l1_max": L1Max,
    "laser": Laser,
    "laser_d": LaserD,
    "laser_de": LaserDE,
    "alp": Alp,
    "a_dlp": FixedPenalty,
    "gated_efficiency": GatedEfficiency,
}
"""Name -> rule."""


def correct_mean(correct: Rollouts, value: Rollouts) -> Float[Tensor, "groups 1"]:
    """Of a value over the correct rollouts of each group; 0 where there are none."""
    return (correct * value).sum(dim=1, keepdim=True) / correct.sum(dim=1, keepdim=True).clamp(min=1)


def penalty_step(price: float, accuracy: float, reference: float, rate: float) -> float:
    """A-DLP's next price of a token: max(0, lambda + eta (accuracy - reference))."""
    return max(0.0, price + rate * (accuracy - reference))


def covering_limit(
    correct: Float[Tensor, "prompts rollouts"],
    length: Float[Tensor, "prompts rollouts"],
    thresholds: Float[Tensor, " limits"],
    rate: float,
    group: int = 8,
) -> float:
    """LASER-D's L of a bin: the shortest threshold that covers so many answers that a group holds one of them.

    The condition is int(coverage * floor(group * rate)) >= 1, where coverage is the share of the correct answers of a
    monitoring set that are within the threshold; the largest threshold where none meets it.

    Args:
        correct: of the monitoring set.
        length: of the same.
        thresholds: in rising order; 4096, 5120, ..., 16384 as published.
        rate: the bin's own solve rate.
        group: G.
    """
    total = correct.sum()
    for limit in thresholds.tolist():
        within = float((correct * (length <= limit)).sum() / total) if total > 0 else 0.0
        if int(within * int(group * rate)) >= 1:
            return float(limit)
    return float(thresholds[-1])


def kept_shortest(
    correct: Rollouts,
    length: Rollouts,
    keep: int,
    by_efficiency: bool = False,
) -> Bool[Tensor, "groups rollouts"]:
    """GFPO: which rollouts of each group are trained on; the others have advantage 0.

    Args:
        correct: c.
        length: l, at least 1.
        keep: how many of each group.
        by_efficiency: keep those with most reward per token and not the shortest.
    """
    score = correct / length if by_efficiency else -length
    places = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(correct, dtype=torch.bool).scatter(1, places, value=True)


def thinking_advantage(
    correct: Rollouts,
    thinks: Bool[Tensor, "groups rollouts"],
    before: Float[Tensor, " groups"],
    bonus: float = 0.05,
) -> Rollouts:
    """AdaptThink: c minus the start model's accuracy on the prompt, and a bonus for an answer without thinking."""
    return correct - before[:, None] + bonus * ~thinks


def _stepped(correct: Rollouts, within: Bool[Tensor, "groups rollouts"]) -> Rollouts:
    return torch.where(correct > 0, 1 + 0.5 * within, -0.5).to(correct.dtype)
