"""How live engines of one machine tell each other what they served: a file of each in a directory.

Time is cut into stretches of the length of an exchange. At its first step in a stretch an engine writes what it has
served, reads what the others wrote last, and takes over what follows (`burnish.serve.policies.fleet`), so that what it
knows of them is at most an exchange old. Whoever has written nothing for two exchanges is left out: an engine that is
idle, or gone. A file has names of tenants and their costs, and is readable by its owner alone. What cannot be written
or read is said once, and the engine goes on with what it knows.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from burnish.core.errors import OutputError
from burnish.serve.policies.fleet import Account, Fleet
from burnish.serve.policies.fleet import Path as Node
from burnish.serve.policies.shares import FairShares

SILENT = 2
"""Exchanges after which who says nothing is left out."""
FORGOTTEN = 1000
"""Exchanges after which his file is removed."""


class FileExchange:
    """What one engine says and hears.

    Args:
        directory: of all engines that share a tree; made where it is not there.
        fleet: of this engine.
        say: takes a sentence for the log.
        clock: seconds, the same for all of them.

    Raises:
        OutputError: the directory cannot be written.
    """

    def __init__(
        self, directory: Path, fleet: Fleet, say: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._directory, self._fleet, self._say, self._clock = directory, fleet, say, clock
        self.name = uuid.uuid4().hex
        self._stretch = -1
        self._said: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._write(int(clock() / fleet.exchange), {})
        except OSError as error:
            fix = "give a directory that all engines may write to"
            raise OutputError(f"cannot be written ({error.strerror})", where=str(directory), fix=fix) from None

    def tick(self, tree: FairShares) -> bool:
        """Exchanges, where it is time; is called before every step. Whether it did."""
        stretch = int(self._clock() / self._fleet.exchange)
        if stretch == self._stretch:
            return False
        self._stretch = stretch
        accounts = tree.accounts()
        try:
            self._write(stretch, accounts)
        except OSError as error:
            self._once(f"what was served cannot be told the other engines ({error.strerror})")
        found = self._fleet.exchanged({self.name: accounts} | self._others(stretch))
        tree.settle(found[self.name])
        return True

    def close(self) -> None:
        """The engine ends."""
        with suppress(OSError):
            self._file(self.name).unlink()

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _write(self, stretch: int, accounts: Mapping[Node, Account]) -> None:
        rows = [[*path, one.served, one.waiting] for path, one in accounts.items()]
        temporary = self._directory / f".{self.name}.tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            json.dump({"stretch": stretch, "accounts": rows}, opened)
        temporary.replace(self._file(self.name))

    def _others(self, stretch: int) -> dict[str, dict[Node, Account]]:
        """What engines that are there have served, by their last word."""
        found = {}
        for file in self._directory.glob("*.json"):
            if file.stem == self.name:
                continue
            try:
                said = json.loads(file.read_text(encoding="utf-8"))
                age = stretch - said["stretch"]
                accounts = {tuple(row[:-2]): Account(*map(int, row[-2:])) for row in said["accounts"]}
            except FileNotFoundError:  # it ended just now
                continue
            except (OSError, ValueError, TypeError, KeyError):
                self._once(f"{file.name} in the directory of the exchange is no account of an engine")
                continue
            if abs(age) <= SILENT:
                found[file.stem] = accounts
            elif age > FORGOTTEN:
                file.unlink(missing_ok=True)
        return found

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)
