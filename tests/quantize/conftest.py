"""A small trained-looking model: heavy-tailed weights and text that the tokenizer knows."""

from pathlib import Path

import pytest
import torch

from burnish.core.checkpoint import Model, load

TEXT = (Path(__file__).resolve().parents[2] / "LICENSE").read_text()


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    """Read anew for every test."""
    return load(tiny_llama)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [TEXT]


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(0, 384, (2, 24), generator=torch.Generator().manual_seed(0))
