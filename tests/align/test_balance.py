"""Rows cut into forward passes: all of them, the dearest pass as cheap as can be, processes alike."""

from __future__ import annotations

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from burnish.align.maths.balance import cost, cut, pieces_by_length


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7), data=st.data())
def test_no_other_pieces_have_a_cheaper_dearest_one(lengths: list[int], data: st.DataObject) -> None:
    pieces = data.draw(st.integers(1, min(3, len(lengths))))
    found = pieces_by_length(lengths, pieces)
    assert sorted(row for piece in found for row in piece) == list(range(len(lengths)))
    assert len(found) == pieces and all(found)
    every = product(range(pieces), repeat=len(lengths))
    least = min(
        max(cost(lengths, [row for row, one in enumerate(where) if one == piece]) for piece in range(pieces))
        for where in every
    )
    assert max(cost(lengths, piece) for piece in found) == least


@given(
    lengths=st.lists(st.sampled_from([0, 0, 3, 10, 11, 90]), min_size=12, max_size=40),
    processes=st.integers(1, 4),
    passes=st.integers(1, 3),
)
def test_every_row_has_one_place_and_every_pass_a_row(lengths: list[int], processes: int, passes: int) -> None:
    dealt = cut(lengths, processes, passes)
    assert [len(one) for one in dealt] == [passes] * processes
    assert all(piece for one in dealt for piece in one)
    assert sorted(row for one in dealt for piece in one for row in piece) == list(range(len(lengths)))
    equal = -(-len(lengths) // (processes * passes)) * max(lengths)  # as many rows for each
    assert max(cost(lengths, piece) for one in dealt for piece in one) <= equal
    moving = sum(length > 0 for length in lengths)
    working = sum(any(lengths[row] for row in piece) for one in dealt for piece in one)
    assert working == min(moving, processes * passes)


def test_processes_forward_alike_and_less_than_by_chance() -> None:
    draw = random.Random(0)
    worst, ours, by_chance = 0.0, 0.0, 0.0
    for _ in range(20):
        lengths = [round(draw.lognormvariate(4.0, 0.6)) + 1 for _ in range(96)]
        dealt = cut(lengths, 2, 4)
        loads = [sum(cost(lengths, piece) for piece in one) for one in dealt]
        worst = max(worst, max(loads) / (sum(loads) / 2))
        rows = draw.sample(range(96), 96)
        parts = [rows[start : start + 12] for start in range(0, 96, 12)]
        ours += sum(loads)
        by_chance += sum(cost(lengths, part) for part in parts)
    assert worst <= 1.05
    assert ours < 0.6 * by_chance
