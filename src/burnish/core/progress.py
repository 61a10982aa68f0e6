"""Progress for anything longer than two seconds: a bar on a terminal, plain log lines elsewhere.

    with progress.task("calibrating", total=65_536, unit="tokens") as task:
        for batch in batches:
            ...
            task.advance(batch.numel())

Rate and remaining time are shown in both forms. Everything goes to standard error; standard output carries results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol


class Task(Protocol):
    """One running piece of work with a known or unknown number of units.

    Attributes:
        total: of units; set it as soon as it is known.
        done, before: units by now, and those of them that an earlier process did, which do not count in the rate.
    """

    total: float | None
    done: float
    before: float

    def advance(self, amount: float = 1) -> None: ...

    def note(self, text: str) -> None:
        """Show a short changing fact beside the bar, such as the current loss."""
        ...


SECONDS_BEFORE_SHOWN = 2.0
SECONDS_BETWEEN_LINES = 10.0


def _count(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 or amount == int(amount) else f"{amount:.3g}"


def duration(seconds: float) -> str:
    """A duration as a person says it: "4.2 s", "3 min 20 s", "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def byte_count(num_bytes: float) -> str:
    """A size as a person says it, in powers of ten: "538 MB", "1.47 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} TB"


@dataclass
class _LineTask:
    """Plain lines, at most one every ten seconds, for logs and pipes."""

    description: str
    total: float | None
    unit: str
    started: float = field(default_factory=time.monotonic)
    last_line: float = field(default_factory=time.monotonic)
    done: float = 0
    before: float = 0
    text: str = ""

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(self._line(now), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.text = text

    def _line(self, now: float) -> str:
        elapsed = max(now - self.started, 1e-9)
        rate = (self.done - self.before) / elapsed
        parts = [f"{self.description}: {_count(self.done)}"]
        if self.total:
            total = max(self.total, self.done)  # a total may be an estimate
            remaining = (total - self.done) / rate if rate else float("inf")
            left = f", {duration(remaining)} left" if remaining != float("inf") else ""
            parts.append(f"/{_count(total)} {self.unit} ({self.done / total:.0%}), {_count(rate)}/s{left}")
        else:
            parts.append(f" {self.unit}, {_count(rate)}/s")
        if self.text:
            parts.append(f", {self.text}")
        return "".join(parts)

    def close(self, *, finished: bool = True) -> None:
        now = time.monotonic()
        if now - self.started >= SECONDS_BEFORE_SHOWN:
            end = "done in" if finished else "stopped after"
            print(f"{self.description}: {end} {duration(now - self.started)}", file=sys.stderr, flush=True)


@dataclass
class _BarTask:
    """A rich progress bar that appears once the work has lasted two seconds."""

    description: str
    total: float | None
    unit: str
    started: float = field(default_factory=time.monotonic)
    done: float = 0
    before: float = 0
    text: str = ""
    bar: Any = None
    bar_id: Any = None

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        if self.bar is None and time.monotonic() - self.started >= SECONDS_BEFORE_SHOWN:
            self._open()
        if self.bar is not None:
            rate = (self.done - self.before) / max(time.monotonic() - self.started, 1e-9)
            self.bar.update(self.bar_id, completed=self.done, rate=f"{_count(rate)} {self.unit}/s", text=self.text)

    def note(self, text: str) -> None:
        self.text = text

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self.bar.start()
        self.bar_id = self.bar.add_task(self.description, total=self.total, completed=self.before, rate="", text="")

    def close(self, *, finished: bool = True) -> None:
        if self.bar is not None:
            self.bar.stop()


class Progress:
    """Makes tasks and prints log lines; `enabled=False` is silent (used in memory by Python callers).

    A task inside a task is silent: the outer one knows how much is left.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled, self._busy = enabled, False

    @contextmanager
    def task(
        self, description: str, total: float | None = None, unit: str = "steps", *, done: float = 0
    ) -> Iterator[Task]:
        """A task; `done` of its units were done by an earlier process and do not count in the rate."""
        if not self.enabled or self._busy:
            yield _LineTask(description, total, unit, last_line=float("inf"))
            return
        kind = _BarTask if sys.stderr.isatty() else _LineTask
        task = kind(description, total, unit, done=done, before=done)
        self._busy = True
        try:
            yield task
        except BaseException:
            task.close(finished=False)
            raise
        finally:
            self._busy = False
        task.close()

    def log(self, message: str) -> None:
        """One line to standard error."""
        if self.enabled:
            print(message, file=sys.stderr, flush=True)
