"""What the benchmark of the quickstart takes over from a run with an engine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import demo


def test_rates_of_another_run_are_added_to_nodes_that_it_has(tmp_path: Path):
    row = {"row": "speed", "node": "start", "metrics": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.core.ledger.Ledger", lambda place: SimpleNamespace(rows=[row]))
        assert demo.with_speeds({"start": {"seconds": 1}}, tmp_path) == {"start": {"seconds": 1, "speed": row}}
        with pytest.raises(ValueError, match="no engine's rates of gptq"):
            demo.with_speeds({"start": {}, "gptq": {}}, tmp_path)
