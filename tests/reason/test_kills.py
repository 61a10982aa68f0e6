"""kill -9 at a random moment, and the same command again."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from burnish.reason import Endpoint, JournalReader
from exact_server import ExactServer
from reason_runs import run
from warm import CONTEXT

STRATEGIES = ["self-consistency:4", "gsa:3", "rsa(n=4,k=2,loops=3)"]
NUM = 6


def start(directory: Path, url: str) -> None:
    run(directory, STRATEGIES, NUM, endpoints=[Endpoint(url, "exact")], transport="http")


def killed_and_resumed(directory: Path, kills: int) -> None:
    expected = run(directory / "whole", STRATEGIES, NUM)
    with ExactServer(latency=0.02, faults=((0.05, "429"),)) as server:
        place, draw, deaths = directory / "killed", random.Random(kills), 0
        while deaths < kills:
            process = CONTEXT.Process(target=start, args=(place, server.url))
            process.start()
            before = sum(server.asked.values())
            stop = before + draw.randint(1, max(1, 2 * NUM * 12 // kills))
            while sum(server.asked.values()) < stop and process.is_alive():
                time.sleep(0.002)
            assert process.pid is not None
            if not process.is_alive():
                break  # there was nothing left to do
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            deaths += 1
        assert deaths
        assert run(place, STRATEGIES, NUM, endpoints=[Endpoint(server.url, "exact")], transport="http") == expected
        reader = JournalReader(place)
        assert reader.problems() == []
        paid = reader.paid()["exact"]
        finished = len(list(reader.calls()))
        assert finished == NUM * (4 + 8) + NUM
        # A request that was noted and never left, or was answered to a process that was dead, is among the lost.
        assert paid.usage.calls - paid.lost <= sum(server.asked.values()) <= paid.usage.calls
        assert paid.usage.unknown == paid.lost
        assert paid.usage.calls == finished + paid.retried + paid.lost


@pytest.mark.slow
def test_five_kills_lose_nothing_and_issue_nothing_twice_after_success(tmp_path: Path):
    killed_and_resumed(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.long
def test_a_hundred_kills(tmp_path: Path):
    for trial in range(20):
        killed_and_resumed(tmp_path / str(trial), 5)
