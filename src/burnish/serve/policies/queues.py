"""Orders without shares: first come first served, workflow first, least attained service."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from burnish.serve.policies.protocol import Job, Order, Room


class Staying:
    """An order that takes no place away from who runs."""

    takes = False

    def victim(self, running: Sequence[Job]) -> Job | None:
        return None


class Uncharged(Staying):
    """An order that keeps no account."""

    stable = True

    def on_scheduled(self, job: Job, prompt: int, output: int) -> None:
        pass

    def on_outputs(self, jobs: Sequence[Job], each: int) -> None:
        pass

    def on_preempted(self, job: Job, computed: int) -> None:
        pass

    def on_finish(self, job: Job, now: int) -> None:
        pass


class FirstComeFirstServed(Uncharged):
    """In order of arrival, those first that lost their place: what vLLM does by itself."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def on_submit(self, job: Job, now: int) -> None:
        if job.preempted:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)

    def head(self, room: Room) -> Job | None:
        return self._waiting[0] if self._waiting else None

    def on_leave(self, job: Job, now: int) -> None:
        if self._waiting and self._waiting[0] is job:
            self._waiting.popleft()
        else:
            self._waiting.remove(job)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._waiting)


class Ranked(Uncharged):
    """The job with the smallest rank, in O(log n); a rank may only grow while its job waits."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, ...], int, Job]] = []
        self._waiting: dict[Job, int] = {}
        self._number = 0

    def rank(self, job: Job) -> tuple[int, ...]:
        raise NotImplementedError

    def on_submit(self, job: Job, now: int) -> None:
        self._number += 1
        self._waiting[job] = self._number
        heapq.heappush(self._heap, (self.rank(job), self._number, job))

    def head(self, room: Room) -> Job | None:
        while self._heap:
            rank, number, job = self._heap[0]
            if self._waiting.get(job) != number:
                heapq.heappop(self._heap)
            elif (now := self.rank(job)) != rank:
                heapq.heapreplace(self._heap, (now, number, job))
            else:
                return job
        return None

    def on_leave(self, job: Job, now: int) -> None:
        del self._waiting[job]

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._waiting)


def needs_place(order: Order, room: Room) -> bool:
    """Whether somebody is asked for his place: the order takes places, and its next one finds none, or no room."""
    if not order.takes or not room.num_running or (job := order.head(room)) is None:
        return False
    return room.num_running >= room.places or room.free < job.prompt - room.cached(job)


class Growth:
    """Room that newcomers leave for those who are there: a workflow's context grows with each turn.

    A newcomer is admitted where, beside its prompt, there remain for every living workflow as many tokens as a turn
    adds on average. Without that, newcomers fill the room into which the living grow, and push their contexts out.
    """

    def __init__(self, turns: float = 1.0) -> None:
        self.turns = turns
        self._sizes: dict[str, int] = {}
        self._grown, self._times = 0, 0

    def saw(self, job: Job) -> None:
        """A turn came whose prompt is so long."""
        if job.turn and job.program in self._sizes:
            self._grown += max(0, job.prompt - self._sizes[job.program])
            self._times += 1
        self._sizes[job.program] = job.prompt

    def forget(self, program: str) -> None:
        self._sizes.pop(program, None)

    def admits(self, job: Job, room: Room) -> bool:
        """Whether there is room for a newcomer; where nothing runs there always is."""
        if not self._times or not room.num_running:
            return True
        kept = self.turns * room.living * self._grown / self._times
        return room.free - job.prompt + room.cached(job) >= kept


class ProgramFirst(Ranked):
    """Workflows as units: whose context is held first, then by the arrival of the workflow, newcomers with `Growth`."""

    def __init__(self, growth: Growth | None = None) -> None:
        super().__init__()
        self._growth = growth or Growth()

    def rank(self, job: Job) -> tuple[int, ...]:
        return (0 if job.preempted else 1 if job.kept else 2, job.program_arrival)

    def on_submit(self, job: Job, now: int) -> None:
        if not job.preempted:
            self._growth.saw(job)
        super().on_submit(job, now)

    def head(self, room: Room) -> Job | None:
        job = super().head(room)
        if job is None or job.turn or job.preempted or self._growth.admits(job, room):
            return job
        return None

    def on_finish(self, job: Job, now: int) -> None:
        if not job.tool:
            self._growth.forget(job.program)


class LeastAttainedService(ProgramFirst):
    """By the service that the workflow has had in its finished turns, in classes that double; newcomers last.

    Autellix (2025, arXiv:2502.13965) puts newcomers, who have had none, first. Where contexts have to be kept that
    makes every newcomer push out somebody's, so they stand behind those who returned.
    """

    SMALLEST = 1024

    def __init__(self, growth: Growth | None = None) -> None:
        super().__init__(growth)
        self._served: dict[str, int] = {}

    def rank(self, job: Job) -> tuple[int, ...]:
        served = self._served.get(job.program, 0)
        level = (served // self.SMALLEST).bit_length()
        return (0 if job.preempted else 1 if job.turn else 2, 0 if job.kept else 1, level, job.program_arrival)

    def on_scheduled(self, job: Job, prompt: int, output: int) -> None:
        job.paid += prompt + output

    def on_outputs(self, jobs: Sequence[Job], each: int) -> None:
        for job in jobs:
            job.paid += each

    def on_finish(self, job: Job, now: int) -> None:
        super().on_finish(job, now)
        if job.tool:
            self._served[job.program] = self._served.get(job.program, 0) + job.paid
        else:
            self._served.pop(job.program, None)
