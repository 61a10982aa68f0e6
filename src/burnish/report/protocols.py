"""Protocols as a reader sees them: in one line, field by field, and in what two of them differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def protocol_differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, value in the first, value in the second) wherever two protocols differ; None stands for absent."""
    left, right = flatten(first), flatten(second)
    return [
        (name, left.get(name), right.get(name))
        for name in dict.fromkeys([*left, *right])
        if name != "hash" and left.get(name) != right.get(name)
    ]


def describe_protocol(protocol: dict[str, Any]) -> str:
    """One line: the fields that decide what a number means."""
    parts = []
    for name, form in _DESCRIBED:
        value = protocol.get(name)
        if value not in (None, "", 0, [], {}) and not isinstance(value, dict | list):
            value = base_name(value) if name == "text" else value
            parts.append(form.format(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value))
    return ", ".join(parts)


_DESCRIBED = (
    ("text", "{}"),
    ("pairs", "{}"),
    ("num_pairs", "{} pairs"),
    ("reward", "reward: {}"),
    ("tokens", "{} tokens"),
    ("num_tokens", "{} tokens"),
    ("context", "context {}"),
    ("dtype", "{}"),
    ("engine", "{}"),
    ("device", "{}"),
    ("threads", "threads: {}"),
    ("repeats", "repeats: {}"),
)


def describe_differences(first: dict[str, Any], second: dict[str, Any]) -> str:
    """ "context (512 against 1,024) and dtype (float32 against bfloat16)": the second's values against the first's."""
    return listing([f"{name} ({show(b)} against {show(a)})" for name, a, b in protocol_differences(first, second)])


def show(value: Any) -> str:
    """A protocol's or setting's value as a person reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(show(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show(entry)}" for key, entry in value.items())
    text = str(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text


def listing(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def base_name(path: str) -> str:
    """The name a person knows a checkpoint by: the last part of a path or hub id."""
    return PurePath(path.rstrip("/")).name or path
