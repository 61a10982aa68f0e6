"""Nothing that comes from outside ends in a traceback, opens a file elsewhere, or needs more memory than is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


def faults(first: int, last: int) -> list[str]:
    """What mutants did wrong, from a clean process that forks one child for each."""
    done = subprocess.run([sys.executable, str(FUZZ), str(first), str(last)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].endswith(f"of {last - first} mutants"), done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("mutant ")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_500_mutants():
    assert faults(0, 500) == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_10_000_mutants():
    assert faults(500, 10_500) == []
