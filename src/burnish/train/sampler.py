"""Which rows a step sees: a function of the seed and of the number of the step, not of who asks.

Every epoch is a permutation of all rows; a step takes the next `batch_size` of them. A resumed run, or one on another
number of processes, therefore sees the same rows in the same steps.
"""

from __future__ import annotations

from functools import lru_cache

import torch


class Sampler:
    """Rows of each step.

    Args:
        num_rows: rows of the data.
        batch_size: rows per step.
        seed: of the permutations.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_rows, generator=generator).tolist()

    def rows(self, step: int) -> list[int]:
        """The rows of a step (from 0)."""
        first = step * self.batch_size
        places = range(first, first + self.batch_size)
        return [self._order(place // self.num_rows)[place % self.num_rows] for place in places]
