"""The run directory: its state file, and one burnish at a time in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.core.errors import OutputError, RecipeError

RUN_FILE = "run.json"
RUN_FORMAT = 1
LOCK_FILE = ".lock"


def read_state(directory: Path) -> dict[str, Any]:
    """What run.json says; the empty state where there is no run yet."""
    path = directory / RUN_FILE
    if not path.is_file():
        # A run that was refused or killed before it began leaves its lock behind, or a part of its state.
        begun = (LOCK_FILE, f".{RUN_FILE}.")
        occupied = directory.is_dir() and not all(path.name.startswith(begun) for path in directory.iterdir())
        if occupied or (directory.exists() and not directory.is_dir()):
            raise OutputError("exists and is not a run directory", where=str(directory), fix="choose another with -o")
        return {"format": RUN_FORMAT, "nodes": {}, "files": {}}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        newer = state["format"] > RUN_FORMAT
    except (json.JSONDecodeError, KeyError, TypeError):
        raise RecipeError("is damaged", where=str(path), fix="delete it; finished nodes are kept") from None
    if newer:
        raise RecipeError("was written by a newer burnish", where=str(path), fix="upgrade burnish")
    return state


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One burnish at a time in a run directory, which is gone again where nothing but the lock came into it."""
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise OutputError(f"cannot be written to ({error.strerror})", where=str(directory)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                "another burnish is running here",
                where=str(directory),
                fix="wait for it, or choose another -o",
            ) from None
        try:
            yield
        finally:
            if [entry.name for entry in directory.iterdir()] == [LOCK_FILE]:
                path.unlink()
                directory.rmdir()
