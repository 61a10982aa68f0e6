"""A recorded run, read back: what was asked, what happened, and what a step of that engine takes.

So a server's own telemetry is a trace like any other, with the row of what really happened beside the simulated ones,
on an engine with the recorded limits whose steps cost what a fit says,

    nanoseconds = step + prefill * prompt tokens + context * tokens held by those that decode + decode * their number,

coefficients from 0 up, by least squares over the recorded steps. Pauses of a workflow are from the end of one answer to
the arrival of the next request: what the client does in between is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from burnish.core.errors import DataError
from burnish.core.outside import parse_json, read_lines, shown
from burnish.serve.engine import Counters, SimulatedJob
from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import Simulation
from burnish.serve.telemetry import ALL_STEPS, SCHEMA, SOME_STEPS
from burnish.serve.traces import MAX_TOKENS
from burnish.serve.workload import Turn, Workflow, Workload

MOST = 2**62
FEWEST_STEPS = 20
"""That a fit is made from."""
ROUNDS = 4
"""Of a fit, whose weights are those of the fit before."""
_ENDS = ("stopped", "length")
_STEP = ("ns", "cpu_ns", "prompt", "decodes", "context")


@dataclass
class Recording:
    """
    Attributes:
        workload: the requests that ended by themselves; what a simulation is asked to serve.
        found: what happened to them.
        engine: the recorded limits and the fitted costs.
        policy: that decided.
        mode: of the plug-in.
        steps: (steps, 5) of ns, cpu_ns, prompt, decodes and context.
        notes: what a report has to say of it.
    """

    workload: Workload
    found: Simulation
    engine: EngineSettings
    policy: PolicySettings
    mode: str
    steps: Float[np.ndarray, "steps 5"]
    notes: list[str] = field(default_factory=list)


def is_recording(path: str | Path) -> bool:
    """Whether the first line of a file is that of a recording."""
    first = next(iter(read_lines(Path(path))), b"")
    return first.startswith(b'{"event": "start"')


def read_recording(path: str | Path, *, limit: int | None = None) -> Recording:
    """The telemetry of a server, or of `burnish serve replay`.

    Args:
        path: of the file.
        limit: takes so many requests only.

    Raises:
        DataError: a line that cannot be, which the message names; no request that ended.
    """
    path, dropped = Path(path), {}
    starts: list[dict[str, Any]] = []
    requests: list[_Row] = []
    steps: list[list[int]] = []
    offset, chains, counters = 0, _Chains(), Counters()
    for where, row in _rows(path, dropped):
        event = row.get("event")
        if event == "start":
            offset = _start(row, starts, where)
            starts.append(row)
            chains.start()
        elif not starts:
            raise DataError("is before the start of a recording", where=where, fix="give the whole file")
        elif event == "request" and (limit is None or len(requests) < limit):
            requests.append(_request(row, offset, where, chains))
        elif event == "step":
            steps.append([_whole(row, name, where) for name in _STEP])
            _count_step(counters, steps[-1][0], len(steps))
        elif event == "hold":
            _count_hold(counters, row, where)
    ended = [one for one in requests if one.end in _ENDS and one.job.output > 0]
    if not ended:
        raise DataError("has no request that ended", where=str(path), fix="give a longer recording")
    if len(ended) < len(requests):
        dropped["given up"] = len(requests) - len(ended)
    about, table = starts[0], np.array(steps, dtype=np.float64).reshape(-1, len(_STEP))
    engine = _engine(about, table, str(path))
    return Recording(
        replace(_workload(ended, path.name, engine.block_size), dropped=dropped),
        _simulation(ended, counters, engine.num_blocks),
        engine,
        PolicySettings.parse(about.get("policy") or {}, where=f"{path}:1"),
        str(about.get("mode", "")),
        table,
        _notes(about, starts, table, engine),
    )


def fit_linear(steps: Float[np.ndarray, "steps 5"], *, cpu: bool = False) -> tuple[float, float, float, float]:
    """(step, prefill, context, decode) in nanoseconds; `cpu` fits processor time and not time that passed.

    Each step counts by the inverse of what the fit says of it, so that the many short ones are met as well as the few
    long ones: the minimum of the sum of squared errors over the times. The weights are not those of the times that were
    measured: by those a step counts for more where it happened to be short, and the fit is too low by the square of
    their relative noise (4 % where a step varies by 20 %).
    """
    from scipy.optimize import nnls

    taken = steps[:, 1 if cpu else 0]
    design = np.column_stack([np.ones(len(steps)), steps[:, 2], steps[:, 4], steps[:, 3]])
    scale = np.maximum(np.abs(design).max(0), 1.0)
    design, fitted = design / scale, np.full(len(steps), max(float(taken.mean()), 1.0))
    found = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        weights = 1 / np.sqrt(fitted)
        found, _ = nnls(design * weights[:, None], taken * weights)
        fitted = np.maximum(design @ found, 1.0)
    first, prefill, context, decode = (float(value) for value in found / scale)
    return first, prefill, context, decode


@dataclass
class _Row:
    """A request of the file."""

    job: SimulatedJob
    end: str
    chain: tuple[int, ...]


def _rows(path: Path, dropped: dict[str, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    whole = path.suffix == ".gz" or path.read_bytes()[-1:] == b"\n"
    for number, line in lines:
        where = f"{path}:{number}"
        if number == lines[-1][0] and not whole:
            dropped["a last line that was cut off"] = 1
            return
        row = parse_json(line.decode("utf-8", "replace"), where=where, error=DataError)
        if not isinstance(row, dict):
            raise DataError("is no object", where=where, fix="give the file as it was written")
        yield where, row


def _whole(row: dict[str, Any], name: str, where: str, most: int = MOST) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise DataError(f"{name} is {shown(value)}", where=where, fix=f"give a whole number from 0 to {most:,}")
    return value


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, str) or len(value) > 1000:
        raise DataError(f"{name} is {shown(value)}", where=where, fix="give a short text")
    return value


def _start(row: dict[str, Any], starts: Sequence[dict[str, Any]], where: str) -> int:
    """Nanoseconds by which this start is later than the first."""
    if row.get("schema") != SCHEMA:
        raise DataError(f"is of schema {shown(row.get('schema'))}", where=where, fix=f"give one of schema {SCHEMA}")
    begun = _whole(row, "unix_ns", where)
    if not isinstance(row.get("policy") or {}, dict):
        raise DataError(f"policy is {shown(row['policy'])}", where=where, fix="give the file as it was written")
    if starts and begun < starts[-1]["unix_ns"]:
        raise DataError("starts before the run above it did", where=where, fix="give the runs in their order")
    return begun - starts[0]["unix_ns"] if starts else 0


def _count_step(counters: Counters, taken: int, number: int) -> None:
    """Of those after the first `ALL_STEPS` one of `SOME_STEPS` is written."""
    times = 1 if number <= ALL_STEPS else SOME_STEPS
    counters.steps += times
    counters.busy += times * taken


def _count_hold(counters: Counters, row: dict[str, Any], where: str) -> None:
    blocks, held, how = _whole(row, "blocks", where), _whole(row, "held_ns", where), row.get("until")
    if how == "returned":
        counters.useful += blocks * held
    else:
        counters.wasted += blocks * held
    counters.expired += how == "expired"
    counters.reclaimed += blocks if how == "reclaimed" else 0
    counters.pinned = max(counters.pinned, _whole(row, "pinned", where))


def _request(row: dict[str, Any], offset: int, where: str, chains: _Chains) -> _Row:
    arrival = _whole(row, "arrival_ns", where)
    times = [arrival]
    for name in ("admitted_ns", "first_token_ns", "t_ns"):
        times.append(times[-1] if row.get(name) is None else _whole(row, name, where))
        if times[-1] < times[-2]:
            raise DataError(f"{name} is before what comes before it", where=where, fix="record one clock")
    blocks = row.get("blocks", (-1, 0, 0))
    if not isinstance(blocks, list | tuple) or len(blocks) != 3 or not all(type(one) is int for one in blocks):
        raise DataError(f"blocks are {shown(blocks)}", where=where, fix="give three whole numbers")
    prompt = max(1, _whole(row, "prompt_tokens", where, MAX_TOKENS))
    output = _whole(row, "output_tokens", where, MAX_TOKENS)
    if blocks[2] > prompt + output:
        raise DataError(f"blocks are {shown(blocks)}", where=where, fix="give no more blocks than tokens")
    job = SimulatedJob(
        name=_text(row, "request", where),
        tenant=_text(row, "tenant", where),
        program=_text(row, "program", where),
        tool=_text(row, "tool", where),
        prompt=prompt,
        arrival=offset + arrival,
        program_arrival=offset + arrival,
        output=output,
        cached=min(prompt, _whole(row, "cached_tokens", where)),
        redone=_whole(row, "redone_tokens", where) if "redone_tokens" in row else 0,
        preemptions=_whole(row, "preemptions", where) if "preemptions" in row else 0,
        admitted=offset + times[1],
        first_token=offset + times[2],
        finished=offset + times[3],
    )
    return _Row(job, _text(row, "end", where), chains.of(blocks[0], blocks[1], blocks[2], where))


def _engine(about: dict[str, Any], steps: Float[np.ndarray, "steps 5"], where: str) -> EngineSettings:
    given = {name: about[name] for name in EngineSettings.model_fields if about.get(name) is not None}
    if len(steps) >= FEWEST_STEPS:
        costs = fit_linear(steps)
        given["linear"] = dict(zip(("step", "prefill", "context", "decode"), costs, strict=True))
    return EngineSettings.parse(given, where=f"{where}:1")


def _notes(
    about: dict[str, Any], starts: Sequence[Any], steps: Float[np.ndarray, "steps 5"], engine: EngineSettings
) -> list[str]:
    notes = []
    if len(starts) > 1:
        notes.append(f"recorded: {len(starts)} starts of the server, one after the other")
    if "num_blocks" not in about:
        notes.append("recorded by a client: limits and costs of the engine are not in it; give --engine")
    elif len(steps) < FEWEST_STEPS:
        notes.append(f"recorded: {len(steps)} steps are too few to fit what a step takes; give --engine")
    else:
        linear = engine.linear
        fitted = linear.step + steps[:, 2:] @ np.array([linear.prefill, linear.decode, linear.context])
        off = float(np.abs(fitted - steps[:, 0]).sum() / steps[:, 0].sum())
        notes.append(
            f"a step takes {linear.step / 1e6:.3g} ms, a prompt token {linear.prefill / 1e3:.3g} µs, a request that "
            f"decodes {linear.decode / 1e3:.3g} µs and a token that it holds {linear.context:.3g} ns: fitted to "
            f"{len(steps):,} recorded steps, off by {off:.0%} of their time"
        )
    return notes


def _workload(ended: Sequence[_Row], source: str, block_size: int) -> Workload:
    begin = min(row.job.arrival for row in ended)
    made, names = [], set()
    for group in _groups(ended):
        name = group[0].job.program or group[0].job.name
        while name in names:
            name += "'"
        names.add(name)
        turns = [Turn(row.job.prompt, row.job.output, blocks=row.chain) for row in group]
        for place, (one, following) in enumerate(pairwise(group)):
            pause = following.job.arrival - one.job.finished
            turns[place] = replace(turns[place], pause=pause, tool=one.job.tool or "tool")
        made.append(Workflow(name, group[0].job.tenant, group[0].job.arrival - begin, tuple(turns)))
    return Workload(tuple(made), source=source, block_tokens=block_size, answers_in_blocks=True)


def _groups(ended: Sequence[_Row]) -> list[list[_Row]]:
    """Turns of one program that follow each other, in order of arrival; where one comes before the end of that before
    it, or is too short to hold it, the program begins anew. Sets each job's place in its program."""
    groups: list[list[_Row]] = []
    of_program: dict[str, list[_Row]] = {}
    for row in sorted(ended, key=lambda row: row.job.arrival):
        job, before = row.job, of_program.get(row.job.program, [])
        if job.program and before and _follows(before[-1].job, job):
            first, last = before[0].job, before[-1].job
            job.turn, job.program_arrival, job.known = len(before), first.arrival, last.prompt + last.output - 1
            job.evicted = max(0, min(job.known, job.prompt) - job.cached)
            before.append(row)
            continue
        groups.append([row])
        if job.program:
            of_program[job.program] = groups[-1]
    return groups


def _follows(before: SimulatedJob, job: SimulatedJob) -> bool:
    return job.arrival >= before.finished and job.prompt >= before.prompt + before.output


def _simulation(ended: Sequence[_Row], counters: Counters, num_blocks: int) -> Simulation:
    begin = min(row.job.arrival for row in ended)
    jobs = sorted((row.job for row in ended), key=lambda job: job.finished)
    for job in jobs:
        for name in ("arrival", "program_arrival", "admitted", "first_token", "finished"):
            setattr(job, name, getattr(job, name) - begin)
    counters.preemptions = sum(job.preemptions for job in jobs)
    area = sum(job.finished - job.arrival for job in jobs)
    return Simulation(jobs, [], counters, "", area, jobs[-1].finished, num_blocks)


class _Chains:
    """The leading blocks of requests, from the numbers that a recorder gave them."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        self._base = self._next = 0

    def start(self) -> None:
        """Numbers begin anew."""
        self._base = self._next

    def of(self, last: int, first: int, num: int, where: str) -> tuple[int, ...]:
        """
        Raises:
            DataError: they name a block that never was.
        """
        if num < 0 or last < -1 or (last >= 0 and last + self._base not in self._before):
            raise DataError("names a block that no row before it has", where=where, fix="give the whole file")
        if num and first + self._base < self._next:
            raise DataError("numbers new blocks as older ones are", where=where, fix="give the file as it was written")
        self._next = max(self._next, first + self._base + num)
        at, known = (last + self._base if last >= 0 else -1), []
        while at >= 0:
            known.append(at)
            at = self._before[at]
        at = known[0] if known else -1
        for number in range(first + self._base, first + self._base + num):
            self._before[number] = at
            at = number
        return (*reversed(known), *range(first + self._base, first + self._base + num))
