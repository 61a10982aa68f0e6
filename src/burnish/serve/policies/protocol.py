"""What a scheduler and a policy say to each other: the whole of it.

The simulator (`burnish.serve.engine`) and vLLM's scheduler (`burnish.serve.vllm`) call the same objects, so that what a
simulation says is said of the code that serves. A policy is an `Order`, which chooses who is admitted next, and a
`Retention`, which says for how long the keys and values of a finished turn are kept for the next one.

Times are integer nanoseconds of one monotonic clock. A policy sees what a server knows at that time: the length of a
prompt, never how long the answer will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(eq=False, slots=True)
class Job:
    """A request, from its arrival to its end; identity is that of the object.

    Attributes:
        name: unique among those that are there at a time.
        tenant: who is charged, as "organisation/team/tenant"; empty where nobody said.
        program: the workflow whose turn this is; empty where it stands alone.
        turn: its place in the workflow, from 0.
        prompt: tokens of the prompt.
        arrival: when it came.
        program_arrival: when the first turn of its workflow came.
        tool: what the answer calls, known when it ends; empty where the workflow ends with it.
        kept: whether the keys and values of its workflow's last turn are still held for it.
        cached: tokens of the prompt that were found computed when it was first admitted.
        paid: tokens of the prompt that its tenant has been charged.
        preempted: whether it lost its place after it had been admitted, and waits again.
    """

    name: str
    tenant: str = ""
    program: str = ""
    turn: int = 0
    prompt: int = 1
    arrival: int = 0
    program_arrival: int = 0
    tool: str = ""
    kept: bool = False
    cached: int = 0
    paid: int = 0
    preempted: bool = False


class Room(Protocol):
    """What an order may ask of the engine when it chooses."""

    @property
    def now(self) -> int: ...

    @property
    def free(self) -> int:
        """Tokens for which there is room, what is cached and not in use included."""
        ...

    @property
    def num_running(self) -> int: ...

    @property
    def places(self) -> int:
        """Requests that may run at a time."""
        ...

    @property
    def living(self) -> int:
        """Workflows that run, wait with their context kept, or pause with it held."""
        ...

    def cached(self, job: Job) -> int:
        """Tokens of a waiting job that would be found computed."""
        ...


class Order(Protocol):
    """Who is admitted next.

    Attributes:
        stable: whether the answer of `head` can be relied on while nothing happens but that admitted jobs make output
            tokens. A simulator then takes such steps together; where it is said and is not so, the check against the
            simulation step by step finds it.
        takes: whether `victim` may name somebody.
    """

    stable: bool
    takes: bool

    def on_submit(self, job: Job, now: int) -> None:
        """A job begins to wait; one that was `preempted` waits again."""
        ...

    def head(self, room: Room) -> Job | None:
        """Who is next, or None to admit nobody now. The same until another method is called."""
        ...

    def victim(self, running: Sequence[Job]) -> Job | None:
        """Whose place goes to `head`, where that finds no place or no room beside those who run, in order of admission;
        at most one a step. None lets everybody stay."""
        ...

    def on_leave(self, job: Job, now: int) -> None:
        """A job waits no more: it is admitted, or was given up."""
        ...

    def on_scheduled(self, job: Job, prompt: int, output: int) -> None:
        """An admitted job takes so many tokens of its prompt that were not cached, or has made output tokens."""
        ...

    def on_outputs(self, jobs: Sequence[Job], each: int) -> None:
        """Each of several admitted jobs has made so many output tokens: the same as `on_scheduled` for one after the
        other."""
        ...

    def on_preempted(self, job: Job, computed: int) -> None:
        """It loses its place, with so many tokens computed, cached ones included. `on_submit` follows."""
        ...

    def on_finish(self, job: Job, now: int) -> None:
        """An admitted job has ended, or was given up."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Job]:
        """Those who wait, in no particular order."""
        ...


@dataclass(eq=False, slots=True)
class Hold:
    """The kept context of a workflow that pauses.

    Attributes:
        job: the turn that ended.
        since: when it ended.
        until: when the hold ends by itself.
        tokens: of the context that is held; fewer once its tail was given up.
        returned: whether the next turn waits; the hold then stays until that is admitted.
    """

    job: Job
    since: int
    until: int
    tokens: int
    returned: bool = False


class Retention(Protocol):
    """For how long the context of a finished turn is kept."""

    def on_finish(self, job: Job, tokens: int, room: Room) -> int:
        """Nanoseconds to hold the context of a turn that ended in a tool call; 0 leaves it to the cache."""
        ...

    def on_return(self, job: Job, tool: str, pause: int) -> None:
        """The next turn of a workflow came after a pause that followed a call of `tool`."""
        ...

    def on_admit(self, job: Job, waited: int) -> None:
        """A later turn was admitted after it waited so long; `job.kept` says whether its context was still held."""
        ...

    def on_pressure(self, holds: Iterable[Hold], room: Room) -> Sequence[Hold]:
        """The order in which holds are given up where running jobs need their room, the least worth first."""
        ...
