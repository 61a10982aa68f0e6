"""How numbers are written: units a person reads, as many digits as the interval supports, and a true minus sign."""

from __future__ import annotations

import math

from burnish.core.progress import duration

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EM DASH}"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def decimal(value: float, digits: int) -> str:
    """A number with a fixed number of decimals, grouped by thousands."""
    text = f"{value:,.{max(digits, 0)}f}"
    if text.startswith("-"):
        return text[1:] if float(text.replace(",", "")) == 0 else MINUS + text[1:]
    return text


def significant(value: float, digits: int = 3) -> str:
    """A number with about this many significant digits; very small and very large ones in powers of ten."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else f"{MINUS if value < 0 else ''}infinite"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 8:
        mantissa = decimal(value / 10**exponent, digits - 1)
        return f"{mantissa}e{str(exponent).replace('-', MINUS)}"
    return decimal(value, digits - 1 - exponent)


def interval_digits(low: float, high: float) -> int:
    """Decimals that show the half-width of an interval with two significant digits."""
    half = (high - low) / 2
    if not half > 0 or not math.isfinite(half):
        return 3
    return min(8, max(0, 1 - math.floor(math.log10(half))))


def with_error(value: float, error: float) -> str:
    """A value and its standard error, both with the digits that the error supports: "0.484 ± 0.035"."""
    if not (math.isfinite(value) and error > 0 and math.isfinite(error)):
        return significant(value, 4)
    digits = interval_digits(value - error, value + error)
    return f"{decimal(value, digits)}{SPACE}±{SPACE}{decimal(error, digits)}"


def number_bytes(value: float) -> str:
    """Bytes in decimal units, as disk makers and safetensors' index count them: "269 MB"."""
    size, prefix = _prefix(value)
    return f"{significant(value / size) if prefix else decimal(value, 0)}{SPACE}{prefix}B"


def number_count(value: float) -> str:
    """Parameters and tokens: "134.5 M"."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size * 10 or (abs(value) >= size and size > 1e3):
            return f"{significant(value / size, 4)}{SPACE}{ {'G': 'B'}.get(prefix, prefix) }"
    return decimal(value, 0)


def tick_bytes(value: float) -> str:
    """A round number of bytes on an axis, without the zeros that a measured value would show: "50 MB"."""
    return f"{tick_count(value).removesuffix(SPACE)}{'' if _prefix(value)[1] else SPACE}B" if value else "0"


def tick_count(value: float) -> str:
    """A round count on an axis: "4 k"."""
    size, prefix = _prefix(value)
    return f"{value / size:g}{SPACE}{prefix}".rstrip(SPACE)


def _prefix(value: float) -> tuple[float, str]:
    return next((one for one in _PREFIXES if abs(value) >= one[0]), (1.0, ""))


def number_seconds(value: float) -> str:
    return duration(value).replace(" ", SPACE) if value >= 0.1 else f"{significant(value * 1000, 2)}{SPACE}ms"


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return f"{decimal(value * 100, digits)}{SPACE}%"


def signed(text: str, value: float) -> str:
    """A written number with its sign always shown."""
    return f"+{text}" if value > 0 and not text.startswith("+") else text


def relative(log_ratio: float) -> float:
    """exp(x) - 1: the relative change of a perplexity whose loss changed by x nats."""
    return math.expm1(log_ratio)


def span(low: float, high: float) -> str:
    """Both ends of an interval with the digits that its width supports; a single value has none."""
    if math.isnan(low) or math.isnan(high):
        return "interval unknown"
    digits = interval_digits(low, high)
    return f"{decimal(low, digits)} to {decimal(high, digits)}"
