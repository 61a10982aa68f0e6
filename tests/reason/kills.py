"""kill -9 at a random moment, and the same run again, until it is through.

python tests/reason/kills.py 100 tests/reason/killed.json                       # the newest long run
python tests/reason/kills.py 10 tests/reason/killed_live.json URL MODEL         # against a real server
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from burnish.reason import Endpoint, JournalReader
from burnish.reason.journal import FILE
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


def start_live(directory: Path, endpoint: Endpoint) -> None:
    run(directory, STRATEGIES, NUM, endpoints=[endpoint], transport="http")


def killed_live(directory: Path, endpoint: Endpoint, kills: int, seed: int = 0) -> Counter[str]:
    """The same against a real server, which writes what it likes: records are those of the journal, and all are there.

    What it has answered is counted by itself, where it says so as vLLM does.

    Returns:
        Kills, calls, lost and tried again, and what the server has counted.
    """
    draw, deaths, before = random.Random(seed), 0, counted(endpoint)
    while deaths < kills:
        process = CONTEXT.Process(target=start_live, args=(directory, endpoint))
        process.start()
        stop = departed(directory) + draw.randint(1, max(1, 2 * NUM * 12 // kills))
        while departed(directory) < stop and process.is_alive():
            time.sleep(0.005)
        assert process.pid is not None
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        deaths += 1
    found = run(directory, STRATEGIES, NUM, endpoints=[endpoint], transport="http")

    async def nothing(endpoint: Endpoint, body: object, /) -> bytes:
        raise AssertionError("a finished run asks for nothing")

    assert run(directory, STRATEGIES, NUM, endpoints=[endpoint], transport=nothing) == found
    reader = JournalReader(directory)
    assert reader.problems() == []
    paid, finished = reader.paid()[endpoint.called], len(list(reader.calls()))
    assert finished == NUM * (4 + 8) + NUM
    assert paid.usage.calls == finished + paid.retried + paid.lost
    own = counted(endpoint) - before
    assert (
        finished <= own <= paid.usage.calls
    )  # one that it answered to a dead process is lost to us, and counted there
    return Counter(kills=deaths, calls=finished, lost=paid.lost, retried=paid.retried, counted_by_the_server=own)


def departed(directory: Path) -> int:
    """Requests that a journal has noted."""
    if not (directory / FILE).is_file():
        return 0
    with closing(sqlite3.connect(f"file:{directory / FILE}?mode=ro", uri=True, timeout=30)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM flights").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # its tables are about to be made


def counted(endpoint: Endpoint) -> int:
    """Requests that vLLM says it has ended, those that it broke off included."""
    address = endpoint.base_url.removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(address, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total"))


def many(kills: int) -> Counter[str]:
    """Runs that die up to five times each, until so many have died in all."""
    found: Counter[str] = Counter()
    while found["kills"] < kills:
        with tempfile.TemporaryDirectory() as place:
            found += killed_and_resumed(Path(place), min(5, kills - found["kills"]), seed=found["runs"])
        found["runs"] += 1
    return found


if __name__ == "__main__":
    number, file, *server = sys.argv[1:]
    if server:
        endpoint = Endpoint(server[0], server[1], sampling={"temperature": 1.0, "max_tokens": 24})
        with tempfile.TemporaryDirectory() as place:
            counts: dict[str, int] = killed_live(Path(place), endpoint, int(number))
    else:
        counts = {"records_that_differ": 0, "issued_again_after_success": 0, **many(int(number))}
    Path(file).write_text(json.dumps(counts, indent=2) + "\n")
