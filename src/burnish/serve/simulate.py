"""The simulator: engines, a router, and a clock of integer nanoseconds.

Events are handled in the order of (time, kind, number): what engines tell each other first, then arrivals, ends of
holds, and steps, so that a step which begins at a time sees all who came by then. Nothing is drawn at random: the same
workload and policy give the same nanoseconds, and `step_by_step` gives them too.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from burnish.core.errors import SettingsError
from burnish.serve.costs import CostModel
from burnish.serve.engine import Counters, EngineShape, HeldBlocks, SimulatedEngine, SimulatedJob, total
from burnish.serve.policies.fleet import Fleet
from burnish.serve.policies.protocol import Order, Retention
from burnish.serve.policies.retention import SECOND
from burnish.serve.policies.shares import FairShares
from burnish.serve.workload import RouterName, Turn, Workflow, Workload

Policies = Callable[[], tuple[Order, Retention]]
"""Makes the policy of one engine."""

_EXCHANGE, _ARRIVAL, _EXPIRY, _STEP = 0, 1, 2, 3
_BITS = 24
"""Of a key that are the place of a block in its text."""


@dataclass
class Simulation:
    """What happened.

    Attributes:
        jobs: every request that was served, in the order of their ends.
        refused: those that no empty pool could hold.
        counters: of all engines.
        schedule: sha256 over every admission, preemption and end with its time and engine.
        area: integral of the number of requests in the system over time; Little's law says that it is the sum of the
            times in the system.
        makespan: when the last request ended.
        num_blocks: of all engines.
        strangers: tenants that the policy did not know.
    """

    jobs: list[SimulatedJob] = field(default_factory=list)
    refused: list[SimulatedJob] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    schedule: str = ""
    area: int = 0
    makespan: int = 0
    num_blocks: int = 0
    strangers: set[str] = field(default_factory=set)


def simulate(
    workload: Workload,
    policies: Policies,
    shape: EngineShape,
    costs: CostModel,
    *,
    instances: int = 1,
    router: RouterName = "least-loaded",
    fleet: Fleet | None = None,
    step_by_step: bool = False,
    at: Callable[[int, Sequence[SimulatedEngine]], None] | None = None,
    times: Sequence[int] = (),
) -> Simulation:
    """Serves a workload.

    Args:
        workload: what is asked.
        policies: makes the policy of an engine.
        shape: of each engine.
        costs: what a step takes.
        instances: engines.
        router: to the engine with the fewest requests (least-loaded), to that of the workflow's turn before
            (workflow, else as least-loaded), or in turn.
        fleet: how the engines share one tree; without it each has its own. The orders are then all `FairShares`.
        step_by_step: takes every step for itself.
        at: is called at each of `times` with all engines, before whatever else happens then; it may change weights.
        times: nanoseconds, rising.

    Raises:
        SettingsError: the blocks of the engine and those of the workload do not fit together.
    """
    return _Clock(workload, policies, shape, costs, instances, router, fleet, step_by_step).run(at, times)


class _Clock:
    """One simulation under way."""

    def __init__(
        self,
        workload: Workload,
        policies: Policies,
        shape: EngineShape,
        costs: CostModel,
        instances: int,
        router: RouterName,
        fleet: Fleet | None,
        step_by_step: bool,
    ) -> None:
        piece = workload.block_tokens
        if piece and piece % shape.block_size and shape.block_size % piece:
            raise SettingsError(
                f"is {shape.block_size}, which neither divides the {piece} tokens of a block of {workload.source} nor "
                "is a multiple of them",
                where="block_size",
                fix=f"give a divisor or a multiple of {piece}, such as {piece}",
            )
        self._workload, self._size, self._router = workload, shape.block_size, router
        self._hash = hashlib.sha256()
        self._place = 0  # of the engine that is at work
        self.engines = [
            SimulatedEngine(shape, costs, *policies(), step_by_step=step_by_step, note=self._note)
            for _ in range(instances)
        ]
        self._fleet, self._exchanges = fleet, False
        self._events: list[tuple[int, int, int, object]] = []
        self._number = 0
        self._places: dict[str, int] = {}
        self._keys: dict[tuple[int, ...], int] = {}
        self._present = self._last = self._turns = 0
        self._origin: dict[SimulatedJob, tuple[Workflow, int, int]] = {}
        self.found = Simulation(num_blocks=shape.num_blocks * instances)

    def run(self, at: Callable[[int, Sequence[SimulatedEngine]], None] | None, times: Sequence[int]) -> Simulation:
        for index, workflow in enumerate(self._workload.workflows):
            self._push(workflow.arrival, _ARRIVAL, (workflow, 0, (index + 1) << _BITS))
        heapq.heapify(self._events)
        self._exchange()
        waiting = list(times)
        while self._events:
            time, kind, _, what = heapq.heappop(self._events)
            while at is not None and waiting and waiting[0] <= time:
                moment = waiting.pop(0)
                for place in range(len(self.engines)):
                    self._interrupt(place, moment)
                at(moment, self.engines)
            if kind == _ARRIVAL:
                self._arrive(time, *what)  # pyright: ignore[reportGeneralTypeIssues]
            elif kind == _EXPIRY:
                self._expire(time, *what)  # pyright: ignore[reportGeneralTypeIssues]
            elif kind == _EXCHANGE:
                self._exchanges = False
                for place in range(len(self.engines)):
                    self._interrupt(place, time)
                self._exchange()
                self._plan_exchange(time)
            else:
                self._step(time, *what)  # pyright: ignore[reportGeneralTypeIssues]
        self.found.schedule = self._hash.hexdigest()
        self.found.counters = total(engine.counters for engine in self.engines)
        for engine in self.engines:
            self.found.strangers |= getattr(engine.order, "strangers", set())
        return self.found

    # -- events ----------------------------------------------------------------------------------------------------

    def _push(self, time: int, kind: int, what: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, kind, self._number, what))

    def _exchange(self) -> None:
        """The engines tell each other what they served, and take over what follows."""
        if self._fleet is not None:
            orders = {str(place): engine.order for place, engine in enumerate(self.engines)}
            trees = {name: order for name, order in orders.items() if isinstance(order, FairShares)}
            found = self._fleet.exchanged({name: tree.accounts() for name, tree in trees.items()})
            for name, tree in trees.items():
                tree.settle(found[name])

    def _plan_exchange(self, time: int) -> None:
        """The next one, at a whole number of its interval, while anybody is there."""
        if self._fleet is not None and self._present and not self._exchanges:
            every = round(self._fleet.exchange * SECOND)
            self._exchanges = True
            self._push((time // every + 1) * every, _EXCHANGE, ())

    def _arrive(self, time: int, workflow: Workflow, turn: int, own: int) -> None:
        job = self._job(time, workflow, turn, own)
        self._count(time, 1)
        self._plan_exchange(time)
        place = self._route(job)
        engine = self.engines[place]
        if not engine.fits(job):
            self._count(time, -1)
            self.found.refused.append(job)
            return
        self._interrupt(place, time)
        self._place = place
        engine.submit(job, time)
        self._wake(place, time)

    def _expire(self, time: int, place: int, hold: HeldBlocks) -> None:
        engine = self.engines[place]
        self._interrupt(place, time)
        if engine.expire(hold, time):
            self._wake(place, time)

    def _step(self, time: int, place: int) -> None:
        engine = self.engines[place]
        self._place = place
        if engine.until is not None:
            if engine.until != time:
                return  # the run was interrupted, and ended earlier
            for job in engine.complete():
                self._finish(time, place, job)
        engine.begin(time)
        if engine.until is not None:
            self._push(engine.until, _STEP, (place,))

    def _finish(self, time: int, place: int, job: SimulatedJob) -> None:
        self.found.jobs.append(job)
        self.found.makespan = time
        self._count(time, -1)
        workflow, turn, own = self._origin[job]
        del self._origin[job]
        if turn + 1 < len(workflow.turns):
            self._push(time + workflow.turns[turn].pause, _ARRIVAL, (workflow, turn + 1, own))
        hold = self.engines[place].holds.get(job.program)
        if hold is not None and hold.job is job:
            self._push(hold.until, _EXPIRY, (place, hold))

    def _interrupt(self, place: int, time: int) -> None:
        engine = self.engines[place]
        if engine.interrupt(time):
            assert engine.until is not None
            self._push(engine.until, _STEP, (place,))

    def _wake(self, place: int, time: int) -> None:
        if self.engines[place].until is None:
            self._push(time, _STEP, (place,))

    def _count(self, time: int, change: int) -> None:
        self.found.area += self._present * (time - self._last)
        self._present, self._last = self._present + change, time

    def _note(self, time: int, what: str, job: SimulatedJob) -> None:
        self._hash.update(f"{time} {self._place} {what} {job.name}\n".encode())

    # -- jobs and where they go --------------------------------------------------------------------------------------

    def _job(self, time: int, workflow: Workflow, turn: int, own: int) -> SimulatedJob:
        what = workflow.turns[turn]
        before = workflow.turns[turn - 1] if turn else None
        known = before.prompt + before.output - 1 if before else 0
        several = len(workflow.turns) > 1
        job = SimulatedJob(
            name=f"{workflow.name}:{turn}" if several else workflow.name,
            tenant=workflow.tenant,
            program=workflow.name if several else "",
            turn=turn,
            prompt=what.prompt,
            arrival=time,
            program_arrival=workflow.arrival,
            tool=what.tool if turn + 1 < len(workflow.turns) else "",
            output=what.output,
            chain=self._chain(what),
            own=own,
            known=known,
        )
        self._origin[job] = (workflow, turn, own)
        return job

    def _chain(self, turn: Turn) -> Sequence[int]:
        """Keys of the full blocks that the workload names; below 0, so that no workflow's own is among them."""
        if not turn.blocks:
            return ()
        piece, size = self._workload.block_tokens, self._size
        answer = turn.output if self._workload.answers_in_blocks else 0
        full = min((turn.prompt + answer) // size, len(turn.blocks) * piece // size)
        if piece < size:
            return self._joined(turn.blocks, full, size // piece)
        parts = piece // size
        if parts == 1:
            return [-1 - block for block in turn.blocks[:full]]
        return [-1 - (turn.blocks[index // parts] * parts + index % parts) for index in range(full)]

    def _joined(self, pieces: Sequence[int], full: int, num: int) -> list[int]:
        """Keys of blocks of `num` pieces each; equal where they and all before them are."""
        found, before = [], 0
        for index in range(full):
            known = self._keys
            before = known.setdefault((before, *pieces[index * num : (index + 1) * num]), -1 - len(known))
            found.append(before)
        return found

    def _route(self, job: SimulatedJob) -> int:
        if len(self.engines) == 1:
            return 0
        if self._router == "workflow" and job.program in self._places:
            return self._places[job.program]
        if self._router == "round-robin":
            self._turns += 1
            place = (self._turns - 1) % len(self.engines)
        else:
            loads = [len(engine.running) + len(engine.order) for engine in self.engines]
            place = loads.index(min(loads))
        if job.program:
            self._places[job.program] = place
        return place
