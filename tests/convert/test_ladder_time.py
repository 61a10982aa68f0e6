"""The time model of ladders: limits, and the published figures that its constants are fitted to."""

import math

import pytest

from burnish.convert.maths.ladder_time import H100, NO_P2P, NVLINK, Link, Step, all_reduce_seconds, decoding_step

LLAMA_70B = {"num_layers": 80, "hidden_size": 8192, "weight_bytes": 141_100_000_000}
PUBLISHED = (
    (1, 2, 35.4, 36.7, 38.2, 33.8, 36.9),
    (1, 4, 59.4, 67.5, 69.0, 53.4, 66.6),
    (1, 8, 77.4, 101.2, 110.6, 51.7, 82.6),
    (4, 8, 258.6, 331.5, 355.8, 173.6, 271.8),
    (16, 8, 843.0, 1004.0, 1110.0, 547.0, 739.0),
    (64, 8, 1941.0, 2242.0, 2474.0, 1454.0, 1864.0),
)
"""Batch, ranks, tokens a second: standard, ladder and no communication over NVLink, standard and ladder without P2P."""


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_published_speeds_are_within_17_percent_and_the_gains_of_ladders_within_9(row):
    batch, ranks, standard, ladder, bound, slow_standard, slow_ladder = row
    fast = decoding_step(**LLAMA_70B, batch=batch, ranks=ranks)
    slow = decoding_step(**LLAMA_70B, batch=batch, ranks=ranks, link=NO_P2P)
    seconds = {
        standard: fast.standard,
        ladder: fast.ladder,
        bound: fast.computation,
        slow_standard: slow.standard,
        slow_ladder: slow.ladder,
    }
    for published, found in seconds.items():
        assert abs(math.log(batch / found / published)) < math.log(1.17)
    assert abs(math.log(fast.speed_up / (ladder / standard))) < math.log(1.05)
    assert abs(math.log(slow.speed_up / (slow_ladder / slow_standard))) < math.log(1.1)


def test_ladders_gain_at_most_twice_and_that_where_both_take_equally_long():
    gains = [Step(1.0, communication, 1.0, 1.0).speed_up for communication in (0.0, 0.5, 1.0, 2.0, 1e9)]
    assert gains == pytest.approx([1.0, 1.5, 2.0, 1.5, 1.0])
    for communication in (0.1, 0.9, 3.0):
        assert Step(1.0, communication, 1.0, 1.0).ladder == pytest.approx(max(1.0, communication))


def test_one_rank_does_not_communicate_and_half_of_the_layers_gain_half():
    assert decoding_step(**LLAMA_70B, batch=1, ranks=1).speed_up == 1.0
    half, whole = (decoding_step(**LLAMA_70B, batch=1, ranks=8, share=share) for share in (0.5, 1.0))
    assert half.standard - half.ladder == pytest.approx((whole.standard - whole.ladder) / 2)


def test_an_all_reduce_is_a_latency_and_bytes_over_a_link():
    link = Link(1.0, 0.5, 100.0, 1.0)
    assert all_reduce_seconds(0, 2, link) == 1.5
    assert all_reduce_seconds(400, 4, link) == 2.5 + 6.0  # 2 (p - 1) / p of the bytes
    assert all_reduce_seconds(10**9, 1, link) == 0.0


def test_a_larger_batch_and_a_slower_link_take_longer():
    steps = [decoding_step(**LLAMA_70B, batch=batch, ranks=8, device=H100, link=NVLINK) for batch in (1, 16)]
    assert steps[0].computation < steps[1].computation and steps[0].communication < steps[1].communication
