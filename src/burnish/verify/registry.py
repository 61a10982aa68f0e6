"""The table of verifiers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from burnish.core.errors import SettingsError, nearest
from burnish.verify.adapter import Verifier

VERIFIERS = {
    "chain": "chains:ChainAnswer",
    "code": "programs:Code",
    "exact": "answers:Exact",
    "last-integer": "answers:LastInteger",
    "math": "mathematics:Mathematics",
    "number": "answers:Number",
    "reasoning-gym": "gym:ReasoningGym",
    "ruler": "ruler:Ruler",
    "ruler-qa": "ruler:RulerQuestions",
}
"""Name -> module and class, imported when asked for."""


def advice_for(name: str) -> str:
    """What to write in place of a name that is no verifier's."""
    guess = nearest(name, list(VERIFIERS))
    return f"did you mean {guess!r}?" if guess else f"use one of {', '.join(VERIFIERS)}"


def known(name: str) -> str:
    """A verifier's name as it stands in settings.

    Raises:
        ValueError: no such verifier; whoever reads the settings says where.
    """
    if name not in VERIFIERS:
        raise ValueError(f"there is no verifier {name!r}; {advice_for(name)}")
    return name


def verifier(name: str, **options: Any) -> Verifier:
    """The verifier of a name.

    Args:
        name: a key of `VERIFIERS`.
        **options: of its class.

    Raises:
        SettingsError: no such verifier.
        MissingExtraError: a package that it needs.
    """
    if name not in VERIFIERS:
        raise SettingsError(f"there is no verifier {name!r}", fix=advice_for(name))
    module, _, kind = VERIFIERS[name].partition(":")
    return getattr(import_module(f"burnish.verify.{module}"), kind)(**options)
