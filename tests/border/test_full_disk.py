"""A disk that is full: one sentence, nothing half-made, and the same command goes on where there is more room.

Runs of recipes have their test in `core/test_crash.py`; here are the commands beside models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import warm
from burnish.reason import JournalReader
from exact_server import ExactServer
from warm import Command

pytestmark = pytest.mark.slow

FULL = ("No space left on device", "database or disk is full", "disk I/O error")
"""The last is what SQLite says where it cannot make its index of the log."""


def refused(log: Path, *arguments: str | Path) -> str:
    command = Command(log, *arguments)
    assert command.end() == 1, command.output
    said = command.output
    assert "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("burnish: error: ") and any(words in last for words in FULL), said
    return last


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("size", ["4k", "64k"])
def test_a_forecaster_is_fitted_on_when_there_is_room_again(
    small_disk: Callable[[str], Path], tmp_path: Path, size: str
):
    log, table = tmp_path / "log", tmp_path / "e.csv"
    warm.run(log, "events", "simulate", "--out", table, "--num-sequences", "40", "--num-events", "20")
    fit = ["events", "fit", table, "--epochs", "3", "--patience", "0", "--hidden-size", "32", "-o"]
    warm.run(log, *fit, tmp_path / "expected")
    disk = small_disk(size)
    refused(log, *fit, disk / "forecaster")
    assert not (disk / "forecaster").exists()
    small_disk("50m")
    warm.run(log, *fit, disk / "forecaster")
    assert files(disk / "forecaster") == files(tmp_path / "expected")
    assert [path.name for path in disk.iterdir()] == ["forecaster"]


@pytest.mark.parametrize("size", ["4k", "32k", "128k"])
def test_a_run_of_strategies_goes_on_when_there_is_room_again(
    small_disk: Callable[[str], Path], tmp_path: Path, size: str
):
    log, problems = tmp_path / "log", tmp_path / "problems.jsonl"
    rows = [{"id": str(i), "question": f"What is {i} - {i} + 1?", "answer": "1"} for i in range(60)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ExactServer() as server:
        ask = ["reason", "run", problems, "--base-url", server.url, "--model", "exact", "--verifier", "number"]
        ask += ["--strategy", "self-consistency:8", "-o"]
        warm.run(log, *ask, tmp_path / "expected")
        disk = small_disk(size)
        refused(log, *ask, disk / "run")
        small_disk("50m")
        warm.run(log, *ask, disk / "run")
    assert JournalReader(disk / "run").records() == JournalReader(tmp_path / "expected").records()
