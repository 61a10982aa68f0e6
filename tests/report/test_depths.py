"""The heat map of scores by depth: a row for every task and length, and its spread."""

from __future__ import annotations

from pathlib import Path

from burnish.core.ledger import Ledger
from burnish.report import write
from burnish.report.depths import views
from burnish.report.run import read_run


def rows(task: str, length: int, scores: list[float]) -> list[dict[str, object]]:
    return [{"task": task, "length": length, "depth": place / 2, "score": score} for place, score in enumerate(scores)]


def test_every_task_and_length_has_a_row_with_its_spread(tmp_path: Path):
    table = [*rows("niah_single_1", 1024, [1.0, 0.25, 0.5]), *rows("niah_single_1", 2048, [0.0, 0.0, 0.0])]
    Ledger(tmp_path / "run", node="mine").table("ruler_depths", [*table, {"task": "<b>", "length": None}])
    (view,) = views(read_run(tmp_path / "run"))
    assert [column.name for column in view.table.columns] == ["0%", "50%", "100%", "Spread"]
    first, second = view.table.sections[0].rows
    assert (first.head, first.below) == ("niah_single_1", "1,024 tokens")
    assert [row.cells[-1].text.replace("\N{NO-BREAK SPACE}", " ") for row in (first, second)] == ["75.0 %", "0.0 %"]
    shades = [str(cell.drawing).split('fill-opacity="')[1].split('"')[0] for cell in first.cells[:-1]]
    assert shades == ["0.40", "0.12", "0.21"]
    page = write(tmp_path / "run").read_text(encoding="utf-8")
    assert "By depth of the evidence, mine" in page and "25.0" in page


def test_a_run_without_depths_says_nothing_of_them(tmp_path: Path):
    Ledger(tmp_path / "run", node="mine").table("loss", [{"step": 1, "loss": 2.0}])
    assert views(read_run(tmp_path / "run")) == []
    assert "By depth" not in write(tmp_path / "run").read_text(encoding="utf-8")
