"""A small model and its rounded copy on disk."""

from pathlib import Path

import pytest

from burnish.core.checkpoint import load
from burnish.quantize.stage import Quantize


@pytest.fixture(scope="session")
def packed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tune") / "packed"
    return Quantize(method="rtn", bits=2, group_size=16)(load(tiny_llama)).save(place)
