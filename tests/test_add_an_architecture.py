"""The page on adding an architecture, followed to the letter."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from burnish.arch import known_model_types
from pages import ROOT, Page, run

PAGE = Page("add-an-architecture.md")
EVERY_STAGE = """
import json
import architectures, small_models
small_models.KINDS["stablelm"] = {"qk_layernorm": True, "use_qkv_bias": True}
print(json.dumps(architectures.outcome("stablelm")["steps"]))
"""


def test_an_architecture_is_lines_in_one_file():
    assert PAGE.files == PAGE.files_that_exist == ["src/burnish/arch/table.py"]
    assert "stablelm" not in known_model_types()


@pytest.mark.slow
@pytest.mark.real_process
def test_the_class_of_the_page_goes_through_every_stage(tmp_path: Path):
    PAGE.follow(tmp_path)
    for name in ("benchmarks", "tests"):
        (tmp_path / name).mkdir()
    for name in ("benchmarks/architectures.py", "benchmarks/experiment.py", "tests/small_models.py", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "outcome.py").write_text(f"import sys\nsys.path[:0] = ['benchmarks', 'tests']\n{EVERY_STAGE}")
    steps = json.loads(run(tmp_path, sys.executable, "outcome.py").splitlines()[-1])
    assert steps == dict.fromkeys(("tensors", "reload", "quantize", "train", "evaluate"), "yes") | {"slim": ""}
