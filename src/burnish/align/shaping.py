"""Rules that look at length, by name: the published ones with their settings, and Short-ARC."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from burnish.align.maths.length_rules import RULES, LengthRule
from burnish.core.errors import SettingsError, nearest
from burnish.core.settings import first_mistake

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
    known = [one.name for one in fields(RULES[name])]  # type: ignore[arg-type]  # all of them are dataclasses
    if strange := next((key for key in options if key not in known), None):
        has = f"has {', '.join(known)}" if known else "has no settings"
        raise SettingsError(
            f"do not fit {name!r}: {strange!r} is none of them", where="shaping_options", fix=f"it {has}"
        )
    try:
        return TypeAdapter(RULES[name]).validate_python(options)  # the command line gives texts
    except ValidationError as error:
        raise SettingsError(f"do not fit {name!r}: {first_mistake(error)}", where="shaping_options") from None
