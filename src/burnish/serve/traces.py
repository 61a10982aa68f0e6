"""Traces of requests, read into a workload. Nothing is made up: what a source does not have stays empty.

| format | known by | has |
| --- | --- | --- |
| Mooncake | `.jsonl` with `hash_ids` | milliseconds, lengths, pieces of 512 tokens that prompts share |
| Azure | `.csv` with `ContextTokens` | dates, lengths |
| BurstGPT | `.csv` with `Request tokens` | seconds, lengths |
| OpenTelemetry | `.jsonl` with `resourceSpans` | spans of requests, with conversations; see `burnish.serve.spans` |
| own | `.jsonl` with `prompt_tokens` | `arrival_s`, `output_tokens`; `tenant`, `program`, `pause_s`, `tool` |

Each also packed with gzip. Rows of one `program` in the own format are its turns, in their order; those after the first
need no `arrival_s` but say in `pause_s` how long after the answer before they came.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from burnish.core.errors import DataError, SettingsError
from burnish.core.outside import parse_json, read_lines, shown
from burnish.serve import spans
from burnish.serve.workload import Turn, Workflow, Workload

MOONCAKE_TOKENS = 512
MAX_TOKENS = 100_000_000
"""Of a prompt or an answer."""
_SECOND = 1_000_000_000
Made = tuple[list[Workflow], dict[str, int]]


def read_trace(path: str | Path, *, limit: int | None = None) -> Workload:
    """A trace of one of the formats above.

    Args:
        path: of the file.
        limit: takes so many rows only.

    Raises:
        DataError: of no such format, empty, or with a row that cannot be; the message has its line.
    """
    path = Path(path)
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise DataError("has no rows", where=str(path), fix="give a trace")
    dropped: dict[str, int] = {}
    if spans.FIELD in first[1]:
        rows = spans.as_rows(itertools.chain([first], rows), str(path), dropped)
        first = next(rows, None)
        if first is None:
            fix = "give spans with gen_ai.usage.input_tokens and gen_ai.usage.output_tokens"
            raise DataError("has no span of a request in it", where=str(path), fix=fix)
    names = first[1].keys()
    read = next((read for field, read in _FORMATS.items() if field in names), None)
    if read is None:
        what = f"is no trace that is known (its first row has {', '.join(map(str, names)) or 'nothing'})"
        raise DataError(what, where=str(path), fix="write lines with arrival_s, prompt_tokens and output_tokens")
    workflows = read(_limited(first, rows, limit), str(path), dropped)
    if not workflows:
        raise DataError("has no request in it", where=str(path))
    workflows.sort(key=lambda workflow: workflow.arrival)
    begin = workflows[0].arrival
    shifted = tuple(replace(workflow, arrival=workflow.arrival - begin) for workflow in workflows)
    blocks = MOONCAKE_TOKENS if read is _mooncake else 0
    return Workload(shifted, source=path.name, block_tokens=blocks, dropped=dropped)


Rows = Iterator[tuple[int, dict[str, Any]]]


def _limited(first: tuple[int, dict[str, Any]], rows: Rows, limit: int | None) -> Rows:
    yield first
    for number, row in enumerate(rows, start=2):
        if limit is not None and number > limit:
            return
        yield row


def _rows(path: Path) -> Rows:
    """(line, fields) of a table or of JSON lines."""
    lines = (line.decode("utf-8-sig", "replace").rstrip("\r") for line in read_lines(path))
    if ".csv" in path.suffixes:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                yield reader.line_num, {str(key): value for key, value in row.items()}
        except csv.Error as error:
            where = f"{path}:{reader.reader.line_num}"
            raise DataError(f"is no row of a table ({error})", where=where, fix="give CSV with commas") from None
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = parse_json(line, where=f"{path}:{number}", error=DataError)
            if not isinstance(row, dict):
                raise DataError("is no object", where=f"{path}:{number}", fix="write one {...} per line")
            yield number, row


def _count(row: dict[str, Any], field: str, where: str, least: int = 1) -> int:
    value = row.get(field)
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    except ValueError:
        number = -1
    if not least <= number <= MAX_TOKENS:
        raise DataError(
            f"{field} is {shown(value)}", where=where, fix=f"give a whole number from {least} to {MAX_TOKENS:,}"
        )
    return number


def _seconds(row: dict[str, Any], field: str, where: str, scale: int = _SECOND) -> int:
    """Nanoseconds of a field; `scale` are those of its unit."""
    value = row.get(field)
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e12:
        fix = "give a time from 0 on, and below 1e12"
        raise DataError(f"{field} is {shown(value)}", where=where, fix=fix)
    return round(number * scale)


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field, "")
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value or len(value) > 500:
        raise DataError(f"{field} is {shown(value)}", where=where, fix="give a short text")
    return value


def _mooncake(rows: Rows, path: str, dropped: dict[str, int]) -> list[Workflow]:
    made, last = [], 0
    for number, row in rows:
        where = f"{path}:{number}"
        time = _seconds(row, "timestamp", where, 1_000_000)
        if time < last:
            raise DataError("is earlier than the row before it", where=where, fix="sort the trace by time")
        last = time
        prompt, output = _count(row, "input_length", where), _count(row, "output_length", where, 0)
        ids = row.get("hash_ids")
        if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**40 for one in ids):
            raise DataError(f"hash_ids are {shown(ids)}", where=where, fix="give a list of whole numbers")
        if len(ids) * MOONCAKE_TOKENS < prompt:
            what = f"has {prompt:,} tokens in {len(ids)} pieces of {MOONCAKE_TOKENS}, which hold fewer"
            raise DataError(what, where=where, fix="give a piece for every 512 tokens")
        if not output:
            dropped["answers of no token"] = dropped.get("answers of no token", 0) + 1
            continue
        made.append(Workflow(f"r{number}", "", time, (Turn(prompt, output, blocks=tuple(ids)),)))
    return made


def _azure(rows: Rows, path: str, dropped: dict[str, int]) -> list[Workflow]:
    made, first = [], None
    for number, row in rows:
        where = f"{path}:{number}"
        stamp = _text(row, "TIMESTAMP", where)
        try:
            date = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp))  # of seven digits, six can be read
        except ValueError:
            raise DataError(f"TIMESTAMP is {shown(stamp)}", where=where, fix="give a date and a time") from None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        first = first or date
        passed = date - first
        time = (passed.days * 86400 + passed.seconds) * _SECOND + passed.microseconds * 1000
        output = _count(row, "GeneratedTokens", where, 0)
        if not output:
            dropped["answers of no token"] = dropped.get("answers of no token", 0) + 1
            continue
        made.append(Workflow(f"r{number}", "", time, (Turn(_count(row, "ContextTokens", where), output),)))
    return made


def _burst(rows: Rows, path: str, dropped: dict[str, int]) -> list[Workflow]:
    made = []
    for number, row in rows:
        where = f"{path}:{number}"
        prompt, output = (_count(row, field, where, 0) for field in ("Request tokens", "Response tokens"))
        if not prompt or not output:
            dropped["no tokens"] = dropped.get("no tokens", 0) + 1
            continue
        made.append(Workflow(f"r{number}", "", _seconds(row, "Timestamp", where), (Turn(prompt, output),)))
    return made


def _own(rows: Rows, path: str, dropped: dict[str, int]) -> list[Workflow]:
    single: list[Workflow] = []
    programs: dict[str, tuple[str, int, list[Turn]]] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        turn = Turn(_count(row, "prompt_tokens", where), _count(row, "output_tokens", where))
        tenant, program = _text(row, "tenant", where), _text(row, "program", where)
        if not program:
            single.append(Workflow(f"r{number}", tenant, _seconds(row, "arrival_s", where), (turn,)))
            continue
        if program not in programs:
            programs[program] = (tenant, _seconds(row, "arrival_s", where), [turn])
            continue
        owner, _, turns = programs[program]
        if tenant not in ("", owner):
            what = f"is of tenant {tenant!r}, but its program {program!r} began as {owner!r}"
            raise DataError(what, where=where, fix="give the rows of a program one tenant, or another program")
        if turn.prompt < turns[-1].prompt + turns[-1].output:
            what = f"the prompt of {turn.prompt:,} tokens does not hold the turn of {program!r} before it"
            raise DataError(what, where=where, fix="give the later rows another program")
        turns[-1] = replace(turns[-1], pause=_seconds(row, "pause_s", where), tool=_text(row, "tool", where) or "tool")
        turns.append(turn)
    several = [Workflow(name, tenant, time, tuple(turns)) for name, (tenant, time, turns) in programs.items()]
    return single + several


_FORMATS = {"hash_ids": _mooncake, "ContextTokens": _azure, "Request tokens": _burst, "prompt_tokens": _own}
"""By a field that no other format has."""


# -- what is made up ---------------------------------------------------------------------------------------------------


def with_tenants(workload: Workload, shares: dict[str, float], seed: int = 0) -> Workload:
    """The same workflows with drawn tenants.

    Args:
        workload: whatever tenants it has are replaced.
        shares: of the workflows, by tenant.
        seed: of the draw.
    """
    draw = random.Random(seed)
    names, weights = list(shares), list(shares.values())
    drawn = draw.choices(names, weights, k=len(workload.workflows))
    workflows = tuple(replace(one, tenant=name) for one, name in zip(workload.workflows, drawn, strict=True))
    return replace(workload, workflows=workflows, synthetic=(*workload.synthetic, "tenants are drawn"))


def scaled(workload: Workload, *, shrink: int = 1, speed: float = 1.0, longest: int | None = None) -> Workload:
    """The same workload for a smaller or slower server.

    Args:
        workload: of a large one.
        shrink: lengths are divided by it, the pieces that prompts share as well.
        speed: times between arrivals, and pauses, are divided by it.
        longest: workflows with a longer conversation, after that, are left out.

    Raises:
        SettingsError: the pieces of prompts cannot be divided by `shrink`.
    """
    if workload.block_tokens % shrink:
        what = f"is {shrink}, which does not divide the {workload.block_tokens} tokens of a block of {workload.source}"
        raise SettingsError(what, where="shrink", fix="give a power of two")
    made, dropped = [], dict(workload.dropped)
    for workflow in workload.workflows:
        turns: list[Turn] = []
        for turn in workflow.turns:
            before = turns[-1].prompt + turns[-1].output if turns else 1
            prompt = max(before, -(-turn.prompt // shrink))
            turns.append(
                replace(turn, prompt=prompt, output=-(-turn.output // shrink), pause=round(turn.pause / speed))
            )
        if longest is not None and turns[-1].prompt + turns[-1].output > longest:
            why = f"longer than {longest:,} tokens"
            dropped[why] = dropped.get(why, 0) + 1
        else:
            made.append(replace(workflow, arrival=round(workflow.arrival / speed), turns=tuple(turns)))
    if not made:
        raise DataError(f"has no workflow of at most {longest:,} tokens", where=workload.source)
    said = [f"lengths are divided by {shrink}"] if shrink > 1 else []
    said += [f"times are divided by {speed:g}"] if speed != 1 else []
    return replace(
        workload,
        workflows=tuple(made),
        block_tokens=workload.block_tokens // shrink,
        synthetic=(*workload.synthetic, *said),
        dropped=dropped,
    )


def drawn_programs(
    num: int,
    rate: float,
    pause: Callable[[random.Random], tuple[str, float]],
    seed: int,
    *,
    mean_turns: float = 16.0,
    first_prompt: int = 12_000,
    added: int = 1_200,
    output: int = 200,
    law: str = "a stated law",
) -> Workload:
    """Workflows of agents: Poisson arrivals, geometric turns, pauses by a law.

    Args:
        num: workflows.
        rate: workflows a second.
        pause: draws a tool and the seconds that it takes.
        seed: of everything.
        mean_turns: of a workflow.
        first_prompt: tokens.
        added: tokens that a turn's prompt has more than that of the turn before it, its answer included.
        output: tokens of an answer.
        law: of the pauses, in words.
    """
    draw, time, made = random.Random(seed), 0.0, []
    for number in range(num):
        time += draw.expovariate(rate)
        turns: list[Turn] = []
        while not turns or draw.random() > 1 / mean_turns:
            tool, seconds = pause(draw)
            turns.append(Turn(first_prompt + added * len(turns), output, round(seconds * _SECOND), tool))
        turns[-1] = replace(turns[-1], pause=0, tool="")
        made.append(Workflow(f"p{number}", "", round(time * _SECOND), tuple(turns)))
    return Workload(
        tuple(made), source=f"drawn workflows, pauses by {law}", synthetic=("workflows and pauses are drawn",)
    )


def hit_share(workload: Workload) -> tuple[int, int]:
    """Leading pieces of prompts that an earlier row had, and all pieces: what a cache without end could find."""
    seen: set[int] = set()
    hits = total = 0
    for workflow in workload.workflows:
        for turn in workflow.turns:
            total += len(turn.blocks)
            for block in turn.blocks:
                if block not in seen:
                    break
                hits += 1
            seen.update(turn.blocks)
    return hits, total
