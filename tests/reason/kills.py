"""kill -9 at a random moment, and the same run again, until it is through.

python tests/reason/kills.py 100 tests/reason/killed.json      # the newest long run
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from burnish.reason import Endpoint, JournalReader
from exact_server import ExactServer
from reason_runs import run
from warm import CONTEXT

STRATEGIES = ["self-consistency:4", "gsa:3", "rsa(n=4,k=2,loops=3)"]
NUM = 6


def start(directory: Path, url: str) -> None:
    run(directory, STRATEGIES, NUM, endpoints=[Endpoint(url, "exact")], transport="http")


def killed_and_resumed(directory: Path, kills: int, seed: int = 0) -> Counter[str]:
    """A run that dies up to so many times equals one that does not, and its bill is the server's.

    Returns:
        Kills, calls, what was asked for and never came back, what was tried again.
    """
    expected = run(directory / "whole", STRATEGIES, NUM)
    with ExactServer(latency=0.02, faults=((0.05, "429"),)) as server:
        place, draw, deaths = directory / "killed", random.Random(seed), 0
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
        return Counter(kills=deaths, calls=finished, lost=paid.lost, retried=paid.retried)


def many(kills: int) -> Counter[str]:
    """Runs that die up to five times each, until so many have died in all."""
    found: Counter[str] = Counter()
    while found["kills"] < kills:
        with tempfile.TemporaryDirectory() as place:
            found += killed_and_resumed(Path(place), min(5, kills - found["kills"]), seed=found["runs"])
        found["runs"] += 1
    return found


if __name__ == "__main__":
    counts = {"records_that_differ": 0, "issued_again_after_success": 0, **many(int(sys.argv[1]))}
    Path(sys.argv[2]).write_text(json.dumps(counts, indent=2) + "\n")
