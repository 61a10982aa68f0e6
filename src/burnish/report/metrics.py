"""What the report knows of each metric: its name for people, how it is written, and which direction is better.

A metric that is not in this table is still shown, under the name and unit that the ledger gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from burnish.core.metric_names import NAMES, called
from burnish.core.page import numbers
from burnish.report.run import Value


class Form(StrEnum):
    """How a value is written."""

    BYTES = "bytes"
    COUNT = "count"
    FRACTION = "fraction"
    RATE = "rate"
    PLAIN = "plain"


class Change(StrEnum):
    """How a change against the start is written."""

    RATIO = "ratio"
    DIFFERENCE = "difference"
    NONE = "none"


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    Attributes:
        name: the ledger's.
        label: the person's.
        form, unit: how it is written; the unit is added where the form has none of its own.
        change: how its change against the start is written.
        better: "low", "high" or "" where neither is better as such.
        exact: counted, not estimated, so it does not depend on a protocol.
    """

    name: str
    label: str
    form: Form = Form.PLAIN
    unit: str = ""
    change: Change = Change.NONE
    better: str = ""
    exact: bool = False

    @property
    def phrase(self) -> str:
        """The label within a sentence."""
        return self.label if self.label.startswith("KL") else self.label[:1].lower() + self.label[1:]

    @property
    def separate_unit(self) -> str:
        """The unit that stands beside the metric's name in a table, where the values there have none."""
        return self.unit if self.form in (Form.PLAIN, Form.RATE) else ""

    def write(self, value: Value) -> str:
        """The value with its unit, with as many digits as its interval supports."""
        unit = (self.unit or value.unit) if self.form in (Form.PLAIN, Form.RATE) else ""
        return self.write_bare(value) + (f"{numbers.SPACE}{unit}" if unit else "")

    def write_bare(self, value: Value) -> str:
        """The value as it stands in a table: bytes, counts and fractions bring their unit, others do not."""
        assert value.value is not None
        if self.form is Form.BYTES:
            return numbers.number_bytes(value.value)
        if self.form is Form.COUNT:
            return numbers.number_count(value.value)
        return self.number(value.value, value) + (f"{numbers.SPACE}%" if self.form is Form.FRACTION else "")

    def write_interval(self, value: Value) -> str:
        """ "low to high", without the unit where the value beside it has one."""
        if value.interval is None:
            return ""
        if self.form in (Form.BYTES, Form.COUNT):
            low, high = (self.write(Value(end)) for end in value.interval)
            return f"{low} to {high}" if low != high else ""
        low, high = (self.number(end, value) for end in value.interval)
        return f"{low} to {high}"

    def write_half_width(self, value: Value) -> str:
        """ "±0.12"; nothing for what is counted in units of its own."""
        if value.interval is None or self.form in (Form.BYTES, Form.COUNT):
            return ""
        return f"±{self.number((value.interval[1] - value.interval[0]) / 2, value)}"

    def number(self, number: float, value: Value) -> str:
        """A number on this metric's scale; `value` decides the digits."""
        scale = 100 if self.form is Form.FRACTION else 1
        if value.interval is not None:
            return numbers.decimal(number * scale, numbers.interval_digits(*(end * scale for end in value.interval)))
        return numbers.significant(number * scale, 4)


def _named(name: str, *facts: Any, **more: Any) -> Metric:
    return Metric(name, NAMES[name], *facts, **more)


_TABLE = (
    _named("bytes_on_disk", Form.BYTES, change=Change.RATIO, better="low", exact=True),
    _named("weight_bytes_per_token", Form.BYTES, change=Change.RATIO, better="low", exact=True),
    _named("num_parameters", Form.COUNT, change=Change.RATIO, exact=True),
    _named("num_active_parameters", Form.COUNT, change=Change.RATIO, exact=True),
    _named("perplexity", change=Change.RATIO, better="low"),
    _named("bits_per_byte", unit="bits/byte", change=Change.DIFFERENCE, better="low"),
    _named("kl_divergence", unit="nats/token", better="low"),
    _named("top1_agreement", Form.FRACTION, better="high"),
    _named("perplexity_second", change=Change.RATIO, better="low"),
    _named("bits_per_byte_second", unit="bits/byte", change=Change.DIFFERENCE, better="low"),
    _named("kl_divergence_second", unit="nats/token", better="low"),
    _named("top1_agreement_second", Form.FRACTION, better="high"),
    _named("perplexity_third", change=Change.RATIO, better="low"),
    _named("bits_per_byte_third", unit="bits/byte", change=Change.DIFFERENCE, better="low"),
    _named("kl_divergence_third", unit="nats/token", better="low"),
    _named("top1_agreement_third", Form.FRACTION, better="high"),
    _named("longppl", change=Change.RATIO, better="low"),
    _named("key_tokens", Form.COUNT),
    _named("prefill_speed", Form.RATE, "tokens/s", Change.RATIO, "high"),
    _named("decode_speed", Form.RATE, "tokens/s", Change.RATIO, "high"),
    _named("peak_memory", Form.BYTES, change=Change.RATIO, better="low"),
    _named("pair_accuracy", Form.FRACTION, change=Change.DIFFERENCE, better="high"),
    _named("pair_log_loss", unit="nats", change=Change.DIFFERENCE, better="low"),
    _named("overconfidence"),
    _named("calibration_error", better="low"),
    _named("reward_prefers_longer", Form.FRACTION),
    _named("labels_prefer_longer", Form.FRACTION),
    _named("accuracy_longer_chosen", Form.FRACTION, better="high"),
    _named("accuracy_shorter_chosen", Form.FRACTION, better="high"),
    _named("mean_margin"),
)
METRICS = {metric.name: metric for metric in _TABLE}
ORDER = {metric.name: index for index, metric in enumerate(_TABLE)}

SIZE, PERPLEXITY, KL, BITS = "bytes_on_disk", "perplexity", "kl_divergence", "bits_per_byte"
AGREEMENT, DECODE, PAIRS = "top1_agreement", "decode_speed", "pair_accuracy"
LOSS = Metric("loss", "Loss", unit="nats/token", change=Change.DIFFERENCE, better="low")
"""The logarithm of the perplexity; the ledger has it per sequence, so differences are taken on this scale."""


def metric(name: str) -> Metric:
    """The table's entry, or a plain one for a metric that it does not know."""
    return METRICS.get(name) or Metric(name, called(name), change=Change.NONE)


def in_order(names: set[str]) -> list[str]:
    """Known metrics in the order of the table, then the others by name."""
    return sorted(names, key=lambda name: (ORDER.get(name, len(ORDER)), name))
