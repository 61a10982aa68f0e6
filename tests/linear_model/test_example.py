"""The example runs on its real data and leaves a picture."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sparse_path.py"


@pytest.mark.slow
def test_the_example_follows_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    gaps = runpy.run_path(str(EXAMPLE))["main"](str(tmp_path / "path.png"))
    assert max(gaps.values()) <= 1e-8
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")
    assert "of 45 pairs" in capsys.readouterr().out
