"""Blocks of GGUF against the reader of the gguf package, exactly."""

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.export.blocks import BLOCK, BLOCK_TYPES, smallest


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_the_package_reads_levels_times_scales(kind, rows, blocks, seed):
    rng = np.random.default_rng(seed)
    levels = rng.integers(kind.low, kind.high + 1, (rows, blocks * BLOCK)).astype(np.int8)
    levels[0, :2] = kind.low, kind.high
    scale = rng.normal(0, 10.0 ** rng.integers(-3, 3), (rows, blocks)).astype(np.float16)
    read = gguf.quants.dequantize(kind.pack(levels, scale), gguf.GGMLQuantizationType[kind.name])
    assert np.array_equal(read, levels * np.repeat(scale.astype(np.float32), BLOCK, axis=1))


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(-4, 3, "Q4_0"), (-8, 7, "Q4_0"), (-8, 8, "Q5_0"), (-15, 15, "Q5_0"), (-16, 16, "Q8_0"), (-128, 127, "Q8_0")],
)
def test_the_smallest_block_that_holds_the_levels_is_taken(low, high, name):
    assert getattr(smallest(low, high), "name", None) == name


def test_what_no_block_holds_is_told():
    assert smallest(-255, 255) is None
