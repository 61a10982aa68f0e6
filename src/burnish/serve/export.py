"""A recording as parquet, for tools that read tables: a row for each request, and one for each workflow.

`pauses.parquet` holds the pauses of workflows as events, for `burnish events fit` (`burnish.serve.policies.pauses`).

What was given up, and single steps, stay in the recording alone. Times are seconds from its start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from burnish.core.checkpoint import replacing
from burnish.core.errors import DataError, OutputError
from burnish.core.outside import check_kind
from burnish.serve.engine import SimulatedJob
from burnish.serve.policies.pauses import pause_events
from burnish.serve.recorded import is_recording, read_recording

SECOND = 1e9
FILES = ("requests.parquet", "programs.parquet", "pauses.parquet")


def export(recording: Path, directory: Path) -> list[Path]:
    """Writes `FILES` into a directory, readable by their owner alone as the recording is; returns their places.

    Raises:
        DataError: no recording, or one with a mistake.
        OutputError: a file of that name is of another kind, or cannot be written.
    """
    if not is_recording(recording):
        fix = "give the --telemetry of a server, or the requests.jsonl of burnish serve replay"
        raise DataError("is no recording", where=str(recording), fix=fix)
    jobs = read_recording(recording).found.jobs
    places = [directory / name for name in FILES]
    for place in places:
        check_kind(place, lambda head: head.startswith(b"PAR1"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for place, rows in zip(places, (_requests(jobs), _programs(jobs), _pauses(jobs)), strict=True):
            _write(place, rows)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror})", where=str(directory)) from None
    return places


def _write(place: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = pa.Table.from_pylist(list(rows))
    with replacing(place) as temporary:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "wb") as opened:
            parquet.write_table(table, opened)


def _requests(jobs: Sequence[SimulatedJob]) -> list[dict[str, Any]]:
    return [
        {
            "request": job.name,
            "tenant": job.tenant,
            "program": job.program,
            "turn": job.turn,
            "tool": job.tool,
            "arrival_s": job.arrival / SECOND,
            "admitted_s": job.admitted / SECOND,
            "first_token_s": job.first_token / SECOND,
            "finished_s": job.finished / SECOND,
            "prompt_tokens": job.prompt,
            "cached_tokens": job.cached,
            "output_tokens": job.output,
            "redone_tokens": job.redone,
            "preemptions": job.preemptions,
        }
        for job in jobs
    ]


def _workflows(jobs: Sequence[SimulatedJob]) -> dict[str, list[SimulatedJob]]:
    """Turns of workflows that were named; a request that stands alone is none."""
    of: dict[str, list[SimulatedJob]] = {}
    for job in jobs:
        if job.program:
            of.setdefault(job.program, []).append(job)
    return of


def _pauses(jobs: Sequence[SimulatedJob]) -> list[dict[str, Any]]:
    """Events of workflows that paused."""
    rows = []
    for program, several in _workflows(jobs).items():
        turns = sorted(several, key=lambda job: job.arrival)
        ends = [(job.tool or "tool", (after.arrival - job.finished) / SECOND) for job, after in pairwise(turns)]
        for time, tool in pause_events([*ends, ("", 0.0)]) if ends else []:
            rows.append({"sequence_id": program, "time": time, "mark": tool})
    return rows


def _programs(jobs: Sequence[SimulatedJob]) -> list[dict[str, Any]]:
    return [
        {
            "program": program,
            "tenant": turns[0].tenant,
            "turns": len(turns),
            "arrival_s": min(job.arrival for job in turns) / SECOND,
            "finished_s": max(job.finished for job in turns) / SECOND,
            "prompt_tokens": sum(job.prompt for job in turns),
            "cached_tokens": sum(job.cached for job in turns),
            "output_tokens": sum(job.output for job in turns),
            "redone_tokens": sum(job.redone for job in turns),
        }
        for program, turns in _workflows(jobs).items()
    ]
