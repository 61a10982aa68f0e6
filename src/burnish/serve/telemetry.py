"""What a live scheduler records of itself: one JSON object a line, without a word of any prompt or answer.

| event | what it is | fields |
| --- | --- | --- |
| `start` | a scheduler begins; all before it has ended | `schema`, `unix_ns`, limits of the engine, policy, mode |
| `request` | a request has ended | lengths, times, tenant, workflow, tool, what was found cached, blocks, forecasts |
| `step` | a step of the engine, one in a hundred after the first `ALL_STEPS` | `ns`, `cpu_ns`, what was computed |
| `hold` | the end of a kept context | `until`: returned, expired, reclaimed or dropped; `blocks`, `held_ns` |
| `advice` | what the policy would have done (mode advise) | `request` that it would have admitted, or `hold_ns` |
| `fallback` | the policy was left | `why` |

Times `t_ns` are of one clock that never goes back, from 0 at `start`. **Blocks.** Which prompts share beginnings is
told without their content, and without a hash of it: the distinct blocks of a run are numbered as they come, and a
request says the last of its leading blocks that was known, the number of its first new one, and how many are new.
A file is readable by its owner alone. Lines are gathered for a second; what a killed server had gathered is lost.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.core.errors import OutputError
from burnish.core.outside import check_kind

SCHEMA = 1
ALL_STEPS = 10_000
SOME_STEPS = 100
GATHERED = 1_000_000_000
"""Nanoseconds."""
_BEGIN = b'{"event": "start", "schema": '


def check_recording(path: Path) -> None:
    """Refuses to write to a file of another kind.

    Raises:
        OutputError: it is no recording.
    """
    check_kind(path, lambda head: head.startswith(_BEGIN))


class Recorder:
    """Appends events to a file.

    Args:
        path: a new file, or one of older runs.
        about: fields of `start`.

    Raises:
        OutputError: the file is of another kind, or cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        check_recording(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.fchmod(self._file, 0o600)
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror})", where=str(path)) from None
        self._lines: list[str] = []
        self._since = 0
        self._steps = 0
        self.lost = 0
        """Events that the disk did not take."""
        self.write("start", schema=SCHEMA, unix_ns=time.time_ns(), **about)
        self.flush()

    def write(self, event: str, **fields: Any) -> None:
        """One event; it is on the disk within a second of the next one."""
        self._lines.append(json.dumps({"event": event} | fields, ensure_ascii=True) + "\n")
        now = time.monotonic_ns()
        if now - self._since > GATHERED:
            self._since = now
            self.flush()

    def step(self, **fields: Any) -> None:
        """One step, where steps are still written."""
        self._steps += 1
        if self._steps <= ALL_STEPS or not self._steps % SOME_STEPS:
            self.write("step", **fields)

    def flush(self) -> None:
        """Writes what was gathered. A full disk loses events and ends no server."""
        lines, self._lines = self._lines, []
        data = "".join(lines).encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            self.lost += len(lines)

    def close(self) -> None:
        self.flush()
        os.close(self._file)


class BlockNumbers:
    """Numbers of the distinct leading blocks of a run.

    Args:
        most: that are remembered; beyond them the older half is forgotten, and has new numbers when it comes again.
    """

    def __init__(self, most: int = 1_000_000) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._most, self._next = most, 0

    def of(self, hashes: Sequence[Hashable]) -> tuple[int, int, int]:
        """The last block that is known (-1: none), the number of the first that is new, and how many are new.

        Each hash stands for its block and all before it.
        """
        known = len(hashes)
        while known and hashes[known - 1] not in self._numbers:
            known -= 1
        last, first = self._numbers[hashes[known - 1]] if known else -1, self._next
        for place in range(known, len(hashes)):
            self._numbers[hashes[place]] = self._next
            self._next += 1
        if len(self._numbers) > self._most:
            for old in list(self._numbers)[: len(self._numbers) // 2]:
                del self._numbers[old]
        return last, first, len(hashes) - known
