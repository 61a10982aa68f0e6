"""The rounding rules, a file each; its `RULE` can be asked for by name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from burnish.quantize.rule import RoundingRule

_FOUND: list[RoundingRule] = [import_module(f"{__name__}.{file.name}").RULE for file in pkgutil.iter_modules(__path__)]

RULES: dict[str, RoundingRule] = {rule.name: rule for rule in _FOUND}
"""By the name that settings use."""
