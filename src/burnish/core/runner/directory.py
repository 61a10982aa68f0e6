"""The run directory: its state file, and one burnish at a time in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.core.errors import OutputError, RecipeError
from burnish.core.ledger import LEDGER_FILE

RUN_FILE = "run.json"
RUN_FORMAT = 1
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"


def read_state(directory: Path) -> dict[str, Any]:
    """What run.json says; the empty state where there is no run yet."""
    path = directory / RUN_FILE
    if not path.is_file():
        if directory.exists() and not _may_begin(directory):
            raise OutputError("exists and is not a run directory", where=str(directory), fix="choose another with -o")
        return {"format": RUN_FORMAT, "nodes": {}, "files": {}}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        newer = state["format"] > RUN_FORMAT
        whole = newer or all(isinstance(entry, dict) for part in ("nodes", "files") for entry in state[part].values())
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
        state, whole, newer = {}, False, False
    if not whole:
        raise RecipeError("is damaged", where=str(path), fix="delete it; finished nodes are kept")
    if newer:
        raise RecipeError("was written by a newer burnish", where=str(path), fix="upgrade burnish")
    return state


def _may_begin(directory: Path) -> bool:
    """Whether a run may begin where there is no run.json: in an empty directory, or in one of ours that has lost it."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    # A run that was refused or killed before it began leaves its lock behind, or a part of its state.
    begun = all(name.startswith((LOCK_FILE, f".{RUN_FILE}.")) for name in names)
    return begun or (LOCK_FILE in names and not names.isdisjoint(("nodes", "work", LEDGER_FILE, RECIPE_FILE)))


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
