"""Public names of a package that are imported when they are first used (PEP 562), so that importing it costs nothing.

__getattr__, __dir__ = lazy(__name__, {"Loop": ".loop", "fit": ".loop"})
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy(
    package: str, homes: Mapping[str, str], *, modules: tuple[str, ...] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: public name -> the module that has it, absolute or relative to the package.
        modules: of the package that are public themselves.
    """

    def __getattr__(name: str) -> object:
        if name in homes:
            return getattr(import_module(homes[name], package), name)
        if name in modules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *modules})

    return __getattr__, __dir__
