"""Ways in which people mislabel pairs, for tests and benchmarks: which pairs end up with the wrong answer chosen.

The first three are the noise models of "Robust Reinforcement Learning from Corrupted Human Feedback", NeurIPS 2024,
arXiv 2406.15568, section 4; `clearest` is the adversarial one, against which a bounded pull matters most. All return
a boolean per pair: True where the label is to be flipped. `gap` is the true reward difference, chosen minus rejected,
and is positive for a pair that is labelled right.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor


def stochastic(gap: Float[Tensor, " pairs"], temperature: float, generator: Generator) -> Bool[Tensor, " pairs"]:
    """A label is right with probability sigma(gap / temperature): the closer the answers, the likelier a mistake."""
    return torch.rand(gap.shape, generator=generator, dtype=gap.dtype) > torch.sigmoid(gap / temperature)


def myopic(
    step_gap: Float[Tensor, "pairs steps"], discount: float, generator: Generator, temperature: float = 1.0
) -> Bool[Tensor, " pairs"]:
    """People weigh the last step most: stochastic labels of sum over t of discount^(T-1-t) gap_t.

    Args:
        step_gap: reward difference per step, chosen minus rejected.
        discount: in (0, 1]; 1 weighs all steps alike.
    """
    steps = step_gap.shape[1]
    weight = discount ** torch.arange(steps - 1, -1, -1, dtype=step_gap.dtype)
    return stochastic(step_gap @ weight, temperature, generator)


def irrational(gap: Float[Tensor, " pairs"], power: float) -> Bool[Tensor, " pairs"]:
    """Of a batch of B pairs, the floor(B^power) with the largest gaps are flipped; power in (0, 1)."""
    return clearest(gap, int(gap.numel() ** power) / gap.numel())


def clearest(gap: Float[Tensor, " pairs"], share: float) -> Bool[Tensor, " pairs"]:
    """The `share` of pairs with the largest |gap|: confident corruption."""
    count = round(share * gap.numel())
    flipped = torch.zeros(gap.shape, dtype=torch.bool)
    flipped[gap.abs().topk(count).indices] = True
    return flipped


def uniform(num_pairs: int, share: float, generator: Generator) -> Bool[Tensor, " pairs"]:
    """Exactly round(share * num_pairs) pairs, drawn without regard to the gap."""
    flipped = torch.zeros(num_pairs, dtype=torch.bool)
    flipped[torch.randperm(num_pairs, generator=generator)[: round(share * num_pairs)]] = True
    return flipped
