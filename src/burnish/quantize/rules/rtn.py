"""Round to nearest: H_O = H_I = I. Every weight by itself, no text."""

from __future__ import annotations

from typing import ClassVar

from burnish.quantize.rule import RoundingRule


class Rtn(RoundingRule):
    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "nearest"


RULE = Rtn()
