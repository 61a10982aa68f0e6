"""Axes: a range of data, round ticks, and where a value lies in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.report.numbers import MINUS, decimal, significant

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


def label(value: float, step: float) -> str:
    """A tick's text, with as many decimals as the step between ticks needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or step < 5e-4:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10**exponent:.3g}e{exponent}".replace("-", MINUS)
    return decimal(value, max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 3)


def tick_labels(ticks: Sequence[float], *, log: bool) -> list[str]:
    if log:
        return [significant(tick, 1) if _one_digit(tick) else significant(tick, 2) for tick in ticks]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks else 1.0
    return [label(tick, step) for tick in ticks]


def _one_digit(value: float) -> bool:
    lead = value / 10 ** math.floor(math.log10(value) + 1e-9)
    return abs(lead - round(lead)) < 1e-9


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
