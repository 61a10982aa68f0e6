"""The run directory: its state file, and one burnish at a time in it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from burnish.core.errors import OutputError
from burnish.core.ledger import LEDGER_FILE
from burnish.core.outside import read_object

RUN_FILE = "run.json"
RUN_FORMAT = 1
RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"


def read_state(directory: Path) -> dict[str, Any]:
    """What run.json says; the empty state where there is no run yet."""
    if (directory / RUN_FILE).is_file():
        return read_run_file(directory)
    if directory.exists() and not _may_begin(directory):
        raise OutputError("exists and is not a run directory", where=str(directory), fix="choose another with -o")
    return {"format": RUN_FORMAT, "nodes": {}, "files": {}}


def read_run_file(directory: Path) -> dict[str, Any]:
    """What a run.json says that is there.

    Raises:
        OutputError: it is damaged, or of a newer burnish.
    """
    path = directory / RUN_FILE
    advice = "delete it; finished nodes are kept"
    state = read_object(path, error=OutputError, fix=f"run.json is damaged: {advice}")
    written_by = state.get("format")
    if type(written_by) is int and written_by > RUN_FORMAT:
        raise OutputError(
            f"was written by a newer burnish (run format {written_by}, this one reads up to {RUN_FORMAT})",
            where=str(path),
            fix="upgrade burnish",
        )
    try:
        _RunFile.model_validate(state)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise OutputError(f"is damaged (at {place})", where=str(path), fix=advice) from None
    return state


class _Known(BaseModel):
    """What is known of a node."""

    status: str
    key: str = ""
    hash: str = ""


class _Read(BaseModel):
    """Hashes of files, and their sizes and times when they were read."""

    stamps: dict[str, list[int]]
    hashes: str | dict[str, str]


class _Entry(BaseModel):
    """A node of the recipe as it was when the run began."""

    name: str
    stage: str
    parent: str = Field(default="", alias="from")
    status: str = ""
    key: str = ""
    hash: str = ""
    settings: dict[str, Any] = {}


class _RunFile(BaseModel):
    """What run.json must be: it may have been edited by hand."""

    format: int
    nodes: dict[str, _Known]
    files: dict[str, _Read]
    tree: list[_Entry] = []
    name: str = ""
    start: str = ""


def check_run_directory(directory: Path) -> None:
    """Opens a place for a ledger, before hours of measuring.

    Raises:
        OutputError: no directory, and none can be made, or one that cannot be written to.
    """
    try:
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        if made:
            directory.rmdir()
    except OSError as error:
        said, advice = error.strerror or str(error), "choose another place with -o"
        raise OutputError(f"cannot be written to ({said})", where=str(directory), fix=advice) from None


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
