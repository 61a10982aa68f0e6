"""`Model`: a checkpoint whose network and tokenizer are read when first asked for, and which saves itself."""

from __future__ import annotations

import copy
import json
import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from burnish.core.checkpoint.adapter import DIRECTORY as ADAPTER
from burnish.core.checkpoint.adapter import Adapter, is_factor, name_without, read_adapter_config, without_adapter
from burnish.core.checkpoint.carried import keep_what_it_had
from burnish.core.checkpoint.dialect import continues
from burnish.core.checkpoint.durable import saving
from burnish.core.checkpoint.generation import write_generation_config
from burnish.core.checkpoint.identity import (
    config_digest,
    is_cast,
    module_digest,
    stamps,
    tensors_digest,
    text_digest,
    tokenizer_digest,
)
from burnish.core.checkpoint.lineage import (
    CARD_FILE,
    Lineage,
    check_target,
    content_files,
    content_hash,
    hash_directory,
    library_versions,
    model_card,
)
from burnish.core.checkpoint.own_classes import auto_map, write_code
from burnish.core.checkpoint.packed_embedding import fill, packed_embedding, tied_with, weight_of_embedding, without_it
from burnish.core.checkpoint.reading import (
    kind_of,
    load_config,
    quiet_transformers,
    read_config,
    remarks,
    resolve,
    weight_files,
    weights_of,
)
from burnish.core.checkpoint.shards import shards_of, write_config, write_index
from burnish.core.checkpoint.sizes import module_shapes, plan_checkpoint
from burnish.core.checkpoint.tokenizer import has_tokenizer, read_tokenizer
from burnish.core.errors import CheckpointError, CheckpointWarning
from burnish.core.kinds import STOCK_LOADER, STREAMED, UNPACK, Plan, Weights, packing
from burnish.core.outside import answered_for

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Part = TypeVar("Part", bound="torch.nn.Module")


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
    adapter = read_adapter_config(directory)
    lineage = Lineage.read(directory)
    if lineage is None:
        lineage = Lineage(
            kind=kind_of(config),
            weights=weights_of(config),
            base_model=str(source) if not Path(source).exists() else directory.name,
        )
    if lineage.has_adapter and adapter is None:
        raise CheckpointError(
            f"its directory {ADAPTER} is gone, with the LoRA adapter that belongs to it",
            where=str(directory),
            fix=f"copy {ADAPTER} too; what is left is the model without it, which stock transformers reads",
        )
    load_config(directory)
    for remark in remarks(directory):
        warnings.warn(remark, CheckpointWarning, stacklevel=2)
    return Model(path=directory, lineage=lineage, dtype=dtype, device=pick_device(device))


class Model:
    """A checkpoint: its module and tokenizer are read when first asked for.

    Attributes:
        path: the directory it came from, None for a model that exists in memory only.
        origin: the directory that it, or what it was made of, was read from; what its class does not load is there.
        lineage: where it comes from.
        dtype, device: what `module` is loaded as; dtype None keeps the dtype on disk.
        packed: {name on disk of a weight: {name on disk: tensor}}: what is written in place of that weight.
        quantization_config: goes into config.json together with `packed`.
        adapter: what lies beside the weights, and is switched on in `module`; None where there is nothing.
    """

    def __init__(
        self,
        *,
        path: Path | None = None,
        origin: Path | None = None,
        module: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        lineage: Lineage | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        packed: dict[str, dict[str, torch.Tensor]] | None = None,
        quantization_config: dict[str, Any] | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.path, self.dtype, self.device = path, dtype, device
        self.origin = origin or path
        self.lineage = lineage or Lineage()
        self.packed = packed or {}
        self.quantization_config = quantization_config
        self._config: PretrainedConfig | None = None
        self._as_read: dict[str, Any] = {}
        self._known: tuple[Any, str] | None = None
        if module is not None:
            self.module = module
        if tokenizer is not None:
            self.tokenizer = tokenizer
        if adapter is not None:
            self.adapter = adapter

    def __repr__(self) -> str:
        return f"Model({self.lineage.kind}, {self.lineage.weights}, from {self.path or 'memory'})"

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory, read or given: what is done to it there is not on disk."""
        return "module" in self.__dict__

    @property
    def config(self) -> PretrainedConfig:
        """The module's where it has been read, else that of config.json."""
        if self.is_loaded:
            return self.module.config
        if self._config is None:
            self._as_read.setdefault("files", self._stamps())
            self._config = load_config(self._directory())
            self._as_read["config"] = config_digest(self._config)
        return self._config

    @config.setter
    def config(self, config: PretrainedConfig) -> None:
        if self.is_loaded:
            self.module.config = config
        self._config = config

    @cached_property
    def module(self) -> PreTrainedModel:
        """The network, in evaluation mode. A packed checkpoint is decompressed to dense weights."""
        import transformers

        directory = self._directory()
        weight_files(directory)
        self._as_read.setdefault("files", self._stamps())
        config = self.config
        library, _, loader = STOCK_LOADER[self.lineage.kind].rpartition(".")
        if library != "transformers":
            raise CheckpointError(f"is a {self.lineage.kind}, which is no network by itself", where=str(directory))
        auto = getattr(transformers, loader)
        extra: dict[str, Any] = {}
        embedding: str | None = None
        if self.lineage.weights is Weights.PACKED:
            check_read_by_stock(config, directory)
            embedding = packed_embedding(config, directory, self.lineage.kind)
            from transformers import CompressedTensorsConfig

            extra["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        with (
            quiet_transformers(),
            answered_for("the weights cannot be loaded", where=str(directory), fix="download the checkpoint again"),
        ):
            module, info = auto.from_pretrained(
                directory,
                config=without_it(config, embedding) if embedding else config,
                dtype=self.dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                **extra,
            )
        if info["mismatched_keys"]:
            name, on_disk, expected = sorted(info["mismatched_keys"])[0]
            raise CheckpointError(
                f"{name} has the shape {tuple(on_disk)}, but config.json asks for {tuple(expected)}",
                where=str(directory),
                fix="config.json and weights are of two models: download the checkpoint again",
            )
        unpacked = tied_with(module, embedding) if embedding else set[str]()
        if absent := sorted(set(info["missing_keys"]) - unpacked):
            raise CheckpointError(f"{len(absent)} weights are missing, the first is {absent[0]}", where=str(directory))
        if embedding:
            fill(module, embedding, directory)
        if self.lineage.weights is Weights.PACKED:
            drop_packing(module)
            check_finite(module, directory)
            if self.dtype is not None:
                cast(module, self.dtype)
        if self.adapter is not None:
            self.adapter.put_into(module, where=str(directory / ADAPTER))
        self._as_read["module"] = module_digest(module)
        if config_digest(config) == self._as_read.get("config"):  # the module's own says more, such as its dtype
            self._as_read["config"] = config_digest(module.config)
        return move(module, self.device).eval()

    @cached_property
    def adapter(self) -> Adapter | None:
        return None if self.path is None else Adapter.read(self.path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        directory = self._directory()
        self._as_read.setdefault("files", self._stamps())
        tokenizer = read_tokenizer(directory)
        self._as_read["tokenizer"] = tokenizer_digest(tokenizer)
        return tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer" in self.__dict__ or (self.path is not None and has_tokenizer(self.path))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of its weights on disk, or in which they would be written."""
        import torch

        dtype = self.dtype or self.config.dtype or torch.get_default_dtype()
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype

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
        """The content hash of its directory; the files are read once, and again when they have changed.

        Raises:
            CheckpointError: it has no directory.
        """
        now = self._stamps()
        if self._known is None or self._known[0] != now:
            self._known = now, content_hash(hash_directory(self._directory()))
        return self._known[1]

    def trust_hash(self, known: str) -> None:
        """Takes the content hash from whoever has just read the files, so that they are not read again for it."""
        self._known = self._stamps(), known

    @property
    def identity(self) -> str:
        """What the model is now, for everything that compares or keeps: equal identities compute the same.

        Untouched, it is the content hash of the directory, joined with the dtype where weights are cast on reading.
        Where weights, configuration or tokenizer were changed in memory, in whatever way, or never were in a
        directory, it is a hash of all of them as they are. Costs nothing but the directory's hash as long as the module
        was not read, and a hash of all tensors after that.
        """
        now = self._parts()
        if self.path is not None and now == {part: self._as_read.get(part) for part in now}:
            return text_digest([self.hash, str(self.dtype)]) if is_cast(self.path, self.dtype) else self.hash
        whole = {"module": module_digest(self.module)} | now | {"config": config_digest(self.config)}
        if self.has_tokenizer:
            whole["tokenizer"] = tokenizer_digest(self.tokenizer)
        return text_digest({part: digest for part, digest in whole.items() if part != "files"})

    def _parts(self) -> dict[str, Any]:
        """Digests of what has been read or given, as it is now; of what lies on disk still, that it is the same."""
        parts: dict[str, Any] = {}
        if self.path is not None and "files" in self._as_read:
            parts["files"] = self._stamps()
        if self.is_loaded:
            parts["module"] = module_digest(self.module)
        if self.is_loaded or self._config is not None:
            parts["config"] = config_digest(self.config)
        if "tokenizer" in self.__dict__:
            parts["tokenizer"] = tokenizer_digest(self.tokenizer)
        if self.packed:
            tensors = {f"{name} {key}": t for name, some in self.packed.items() for key, t in some.items()}
            parts["packed"] = [tensors_digest(tensors.items()), text_digest(self.quantization_config)]
        return parts

    def _stamps(self) -> Any:
        return stamps(content_files(self._directory()))

    def plan(self) -> Plan:
        """What is known from the configuration and the file headers."""
        if self.path is not None:
            return plan_checkpoint(self.path)
        num_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())
        weights = Weights.PACKED if self.packed else self.lineage.weights
        shapes = module_shapes(self.module)
        if self.adapter is not None:
            shapes = {name_without(name): shape for name, shape in shapes.items() if not is_factor(name)}
        return Plan(self.config, self.lineage.kind, weights, shapes, num_bytes, adapter=self.adapter is not None)

    def derive(self, **changes: Any) -> Model:
        """A new in-memory model that keeps this one's tokenizer and lineage unless they are given."""
        tokenizer = self.tokenizer if self.has_tokenizer else None
        base = Lineage(
            kind=self.lineage.kind,
            weights=self.lineage.weights,
            base_model=self.name,
            licence=self.lineage.licence,
        )
        kept = {"origin": self.origin, "dtype": self.dtype, "device": self.device}
        return Model(**{"tokenizer": tokenizer, "lineage": base} | kept | changes)

    def with_adapter(self, adapter: Adapter) -> Model:
        """A new in-memory model of the same weights, packed ones as they are, with this adapter beside them."""
        from burnish.core.checkpoint.packed_integers import packed_tensors, quantization_config

        module: Any = copy.deepcopy(self.module)
        if self.adapter is not None:
            without_adapter(module)
        adapter.put_into(module, where=ADAPTER)
        changes: dict[str, Any] = {"module": module.eval(), "adapter": adapter}
        if self.packed or self.lineage.weights is Weights.PACKED:
            changes |= {"packed": dict(packed_tensors(self)), "quantization_config": quantization_config(self)}
        return self.derive(**changes)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the checkpoint atomically and returns its directory.

        Raises:
            OutputError: the directory exists and burnish did not make it, or it did and `overwrite` is not given; or
                there is no room, or no permission.
        """
        target = Path(directory)
        check_target(target, overwrite=overwrite)
        with saving(target, replace=overwrite) as staging:
            self._write(staging)
        self.path, self._known = target, None
        self._as_read = {"files": self._stamps()}
        self._as_read |= self._parts()
        return target

    def _write(self, directory: Path) -> None:
        module = self._write_weights(directory)
        if self.adapter is not None:
            self.adapter.write(directory)
        origin = self._origin_of(module)
        if origin is not None:
            keep_what_it_had(origin, directory)
        write_code(module.config.model_type, directory)
        write_generation_config(module, origin, directory, start=self.origin)
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(directory)
        self.lineage.files = hash_directory(directory)
        self.lineage.versions = library_versions()
        self.lineage.weights = Weights.DENSE if self.quantization_config is None else Weights.PACKED
        own = bool(self.packed) and weight_of_embedding(module) in self.packed
        self.lineage.loader = "burnish.load" if own else ""
        self.lineage.write(directory)
        (directory / CARD_FILE).write_text(model_card(self.lineage))

    def _origin_of(self, module: PreTrainedModel) -> Path | None:
        """The checkpoint that this one continues: of the same network, or of one that it is the text part of."""
        if self.origin is None or not (self.origin / "config.json").is_file():
            if self.origin is not None:
                warnings.warn(
                    f"{self.origin} is gone; what stock loading passes over in it is not carried along",
                    CheckpointWarning,
                    stacklevel=4,
                )
            return None
        return self.origin if continues(self.origin, module.config.model_type) else None

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
        if self.adapter is not None:
            state = {name_without(name): tensor for name, tensor in state.items() if not is_factor(name)}
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
        if (code := auto_map(module.config.model_type)) is not None:
            config["auto_map"] = code
        config["architectures"] = [type(module).__name__]
        config["dtype"] = str(module.dtype).removeprefix("torch.")
        if self.quantization_config is not None:
            config["quantization_config"] = self.quantization_config
        return json.loads(json.dumps(config, default=str))


def check_read_by_stock(config: PretrainedConfig, directory: Path) -> None:
    """Refuses weights packed in a way that is read a tensor at a time, or not at all."""
    method = packing(config).get("quant_method")
    if method == "compressed-tensors":
        return
    raise CheckpointError(
        f"its weights are packed as {method!r}, and burnish computes with dense weights or compressed-tensors",
        where=str(directory),
        fix=f"make it dense with {UNPACK}" if method in STREAMED else "name the dense original",
    )


def check_finite(module: PreTrainedModel, directory: Path) -> None:
    """Refuses weights that are no numbers; the stock loader multiplies damaged scales without a word."""
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise CheckpointError(
                f"{name} holds numbers that are not finite once it is unpacked",
                where=str(directory),
                fix="download or quantize it again",
            )


def drop_packing(module: PreTrainedModel) -> None:
    """Makes a network that the stock loader has decompressed one like any other.

    The loader leaves scales, zero points and shapes beside the weights that it has made of them, and it remembers how
    it read packed experts; saved that way, they would be split into packed ones again, which cannot be.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    for part in module.modules():
        names = [name for name, _ in part.named_parameters(recurse=False)]
        names += [name for name, _ in part.named_buffers(recurse=False)]
        for name in names if "weight" in names else ():
            if name.startswith("weight_"):
                delattr(part, name)
    known: Any = getattr(module, "_weight_conversions", None)
    if known is not None:
        own = {tuple(one.target_patterns): one for one in get_model_conversion_mapping(module, add_legacy=False)}
        known[:] = [own.get(tuple(one.target_patterns), one) for one in known]


def cast(module: Part, dtype: torch.dtype) -> Part:
    """Changes the dtype of the parameters, in place, and of nothing else.

    `module.to(dtype)` would also round buffers that stock loading keeps in float32, such as rotary frequencies, and so
    change what the model computes.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return module


def working_copy(model: Model, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The network in a dtype on a device, apart from the model's own, which stays as it is; read anew if it can be."""
    if model.path is not None and not model.is_loaded:
        return Model(path=model.path, lineage=model.lineage, dtype=dtype, device=device).module
    return move(cast(copy.deepcopy(model.module), dtype), device).eval()


def move(module: PreTrainedModel, device: str) -> PreTrainedModel:
    """Puts a module on a device, in place; transformers' own `to` refuses what it calls quantized models."""
    import torch

    torch.nn.Module.to(module, torch.device(device))
    return module


def pick_device(device: str) -> str:
    """ "auto" becomes "cuda" where there is one, and "cuda" the one of this process where torchrun has started it.

    Anything else is checked and returned.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(f"device {device!r} was asked for, but torch sees no GPU", fix="use --device cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def compute_dtype(device: str) -> torch.dtype:
    """The fastest dtype that is safe for statistics and evaluation: bfloat16 on GPUs, float32 on CPUs.

    CPUs without bfloat16 instructions are many times slower in bfloat16, and float32 is the more exact reference.
    """
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32
