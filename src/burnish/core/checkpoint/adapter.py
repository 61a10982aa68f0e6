"""A LoRA adapter beside the weights of a checkpoint: the directory `adapter` in its own, as peft writes it.

    y = W x + s B A x      W what stock loading of the checkpoint reads; A, B and s what lies in `adapter`

So stock loading gives the model with its adapter off, bit for bit, and packed weights stay as they are. With it on:

    PeftModel.from_pretrained(model, "DIRECTORY/adapter")     packed weights are unpacked before: dequantize=True

`burnish.load` has it on. Its files belong to the content hash, and its bytes count wherever bytes are told.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint.reading import read_safetensors_header
from burnish.core.errors import CheckpointError, MissingExtraError
from burnish.core.outside import answered_for, check_links, read_object

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

DIRECTORY = "adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of all names in the file of an adapter (peft)."""


@dataclass(frozen=True)
class Adapter:
    """What lies beside the weights.

    Attributes:
        config: as in adapter_config.json.
        tensors: the factors by their names in adapter_model.safetensors.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @classmethod
    def of(cls, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Adapter:
        """That of {name of a linear layer: (A (rank, in), B (out, rank))}, all of one rank, with a scale of 1."""
        (rank,) = {a.shape[0] for a, _ in factors.values()}
        tensors = {}
        for name, (a, b) in factors.items():
            tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
        facts = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0}
        own = {"bias": "none", "base_model_name_or_path": None, "inference_mode": True}
        return cls(facts | own | {"target_modules": sorted(factors)}, tensors)

    @classmethod
    def trained(cls, module: Any, *, dtype: torch.dtype, base: str | None = None) -> Adapter:
        """That of a `PeftModel`.

        Args:
            module: with its adapter.
            dtype: of the factors from now on.
            base: the model that it is to be loaded on, where that is not the checkpoint that it lies in.
        """
        from peft import get_peft_model_state_dict

        (facts,) = module.peft_config.values()
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in facts.to_dict().items()}
        config |= {"base_model_name_or_path": base, "inference_mode": True}
        factors = get_peft_model_state_dict(module, save_embedding_layers=False)
        return cls(config, {name: factor.detach().to(dtype) for name, factor in factors.items()})

    @classmethod
    def read(cls, directory: Path) -> Adapter | None:
        """That of a checkpoint's directory, or None.

        Raises:
            CheckpointError: it is no LoRA adapter, or its weights are missing or damaged.
        """
        from safetensors.torch import load_file

        config = read_adapter_config(directory)
        if config is None:
            return None
        place = directory / DIRECTORY / WEIGHTS
        read_safetensors_header(place)
        tensors = load_file(place)
        for name, factor in tensors.items():
            if not factor.isfinite().all():
                raise CheckpointError(
                    f"{name} holds numbers that are not finite", where=str(place), fix="make the adapter again"
                )
        return cls(config, tensors)

    def write(self, directory: Path) -> None:
        """Into the directory of a checkpoint, in place of one that is there."""
        from safetensors.torch import save_file

        place = directory / DIRECTORY
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.tensors.items())}
        save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
        (place / CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True, default=str), encoding="utf-8")

    def put_into(self, module: Any, *, where: str) -> None:
        """Gives a network the adapter, in place and switched on; the names of its own weights get a `base_layer`.

        Raises:
            MissingExtraError: peft is not installed.
            CheckpointError: it is of another network.
        """
        try:
            from peft import inject_adapter_in_model
        except ImportError:
            raise MissingExtraError("peft", "train", "an adapter beside the weights") from None
        with answered_for("is of another network", where=where, fix="make the adapter again"):
            inject_adapter_in_model(self.lora_config(trained=False), module)
            self.fill(module, where=where)

    def lora_config(self, *, trained: bool) -> LoraConfig:
        """peft's configuration; it draws no start and takes none out of the weights, as every factor has a value."""
        from peft import LoraConfig

        known = {field.name for field in fields(LoraConfig)}
        config: dict[str, Any] = {name: value for name, value in self.config.items() if name in known}
        config |= {"init_lora_weights": False, "inference_mode": not trained}
        return LoraConfig(**config)

    def fill(self, module: Any, *, where: str) -> None:
        """Gives the factors of a network that has room for them their values.

        Raises:
            CheckpointError: it has room for others.
        """
        from peft import set_peft_model_state_dict

        found = set_peft_model_state_dict(module, dict(self.tensors))
        factors = [name for name in found.missing_keys if is_factor(name)]
        if factors or found.unexpected_keys:
            first = min([*factors, *found.unexpected_keys])
            raise CheckpointError(f"is of another network: {first} has no counterpart", where=where)


def read_adapter_config(directory: Path) -> dict[str, Any] | None:
    """adapter_config.json beside a checkpoint, or None where there is none.

    Raises:
        CheckpointError: it is no LoRA adapter, or its weights are missing.
    """
    place = directory / DIRECTORY
    if not (place / CONFIG).is_file():
        if (place / WEIGHTS).is_file():
            raise CheckpointError(f"has no {CONFIG}", where=str(place), fix="make the adapter again")
        return None
    check_links(place)
    config = read_object(place / CONFIG)
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise CheckpointError(
            f"is an adapter of kind {config.get('peft_type')!r}, and LoRA alone is read beside a checkpoint",
            where=str(place / CONFIG),
            fix="move it to a directory of its own",
        )
    rank, alpha = config["r"], config.get("lora_alpha", 1)  # peft has a default of its own
    is_scale = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if type(rank) is not int or rank < 1 or not is_scale:
        raise CheckpointError(
            f"r is {rank} and lora_alpha {alpha}, but they are a rank and a number",
            where=str(place / CONFIG),
            fix="make the adapter again",
        )
    if not (place / WEIGHTS).is_file():
        raise CheckpointError(f"has no {WEIGHTS}", where=str(place), fix="make the adapter again")
    return config


def adapter_files(directory: Path) -> list[Path]:
    """The files of the adapter beside a checkpoint; none where there is no adapter."""
    place = directory / DIRECTORY
    return [place / name for name in (CONFIG, WEIGHTS)] if (place / CONFIG).is_file() else []


def is_factor(name: str) -> bool:
    """Whether a parameter of a network with an adapter is one of the adapter's."""
    return ".lora_" in name


def name_without(name: str) -> str:
    """What a weight of a network with an adapter is called without it."""
    return name.replace(".base_layer.", ".")


def without_adapter(module: nn.Module) -> None:
    """Puts the network's own layers in the place of those that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(module.named_modules()):
        if isinstance(part, BaseTunerLayer):
            module.set_submodule(name, part.get_base_layer())
    vars(module).pop("peft_config", None)
    module.requires_grad_(True)


def merged(module: PreTrainedModel) -> PreTrainedModel:
    """The network whose weights have the adapter added to them, in place: W + s B A in the dtype of W.

    Raises:
        CheckpointError: a weight that gets an adapter is that of another layer too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    ends = [part for part in (embedding, head) if isinstance(part, BaseTunerLayer)]
    if ends and head is not None and head.weight is embedding.weight:
        raise CheckpointError(
            "changes the embedding or the head alone, which have one weight (tie_word_embeddings), and cannot be added "
            "to it",
            where=DIRECTORY,
            fix="load it with peft",
        )
    for part in module.modules():
        if isinstance(part, BaseTunerLayer):
            part.merge()
    without_adapter(module)
    return module
