"""The page on adding a stage, followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n# (in )?(src/\S+)\n(.*?)```", re.DOTALL)
END_OF_ROWS = "\n)\n\nBESIDE_METHODS"


def blocks() -> list[tuple[str, str, str]]:
    """("in " or nothing, file, text) of the files that the page writes or adds to."""
    return BLOCK.findall((ROOT / "docs" / "add-a-stage.md").read_text())


def follow(place: Path) -> None:
    """A copy of the sources in which the page has been followed."""
    for name in ("src", "scripts", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    for inside, name, text in blocks():
        path = place / name
        if inside:
            path.write_text(path.read_text().replace(END_OF_ROWS, f"\n{text.rstrip()}{END_OF_ROWS}", 1))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def run(place: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(place / "src")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_stage_is_at_most_four_files_of_which_one_existed():
    assert len(blocks()) <= 4
    assert [name for inside, name, _ in blocks() if inside] == ["src/burnish/methods.py"]


@pytest.mark.slow
def test_the_stage_of_the_page_runs(tiny_llama: Path, tmp_path: Path):
    follow(tmp_path)
    run(tmp_path, sys.executable, "scripts/derive.py")
    assert (tmp_path / "docs" / "methods" / "shrinking.md").is_file()
    run(tmp_path, sys.executable, "scripts/derive.py", "--check")
    assert "4 kept, 0 broken" in run(tmp_path, str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert "Shrink" in run(tmp_path, sys.executable, "-c", "import burnish; print(burnish.Shrink)")
    assert "shrinking: every weight" in run(tmp_path, sys.executable, "-m", "burnish.cli", "methods")
    command = ["shrink", str(tiny_llama), "--factor", "0.5", "-o", "smaller"]
    run(tmp_path, sys.executable, "-m", "burnish.cli", *command)

    from burnish import load

    before, after = (load(path).module.state_dict() for path in (tiny_llama, tmp_path / "smaller"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert after[name].equal(before[name] * 0.5)
    assert after["model.norm.weight"].equal(before["model.norm.weight"])
    assert "shrunk" in (tmp_path / "smaller.run" / "report.html").read_text()
