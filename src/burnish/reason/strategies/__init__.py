"""The table of strategies. Each is a file that tells its idea from the top; a strategy is a settings object that is
called with a conversation and a session and returns a result.

    strategy("rsa(n=8,k=4,loops=3)")       "gsa:4" is short for gsa(n=4), "steer:careful" for steer(vectors=careful)
"""

from __future__ import annotations

import re
from importlib import import_module

from pydantic import ValidationError

from burnish.core.errors import SettingsError, nearest
from burnish.core.settings import first_mistake
from burnish.reason.strategies.base import Strategy

STRATEGIES = {
    "best-of-n": "best_of_n:BestOfN",
    "budget-forcing": "budget_forcing:BudgetForcing",
    "difficulty": "difficulty:Difficulty",
    "direct": "direct:Direct",
    "gsa": "gsa:GSA",
    "population": "population:Population",
    "routed-rsa": "routed_rsa:RoutedRSA",
    "rsa": "rsa:RSA",
    "self-consistency": "self_consistency:SelfConsistency",
    "self-refine": "self_refine:SelfRefine",
    "stability": "stability:Stability",
    "steer": "steered:Steered",
    "universal-self-consistency": "universal:UniversalSelfConsistency",
}
"""Name -> module and class, imported when asked for."""

_SPEC = re.compile(r"\s*([\w-]+)\s*(?::\s*([\w.-]+)|\((.*)\))?\s*", re.DOTALL)


def strategy(spec: str) -> Strategy:
    """The strategy of a text such as `rsa(n=8,k=4,loops=3)`; several values of one setting are joined by `+`.

    Raises:
        SettingsError: no such strategy or setting, or a value that it cannot have.
    """
    found = _SPEC.fullmatch(spec)
    name = found[1] if found else spec
    if not found or name not in STRATEGIES:
        guess = nearest(name, list(STRATEGIES))
        fix = f"did you mean {guess!r}?" if guess else f"use one of {', '.join(STRATEGIES)}"
        raise SettingsError(f"there is no strategy {name!r}", fix=fix)
    if found[3] and re.search(rf"\b({'|'.join(STRATEGIES)})\s*[(:]", found[3]):
        raise SettingsError("a strategy cannot stand inside a strategy", where=spec, fix="name one strategy")
    module, _, kind = STRATEGIES[name].partition(":")
    made = getattr(import_module(f"burnish.reason.strategies.{module}"), kind)
    settings: dict[str, object] = {made.short: found[2]} if found[2] else {}
    for part in filter(None, (part.strip() for part in (found[3] or "").split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingsError(f"{part!r} is no setting", where=spec, fix="write name=value")
        settings[key.strip()] = value.strip().split("+") if "+" in value else value.strip()
    try:
        return made(**settings)
    except ValidationError as error:
        raise SettingsError(first_mistake(error), where=spec) from None
