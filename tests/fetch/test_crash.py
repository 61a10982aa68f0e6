"""`burnish fetch` out of the hub's cache, killed while it copies: afterwards the same command gives the whole copy."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_models import make

pytestmark = [pytest.mark.slow, pytest.mark.real_process]  # the cache is read where it is when Python starts

KILLS = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with one model of 130 MB."""
    place = tmp_path_factory.mktemp("cache")
    cached = place / "models--someone--small"
    module = make("llama", vocab_size=64_000, hidden_size=256, intermediate_size=512)
    module.save_pretrained(cached / "snapshots" / "0123456789abcdef")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789abcdef")
    return place


def fetch(cache: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "burnish", "fetch", "someone/small", "-o", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_copying(process: subprocess.Popen[bytes], out: Path) -> float:
    """When the temporary directory of the copy appears."""
    while not holds_something(out.parent / f".{out.name}.{process.pid}.tmp"):
        assert process.poll() is None, "it ended before it began to copy"
        time.sleep(0.0005)
    return time.monotonic()


def holds_something(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except FileNotFoundError:  # not made yet, or just renamed
        return False


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def killed(process: subprocess.Popen[bytes], out: Path, after: float) -> bool:
    """Whether it was killed so many seconds after it began to copy, or had ended by then."""
    wait_for_copying(process, out)
    time.sleep(after)
    if not out.exists():
        process.send_signal(signal.SIGKILL)
    process.wait()
    return not out.exists()


def test_killed_while_it_copies_it_starts_again_and_leaves_nothing_else(cache: Path, tmp_path: Path):
    undisturbed, out = tmp_path / "undisturbed" / "small", tmp_path / "place" / "small"
    process = fetch(cache, undisturbed)
    started = wait_for_copying(process, undisturbed)
    assert process.wait() == 0
    length = time.monotonic() - started

    moments = random.Random(0)
    for part in range(KILLS):
        after = moments.uniform(part, part + 1) / KILLS * length
        while not killed(fetch(cache, out), out, after):
            assert contents(out) == contents(undisturbed)  # too late: it is whole, and another one begins anew
            shutil.rmtree(out)
            after *= 0.7
    assert fetch(cache, out).wait() == 0
    assert contents(out) == contents(undisturbed)
    assert [path.name for path in out.parent.iterdir()] == ["small"]
