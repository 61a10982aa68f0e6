"""Looking at a checkpoint before trusting it: paths and hub ids, configurations, whole safetensors files.

Weights are only ever read from safetensors; nothing is unpickled and no code that comes with a checkpoint runs.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from burnish.core.checkpoint.choices import allowed
from burnish.core.checkpoint.own_classes import is_own, network_class, own_setting
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind, Weights
from burnish.core.outside import (
    answered_for,
    check_links,
    inside,
    kind_of_json,
    local_path,
    parse_json,
    read_object,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file; the package reads no larger ones."""

UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def resolve(source: str | Path, *, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: a path as it is, a hub id through the hub's cache, downloaded if need be."""
    name = str(source)
    if not name.strip():
        raise CheckpointError("an empty name is no checkpoint", fix="name a directory or a hub id")
    path = local_path(name)
    if path is not None and path.exists():
        return path
    looks_like_hub_id = name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name
    if not looks_like_hub_id:
        raise CheckpointError("no such checkpoint directory", where=name)
    return download(name, revision=revision)


def download(hub_id: str, *, revision: str | None = None) -> Path:
    """The snapshot of a hub repository: configuration, safetensors and tokenizer only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise CheckpointError("is neither a directory nor a hub id (owner/name)", where=hub_id) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            "is not a local directory, is not in the hub's cache, and the hub cannot be reached",
            where=hub_id,
            fix="check the path, or the network",
        ) from None
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"the hub refused it ({error.__class__.__name__})",
            where=hub_id,
            fix="check the name, or log in with `hf auth login`",
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"is not a local directory, and could not be fetched from the hub ({error.__class__.__name__})",
            where=hub_id,
            fix="check the path, or the network",
        ) from None


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as a dict, or a `CheckpointError` that says what is missing."""
    path = directory / "config.json"
    if not directory.exists():
        raise CheckpointError("no such checkpoint directory", where=str(directory))
    if not directory.is_dir():
        raise CheckpointError("is a file, but a checkpoint is a directory", where=str(directory))
    check_links(directory)
    if not path.is_file():
        raise CheckpointError("has no config.json, so it is not a Hugging Face checkpoint", where=str(directory))
    config = read_object(path)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise CheckpointError("names no model_type", where=str(path))
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError("architectures is not a list of class names", where=str(path))
    if not isinstance(config.get("quantization_config") or {}, dict):
        raise CheckpointError("quantization_config is not an object", where=str(path))
    return config


def weights_of(config: dict[str, Any]) -> Weights:
    """How a raw configuration says that the weights lie on disk."""
    return Weights.PACKED if config.get("quantization_config") else Weights.DENSE


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each checked to be whole. Never opens any other weight format."""
    index = directory / "model.safetensors.index.json"
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            "holds an adapter (adapter_config.json) beside the model, and stock loading would add it",
            where=str(directory),
            fix="merge it first, or keep it in a directory of its own",
        )
    whole = directory / "model.safetensors"
    if index.is_file():
        files = _files_of_index(directory, index)
        if whole.is_file() and files != [whole]:
            raise CheckpointError(
                "holds model.safetensors and an index of other files, of which stock loading reads only the first",
                where=str(directory),
                fix="remove the one that is not the model",
            )
        return files
    if whole.is_file():
        read_safetensors_header(whole)
        return [whole]
    unsafe = sorted(path.name for path in directory.iterdir() if path.suffix in UNSAFE_SUFFIXES)
    if unsafe:
        raise CheckpointError(
            f"holds only pickled weights ({unsafe[0]}), which can run code when opened",
            where=str(directory),
            fix="convert them to safetensors first",
        )
    raise CheckpointError("has a config.json but no weights (model.safetensors)", where=str(directory))


def _files_of_index(directory: Path, index: Path) -> list[Path]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("is not a valid shard index: it has no weight_map", where=str(index))
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(f"says that {tensor} is in {name!r}, which is no safetensors file", where=str(index))
        tensors.setdefault(name, set()).add(tensor)
    files = {name: inside(directory, name, where=str(index)) for name in sorted(tensors)}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"the index names {len(files)} shards, but {', '.join(missing[:3])} is missing",
            where=str(directory),
            fix="download the checkpoint again",
        )
    for name, path in files.items():
        absent = tensors[name] - read_safetensors_header(path).keys()
        if absent:
            raise CheckpointError(
                f"does not hold {min(absent)}, which the index says is in it",
                where=str(path),
                fix="download the checkpoint again",
            )
    return list(files.values())


BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Of one number of each dtype that a safetensors file may name."""


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """{tensor name: {dtype, shape, data_offsets}}.

    Raises:
        CheckpointError: not a safetensors file, cut short, or tensors that overlap, leave gaps or have other sizes than
            their shapes say.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError("is not a safetensors file, or is cut short", where=str(path))
        content = file.read(length)
    where = f"{path}, header"
    header = parse_json(content, where=where)
    if not isinstance(header, dict):
        raise CheckpointError(f"is {kind_of_json(header)}, not an object of tensors", where=where)
    facts = header.pop("__metadata__", None) or {}
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise CheckpointError("has __metadata__ that is not an object of strings", where=where)
    places = sorted(_place(name, entry, where) for name, entry in header.items())
    end = 0
    for begin, stop, name in places:
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "does not begin where the one before it ends"
            raise CheckpointError(f"{name} {what}", where=where, fix="download or make it again")
        end = stop
    expected = 8 + length + end
    if expected != size:
        raise CheckpointError(
            f"should have {expected:,} bytes but has {size:,}: the file is incomplete or corrupt",
            where=str(path),
            fix="download or make it again",
        )
    return header


def _place(name: str, entry: Any, where: str) -> tuple[int, int, str]:
    """First and last + 1 byte of a tensor, checked against its dtype and shape."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in BITS:
        raise CheckpointError(f"{name} has no dtype that safetensors knows", where=where)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"the shape or data_offsets of {name} are not lists of sizes", where=where)
    num_bytes = math.prod(shape) * BITS[entry["dtype"]] // 8
    if offsets[1] - offsets[0] != num_bytes:
        raise CheckpointError(
            f"{name} has {offsets[1] - offsets[0]:,} bytes, but shape {shape} of {entry['dtype']} has {num_bytes:,}",
            where=where,
        )
    return offsets[0], offsets[1], name


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def kind_of(config: dict[str, Any]) -> Kind:
    """What the architecture's head and type say a checkpoint is."""
    heads = config.get("architectures") or [""]
    if heads[0].endswith("ForSequenceClassification"):
        return Kind.SEQUENCE_CLASSIFIER
    return Kind.CUSTOM_CAUSAL_LM if is_own(config.get("model_type", "")) else Kind.CAUSAL_LM


def load_config(directory: Path) -> PretrainedConfig:
    """The transformers configuration, from the library's own classes only; see `choices` for what it may choose."""
    config = config_from(read_config(directory), where=str(directory / "config.json"))
    config._name_or_path = str(directory)
    return config


def config_from(raw: dict[str, Any], *, where: str) -> PretrainedConfig:
    """The transformers configuration of the content of a config.json.

    Raises:
        CheckpointError: an architecture that transformers does not have, or settings that it refuses.
    """
    config_class = config_class_of(raw, where=where)
    if (setting := own_setting(raw["model_type"])) is not None and raw.get(setting) is None:
        raise CheckpointError(
            f"has no {setting}, without which it would be computed as a plain model",
            where=where,
            fix="make the checkpoint again",
        )
    kept, _ = allowed(raw, config_class, where=where)
    what = f"is not a configuration of {raw['model_type']!r}"
    with quiet_transformers(), answered_for(what, where=where, fix="download the checkpoint again"):
        return config_class.from_dict(with_numbers(kept))


def with_numbers(value: Any) -> Any:
    """A value of a config.json with the numbers that JSON has no words for: `{"__float__": "Infinity"}` is one."""
    if isinstance(value, list):
        return [with_numbers(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(value["__float__"])
    return {name: with_numbers(one) for name, one in value.items()}


def remarks(directory: Path) -> list[str]:
    """Sentences about what a checkpoint's config.json asks for and does not get."""
    path = directory / "config.json"
    raw = read_config(directory)
    return allowed(raw, config_class_of(raw, where=str(path)), where=str(path))[1]


def config_class_of(raw: dict[str, Any], *, where: str) -> type[PretrainedConfig]:
    """The class of transformers that a raw configuration is of.

    Raises:
        CheckpointError: transformers has no such architecture.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = raw["model_type"]
    if model_type == "mistral" and "layer_types" in raw:
        model_type = "ministral"  # as stock loading reads it
    if (own := network_class(model_type)) is not None:
        return own.config_class
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    if "auto_map" in raw:
        raise CheckpointError(
            f"model_type {model_type!r} needs code that comes with the checkpoint, which burnish never runs",
            where=where,
            fix="use a checkpoint of an architecture that is part of transformers",
        )
    raise CheckpointError(
        f"model_type {model_type!r} is not an architecture of the installed transformers",
        where=where,
        fix="upgrade transformers, or check the name",
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the bars and advice of transformers and compressed-tensors while burnish shows its own."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # Some bars write to standard error whatever the libraries are told; errors are raised all the same.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
