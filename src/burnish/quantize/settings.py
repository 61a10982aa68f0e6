"""Settings of a scheme: what the weights of some matrices become. Light, so that commands are parsed without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field

from burnish.core.settings import Settings
from burnish.quantize.formats import FORMATS
from burnish.quantize.rules import RULES

if TYPE_CHECKING:
    RuleName: TypeAlias = str
    SchemeName: TypeAlias = str
else:  # the names that there are files of
    RuleName, SchemeName = Literal[tuple(RULES)], Literal[tuple(FORMATS)]

BY_TEXT = ("corda", "corda-kpm")
"""Starts of factors of low rank that look at calibration text."""
DEFAULTS: dict[str, Any] = {"bits": 4, "group_size": 64, "symmetric": True}
"""Of schemes that fix none of it."""


def count(value: Any) -> Any:
    """65k is 65,000 and 1M is 1,000,000; anything else is left to pydantic."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM])", value.strip()) if isinstance(value, str) else None
    return value if found is None else round(float(found[1]) * {"k": 1e3, "m": 1e6}[found[2].lower()])


class SchemeSettings(Settings):
    """The scheme of the matrices that a pattern of `overrides` matches; what is left out is as in the stage."""

    scheme: SchemeName = Field(default="int", description="as in the stage")
    bits: int = Field(default=4, ge=2, le=8, description="as in the stage")
    group_size: int | None = Field(default=64, ge=1, description="as in the stage")
    symmetric: bool = Field(default=True, description="as in the stage")


def complete_scheme(
    values: Mapping[str, Any], inherited: Mapping[str, Any] | None = None, *, where: str = ""
) -> dict[str, Any]:
    """`values` with every part of its scheme stated, so that what a run used can be read from its settings.

    Args:
        values: as given by the user; `scheme`, `bits`, `group_size` and `symmetric` may be missing.
        inherited: where missing parts come from if it is a scheme of the same kind; None for the defaults.
        where: the key that holds the values, for messages.

    Raises:
        ValueError: a part that the scheme fixes is given another value.
    """
    kind = values.get("scheme", inherited["scheme"] if inherited else "int")
    fixed = FORMATS[kind].fixed if isinstance(kind, str) and kind in FORMATS else {}
    if not fixed:
        parts = inherited if inherited and inherited["scheme"] == kind else DEFAULTS
        return {"scheme": kind} | {part: parts[part] for part in DEFAULTS} | dict(values)
    for part, value in fixed.items():
        if part in values and str(values[part]).lower() != str(value).lower():  # a command line gives text
            wanted = "one scale per row" if value is None else f"{part} {str(value).lower()}"
            raise ValueError(f"{where}{part} is {values[part]!r}, but {kind} has {wanted}; leave it out")
    return {**values, "scheme": kind, **fixed}
