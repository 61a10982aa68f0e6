"""Checkpoints: a Hugging Face directory plus `burnish.json`, its lineage.

A checkpoint holds config.json, safetensors, tokenizer files, a model card and the lineage. Weights are only ever read
from safetensors; nothing is unpickled and no remote code runs. A save goes to a temporary sibling, is fsynced and
renamed, so a killed process never leaves a directory that looks finished.

    model = load("path/or/hub-id")       # nothing is read until .module or .tokenizer is asked for
    model.save("out")
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from burnish.core.errors import CheckpointError, OutputError
from burnish.core.stage import STOCK_LOADER, Kind, Plan, Weights

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LINEAGE_FILE = "burnish.json"
LINEAGE_FORMAT = 1
CARD_FILE = "README.md"
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
MAX_SHARD_BYTES = 5_000_000_000


@dataclass
class Lineage:
    """Where a checkpoint comes from: enough to say what it is, to skip remaking it, and to make it again.

    Attributes:
        kind, weights: what it is and how its weights lie on disk.
        stage, stage_version, settings, seed: what made it ("import" for a checkpoint that burnish did not make).
        key: the skip key of the node that made it.
        parents: {role: content hash}; `model` is the input, other roles are references such as `teacher`.
        base_model: the name a person knows the first ancestor by.
        licence: of the first ancestor, where its model card says so.
        files: {file name: sha256}, everything but this file and the model card.
        versions: of burnish and of the libraries that decide numbers.
        measurements: {metric: {value, low, high, unit, protocol}} once measured.
    """

    kind: Kind = Kind.CAUSAL_LM
    weights: Weights = Weights.DENSE
    stage: str = "import"
    stage_version: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    key: str = ""
    parents: dict[str, str] = field(default_factory=dict)
    base_model: str = ""
    licence: str = ""
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    measurements: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """The content hash of the checkpoint: a digest over the digests of its files."""
        return content_hash(self.files)

    def write(self, directory: Path) -> None:
        write_atomically(directory / LINEAGE_FILE, json.dumps({"format": LINEAGE_FORMAT} | asdict(self), indent=2))

    @classmethod
    def read(cls, directory: Path) -> Lineage | None:
        """The lineage of a checkpoint that burnish made, or None for any other directory."""
        path = directory / LINEAGE_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            written_by = content.pop("format")
            if written_by > LINEAGE_FORMAT:
                raise CheckpointError(
                    f"written by a newer burnish (lineage format {written_by}, this one reads up to {LINEAGE_FORMAT})",
                    where=str(path),
                    fix="upgrade burnish",
                )
            return cls(**content | {"kind": Kind(content["kind"]), "weights": Weights(content["weights"])})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the lineage file is damaged ({error})",
                where=str(path),
                fix="delete this checkpoint and make it again",
            ) from None


def content_hash(files: dict[str, str]) -> str:
    """sha256 over sorted (file name, sha256 of the file)."""
    digest = hashlib.sha256()
    for name, file_hash in sorted(files.items()):
        digest.update(f"{name}\0{file_hash}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_files(directory: Path) -> list[Path]:
    """The files that decide what a checkpoint computes: everything but lineage, model card and hidden files."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and path.name not in (LINEAGE_FILE, CARD_FILE) and not path.name.startswith(".")
    )


def hash_directory(directory: Path) -> dict[str, str]:
    """{file name: sha256} of a checkpoint, read from the files themselves."""
    return {path.name: hash_file(path) for path in content_files(directory)}


# -- looking at a directory before trusting it -----------------------------------------------------------------------


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


# -- a model ---------------------------------------------------------------------------------------------------------


def pick_device(device: str) -> str:
    """ "auto" becomes "cuda" where there is one; anything else is checked and returned."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(f"device {device!r} was asked for, but torch sees no GPU", fix="use --device cpu")
    return device


def compute_dtype(device: str) -> torch.dtype:
    """The fastest dtype that is safe for statistics and evaluation: bfloat16 on GPUs, float32 on CPUs.

    CPUs without bfloat16 instructions are many times slower in bfloat16, and float32 is the more exact reference.
    """
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32


class Model:
    """A checkpoint: its module and tokenizer are read when first asked for.

    Attributes:
        path: the directory it came from, None for a model that exists in memory only.
        lineage: where it comes from.
        dtype, device: what `module` is loaded as; dtype None keeps the dtype on disk.
        packed: {name on disk of a weight: {name on disk: tensor}}: what is written in place of that weight.
        quantization_config: goes into config.json together with `packed`.
        details: facts that a stage found about its result, for the ledger.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        lineage: Lineage | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        packed: dict[str, dict[str, torch.Tensor]] | None = None,
        quantization_config: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.dtype, self.device = path, dtype, device
        self.lineage = lineage or Lineage()
        self.packed = packed or {}
        self.quantization_config = quantization_config
        if module is not None:
            self.module = module
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"Model({self.lineage.kind}, {self.lineage.weights}, from {self.path or 'memory'})"

    @cached_property
    def config(self) -> PretrainedConfig:
        if "module" in self.__dict__:
            return self.module.config
        return load_config(self._directory())

    @cached_property
    def module(self) -> PreTrainedModel:
        """The network, in evaluation mode. A packed checkpoint is decompressed to dense weights."""
        import transformers

        directory = self._directory()
        weight_files(directory)
        config = self.config
        auto = getattr(transformers, STOCK_LOADER[self.lineage.kind].rsplit(".", 1)[1])
        extra: dict[str, Any] = {}
        if self.lineage.weights is Weights.PACKED:
            from transformers import CompressedTensorsConfig

            extra["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        with quiet_transformers():
            module, info = auto.from_pretrained(
                directory,
                config=config,
                dtype=self.dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                local_files_only=True,
                **extra,
            )
        if info["mismatched_keys"]:
            name, on_disk, expected = sorted(info["mismatched_keys"])[0]
            raise CheckpointError(
                f"{name} has the shape {tuple(on_disk)}, but config.json asks for {tuple(expected)}",
                where=str(directory),
                fix="config.json and weights are of two models: download the checkpoint again",
            )
        if info["missing_keys"]:
            absent = sorted(info["missing_keys"])
            raise CheckpointError(f"{len(absent)} weights are missing, the first is {absent[0]}", where=str(directory))
        if self.dtype is not None and self.lineage.weights is Weights.PACKED:
            cast(module, self.dtype)
        return move(module, self.device).eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        directory = self._directory()
        names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
        if not any((directory / name).is_file() for name in names):
            raise CheckpointError(
                "has no tokenizer (tokenizer.json)", where=str(directory), fix="copy it from the base model"
            )
        try:
            return AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"the tokenizer cannot be read ({error})", where=str(directory)) from None

    @property
    def has_tokenizer(self) -> bool:
        if "tokenizer" in self.__dict__:
            return True
        return self.path is not None and any(
            (self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
        )

    def _directory(self) -> Path:
        if self.path is None:
            raise CheckpointError(
                "this model exists in memory only and was made without that part", fix="save it first"
            )
        return self.path

    @property
    def name(self) -> str:
        """What a person calls it: the base model's name, or the directory's."""
        return self.lineage.base_model or (self.path.name if self.path else self.config.model_type)

    @property
    def hash(self) -> str:
        """The content hash; for a foreign directory its files are read once."""
        if not self.lineage.files and self.path is not None:
            self.lineage.files = hash_directory(self.path)
        return self.lineage.hash

    def plan(self) -> Plan:
        """What is known from the configuration and the file headers."""
        if self.path is not None:
            return plan_checkpoint(self.path)
        total = sum(parameter.numel() for parameter in self.module.parameters())
        active = total - _idle_expert_parameters(self.config, dict(_module_shapes(self.module)))
        num_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())
        return Plan(self.config, self.lineage.kind, self.lineage.weights, total, active, num_bytes)

    def derive(self, **changes: Any) -> Model:
        """A new in-memory model that keeps this one's tokenizer and lineage unless they are given."""
        tokenizer = self.tokenizer if self.has_tokenizer else None
        base = Lineage(
            kind=self.lineage.kind,
            weights=self.lineage.weights,
            base_model=self.name,
            licence=self.lineage.licence,
        )
        return Model(**{"tokenizer": tokenizer, "lineage": base, "dtype": self.dtype, "device": self.device} | changes)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the checkpoint atomically and returns its directory.

        Raises:
            OutputError: the directory exists and burnish did not make it, or it did and `overwrite` is not given; or
                there is no room, or no permission.
        """
        target = Path(directory)
        check_target(target, overwrite=overwrite)
        staging = staging_directory(target)
        try:
            self._write(staging)
            publish(staging, target)
        except (OSError, SafetensorError) as error:
            if isinstance(error, SafetensorError) and "os error" not in str(error):
                raise
            cause = error.strerror if isinstance(error, OSError) else str(error).split("I/O error: ")[-1]
            raise OutputError(
                f"could not be written ({cause or error})",
                where=str(target),
                fix="free some space or choose another place; nothing was left behind",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self.path = target
        return target

    def _write(self, directory: Path) -> None:
        module = self._write_weights(directory)
        if module.can_generate():
            module.generation_config.save_pretrained(directory)
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(directory)
        self.lineage.files = hash_directory(directory)
        self.lineage.versions = library_versions()
        self.lineage.weights = Weights.DENSE if self.quantization_config is None else Weights.PACKED
        self.lineage.write(directory)
        (directory / CARD_FILE).write_text(model_card(self.lineage))

    def _write_weights(self, directory: Path) -> PreTrainedModel:
        """Writes the tensors and config.json; returns the network, or one of its class, for what else is saved."""
        from safetensors.torch import save_file

        state, config = self.tensors_on_disk()
        shards = shards_of(state)
        for name, tensors in shards.items():
            save_file(tensors, directory / name, metadata={"format": "pt"})
        write_index(directory, shards)
        write_config(directory, config)
        return self.module

    def tensors_on_disk(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and configuration as they are written, in the names of the published checkpoints."""
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        module = self.module
        state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        for name in module._keys_to_ignore_on_save or ():
            state.pop(name, None)
        state = remove_tied_weights_from_state_dict(state, module)
        state = revert_weight_conversion(module, state)
        for name, tensors in self.packed.items():
            if name not in state:
                raise CheckpointError(f"packed weight {name} is not a weight of this model")
            del state[name]
            state |= {key: tensor.detach().cpu() for key, tensor in tensors.items()}
        return {name: tensor.contiguous() for name, tensor in sorted(state.items())}, self.config_on_disk(module)

    def config_on_disk(self, module: PreTrainedModel) -> dict[str, Any]:
        """config.json of a checkpoint whose network is `module`, whatever its weights."""
        config = module.config.to_dict()
        for private in ("quantization_config", "_name_or_path", "_attn_implementation", "auto_map"):
            config.pop(private, None)
        config["architectures"] = [type(module).__name__]
        config["dtype"] = str(module.dtype).removeprefix("torch.")
        if self.quantization_config is not None:
            config["quantization_config"] = self.quantization_config
        return json.loads(json.dumps(config, default=str))


def cast(module: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Changes the dtype of the parameters, in place, and of nothing else.

    `module.to(dtype)` would also round buffers that stock loading keeps in float32, such as rotary frequencies, and so
    change what the model computes.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return module


def move(module: PreTrainedModel, device: str) -> PreTrainedModel:
    """Puts a module on a device, in place; transformers' own `to` refuses what it calls quantized models."""
    import torch

    torch.nn.Module.to(module, torch.device(device))
    return module


def load(
    source: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu", revision: str | None = None
) -> Model:
    """Opens a checkpoint directory or hub id.

    Args:
        source: a directory or a hub id.
        dtype: what to load weights as; None keeps the dtype on disk.
        device: "cpu", "cuda" ...; "auto" picks a GPU where there is one.
        revision: of a hub repository.

    Raises:
        CheckpointError: missing, incomplete or corrupt files; pickled weights; a configuration that needs remote code.
    """
    directory = resolve(source, revision=revision)
    config = read_config(directory)
    weight_files(directory)
    lineage = Lineage.read(directory)
    if lineage is None:
        lineage = Lineage(
            kind=kind_of(config),
            weights=Weights.PACKED if "quantization_config" in config else Weights.DENSE,
            base_model=str(source) if not Path(source).exists() else directory.name,
        )
    load_config(directory)
    return Model(path=directory, lineage=lineage, dtype=dtype, device=pick_device(device))


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


# -- sizes from headers ----------------------------------------------------------------------------------------------


def plan_checkpoint(directory: Path) -> Plan:
    """Sizes of a checkpoint from its configuration and file headers; no weight is read."""
    raw = read_config(directory)
    lineage = Lineage.read(directory)
    weights = Weights.PACKED if "quantization_config" in raw else Weights.DENSE
    shapes: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for path in weight_files(directory):
        num_bytes += path.stat().st_size
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_safetensors_header(path).items()}
    config = load_config(directory)
    if weights is Weights.PACKED:
        sizes = _meta_shapes(config, lineage.kind if lineage else kind_of(raw))
    else:
        sizes = shapes
    total = sum(_numel(shape) for shape in sizes.values())
    active = total - _idle_expert_parameters(config, sizes)
    return Plan(config, lineage.kind if lineage else kind_of(raw), weights, total, active, num_bytes)


def plan_config(config: PretrainedConfig, *, kind: Kind = Kind.CAUSAL_LM, bytes_per_parameter: int = 2) -> Plan:
    """Sizes of a dense model from its configuration alone, on the meta device."""
    shapes = _meta_shapes(config, kind)
    total = sum(_numel(shape) for shape in shapes.values())
    return Plan(
        config, kind, Weights.DENSE, total, total - _idle_expert_parameters(config, shapes), total * bytes_per_parameter
    )


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _meta_shapes(config: PretrainedConfig, kind: Kind) -> dict[str, tuple[int, ...]]:
    import torch
    import transformers

    auto = getattr(transformers, STOCK_LOADER[kind].rsplit(".", 1)[1])
    with torch.device("meta"), quiet_transformers():
        module = auto.from_config(config)
    return dict(_module_shapes(module))


def _module_shapes(module: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def _idle_expert_parameters(config: PretrainedConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """Parameters of routed experts that one token does not use."""
    text = config.get_text_config()
    used = getattr(text, "num_experts_per_tok", None)
    count = next(
        (
            getattr(text, key)
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if getattr(text, key, None)
        ),
        None,
    )
    if not used or not count:
        return 0
    routed = sum(_numel(shape) for name, shape in shapes.items() if ".experts." in name)
    return round(routed * (1 - used / count))


# -- writing ---------------------------------------------------------------------------------------------------------


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything that burnish did not make."""
    if not target.exists():
        return
    if not target.is_dir() or (Lineage.read(target) is None and any(target.iterdir())):
        raise OutputError("exists and was not made by burnish", where=str(target), fix="choose another place with -o")
    if Lineage.read(target) is not None and not overwrite:
        raise OutputError("exists already", where=str(target), fix="choose another place with -o, or pass --overwrite")


def staging_directory(target: Path) -> Path:
    """An empty temporary sibling of `target`; leftovers of dead processes are removed first."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        staging = target.parent / f".{target.name}.{os.getpid()}.tmp"
        staging.mkdir()
    except OSError as error:
        raise OutputError(
            f"cannot be created ({error.strerror})", where=str(target), fix="choose another place with -o"
        ) from None
    return staging


def remove_leftovers(target: Path) -> None:
    """Deletes temporary siblings whose process no longer lives."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists():
            continue
        shutil.rmtree(leftover, ignore_errors=True)


def publish(staging: Path, target: Path) -> None:
    """Makes a finished temporary directory appear under its name, durably, replacing an older one of ours."""
    for path in staging.iterdir():
        if path.is_file():
            path.chmod(0o644)  # safetensors writes for the owner alone, but a checkpoint is there to be shared
            fsync(path)
    fsync(staging)
    if target.exists():
        old = target.parent / f".{target.name}.{os.getpid()}.old.tmp"
        target.rename(old)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    fsync(target.parent)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    fsync(temporary)
    temporary.replace(path)


def shards_of(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{file name: its tensors}; tensors may be on the meta device."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(state, max_shard_size=MAX_SHARD_BYTES)
    return {name: {tensor: state[tensor] for tensor in tensors} for name, tensors in split.filename_to_tensors.items()}


def write_index(directory: Path, shards: dict[str, dict[str, torch.Tensor]]) -> None:
    """model.safetensors.index.json, where there is more than one file."""
    if len(shards) == 1:
        return
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(t.numel() * t.element_size() for tensors in shards.values() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def library_versions() -> dict[str, str]:
    """Versions that decide numbers."""
    import platform
    from importlib.metadata import version

    from burnish import __version__

    names = ("torch", "transformers", "tokenizers", "safetensors", "compressed-tensors")
    return {"burnish": __version__, "python": platform.python_version()} | {name: version(name) for name in names}


def model_card(lineage: Lineage) -> str:
    """README.md of a checkpoint: front matter for the hub, what was done, and what was measured."""
    front = ["---", "library_name: transformers", "tags: [burnish]"]
    if lineage.licence:
        front.append(f"license: {lineage.licence}")
    if "/" in lineage.base_model:
        front.append(f"base_model: {lineage.base_model}")
    lines = [*front, "---", "", f"# {lineage.base_model or 'A checkpoint'}, {lineage.stage}", ""]
    lines.append(f"Made by burnish {lineage.versions.get('burnish', '')} with the stage `{lineage.stage}`. ")
    lines.append(f"Load it with `{STOCK_LOADER[lineage.kind]}.from_pretrained`; no custom code is needed.")
    lines.append(f"Licence: {lineage.licence or 'that of the base model, which its files do not state'}.")
    if lineage.settings:
        lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in sorted(lineage.settings.items())]
    if lineage.measurements:
        lines += ["", "## Measured", "", "| metric | value | 95 % interval | protocol |", "| --- | --- | --- | --- |"]
        for metric, row in sorted(lineage.measurements.items()):
            interval = f"{row['low']:.5g} to {row['high']:.5g}" if row.get("low") is not None else ""
            lines.append(
                f"| {metric} | {row['value']:.5g} {row.get('unit', '')} | {interval} | {row.get('protocol', '')[:12]} |"
            )
    return "\n".join(lines) + "\n"


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
