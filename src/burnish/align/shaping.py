"""Rules that look at length, by name: the published ones with their settings, and Short-ARC."""

from __future__ import annotations

from typing import Any

from burnish.align.maths.length_rules import RULES, LengthRule
from burnish.core.errors import SettingsError, nearest

SHAPINGS = ("short_arc", *RULES)


def length_rule(name: str, options: dict[str, Any]) -> LengthRule | None:
    """A published rule, or None for Short-ARC.

    Raises:
        SettingsError: no such rule, or not its settings.
    """
    if name == "short_arc":
        if options:
            raise SettingsError("are of published rules; Short-ARC's have names of their own", where="shaping_options")
        return None
    if name not in RULES:
        guess = nearest(name, list(SHAPINGS))
        fix = f"did you mean {guess!r}?" if guess else f"use one of {', '.join(SHAPINGS)}"
        raise SettingsError(f"there is no length rule {name!r}", where="length_shaping", fix=fix)
    try:
        return RULES[name](**options)
    except TypeError as error:
        said = str(error).partition("()")[2].strip() or str(error)
        raise SettingsError(f"do not fit {name!r}: {said}", where="shaping_options") from None
