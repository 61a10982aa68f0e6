"""The page on adding a stage, followed to the letter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pages import Page, run

PAGE = Page("add-a-stage.md")


def test_a_stage_is_at_most_four_files_of_which_one_existed():
    assert len(PAGE.files) <= 4
    assert PAGE.files_that_exist == ["src/burnish/methods.py"]


@pytest.mark.slow
def test_the_stage_of_the_page_runs(tiny_llama: Path, tmp_path: Path):
    PAGE.follow(tmp_path)
    run(tmp_path, sys.executable, "scripts/derive.py")
    run(tmp_path, sys.executable, "scripts/derive.py", "--check")
    assert (tmp_path / "docs" / "methods" / "shrinking.md").is_file()
    assert ", 0 broken" in run(tmp_path, Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert "Shrink" in run(tmp_path, sys.executable, "-c", "import burnish; print(burnish.Shrink)")
    assert "shrinking: every weight" in run(tmp_path, sys.executable, "-m", "burnish", "methods")
    run(tmp_path, sys.executable, "-m", "burnish", "shrink", tiny_llama, "--factor", "0.5", "-o", "smaller")

    from burnish import load

    before, after = (load(path).module.state_dict() for path in (tiny_llama, tmp_path / "smaller"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert after[name].equal(before[name] * 0.5)
    assert after["model.norm.weight"].equal(before["model.norm.weight"])
    assert "shrunk" in (tmp_path / "smaller.run" / "report.html").read_text()
