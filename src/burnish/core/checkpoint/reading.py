"""Looking at a checkpoint before trusting it: paths and hub ids, configurations, whole safetensors files.

Weights are only ever read from safetensors; nothing is unpickled and no code that comes with a checkpoint runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")


def resolve(source: str | Path, *, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: a path as it is, a hub id through the hub's cache, downloaded if need be."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
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
    if not path.is_file():
        raise CheckpointError("has no config.json, so it is not a Hugging Face checkpoint", where=str(directory))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"is not valid JSON ({error})", where=str(path)) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError("names no model_type", where=str(path))
    return config


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each checked to be whole. Never opens any other weight format."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError):
            raise CheckpointError("is not a valid shard index", where=str(index)) from None
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"the index names {len(names)} shards, but {', '.join(missing)} is missing",
                where=str(directory),
                fix="download the checkpoint again",
            )
    elif (directory / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        unsafe = sorted(path.name for path in directory.iterdir() if path.suffix in UNSAFE_SUFFIXES)
        if unsafe:
            raise CheckpointError(
                f"holds only pickled weights ({unsafe[0]}), which can run code when opened",
                where=str(directory),
                fix="convert them to safetensors first",
            )
        raise CheckpointError("has a config.json but no weights (model.safetensors)", where=str(directory))
    for name in names:
        read_safetensors_header(directory / name)
    return [directory / name for name in names]


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """{tensor name: {dtype, shape, data_offsets}}; raises when the file is cut short or is not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 0 < length <= min(size - 8, 100_000_000):
            raise CheckpointError("is not a safetensors file, or is cut short", where=str(path))
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise CheckpointError("has a corrupt safetensors header", where=str(path)) from None
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if expected != size:
        raise CheckpointError(
            f"should have {expected:,} bytes but has {size:,}: the file is incomplete or corrupt",
            where=str(path),
            fix="download or make it again",
        )
    return header


def kind_of(config: dict[str, Any]) -> Kind:
    """What the architecture's head says a checkpoint is."""
    heads = config.get("architectures") or [""]
    return Kind.SEQUENCE_CLASSIFIER if heads[0].endswith("ForSequenceClassification") else Kind.CAUSAL_LM


def load_config(directory: Path) -> PretrainedConfig:
    """The transformers configuration, from the library's own classes only."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    raw = read_config(directory)
    if raw["model_type"] not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise CheckpointError(
                f"model_type {raw['model_type']!r} needs code that comes with the checkpoint, which burnish never runs",
                where=str(directory / "config.json"),
                fix="use a checkpoint of an architecture that is part of transformers",
            )
        raise CheckpointError(
            f"model_type {raw['model_type']!r} is not an architecture of the installed transformers",
            where=str(directory / "config.json"),
            fix="upgrade transformers, or check the name",
        )
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"is not a configuration of {raw['model_type']!r} ({str(error).splitlines()[-1].strip()})",
            where=str(directory / "config.json"),
            fix="download the checkpoint again",
        ) from None


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
