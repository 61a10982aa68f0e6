"""Which earlier rows, or questions, the guard mixes in, and how many."""

from __future__ import annotations

import torch


def shares(own: int, earlier: int, share: float) -> int:
    """Of each of so many earlier phases, so that together they make up their share of it all; one at least.

    Args:
        own: rows of the phase.
        earlier: phases before it.
        share: of all rows, that the earlier ones are to have.
    """
    return max(1, round(share / (1 - share) * own) // earlier)


def places(length: int, wanted: int, seed: int) -> list[int]:
    """So many places of a set, in a drawn order; none comes again before all have come."""
    generator, chosen = torch.Generator().manual_seed(seed), list[int]()
    while len(chosen) < wanted:
        chosen += torch.randperm(length, generator=generator).tolist()
    return chosen[:wanted]
