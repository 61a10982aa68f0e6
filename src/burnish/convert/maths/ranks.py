"""How many ranks each of several matrices gets, where all of them together may have so many.

A matrix with the spectrum S^2 loses the sum of S_i^2 beyond its rank. Losses of matrices add up and each falls by less
with every further rank, so the ranks with the largest S_i^2 of all are the optimum. CARE's rule gives the next rank to
the matrix whose next S_i^2 is the largest share of what it still loses; that share tends to 1 as a matrix nears full
rank, so whoever is ahead gets ahead further. It is here to be compared with.

Source: CARE (2026, arXiv:2603.17946), section on adjusted ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

Spectra = Sequence[Float64[Tensor, " _"]]


def greedy_ranks(spectra: Spectra, total: int, *, largest: int | None = None) -> list[int]:
    """The ranks with the least loss in all.

    Args:
        spectra: of each matrix, descending, already times what an error in it costs.
        total: sum of the ranks; no more than there are values.
        largest: rank that none may exceed.
    """
    cut = [spectrum[:largest] for spectrum in spectra]
    owners = torch.cat([torch.full((len(values),), number) for number, values in enumerate(cut)])
    best = torch.cat(cut).argsort(descending=True, stable=True)[:total]
    return torch.bincount(owners[best], minlength=len(spectra)).tolist()


def paper_ranks(spectra: Spectra, total: int, *, smallest: int = 1) -> list[int]:
    """CARE's rule: the next rank goes to the largest S_(r+1)^2 / sum over m > r of S_m^2.

    Args:
        spectra: as above.
        total: sum of the ranks; no more than there are values.
        smallest: rank that each begins with.
    """
    rest = [spectrum.flip(0).cumsum(0).flip(0).clamp(min=1e-300) for spectrum in spectra]
    shares = [spectrum / tail for spectrum, tail in zip(spectra, rest, strict=True)]
    ranks = [smallest] * len(spectra)
    for _ in range(total - sum(ranks)):
        open_ = [number for number, rank in enumerate(ranks) if rank < len(spectra[number])]
        ranks[max(open_, key=lambda number: float(shares[number][ranks[number]]))] += 1
    return ranks


def loss(spectra: Spectra, ranks: Sequence[int]) -> float:
    """The sum of what is beyond the ranks."""
    return float(sum(spectrum[rank:].sum() for spectrum, rank in zip(spectra, ranks, strict=True)))
