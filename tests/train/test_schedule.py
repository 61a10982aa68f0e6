"""Learning rates as functions of the step."""

import pytest

from burnish.train.maths.schedule import Schedule


@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_rises_to_the_peak_and_never_starts_at_zero(shape):
    schedule = Schedule(shape, warmup=0.1)
    assert [schedule(step, 100) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_the_end_approaches_the_final_rate(shape, final):
    last = Schedule(shape, warmup=0.1, final=final)(9_999, 10_000)
    assert final <= last < final + 1e-3


def test_wsd_is_flat_until_the_decay():
    schedule = Schedule("wsd", warmup=0.1, decay=0.2)
    assert {schedule(step, 100) for step in range(10, 80)} == {1.0}
    assert schedule(90, 100) == pytest.approx(0.5)


def test_cosine_is_half_way_down_in_the_middle():
    assert Schedule("cosine", warmup=0.0, final=0.2)(50, 100) == pytest.approx(0.6)


@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_trainings_have_positive_rates(shape, steps):
    assert all(0 < Schedule(shape)(step, steps) <= 1 for step in range(steps))
