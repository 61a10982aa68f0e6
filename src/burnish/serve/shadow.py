"""A policy that watches: it is told all that happens, says what it would have done, and does nothing.

It has jobs of its own, so that nothing which it notes on them reaches the scheduler. What it would have held is kept
as it would have been without any pressure; what another schedule would have been worth is for a simulation of the
recorded run (`burnish serve sim telemetry.jsonl`) to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from burnish.serve.policies.protocol import Job, Order, Retention, Room


@dataclass
class ShadowCounts:
    """
    Attributes:
        agreed, differed: admissions of the request that the policy would have chosen, and of another one.
        holds: contexts that it would have held.
        hits, late: of those whose workflow came back, within the hold and after it.
    """

    agreed: int = 0
    differed: int = 0
    holds: int = 0
    hits: int = 0
    late: int = 0


class _ShadowRoom:
    """The scheduler's room, with the holds that are not there."""

    def __init__(self, real: Room, shadow: Shadow) -> None:
        self._real, self._shadow = real, shadow

    @property
    def now(self) -> int:
        return self._real.now

    @property
    def free(self) -> int:
        return self._real.free

    @property
    def num_running(self) -> int:
        return self._real.num_running

    @property
    def places(self) -> int:
        return self._real.places

    @property
    def living(self) -> int:
        return self._real.num_running + self._shadow.num_held

    def cached(self, job: Job) -> int:
        return self._real.cached(job)


class Shadow:
    """A policy beside a scheduler that has another one.

    Args:
        order, retention: objects of this shadow alone.
        room: of the scheduler.
    """

    def __init__(self, order: Order, retention: Retention, room: Room) -> None:
        self.order, self.retention, self.room = order, retention, _ShadowRoom(room, self)
        self.counts = ShadowCounts()
        self._jobs: dict[str, Job] = {}
        self._held: dict[str, int] = {}

    @property
    def num_held(self) -> int:
        return sum(until > self.room.now for until in self._held.values())

    def submit(self, job: Job, now: int, pause: tuple[str, int] | None) -> None:
        """A request came; `pause` is (tool, nanoseconds) where its workflow returns."""
        own = self._jobs[job.name] = replace(job)
        if pause:
            self.retention.on_return(own, *pause)
            until = self._held.pop(job.program, None)
            if until is not None:
                own.kept = until >= now
                self.counts.hits += own.kept
                self.counts.late += not own.kept
        self.order.on_submit(own, now)

    def choice(self) -> str:
        """Whom it would admit now; empty for nobody."""
        job = self.order.head(self.room)
        return job.name if job else ""

    def admitted(self, name: str, now: int, cached: int) -> str:
        """Somebody was admitted. Returns whom the policy would have taken; the choice is counted."""
        own = self._jobs.get(name)
        if own is None:
            return ""
        choice = self.choice()
        if choice == name:
            self.counts.agreed += 1
        else:
            self.counts.differed += 1
        self.order.on_leave(own, now)
        if not own.preempted:
            own.cached = min(cached, own.prompt)
            if own.turn:
                self.retention.on_admit(own, now - own.arrival)
        self.order.on_scheduled(own, max(0, own.prompt - cached), 0)
        own.kept = False
        return choice

    def tokens(self, name: str, num: int) -> None:
        if own := self._jobs.get(name):
            self.order.on_scheduled(own, 0, num)

    def preempted(self, name: str, computed: int, now: int) -> None:
        if own := self._jobs.get(name):
            self.order.on_preempted(own, computed)
            own.preempted = True
            self.order.on_submit(own, now)

    def ended(self, name: str, now: int, tokens: int, *, waits: bool, whole: bool) -> int:
        """A request is over. Returns the nanoseconds for which its context would be held.

        Args:
            name: of it.
            now: the time.
            tokens: of its context.
            waits: whether it had no place.
            whole: whether it ended by itself.
        """
        own = self._jobs.pop(name, None)
        if own is None:
            return 0
        if waits:
            self.order.on_leave(own, now)
        if not whole:
            own.tool = ""
        self.order.on_finish(own, now)
        wanted = self.retention.on_finish(own, tokens, self.room) if whole and own.program else 0
        if wanted > 0:
            self._held[own.program] = now + wanted
            self.counts.holds += 1
            if len(self._held) > MOST_HELD:
                del self._held[next(iter(self._held))]
        return wanted


MOST_HELD = 100_000
"""Workflows that would be held and are remembered."""
