"""The network of a configuration, before any weight is loaded."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from burnish.core.checkpoint.reading import quiet_transformers, with_numbers
from burnish.core.errors import CheckpointError, located
from burnish.core.kinds import STOCK_LOADER, Kind
from burnish.core.outside import answered_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def without_memory(config: PretrainedConfig, kind: Kind = Kind.CAUSAL_LM) -> PreTrainedModel:
    """The network of a configuration on the meta device: every name and shape, no weight.

    It is shared between those who ask for the same configuration, since building a large one takes a while: look at
    it, and change nothing.
    """
    try:
        return _without_memory(type(config), config.to_json_string(use_diff=False), kind)
    except CheckpointError as error:
        raise located(error, str(config._name_or_path or config.model_type)) from None


@lru_cache(maxsize=8)
def _without_memory(config_class: type[PretrainedConfig], content: str, kind: Kind) -> PreTrainedModel:
    import torch
    import transformers

    auto = getattr(transformers, STOCK_LOADER[kind].rsplit(".", 1)[1])
    values = json.loads(content)
    what = f"{auto.__name__} cannot build the network of this configuration"
    try:
        with torch.device("meta"), quiet_transformers(), answered_for(what, where="config.json"):
            return auto.from_config(config_class.from_dict(with_numbers(values)), dtype=torch.float32)
    except CheckpointError as error:
        cause = error.__cause__
        missing = cause.args[0] if isinstance(cause, KeyError) and cause.args else None
        if not (keys := _keys_of(values, missing)):
            raise
        raise CheckpointError(f"{' and '.join(keys)} is {missing!r}: {what}", where="config.json") from cause


def _keys_of(values: object, wanted: object) -> list[str]:
    """Keys of JSON objects that hold a text, at any depth: names of tables of transformers that lack an entry."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = [key for key, value in inner if isinstance(key, str) and isinstance(value, str) and value == wanted]
    return list(dict.fromkeys([*found, *(key for _, value in inner for key in _keys_of(value, wanted))]))
