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
import architectures, gains, small_models, torch
found = []
for parallel in (False, True):
    own = {"qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": parallel}
    small_models.KINDS["stablelm"] = own
    steps = architectures.outcome("stablelm")["steps"]
    module = small_models.make("stablelm", dtype=torch.float64, disturbed=True)
    with torch.no_grad():
        ids = torch.arange(3, 35)[None]
        before = module(ids).logits
        moved = gains.move_gains(module)
        same = bool(torch.allclose(module(ids).logits, before, rtol=1e-9, atol=1e-9))
    found.append(steps | {"gains": [same, len(moved)]})
print(json.dumps(found))
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
    for name in (
        "benchmarks/architectures.py",
        "benchmarks/experiment.py",
        "tests/small_models.py",
        "LICENSE",
        "tests/gains.py",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "outcome.py").write_text(f"import sys\nsys.path[:0] = ['benchmarks', 'tests']\n{EVERY_STAGE}")
    one_after_the_other, parallel = json.loads(run(tmp_path, sys.executable, "outcome.py").splitlines()[-1])
    steps = dict.fromkeys(("tensors", "reload", "quantize", "train", "evaluate"), "yes") | {"slim": ""}
    assert one_after_the_other == steps | {"gains": [True, 3]}  # two layers, and the last norm
    assert parallel == steps | {"gains": [True, 1]}
