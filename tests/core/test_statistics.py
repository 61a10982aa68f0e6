"""Intervals: what they equal in closed form, and how often they hold the truth, on measured windows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.statistics import Interval, Scale, exact_share, interval, paired_interval

MEASURED = json.loads((Path(__file__).parent.parent / "reference" / "evaluate" / "windows.json").read_text())
NUMBERS = (2, 3, 4, 5, 6, 8, 12, 16, 20, 32)
"""Of windows. Every one is simulated, because rules that fail do so at the small ones."""
DRAWS = 2000


def covered(values: np.ndarray, weights: np.ndarray, num: int, scale: Scale) -> float:
    """Share of intervals, each of `num` windows drawn with replacement, that hold the ratio of all windows."""
    truth = values.sum() / weights.sum()
    generator = np.random.default_rng(num)
    hits = 0
    for picks in generator.integers(len(values), size=(DRAWS, num)):
        found = interval(values[picks], weights[picks], scale=scale)
        hits += found.low <= truth <= found.high
    return hits / DRAWS


def column(model: str, name: str) -> np.ndarray:
    return np.array(MEASURED[model][name])


TOKENS = column("original", "tokens")
FIGURES: dict[str, tuple[np.ndarray, np.ndarray, Scale]] = {
    "loss": (column("original", "nats"), TOKENS, "linear"),
    "divergence": (column("rtn-group64", "kl"), TOKENS, "log"),
    "agreement": (column("rtn-group64", "agreeing"), TOKENS, "logit"),
    "difference of losses": (column("rtn-group64", "nats") - column("original", "nats"), TOKENS, "linear"),
    "difference of divergences": (column("rtn-group64", "kl") - column("rtn-group32", "kl"), TOKENS, "linear"),
    "difference of agreements": (
        column("rtn-group64", "agreeing") - column("rtn-group32", "agreeing"),
        TOKENS,
        "linear",
    ),
    "one divergence over another": (column("rtn-group32", "kl"), column("rtn-group64", "kl"), "log"),
}


@pytest.mark.parametrize("num", NUMBERS)
@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_of_measured_windows_hold_the_truth_as_often_as_they_say(figure: str, num: int):
    # 2,000 draws of a 95 % event have a standard deviation of 0.5 %.
    assert 0.92 <= covered(*FIGURES[figure][:2], num, FIGURES[figure][2]) <= 0.98


@pytest.mark.parametrize("num", NUMBERS)
def test_intervals_of_a_log_normal_hold_its_mean_as_often_as_they_say(num: int):
    """The logarithm varies by 0.5, four times what that of a measured divergence does from window to window."""
    generator = np.random.default_rng(num)
    found = [interval(row, scale="log") for row in generator.lognormal(sigma=0.5, size=(2 * DRAWS, num))]
    hits = sum(one.low <= math.exp(0.125) <= one.high for one in found)
    assert 0.92 <= hits / len(found) <= 0.98


SHARES = [(share, tokens, num) for share in (0.5, 0.99, 0.999) for tokens in (1, 64, 255) for num in NUMBERS]


@pytest.mark.parametrize(("share", "tokens", "num"), [case for case in SHARES if case[1] * case[2] >= 20])
def test_intervals_of_shares_hold_them_at_least_as_often_as_they_say(share: float, tokens: int, num: int):
    """Near 1 they hold more often: there are few outcomes, and none has a probability of 5 %."""
    drawn = np.random.default_rng(num).binomial(tokens, share, (600, num)).astype(float)
    found = [interval(row, np.full(num, float(tokens)), scale="logit") for row in drawn]
    # 600 draws of a 95 % event have a standard deviation of 0.9 %.
    assert np.mean([one.low <= share <= one.high for one in found]) >= 0.92


@pytest.mark.parametrize(("hits", "num"), [(0, 4), (4, 4), (1, 30), (29, 30), (7, 9)])
def test_the_exact_share_is_scipys(hits: int, num: int):
    expected = scipy.stats.binomtest(hits, num).proportion_ci(0.9, method="exact")
    found = exact_share(hits, num, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_agreement_everywhere_is_no_point():
    found = interval(np.full(4, 255.0), np.full(4, 255.0), scale="logit")
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.025 ** (1 / 1020))


def covered_in_a_row(values: np.ndarray, num: int, scale: Scale) -> float:
    """Share of intervals, each of `num` windows that follow each other, that hold the ratio of all windows."""
    truth = values.sum() / TOKENS.sum()
    starts = range(len(values) - num + 1)
    found = [interval(values[start : start + num], TOKENS[start : start + num], scale=scale) for start in starts]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("num", [4, 8, 12, 20, 32])
def test_windows_in_a_row_are_alike_and_only_paired_losses_bear_it_as_the_docs_say(num: int):
    values, _, scale = FIGURES["difference of losses"]
    assert covered_in_a_row(values, num, scale) >= 0.9
    page = (Path(__file__).parents[2] / "docs" / "methods" / "evaluation.md").read_text()
    header = "| windows in a row | 4 | 8 | 12 | 20 | 32 |"
    rows = [line.strip("| ").split(" | ") for line in page[page.index(header) :].splitlines()[:6]]
    told = {row[0].removesuffix(", paired"): row[rows[0].index(str(num))] for row in rows[2:]}
    assert told == {name: f"{covered_in_a_row(FIGURES[name][0], num, FIGURES[name][2]):.0%}" for name in told}


def test_there_are_as_many_windows_as_a_simulation_needs():
    assert len(TOKENS) >= 100


def test_of_equal_weights_it_is_students_interval():
    values = np.array([3.0, 1.0, 4.0, 1.5, 5.0])
    expected = scipy.stats.ttest_1samp(values / 7, 0.0).confidence_interval(0.9)
    found = interval(values, np.full(5, 7.0), confidence=0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    assert interval(np.array([1.0, 9.0]), np.array([1.0, 3.0])).value == 2.5


def test_log_and_logit_are_the_linear_interval_where_it_is_narrow():
    values = 0.3 + 1e-4 * np.random.default_rng(0).normal(size=50)
    linear, log, logit = (interval(values, scale=scale) for scale in ("linear", "log", "logit"))
    for other in (log, logit):
        assert (other.low, other.high) == pytest.approx((linear.low, linear.high), rel=1e-7)


def test_the_logarithm_makes_equal_factors():
    found = interval(np.array([1.0, 2.0, 4.0]), scale="log")
    assert found.value / found.low == pytest.approx(found.high / found.value, rel=1e-14)


@given(shares=st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_share_stays_between_0_and_1(shares: list[float]):
    found = interval(np.array(shares), scale="logit")
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(values=st.lists(st.floats(0, 1e6), min_size=2, max_size=8))
def test_what_is_positive_stays_so(values: list[float]):
    found = interval(np.array(values), scale="log")
    assert 0 <= found.low <= found.value <= found.high < math.inf


def test_a_divergence_that_rounding_made_negative_has_a_linear_interval():
    values = np.array([-2e-9, 1e-9, -1e-9])
    assert interval(values, scale="log") == interval(values)


def test_equal_ratios_leave_no_doubt():
    weights = np.array([1.0, 2.0, 5.0])
    found = interval(3 * weights, weights)
    assert (found.low, found.high) == pytest.approx((3.0, 3.0))


def test_one_sequence_gives_no_interval():
    found = interval(np.array([2.0]), np.array([4.0]))
    assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high)


def test_pairing_removes_what_both_share():
    hard = 100 * np.random.default_rng(0).lognormal(size=40)
    noise = np.random.default_rng(1).normal(size=40)
    found = paired_interval(hard + 0.5 + 0.1 * noise, hard)
    assert found.low > 0.4 and found.high < 0.6


def test_pairing_a_model_with_itself_gives_zero():
    values = np.random.default_rng(0).lognormal(size=40)
    assert paired_interval(values, values) == Interval(0.0, 0.0, 0.0)


def test_the_perplexity_has_the_exponential_of_the_losss_interval():
    assert Interval(1.0, 0.0, 2.0).map(math.exp) == Interval(math.e, 1.0, math.exp(2.0))
