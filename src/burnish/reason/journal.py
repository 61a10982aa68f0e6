"""The journal: one SQLite file per run, in which every call is durable before anybody sees its answer.

    flights   one row per request that left the machine, written before it leaves: its end stays empty where it never
              came back (the process died, the connection broke)
    calls     one row per finished call: key, path, request, answer, usage

Two sums follow. *Paid* is the sum over flights, with retries and those that were lost; *attributed* is what a strategy
used, and belongs to the strategy. Rows are committed in groups by a thread of their own: whoever waits for a row waits
for the end of the group in which it lies, one fsync for all. After kill -9 a second process finds every call that was
answered and asks for the others again. A note that a request is about to leave is written before it leaves, which the
death of the process cannot undo, but only the next answer brings it to the disk: a machine that loses its power may
forget requests that were under way, and no answer.

The file is readable for its owner alone, and every secret the endpoints know of is cut from what is written.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.errors import BurnishError, DataError, OutputError
from burnish.reason.calls import SCHEMA, Reply, Usage

FILE = "journal.db"
HIDDEN = "[secret]"
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS flights (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, path TEXT NOT NULL, endpoint TEXT NOT NULL, started REAL NOT NULL,
    seconds REAL, status TEXT, error TEXT, prompt INTEGER, cached INTEGER, completion INTEGER, reasoning INTEGER);
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, path TEXT NOT NULL, endpoint TEXT NOT NULL, flight INTEGER NOT NULL,
    request TEXT NOT NULL, reply TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (name TEXT PRIMARY KEY, record TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Paid:
    """What left the machine for one endpoint."""

    usage: Usage
    retried: int
    lost: int


class Journal:
    """A run's journal, open for writing by one process.

    Args:
        directory: of the run; made where it is missing.
        run: what the run is, such as its strategies and the hash of its problems; a journal of another run is refused.
        secrets: texts that are never written.
        most: bytes that it may take; the older half of what has ended is forgotten beyond. None forgets nothing.

    Raises:
        OutputError: the journal is another run's, another version's, damaged, or open in another process.
    """

    def __init__(
        self,
        directory: str | Path,
        run: Mapping[str, Any] | None = None,
        *,
        secrets: Sequence[str] = (),
        most: int | None = None,
    ):
        self.directory = Path(directory)
        self.path = self.directory / FILE
        self._secrets, self._most = tuple(secrets), most
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.directory)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._database = _connected(self.path)
        try:
            with _read(self.path, OutputError, "choose another directory with -o"):
                self._prepare(run)
        except BaseException:
            self._database.close()
            os.close(self._lock)
            raise
        self._waiting: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._next_flight = self._one("SELECT coalesce(max(id), 0) FROM flights") + 1
        self._reading = _connected(self.path, readonly=True)
        self._broken: BaseException | None = None
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._writer.start()

    # -- calls ----------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Reply | None:
        """The answer of a finished call."""
        row = self._reading.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else _reply(row[0])

    async def depart(self, key: str, path: str, endpoint: str) -> int:
        """Notes a request that is about to leave; returns its number."""
        number, self._next_flight = self._next_flight, self._next_flight + 1
        row = (number, key, path, endpoint, time.time())
        statement = "INSERT INTO flights (id, key, path, endpoint, started) VALUES (?, ?, ?, ?, ?)"
        await self._durable((statement, row), on_disk=False)
        return number

    async def arrive(self, flight: int, seconds: float, path: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Notes an answer; on return it is durable."""
        fields = vars(reply) | {"usage": vars(reply.usage)}  # `asdict` would copy every log-probability
        kept = self._clean(json.dumps(fields, ensure_ascii=False))
        used = reply.usage
        tokens = (None,) * 4 if used.unknown else (used.prompt, used.cached, used.completion, used.reasoning)
        request_text = self._clean(json.dumps(request, ensure_ascii=False))
        await self._durable(
            (
                "UPDATE flights SET seconds=?, status='done', prompt=?, cached=?, completion=?, reasoning=? WHERE id=?",
                (seconds, *tokens, flight),
            ),
            (
                "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?)",
                (reply.key, path, reply.endpoint, flight, request_text, kept),
            ),
        )

    async def fail(self, flight: int, seconds: float, status: str, error: str) -> None:
        """Notes a request that came back without an answer."""
        row = (seconds, self._clean(status), self._clean(error[:2000]), flight)
        await self._durable(("UPDATE flights SET seconds=?, status=?, error=? WHERE id=?", row))

    async def record(self, name: str, record: Mapping[str, Any]) -> None:
        """Keeps a final result, such as one strategy's on one problem."""
        row = (name, self._clean(json.dumps(record, sort_keys=True, ensure_ascii=False)))
        await self._durable(("INSERT OR REPLACE INTO records VALUES (?, ?)", row))

    def records(self) -> dict[str, dict[str, Any]]:
        """The results that were kept."""
        return records(self._reading)

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Keeps what a reader wants to know and the run does not depend on, such as prices; before any call."""
        text = self._clean(json.dumps(value, sort_keys=True, ensure_ascii=False))
        with _written(self.path), self._database:
            self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))

    def paid(self) -> dict[str, Paid]:
        """By endpoint, all that left the machine."""
        return paid(self._reading)

    def close(self) -> None:
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join()
        self._reading.close()
        self._database.close()
        os.close(self._lock)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- writing --------------------------------------------------------------------------------------------------

    async def _durable(self, *statements: tuple[str, tuple[Any, ...]], on_disk: bool = True) -> None:
        if self._broken:
            raise _unwritten(self.path, self._broken)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.put(_Write(statements, loop, done, on_disk))
        await done

    def _write(self) -> None:
        """The thread: everything that waits goes into one commit."""
        while True:
            group = [self._waiting.get()]
            while not self._waiting.empty():
                group.append(self._waiting.get())
            writes = [write for write in group if write is not None]
            error: BaseException | None = None
            try:
                mode = "FULL" if any(write.on_disk for write in writes) else "NORMAL"
                self._database.execute(f"PRAGMA synchronous={mode}")
                with self._database:
                    for write in writes:
                        for statement, values in write.statements:
                            self._database.execute(statement, values)
                    self._forget()
            except Exception as broken:  # noqa: BLE001 - whoever waits is told, and nothing more is written
                error = self._broken = broken
            for loop in {write.loop for write in writes}:
                mine = [write.done for write in writes if write.loop is loop]
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_settle, mine, error and _unwritten(self.path, error))
            if len(writes) < len(group):
                return

    def _forget(self) -> None:
        """The older half of the requests that have ended, and their answers, where the file has grown beyond `most`.

        Whoever waits for an answer has it already, and pages that become free are written again.
        """
        if self._most is None:
            return
        pages = self._one("PRAGMA page_count") - self._one("PRAGMA freelist_count")
        if pages * self._one("PRAGMA page_size") <= self._most:
            return
        ended = "FROM flights WHERE status IS NOT NULL"
        middle = self._one(
            f"SELECT coalesce(max(id), 0) FROM (SELECT id {ended} ORDER BY id LIMIT "
            f"(SELECT (count(*) + 1) / 2 {ended}))"
        )
        self._database.execute("DELETE FROM calls WHERE flight <= ?", (middle,))
        self._database.execute("DELETE FROM flights WHERE status IS NOT NULL AND id <= ?", (middle,))

    def _prepare(self, run: Mapping[str, Any] | None) -> None:
        with _written(self.path):
            self._database.executescript(_TABLES)
        wanted = {"schema": str(SCHEMA)} | ({"run": json.dumps(run, sort_keys=True)} if run is not None else {})
        kept = dict(self._database.execute("SELECT name, value FROM meta").fetchall())
        if kept.get("schema", str(SCHEMA)) != str(SCHEMA):
            raise OutputError(
                f"was written by another version (schema {kept['schema']}, this one writes {SCHEMA})",
                where=str(self.path),
                fix="choose another directory with -o",
            )
        if "run" in kept and "run" in wanted and kept["run"] != wanted["run"]:
            before, now = json.loads(kept["run"]), json.loads(wanted["run"])
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            raise OutputError(
                f"belongs to another run (what differs: {', '.join(names)})",
                where=str(self.path),
                fix="choose another directory with -o, or give the same settings to continue it",
            )
        with _written(self.path), self._database:
            self._database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(wanted.items()))

    def _one(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0])

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


class JournalReader:
    """A journal to look into, also while a run writes it.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """

    def __init__(self, directory: str | Path):
        self.path = Path(directory) / FILE
        if not self.path.is_file():
            raise DataError("holds no journal", where=str(directory), fix="name the directory of a run")
        self._database = _connected(self.path, readonly=True)
        with _read(self.path):
            self.meta = dict(self._database.execute("SELECT name, value FROM meta").fetchall())
        if self.meta.get("schema") != str(SCHEMA):
            raise DataError(f"was written by another version (schema {self.meta.get('schema')})", where=str(self.path))

    @property
    def about(self) -> dict[str, Any]:
        """What the run noted of itself; empty where nothing."""
        with _read(self.path):
            return json.loads(self.meta.get("about", "{}"))

    def records(self) -> dict[str, dict[str, Any]]:
        with _read(self.path):
            return records(self._database)

    def calls(self) -> Iterator[dict[str, Any]]:
        """Every finished call in the order of its flight."""
        names = ("key", "path", "endpoint", "flight", "request", "reply")
        with _read(self.path):
            for row in self._database.execute(f"SELECT {', '.join(names)} FROM calls ORDER BY flight"):
                call = dict(zip(names, row, strict=True))
                yield call | {name: json.loads(call[name]) for name in ("request", "reply")}

    def paid(self) -> dict[str, Paid]:
        """By endpoint, all that left the machine. A lost flight has read the prompt of the call that replaced it."""
        with _read(self.path):
            return paid(self._database)

    def problems(self) -> list[str]:
        """What is wrong with the file; empty where nothing is."""
        with _read(self.path):
            return self._problems()

    def _problems(self) -> list[str]:
        said = [str(row[0]) for row in self._database.execute("PRAGMA integrity_check")]
        found = [] if said == ["ok"] else said
        orphans = self._database.execute(
            "SELECT count(*) FROM calls LEFT JOIN flights ON calls.flight = flights.id "
            "WHERE flights.status IS NOT 'done' OR flights.key != calls.key"
        ).fetchone()[0]
        if orphans:
            found.append(f"{orphans} answers belong to no finished request")
        twice = self._database.execute(
            "SELECT count(*) FROM (SELECT key FROM flights WHERE status = 'done' GROUP BY key HAVING count(*) > 1)"
        ).fetchone()[0]
        if twice:
            found.append(f"{twice} calls were asked again after they had been answered")
        return found

    def close(self) -> None:
        self._database.close()


def records(database: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    rows = database.execute("SELECT name, record FROM records ORDER BY name")
    return {name: json.loads(record) for name, record in rows}


def paid(database: sqlite3.Connection) -> dict[str, Paid]:
    rows = database.execute(
        "SELECT endpoint, count(*), coalesce(sum(prompt), 0), coalesce(sum(cached), 0), coalesce(sum(completion), 0), "
        "coalesce(sum(reasoning), 0), sum(prompt IS NULL AND (status IS NULL OR status = 'done')), "
        "sum(status IS NOT NULL AND status != 'done'), sum(status IS NULL) FROM flights GROUP BY endpoint"
    )
    return {name: Paid(Usage(*counts[:6]), retried=counts[6], lost=counts[7]) for name, *counts in rows}


@dataclass(frozen=True)
class _Write:
    statements: tuple[tuple[str, tuple[Any, ...]], ...]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    on_disk: bool


def _settle(futures: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Says of a disk what it is, where something must be kept."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _unwritten(path, error) from None


@contextmanager
def _read(path: Path, error: type[BurnishError] = DataError, fix: str = "start the run anew") -> Iterator[None]:
    """Says of a file that may come from anywhere that it is no journal."""
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as cause:
        raise error(f"is no journal or is damaged ({cause})", where=str(path), fix=fix) from None


def _unwritten(path: Path, error: BaseException) -> OutputError:
    return OutputError(
        f"cannot be written ({error})", where=str(path), fix="free the disk; the same command continues the run"
    )


def _reply(kept: str) -> Reply:
    fields = json.loads(kept)
    fields["usage"] = Usage(**fields["usage"])
    if fields["logprobs"] is not None:
        fields["logprobs"] = tuple(tuple(token) for token in fields["logprobs"])
    return Reply(**fields)


def _locked(directory: Path) -> int:
    handle = os.open(directory / "journal.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise OutputError(
            "is being written by another process", where=str(directory), fix="wait for it, or choose another with -o"
        ) from None
    return handle


def _connected(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection; a file that is no database is noticed at once."""
    mode = "?mode=ro" if readonly else ""
    database = sqlite3.connect(f"{path.resolve().as_uri()}{mode}", uri=True, check_same_thread=False)
    if readonly:
        return database
    try:
        with _read(path, OutputError, "choose another directory with -o"), _written(path):
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
    except OutputError:
        database.close()
        raise
    return database
