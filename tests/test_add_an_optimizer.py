"""The page on adding an optimizer, followed to the letter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pages import Page, run

PAGE = Page("add-an-optimizer.md")
CHECK = """
import torch
from burnish.optim import optimizer_class

weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
weight.grad = torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, -5.0]], dtype=torch.float64)
optimizer_class("signum")([weight], lr=0.25, weight_decay=0.0).step()
assert weight.tolist() == [[0.75, 1.25, 1.0], [0.75, 0.75, 1.25]]
"""


def test_an_optimizer_is_a_file_and_a_row():
    assert PAGE.files == ["src/burnish/methods.py", "src/burnish/optim/signum.py"]
    assert PAGE.files_that_exist == ["src/burnish/methods.py"]


@pytest.mark.slow
def test_the_optimizer_of_the_page_trains(tiny_llama: Path, tmp_path: Path):
    PAGE.follow(tmp_path)
    run(tmp_path, sys.executable, "scripts/derive.py")
    assert (tmp_path / "docs" / "methods" / "signum.md").is_file()
    run(tmp_path, sys.executable, "-c", CHECK)
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 50)
    settings = ["--data", "text.txt", "--context", "32", "--steps", "2", "--batch", "2", "--optimizer", "signum"]
    run(tmp_path, sys.executable, "-m", "burnish", "train", tiny_llama, *settings, "-o", "trained")
    assert (tmp_path / "trained" / "model.safetensors").is_file()
