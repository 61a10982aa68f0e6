"""Axes: a range of data, round ticks, and where a value lies in pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.page.numbers import MINUS, decimal

LOG_FROM_RATIO = 20.0
"""Positive data that span more than this factor get a logarithmic axis."""
LOG_TO_RATIO = 1e30
"""Beyond this factor the smallest values are rounding errors, and a logarithmic axis would show little else."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels.

    Attributes:
        low, high: ends of the axis in data units.
        first, last: their pixels.
        log: whether equal factors are equal distances.
    """

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low * 1e-6))
        share = min(1.05, max(-0.05, (at - low) / (high - low)))
        return round(self.first + share * (self.last - self.first), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round values within the axis."""
        if self.log:
            return _log_ticks(self.low, self.high, count)
        return _linear_ticks(self.low, self.high, count)


def fit(values: Sequence[float], *, from_zero: bool = False, log: bool | None = None) -> tuple[float, float, bool]:
    """(low, high, log) of an axis that holds the values with a little air; `log=None` decides by their spread."""
    low, high = min(values), max(values)
    ratio = high / low if low > 0 else math.inf
    if log is None:
        log = ratio > LOG_FROM_RATIO
    if log and ratio < LOG_TO_RATIO:
        air = (high / low) ** 0.06 if high > low else 1.5
        return low / air, high * air, True
    if from_zero and low >= 0:
        low = 0.0
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (0.0 if low == 0 and from_zero else low - air), high + air, False


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Each tick exactly, with the same decimals throughout where the ticks are evenly spread."""
    digits = [_decimals(tick) for tick in ticks]
    even = len({round(b - a, 12) for a, b in itertools.pairwise(ticks)}) <= 1
    return [_label(tick, max(digits) if even else own) for tick, own in zip(ticks, digits, strict=True)]


def _decimals(value: float) -> int:
    return next((digits for digits in range(12) if math.isclose(round(value, digits), value, rel_tol=1e-9)), 12)


def _label(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or digits > 4:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10.0**exponent:.8g}e{exponent}".replace("-", MINUS)
    return decimal(value, digits)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    begin = math.ceil(low / step - 1e-9)
    end = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(begin, end + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [lead * 10.0**decade for decade in decades for lead in leads]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= count + 1:
            break
    else:
        found = found[:: math.ceil(len(found) / (count + 1))]
    return found if len(found) >= 2 else _linear_ticks(low, high, count)
