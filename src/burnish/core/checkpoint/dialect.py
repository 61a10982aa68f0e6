"""config.json of a new checkpoint in the words of the one it is made of.

transformers 5 reads the names of version 4 (`rope_theta`, `torch_dtype`, `num_experts`) and writes only its own
(`rope_parameters`, `dtype`, `num_local_experts`), with every default spelled out. A reader of the older names would
then take its own defaults without a word: a rope base of 10,000 for one of 1,000,000. So the new file is the old one,
with what has changed, under every name that the old one had for it, and the new names beside the old.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint.choices import SILENT, allowed
from burnish.core.checkpoint.reading import config_class_of, read_config, with_numbers
from burnish.core.errors import CheckpointError
from burnish.core.outside import answered_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OURS = ("architectures", "auto_map", "dtype", "quantization_config", "transformers_version")
"""What the writer says, whatever the file said before."""


ROPE = {"rope_theta", "rope_scaling"}
"""What `rope_parameters` was called."""


def in_words_of(origin: Path, new: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration `new` as the file in `origin` would put it, or None where the two are of different networks.

    Args:
        origin: the checkpoint that the new one is made of.
        new: what transformers writes; of the whole, or of the text part of what `origin` describes.
    """
    raw = read_config(origin)
    config_class = config_class_of(raw, where=str(origin))
    raw = _kept(raw, config_class, origin)
    if new.get("model_type") == config_class.model_type:
        return _merged(raw, new, config_class, origin)
    part = next(
        (key for key, of in config_class.sub_configs.items() if of.model_type == new.get("model_type") and key in raw),
        None,
    )
    if part is None:
        return None
    inner = {key: value for key, value in new.items() if key not in OURS}
    if {"dtype", "torch_dtype"} & raw[part].keys():
        inner["dtype"] = new["dtype"]
    whole = raw | {part: _merged(raw[part], inner, config_class.sub_configs[part], origin)}
    return _ours(whole, {key: value for key, value in new.items() if key in OURS and key != "architectures"})


def continues(origin: Path, model_type: str) -> bool:
    """Whether a network of this type is what a checkpoint describes, or its text part."""
    config_class = config_class_of(read_config(origin), where=str(origin))
    return model_type in (config_class.model_type, *(of.model_type for of in config_class.sub_configs.values()))


def _merged(raw: dict[str, Any], new: dict[str, Any], of: type[PretrainedConfig], origin: Path) -> dict[str, Any]:
    """The raw configuration with what `new` says otherwise."""
    before = _written(raw, of, origin)
    names: dict[str, list[str]] = {}
    for other, name in of.attribute_map.items():
        names.setdefault(name, []).append(other)
    result = _kept(raw, of, origin)
    for key, value in new.items():
        if key in OURS or key.startswith("_"):
            continue
        part = of.sub_configs.get(key)
        known_as = [name for name in (key, *names.get(key, ())) if name in raw]
        if part is not None and isinstance(raw.get(key), dict) and isinstance(value, dict):
            result[key] = _merged(raw[key], value, part, origin)
        elif value != before.get(key):
            result |= dict.fromkeys({key, *known_as}, value)
            if key == "rope_parameters":
                result |= _older_rope(raw, value)
        elif key not in raw and (known_as or (key == "rope_parameters" and ROPE & raw.keys())):
            result[key] = value  # the new name beside the old
    return _ours(result, new)


def _ours(result: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    said = {key: new[key] for key in OURS if key in new}
    if "quantization_config" not in said:
        result.pop("quantization_config", None)
    if "transformers_version" not in result:
        said.pop("transformers_version", None)
    if "torch_dtype" in result and "dtype" in said:
        said["torch_dtype"] = said["dtype"]
    return result | said


def _older_rope(raw: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of changed parameters, where the file had them."""
    found: dict[str, Any] = {}
    if "rope_theta" in raw and "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    if "rope_scaling" in raw:
        rest = {key: value for key, value in rope.items() if key != "rope_theta"}
        found["rope_scaling"] = None if rest.get("rope_type", "default") == "default" else rest
    return found


def _kept(raw: dict[str, Any], of: type[PretrainedConfig], origin: Path) -> dict[str, Any]:
    """What the file may choose, and who wrote it."""
    version = raw.get("transformers_version")
    said = {"transformers_version": version} if isinstance(version, str) else {}
    return allowed(raw, of, where=str(origin))[0] | said


def _written(raw: dict[str, Any], of: type[PretrainedConfig], origin: Path) -> dict[str, Any]:
    """What transformers writes for a raw configuration."""
    kept = _kept(raw, of, origin)
    with answered_for(f"is not a configuration of {of.model_type!r}", where=str(origin)):
        config = of.from_dict(with_numbers(copy.deepcopy(kept)))
    return json.loads(json.dumps(config.to_dict(), default=str))


def check_same(written: dict[str, Any], new: dict[str, Any], where: str) -> None:
    """Raises where a file would not be read as the configuration that it was made of.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    of = config_class_of(written, where=where)
    read = _written(written, of, Path(where))
    part = next((key for key, sub in of.sub_configs.items() if sub.model_type == new.get("model_type")), None)
    if of.model_type != new.get("model_type") and part is not None:
        read = read[part]
    for key, value in new.items():
        if key not in OURS and not key.startswith("_") and key not in SILENT and read.get(key) != value:
            raise CheckpointError(f"{key} would be read as {read.get(key)!r}, but is {value!r}", where=where)
