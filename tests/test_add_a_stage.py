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
BEFORE = {"src/burnish/stages.py": '    "slim": "burnish', "src/burnish/cli/__init__.py": '        "slim": ('}


@pytest.mark.slow
def test_the_stage_of_the_page_runs(tiny_llama: Path, tmp_path: Path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for inside, name, text in BLOCK.findall((ROOT / "docs" / "add-a-stage.md").read_text()):
        path = tmp_path / name
        if inside:
            path.write_text(path.read_text().replace(BEFORE[name], text + BEFORE[name], 1))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    command = [sys.executable, "-m", "burnish.cli", "shrink", str(tiny_llama), "--factor", "0.5", "-o", "smaller"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    from burnish import load

    before, after = (load(path).module.state_dict() for path in (tiny_llama, tmp_path / "smaller"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert after[name].equal(before[name] * 0.5)
    assert after["model.norm.weight"].equal(before["model.norm.weight"])
    assert "shrunk" in (tmp_path / "smaller.run" / "report.html").read_text()
