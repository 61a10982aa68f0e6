"""Those who decode, together: every step makes one token for each of them, so that a step costs what changes in it.

They are the first `num` of the engine's running requests. What a step changes of all of them alike is counted once, in
`steps`; a request that has been with them since step `since` has made `steps - since` tokens more than stands on it.
What differs is when one ends, and when one needs a block or has filled one. Those moments are known beforehand and
stand in two heaps, by step and then by the order of admission, which is the order in which vLLM looks at its requests.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.serve.engine import SimulatedJob


class Decoding:
    """Requests that decode.

    Args:
        size: tokens of a block.

    Attributes:
        num: of requests.
        steps: that were made so far.
        context: tokens that they hold together.
    """

    def __init__(self, size: int) -> None:
        self.num = self.steps = self.context = 0
        self._size = size
        self._ends: list[tuple[int, int, SimulatedJob]] = []
        self._blocks: list[tuple[int, int, SimulatedJob]] = []

    def join(self, job: SimulatedJob) -> None:
        """A request has its first token, or its place again; those who were admitted before it are there already."""
        job.since = self.steps
        self.num += 1
        self.context += job.computed
        heappush(self._ends, (self.steps + job.output - job.generated, job.seat, job))
        heappush(self._blocks, (self._next_block(job), job.seat, job))

    def tokens(self, job: SimulatedJob) -> int:
        """That a request has computed."""
        return job.computed + self.steps - job.since

    def _next_block(self, job: SimulatedJob) -> int:
        """The step in which a request takes or fills its next block; it computes token `wanted` in it."""
        wanted = min(job.num_blocks * self._size + 1, (job.looked + 1) * self._size)
        return job.since + wanted - job.computed - 1

    def blocks_due(self) -> list[tuple[SimulatedJob, int]]:
        """Who takes or fills a block in the step that comes, in the order of admission, and the tokens of it then."""
        due, heap = [], self._blocks
        while heap and heap[0][0] <= self.steps:
            _, _, job = heappop(heap)
            due.append((job, self.tokens(job) + 1))
        return due

    def has_blocks(self, job: SimulatedJob) -> None:
        """A request that was due has got what it needs."""
        heappush(self._blocks, (self._next_block(job), job.seat, job))

    def next_due(self) -> int:
        """The step in which the next one is due."""
        return self._blocks[0][0] if self._blocks else self.steps

    def most_steps(self) -> int:
        """Until the first of them ends."""
        return self._ends[0][0] - self.steps

    def step(self, num: int) -> None:
        """So many steps are over."""
        self.steps += num
        self.context += num * self.num

    def ended(self) -> list[SimulatedJob]:
        """Takes out those who have made their last token, in the order of admission."""
        found, heap = [], self._ends
        while heap and heap[0][0] <= self.steps:
            job = heappop(heap)[2]
            self._settle(job)
            self.num -= 1
            self.context -= job.computed
            found.append(job)
        if found:
            gone = set(found)
            self._blocks = [one for one in self._blocks if one[2] not in gone]
            heapify(self._blocks)
        return found

    def part(self) -> None:
        """Nobody is together any more."""
        for _, _, job in self._ends:
            self._settle(job)
        self._ends, self._blocks = [], []
        self.num = self.context = 0

    def _settle(self, job: SimulatedJob) -> None:
        made = self.steps - job.since
        job.computed += made
        job.scheduled += made
        job.generated += made
