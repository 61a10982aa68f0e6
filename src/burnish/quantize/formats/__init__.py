"""The forms of compressed-tensors that are written, a file each; its `SCHEME` can be asked for by name."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from burnish.quantize.scheme import Scheme

_FOUND: list[type[Scheme]] = [
    import_module(f"{__name__}.{file.name}").SCHEME for file in pkgutil.iter_modules(__path__)
]

FORMATS: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in _FOUND}
"""By the name that settings use."""
