"""The plan of a sharded step is arithmetic on shapes: nothing is lost, nothing is done twice, the work is even."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.optim.maths.ownership import (
    MIN_ROUNDS,
    Spread,
    borders,
    cut,
    orthogonalisation_cost,
    owners,
    received,
    rounds,
    sent,
)

sizes = st.integers(1, 40)
num_ranks = st.integers(1, 9)
kinds = st.lists(st.tuples(sizes, sizes, st.integers(1, 12), st.booleans()), min_size=1, max_size=5)
quick = settings(max_examples=50)


def matrices(kinds, ranks):
    """Shapes as a model has them, a few kinds of many, over some number of ranks."""
    made = []
    for rows, cols, count, by_rows in kinds:
        made += [Spread(rows, cols, borders(rows if by_rows else cols, ranks), by_rows)] * count
    return made


@quick
@given(sizes, num_ranks)
def test_borders_are_those_of_torch_chunk(size, ranks):
    chunks = torch.arange(size).chunk(ranks)
    spans = borders(size, ranks)
    assert [list(range(start, stop)) for start, stop in spans[: len(chunks)]] == [chunk.tolist() for chunk in chunks]
    assert all(start == stop for start, stop in spans[len(chunks) :])


def test_more_ranks_than_rows_leave_some_with_nothing():
    assert borders(18, 8) == ((0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 18), (18, 18), (18, 18))


@quick
@given(st.lists(sizes, min_size=1, max_size=6), num_ranks)
def test_blocks_that_cross_borders_are_cut_into_pieces_that_cover_them(block_sizes, ranks):
    shards = borders(sum(block_sizes), ranks)
    start = 0
    total = [0] * ranks
    for size in block_sizes:
        spans = cut((start, start + size), shards)
        assert [row for first, last in spans for row in range(first, last)] == list(range(size))
        total = [count + last - first for count, (first, last) in zip(total, spans, strict=True)]
        start += size
    assert total == [stop - first for first, stop in shards]


@quick
@given(kinds, num_ranks)
def test_every_shape_is_dealt_out_evenly(kinds, ranks):
    spreads = matrices(kinds, ranks)
    owner = owners(spreads, ranks)
    for shape in {(spread.rows, spread.cols) for spread in spreads}:
        mine = [owner[n] for n, spread in enumerate(spreads) if (spread.rows, spread.cols) == shape]
        counts = [mine.count(rank) for rank in range(ranks)]
        assert max(counts) - min(counts) <= 1


@quick
@given(kinds, num_ranks)
def test_the_work_of_two_ranks_differs_by_one_matrix_at_most(kinds, ranks):
    spreads = matrices(kinds, ranks)
    costs = [orthogonalisation_cost(spread.rows, spread.cols) for spread in spreads]
    load = [0] * ranks
    for rank, cost in zip(owners(spreads, ranks), costs, strict=True):
        load[rank] += cost
    assert max(load) - min(load) <= max(costs)


@quick
@given(kinds, num_ranks, st.integers(1, 3000))
def test_rounds_have_every_matrix_once_with_its_owner(kinds, ranks, limit):
    spreads = matrices(kinds, ranks)
    plan = rounds(spreads, ranks, limit)
    owner = owners(spreads, ranks)
    seen = [(number, rank) for one in plan for rank, numbers in enumerate(one.owned) for number in numbers]
    assert sorted(seen) == list(enumerate(owner))
    for one in plan:
        for numbers in one.owned:
            assert len(numbers) <= 1 or sum(spreads[number].num_elements for number in numbers) <= limit


@quick
@given(kinds, num_ranks, st.integers(1, 3000))
def test_what_one_rank_sends_is_what_the_other_receives(kinds, ranks, limit):
    spreads = matrices(kinds, ranks)
    for one in rounds(spreads, ranks, limit):
        to = [sent(one, spreads, rank) for rank in range(ranks)]
        of = [received(one, spreads, rank) for rank in range(ranks)]
        assert all(to[a][b] == of[b][a] for a in range(ranks) for b in range(ranks))


@quick
@given(kinds, num_ranks)
def test_a_parameter_travels_once_to_the_owners(kinds, ranks):
    spreads = matrices(kinds, ranks)
    plan = rounds(spreads, ranks, 1 << 20)
    travelled = sum(sum(sent(one, spreads, rank)) for one in plan for rank in range(ranks))
    assert travelled == sum(spread.num_elements for spread in spreads)


def test_a_step_is_cut_into_rounds_so_that_there_is_something_to_overlap():
    spreads = [Spread(8, 8, borders(8, 2), True)] * 40
    assert len(rounds(spreads, 2, 1 << 20)) == MIN_ROUNDS
