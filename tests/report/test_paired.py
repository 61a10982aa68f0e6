import pytest

from burnish.core.statistics import Interval
from burnish.report.compare import checkpoints
from burnish.report.paired import Pairing, Quantity, within_noise
from burnish.report.run import read_run


@pytest.fixture
def columns(make_run, nodes):
    return checkpoints([read_run(make_run(nodes[:2]))])


def test_a_difference_is_after_minus_before(columns):
    start, nearest, yaqa = columns
    worse, better = Pairing().loss(start, yaqa), Pairing().loss(nearest, yaqa)
    assert worse is not None and better is not None
    assert worse[1].value == pytest.approx(0.214, abs=1e-9) and better[1].value == pytest.approx(0.214 - 1.86, abs=1e-9)


def test_a_difference_in_bits_is_that_of_the_loss_in_another_unit(columns):
    start, _, yaqa = columns
    protocol = next(iter(start.measured))
    nats = Pairing().difference(start, yaqa, protocol)
    bits = Pairing().difference(start, yaqa, protocol, Quantity.BITS)
    assert nats is not None and bits is not None
    assert bits.value / nats.value == pytest.approx(1023 / 4600 / 0.6931471805599453)


@pytest.mark.parametrize(
    ("low", "high", "noise"), [(-1.0, 1.0, True), (0.0, 1.0, True), (0.1, 1.0, False), (-2, -1, False)]
)
def test_within_noise_means_that_the_interval_includes_zero(low, high, noise):
    assert within_noise(Interval((low + high) / 2, low, high)) is noise
