"""What the configuration of a checkpoint may choose, and what it may not.

config.json says what a network looks like. Through transformers it can say more: whose attention kernel is fetched and
run, which file the weights are read from, what a method of the configuration's class is. What may be chosen is a list
of ours; the rest is dropped, and what would have had an effect is said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint.own_classes import auto_map
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHOICES = {
    "_attn_implementation": ("eager", "sdpa"),
    "attn_implementation": ("eager", "sdpa"),
    "_experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict": (True,),
    "torchscript": (False,),
}
"""Settings of how a network is run, with the values that may be chosen; none is always allowed."""

NEVER = (
    "auto_map",
    "configuration_files",
    "distributed_config",
    "fusion_config",
    "transformers_weights",
    "pruned_heads",
)
"""They choose code, or files to read."""

SILENT = ("_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset", "transformers_version")
"""Traces of the program that wrote the file; published checkpoints are full of them."""

PRIVATE = ("_sliding_window_pattern",)
"""Private names that describe the network."""

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")

COUNTED = re.compile(r"(num|n)_(.*_)?(layers?|experts|experts_per_tok)")
"""Keys that count."""

MOST = {"layer": 2_000, "expert": 100_000, "label": 1_000_000, "position": 1 << 40, "": 1 << 48}
"""Largest number under a key that has this word in its name; lists and modules of that many are made."""


def allowed(
    raw: dict[str, Any], config_class: type[PretrainedConfig], *, where: str
) -> tuple[dict[str, Any], list[str]]:
    """The configuration without what it may not choose, and sentences about what was dropped.

    Args:
        raw: of config.json; stays as it is.
        config_class: of transformers; a key that is the name of one of its methods would replace it.
        where: the file, for messages.

    Raises:
        CheckpointError: a dtype that is none, or a number that no network has.
    """
    kept: dict[str, Any] = {}
    notes: list[str] = []
    fields = getattr(config_class, "__dataclass_fields__", {})
    for key, value in raw.items():
        if key in SILENT or (key == "auto_map" and value == auto_map(config_class.model_type)):
            continue
        if key in CHOICES:
            if value is None or any(value is choice or value == choice for choice in CHOICES[key]):
                kept[key] = value
            else:
                known = " or ".join(str(choice) for choice in CHOICES[key])
                notes.append(f"{key} is {_short(value)} in {where}, which is left out: it may be {known}")
        elif key in NEVER or (key.startswith("_") and key not in fields and key not in PRIVATE):
            notes.append(f"{key} in {where} is left out: a checkpoint may not choose it")
        elif key.startswith("base_model_") or (key not in fields and callable(getattr(config_class, key, None))):
            notes.append(f"{key} in {where} is left out: it is no setting of a network")
        else:
            _check(key, value, where)
            part = getattr(config_class, "sub_configs", {}).get(key)
            if isinstance(value, dict) and part is not None:
                value, more = allowed(value, part, where=f"{where}, {key}")
                notes += more
            kept[key] = value
    return kept, notes


def _check(key: str, value: Any, where: str) -> None:
    if key in ("dtype", "torch_dtype") and value is not None and value not in DTYPES:
        raise CheckpointError(
            f"{key} is {_short(value)}, which is no dtype of weights", where=where, fix=f"use {', '.join(DTYPES[1:4])}"
        )
    if COUNTED.fullmatch(key) and value is not None and (type(value) is not int or value < 0):
        raise CheckpointError(f"{key} is {_short(value)}, which is no number of layers or experts", where=where)
    if isinstance(value, int) and not isinstance(value, bool):
        most = next(number for word, number in MOST.items() if word in key)
        if abs(value) > most:
            raise CheckpointError(f"{key} is {value:,}, but no network has more than {most:,}", where=where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
