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
        self._first = 0
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_rows, generator=generator).tolist()

    def place(self, step: int) -> int:
        """How many rows come before those of a step."""
        return self._first + step * self.batch_size

    def go_on(self, step: int, place: int) -> None:
        """From this step on, rows follow from a place on; it is their place already unless the batch has changed."""
        self._first = place - step * self.batch_size

    def rows(self, step: int) -> list[int]:
        """The rows of a step (from 0)."""
        first = self.place(step)
        places = range(first, first + self.batch_size)
        return [self._order(place // self.num_rows)[place % self.num_rows] for place in places]
