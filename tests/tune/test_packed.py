"""What the tensors of a packed weight must be, with damage of every kind."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor

from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.core.errors import CheckpointError

NAME = "layer.weight"
WORDS, SCALE, ZERO, SHAPE = (f"{NAME}_{end}" for end in ("packed", "scale", "zero_point", "shape"))


def tensors() -> dict[str, Tensor]:
    """Of a weight (8, 32) of 4 bits in two groups."""
    return {
        WORDS: pack_to_int32(torch.zeros(8, 32, dtype=torch.int8), 4),
        SCALE: torch.ones(8, 2),
        ZERO: pack_to_int32(torch.zeros(8, 2, dtype=torch.int8), 4, packed_dim=0),
        SHAPE: torch.tensor([8, 32]),
    }


def read(found: dict[str, Tensor]) -> Any:
    model: Any = SimpleNamespace(packed={NAME: found})
    return dict(packed_weights(model))[NAME]


def test_an_undamaged_weight_is_read():
    assert read(tensors()).levels.eq(0).all()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WORDS, lambda words: words.float()),
        (WORDS, lambda words: words.flatten()),
        (WORDS, lambda words: words[:, :0]),
        (SCALE, lambda scale: scale[:, :0]),
        (SCALE, lambda scale: scale[:, 0]),
        (SCALE, lambda scale: scale.int()),
        (SCALE, lambda scale: scale.fill_(float("nan"))),
        (ZERO, lambda zero: zero.float()),
        (ZERO, lambda zero: zero[:, :1]),
        (SHAPE, lambda shape: shape[:1]),
        (SHAPE, lambda shape: 0 * shape),
        (SHAPE, lambda shape: -shape),
        (SHAPE, lambda shape: shape[0]),
    ],
)
def test_a_damaged_weight_is_refused_by_name(name: str, damage: Callable[[Tensor], Tensor]):
    found = tensors()
    found[name] = damage(found[name])
    with pytest.raises(CheckpointError, match=r"^layer\.weight: "):
        read(found)
