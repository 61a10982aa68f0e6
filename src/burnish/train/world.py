"""What the loop needs to know of other processes: who it is, how many there are, and sums over all of them.

One process is the case that is built; the loop asks these questions and nothing else, so that more processes are
another `World`.
"""

from __future__ import annotations

from torch import Tensor


class World:
    """A training of one process.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return tensor

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the ledger."""
        return self.rank == 0


ALONE = World()
