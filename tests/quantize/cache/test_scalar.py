"""Levels, rotation and packed bits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from burnish.quantize.maths.bits import pack_bits, unpack_bits
from burnish.quantize.maths.lloyd_max import lloyd_max_levels
from burnish.quantize.maths.rotation import random_signs, rotate, rotate_back

MAX_1960 = {1: (0.7980, 0.3634), 2: (1.510, 0.1175), 3: (2.152, 0.03454), 4: (2.733, 0.009497)}
"""{bits: (largest level, mean squared error)} of Max, Quantizing for minimum distortion, 1960, table I."""


@pytest.mark.parametrize("bits", MAX_1960)
def test_levels_are_those_of_the_published_table(bits):
    levels = lloyd_max_levels(bits)
    largest, distortion = MAX_1960[bits]
    assert levels[-1] == pytest.approx(largest, abs=1e-3)
    # E (x - level)^2 = 1 - E level^2, since every level is the mean of its cell.
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    assert 1 - np.diff(norm.cdf(edges)) @ levels**2 == pytest.approx(distortion, rel=2e-3)
    assert np.array_equal(levels, -levels[::-1])


@pytest.mark.parametrize("dim", [64, 128, 80, 96, 12, 7])
def test_a_rotation_keeps_lengths_and_has_an_inverse(dim):
    generator = torch.Generator().manual_seed(0)
    signs = random_signs(dim, generator).double()
    vectors = torch.randn(3, 5, dim, generator=generator, dtype=torch.float64)
    rotated = rotate(vectors, signs)
    assert torch.allclose(rotated.norm(dim=-1), vectors.norm(dim=-1))
    assert torch.allclose(rotate_back(rotated, signs), vectors)


def test_a_rotated_unit_vector_is_spread_over_all_numbers():
    signs = random_signs(64, torch.Generator().manual_seed(0))
    assert torch.allclose(rotate(torch.eye(64), signs).abs(), torch.full((64, 64), 1 / 8))


@given(
    st.integers(1, 16).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=1)))
)
def test_packed_codes_come_back_and_take_whole_bytes(drawn):
    bits, codes = drawn
    packed = pack_bits(torch.tensor([codes]), bits)
    assert packed.shape == (1, -(-len(codes) * bits // 8))
    assert unpack_bits(packed, bits, len(codes)).tolist() == [codes]
