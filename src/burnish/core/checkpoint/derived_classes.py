"""Classes with a part of ours in front of transformers' own, one for every stock class, made when first asked for.

This file needs transformers alone, and lies beside the weights of checkpoints whose classes are made by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import transformers

KINDS = ("Config", "Model", "ForCausalLM")


@dataclass(frozen=True)
class ClassFamily:
    """Classes `PrefixXForCausalLM`, `PrefixXModel` and `PrefixXConfig` for those of transformers without the prefix.

    Attributes:
        module: `__name__` of the module that has them; its `__getattr__` is `find`.
        prefix: of names, such as Ladder; in lower case that of the `model_type`.
        setting: that configurations have besides, a name and a type; None by default.
        parts: {kind: class of ours in front of a model}.
    """

    module: str
    prefix: str
    setting: tuple[str, Any]
    parts: dict[str, type]
    made: dict[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        """The class of that name.

        Raises:
            AttributeError: the name is not of this family, or of no class of transformers.
        """
        stock = name.removeprefix(self.prefix)
        kind = next((kind for kind in KINDS if stock.endswith(kind)), None)
        if stock == name or kind is None:
            raise AttributeError(f"module {self.module!r} has no attribute {name!r}")
        if name not in self.made:
            plain = getattr(transformers, stock)
            self.made[name] = self._config(plain) if kind == "Config" else self._model(plain, kind)
        return self.made[name]

    def _config(self, plain: Any) -> Any:
        setting, its_type = self.setting
        own = {
            "__module__": self.module,
            "__annotations__": {setting: its_type | None},
            "model_type": f"{self.prefix.lower()}_{plain.model_type}",
            setting: None,
        }
        return type(f"{self.prefix}{plain.__name__}", (plain,), own)

    def _model(self, plain: Any, kind: str) -> Any:
        config_class = self.find(f"{self.prefix}{plain.config_class.__name__}")
        own = {"__module__": self.module, "config_class": config_class}
        return type(f"{self.prefix}{plain.__name__}", (self.parts[kind], plain), own)


@cache
def in_front(part: type, standard: type) -> type:
    """The class of a module with a part of ours in front; `standard` of it is the class without."""
    own = {"__module__": part.__module__, "standard": standard}
    return type(f"{part.__name__}Of{standard.__name__}", (part, standard), own)


def standard_of(module: Any) -> Any:
    """The class that a module has without a part of ours."""
    return getattr(type(module), "standard", type(module))
