"""The page on adding a rounding rule, followed to the letter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pages import Page, run

PAGE = Page("add-a-rounding-rule.md")
CODE = """
import sys, burnish
from burnish.core.checkpoint import hash_directory
settings = {"bits": 3, "group_size": 32, "tokens": 2048, "length": 64, "damping": 0.01}
text = [open(sys.argv[2]).read()]
for name, more in {"memory": {"method": "half", "stream": False}, "disk": {"method": "half", "stream": True},
                   "gptq": {"method": "gptq"}, "rtn": {"method": "rtn"}}.items():
    stage = burnish.Quantize(**settings | more)
    print(hash_directory(stage(burnish.load(sys.argv[1]), calibration=text).save(name))["model.safetensors"])
"""


def test_a_rule_is_a_file_and_a_row():
    assert len(PAGE.files) == 2 and PAGE.files_that_exist == ["src/burnish/methods.py"]


@pytest.mark.slow
def test_the_rule_of_the_page_runs(tiny_llama: Path, tmp_path: Path):
    PAGE.follow(tmp_path)
    run(tmp_path, sys.executable, "scripts/derive.py")
    assert (tmp_path / "docs" / "methods" / "half-way-rounding.md").is_file()
    assert "half-way rounding" in run(tmp_path, sys.executable, "-m", "burnish", "methods")
    shown = run(tmp_path, sys.executable, "-m", "burnish", "quantize", "--help")
    assert "half: one-sided with" in " ".join(shown.replace("│", " ").split())
    license_file = Path(__file__).resolve().parent.parent / "LICENSE"
    hashes = run(tmp_path, sys.executable, "-c", CODE, tiny_llama, license_file).split()
    assert hashes[0] == hashes[1], "from disk the rule gives the files of the model in memory"
    assert len(set(hashes)) == 3, "and others than nearest rounding and GPTQ"
