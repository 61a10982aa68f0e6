"""A size that is asked for, from one line: "45%", "24GB", "3.0bits", "7.65B", "100M parameters".

A bare K, M, B or T counts parameters, as everybody writes them, where a number of parameters can be asked for.
What a stage makes of it is the stage's own matter; what can be written is the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from burnish.core.errors import SettingsError

Unit = Literal["%", "bytes", "bits", "parameters"]

BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
EXAMPLES: dict[Unit, str] = {
    "%": "a share of {whole} (45%)",
    "bytes": "a size (24GB, 100MB)",
    "bits": "bits per weight (3.0bits)",
    "parameters": "a number of parameters (7.65B, 100M parameters)",
}


@dataclass(frozen=True)
class Target:
    """What was asked for.

    Attributes:
        amount: in its unit; 45 for "45%".
        unit: "%", "bytes", "bits" (per weight) or "parameters".
    """

    amount: float
    unit: Unit

    def share(self, whole: float) -> int:
        """That many percent of a whole, rounded down."""
        assert self.unit == "%", "only a share is one of a whole"
        return int(whole * self.amount / 100)


def parse_target(text: str, *, takes: Sequence[Unit], whole: str) -> Target:
    """Reads one target.

    Args:
        text: as it was written.
        takes: the units that mean something here.
        whole: what "%" is a share of, for the message.

    Raises:
        SettingsError: it is none, is zero, or has a unit that means nothing here.
    """
    found = re.fullmatch(
        r"\s*(\d+\.?\d*|\.\d+)\s*(%|bits?|([KMBT]?)\s*param(?:eter)?s?|[KMGT]?i?B|[KMT])\s*", text, flags=re.I
    )
    target = None
    if found is not None and float(found[1]) > 0:
        amount, unit = float(found[1]), found[2].upper()
        if unit == "%":
            target = Target(amount, "%")
        elif unit.startswith("BIT"):
            target = Target(amount, "bits")
        elif found[3] is not None:
            target = Target(amount * COUNTS[found[3].upper()], "parameters")
        elif unit in COUNTS and "parameters" in takes:
            target = Target(amount * COUNTS[unit], "parameters")
        elif unit in BYTES:
            target = Target(amount * BYTES[unit], "bytes")
    if target is None or target.unit not in takes:
        *most, last = [EXAMPLES[unit].format(whole=whole) for unit in takes]
        raise SettingsError(f"target is {text!r}", where="target", fix=f"give {', '.join(most)} or {last}")
    return target
