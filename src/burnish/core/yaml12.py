"""YAML by the rules of version 1.2, as most tools of today read it.

PyYAML follows version 1.1, where `no` is false, `1:30` is ninety, `040` is thirty-two, `2024-05-01` is a date and
`1e-4` is a text. Here a plain word is null, true or false, a number or a text by the core schema of YAML 1.2, and
nothing else; there are no merge keys and no tags but those of the schema.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

MAX_DIGITS = 20

_RESOLVED = {
    "null": (r"null|Null|NULL|~|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the core schema of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (`<<`) are of version 1.1; here that is a key like others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A key that is written twice is refused, where PyYAML takes the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


for _tag, (_pattern, _first) in _RESOLVED.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > MAX_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text):,} digits", node.start_mark)
    if re.match(r"[-+]?0[0-9]", text):
        raise yaml.constructor.ConstructorError(
            None, None, f"{text} is {int(text)} to some and octal to others: write it without the zero", node.start_mark
        )
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _number(loader: Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _plainly(loader: Loader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(
        None, None, f"the tag {node.tag!r}, which has no meaning in a recipe", node.start_mark
    )


Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag in {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "str", "seq", "map")}
}
Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _number)
Loader.add_constructor(None, _plainly)  # pyright: ignore[reportArgumentType]  (every other tag)
