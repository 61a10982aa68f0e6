"""What is seen of the requests of a live scheduler, whatever its version: the part of the plug-in that knows no vLLM.

A `Watcher` is told what happens. It keeps the times of each request, makes and scores forecasts, tells a shadow and a
guard, sums up what tenants had, and writes a line of telemetry where something ends. It decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.serve.forecasts import Forecasts, interval
from burnish.serve.guard import SECOND, PolicyGuard
from burnish.serve.metrics import TenantSums, Values
from burnish.serve.policies.pauses import PauseLaws
from burnish.serve.policies.protocol import Job
from burnish.serve.shadow import Shadow
from burnish.serve.telemetry import BlockNumbers, Recorder
from burnish.serve.workload import Mode

MOST_PROGRAMS = 100_000
"""Paused workflows that are remembered."""


@dataclass(eq=False, slots=True)
class SeenRequest:
    """One request, as it was seen so far; nanoseconds of the scheduler's clock, -1 where it has not happened.

    Attributes:
        job: who it is.
        arrival, admitted, first_token: times.
        output, cached: tokens made so far, and tokens of the prompt that were found computed at its first admission.
        redone: tokens that were computed again after it had lost its place.
        lost: tokens that it had when it lost its place, until it has one again.
        preemptions: times that it did.
        had_hold: whether its context was held when it was admitted.
        forecasts: central 80 % of what was forecast for it.
    """

    job: Job
    arrival: int
    admitted: int = -1
    first_token: int = -1
    output: int = 0
    cached: int = 0
    redone: int = 0
    lost: int = 0
    preemptions: int = 0
    had_hold: bool = False
    forecasts: dict[str, Any] = field(default_factory=dict)


class Watcher:
    """Keeps a `SeenRequest` of every request that is there.

    Args:
        mode: of the plug-in; forecasts are made from `shadow` on.
        began: nanoseconds of the clock that are 0 in the telemetry.
        recorder: of telemetry.
        shadow: of another policy.
        guard: of this one.
        pauses: laws of pauses for the forecasts; what was seen where nothing is said.
    """

    def __init__(
        self,
        mode: Mode,
        began: int,
        *,
        recorder: Recorder | None = None,
        shadow: Shadow | None = None,
        guard: PolicyGuard | None = None,
        pauses: PauseLaws | None = None,
    ) -> None:
        self.mode, self.recorder, self.shadow, self.guard = mode, recorder, shadow, guard
        self.forecasts = Forecasts(pauses) if mode in ("shadow", "advise", "enforce") else None
        self.tenants = TenantSums()
        self.holds: dict[str, float] = {}
        self.held_ns = {"useful": 0.0, "wasted": 0.0}
        self._began = began
        self._seen: dict[str, SeenRequest] = {}
        self._paused: OrderedDict[str, tuple[str, int, int, int]] = OrderedDict()
        self._numbers = BlockNumbers()

    @property
    def num_present(self) -> int:
        return len(self._seen)

    # -- requests --------------------------------------------------------------------------------------------------

    def arrived(self, job: Job, now: int) -> tuple[str, int] | None:
        """A request came; sets its times and its turn. Returns the pause of its workflow that is over, with the tool
        that it followed."""
        job.arrival = job.program_arrival = now
        one = self._seen[job.name] = SeenRequest(job, now)
        pause = None
        if job.program and (before := self._paused.pop(job.program, None)):
            tool, finished, began, turn = before
            job.program_arrival, job.turn = began, max(turn + 1, job.turn)
            pause = (tool, now - finished)
            if self.forecasts and (inside := self.forecasts.returned(job.program, *pause)) is not None and self.guard:
                self.guard.forecast(inside=inside)
        if self.forecasts and (lengths := self.forecasts.asked(job)):
            one.forecasts["output_tokens"] = interval(lengths)
        if self.shadow:
            self.shadow.submit(job, now, pause)
        return pause

    def admitted(self, name: str, now: int, cached: int) -> None:
        """It has a place; `cached` of its tokens were found computed."""
        one = self._seen.get(name)
        if one is None:
            return
        if one.admitted < 0:
            one.admitted, one.cached = now, min(cached, one.job.prompt)
        elif one.lost:
            one.redone += max(0, one.lost - cached)
            one.lost = 0
        one.had_hold |= one.job.kept
        if self.shadow:
            choice = self.shadow.admitted(name, now, cached)
            if self.mode == "advise" and choice and choice != name:
                self.event("advice", now, request=choice, instead_of=name)

    def preempted(self, name: str, computed: int, now: int) -> None:
        if one := self._seen.get(name):
            one.preemptions += 1
            one.lost = computed
            if self.shadow:
                self.shadow.preempted(name, computed, now)

    def tokens(self, name: str, now: int, num: int) -> None:
        """It has made so many tokens."""
        one = self._seen.get(name)
        if one is None:
            return
        one.output += num
        if self.shadow:
            self.shadow.tokens(name, num)
        if one.first_token < 0:
            one.first_token = now
            if self.guard and not one.had_hold:
                self.guard.first_token(one.arrival / SECOND, (now - one.arrival) / SECOND)

    def ended(self, name: str, now: int, *, how: str, computed: int, hashes: Sequence[Hashable] = ()) -> None:
        """It is over.

        Args:
            name: of the request.
            now: the time.
            how: stopped, length, or anything else where it was given up.
            computed: tokens of its context.
            hashes: of its full blocks, answer included.
        """
        one = self._seen.pop(name, None)
        if one is None:
            return
        job, whole = one.job, how in ("stopped", "length")
        if whole and job.program and job.tool:
            self._paused[job.program] = (job.tool, now, job.program_arrival, job.turn)
            if len(self._paused) > MOST_PROGRAMS:
                self._paused.popitem(last=False)
        if self.forecasts:
            self._forecast(one, whole=whole)
        if self.shadow:
            waits = one.admitted < 0 or bool(one.lost)
            wanted = self.shadow.ended(name, now, computed, waits=waits, whole=whole)
            if self.mode == "advise" and wanted:
                self.event("advice", now, program=job.program, hold_ns=wanted)
        first = 0 if one.first_token < 0 else (one.first_token - one.arrival) / SECOND
        self.tenants.add(
            job.tenant,
            requests_total=1,
            uncached_prompt_tokens_total=job.prompt - one.cached if one.admitted >= 0 else 0,
            cached_prompt_tokens_total=one.cached,
            output_tokens_total=one.output,
            first_token_seconds_total=first,
        )
        if self.recorder:
            self._write(one, now, how, hashes)

    def _forecast(self, one: SeenRequest, *, whole: bool) -> None:
        assert self.forecasts is not None
        job = one.job
        if not whole:
            self.forecasts.forget(job)
            return
        self.forecasts.answered(job, one.output)
        if job.program and not job.tool:
            self.forecasts.over(job.program)
        if job.program and job.tool and (pauses := self.forecasts.paused(job.program, job.tool)):
            one.forecasts["pause_s"] = interval(pauses)

    def _write(self, one: SeenRequest, now: int, how: str, hashes: Sequence[Hashable]) -> None:
        job = one.job
        self.event(
            "request",
            now,
            request=job.name,
            tenant=job.tenant,
            program=job.program,
            turn=job.turn,
            tool=job.tool,
            end=how,
            arrival_ns=one.arrival - self._began,
            admitted_ns=self._passed(one.admitted),
            first_token_ns=self._passed(one.first_token),
            prompt_tokens=job.prompt,
            cached_tokens=one.cached,
            output_tokens=one.output,
            redone_tokens=one.redone,
            preemptions=one.preemptions,
            had_hold=one.had_hold,
            blocks=self._numbers.of(hashes),
            **({"forecasts": one.forecasts} if one.forecasts else {}),
        )

    def _passed(self, moment: int) -> int | None:
        return None if moment < 0 else moment - self._began

    # -- the engine ------------------------------------------------------------------------------------------------

    def event(self, what: str, now: int, **fields: Any) -> None:
        """A line of telemetry, where there is any."""
        if self.recorder:
            self.recorder.write(what, t_ns=now - self._began, **fields)

    def step(self, now: int, **taken: int) -> None:
        """A step of the engine is over: ns, cpu_ns, prompt, decodes and context."""
        if self.recorder:
            self.recorder.step(t_ns=now - self._began, **taken)

    def hold_ended(self, program: str, now: int, until: str, *, blocks: int, since: int, pinned: int) -> None:
        """Blocks are held no more: returned, expired, reclaimed or dropped; `pinned` were held at once."""
        self.holds[until] = self.holds.get(until, 0) + 1
        self.held_ns["useful" if until == "returned" else "wasted"] += blocks * (now - since)
        self.event("hold", now, program=program, until=until, blocks=blocks, held_ns=now - since, pinned=pinned)

    def idle(self) -> None:
        """Nothing is left to do: what was gathered is written."""
        if self.recorder:
            self.recorder.flush()

    def values(self, *, pinned: int, waiting: int) -> Values:
        """For metrics."""
        values: dict[str, Any] = {f"tenant_{what}:tenant": row for what, row in self.tenants.columns().items()}
        values |= {"held_blocks": pinned, "waiting": waiting, "mode:mode": {self.mode: 1}}
        values["holds_ended_total:until"] = dict(self.holds)
        values["held_block_seconds_total:use"] = {use: spent / SECOND for use, spent in self.held_ns.items()}
        if self.forecasts:
            for what, scores in (("length", self.forecasts.lengths), ("pause", self.forecasts.pauses)):
                values |= {f"forecast_{what}_{name}": value for name, value in scores.means().items()}
        if self.shadow:
            values["shadow_total:what"] = vars(self.shadow.counts).copy()
        if self.recorder:
            values["telemetry_lost_total"] = self.recorder.lost
        return values


class StepClock:
    """What each step of an engine takes, where the next may be planned before the last one's outcome is there.

    A step lasts from the end of the one before it, or from its own planning where nothing ran then.
    """

    def __init__(self) -> None:
        self._planned: deque[tuple[Any, tuple[int, int] | None, dict[str, int]]] = deque()
        self._last = (0, 0)

    def planned(self, step: object, now: tuple[int, int], *, idle: bool, what: dict[str, int]) -> None:
        """A step is planned; `now` is the time and the processor's time."""
        self._planned.append((step, now if idle else None, what))

    def ended(self, step: object, now: tuple[int, int]) -> dict[str, int] | None:
        """What a step that was planned took."""
        last, self._last = self._last, now
        if not self._planned or self._planned[0][0] is not step:
            return None
        _, begun, what = self._planned.popleft()
        since = begun or last
        return {"ns": max(0, now[0] - since[0]), "cpu_ns": max(0, now[1] - since[1])} | what
