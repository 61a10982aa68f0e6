"""A run that is killed again and again loses nothing, and pays for nothing that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kills import killed_and_resumed, many


@pytest.mark.slow
def test_five_kills_lose_nothing_and_issue_nothing_twice_after_success(tmp_path: Path):
    assert killed_and_resumed(tmp_path, 5)["kills"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_a_hundred_kills():
    assert many(100)["kills"] == 100


def test_the_newest_long_run_is_kept():
    kept = json.loads((Path(__file__).parent / "killed.json").read_text())
    assert kept["kills"] >= 100
    assert kept["records_that_differ"] == kept["issued_again_after_success"] == 0
