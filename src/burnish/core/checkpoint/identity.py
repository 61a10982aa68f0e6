"""What a model in memory is, as digests of its parts: so that a changed one is never taken for what it was read from.

Nothing short of reading the bytes notices every change: `parameter.data.mul_(2)` leaves no trace in the tensor. So the
tensors are hashed when they are read and again when the identity is asked for, on all cores (hashlib lets go of the
interpreter): about a gigabyte per second and core.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from inspect import isroutine
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint.reading import read_safetensors_header, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

OF_THE_PLACE = ("_name_or_path", "_attn_implementation", "_commit_hash")
"""What a configuration says of where and how it was read, not of the model."""
NO_BEHAVIOUR = ("training", "gradient_checkpointing")
LIBRARIES = ("torch", "transformers", "accelerate", "compressed_tensors", "peft")
"""Whose hooks and wrappers belong to a model as it is loaded, and come and go with what is asked of it."""
PROCESS = token_hex(16)
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
"""Of safetensors headers, in torch's names."""


def module_digest(module: torch.nn.Module) -> str:
    """All parameters and buffers, those that no file holds included, and what is done with them."""
    tensors = tensors_digest((*module.named_parameters(), *module.named_buffers()))
    return text_digest([tensors, {name: _behaviour(part) for name, part in module.named_modules()}])


def _behaviour(part: torch.nn.Module) -> list[Any]:
    """What a module computes beyond its tensors: its class, its numbers (`top_k`, `scaling`), and code put on it.

    Code has no content that could be hashed, so it is itself alone: a hooked model equals none in another process.
    """
    numbers = {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float) and name[0] != "_" and name not in NO_BEHAVIOUR
    }
    attached = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    attached += [value for value in vars(part).values() if isroutine(value)]
    code = [f"{PROCESS} {id(one)}" for one in attached if (one.__module__ or "").split(".")[0] not in LIBRARIES]
    kind = type(part)
    return [f"{kind.__module__}.{kind.__qualname__}", numbers, code]


def tensors_digest(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Names, dtypes, shapes and bytes, whatever the order and the device."""
    tensors = dict(named)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        digests = threads.map(tensor_digest, tensors.values())
        return text_digest(dict(zip(tensors, digests, strict=True)))


def tensor_digest(tensor: torch.Tensor) -> str:
    """Dtype, shape and bytes of one tensor."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(config: PretrainedConfig) -> str:
    """Everything that a configuration says, but for where it came from."""
    content = config.to_dict()
    return text_digest({key: value for key, value in content.items() if key not in OF_THE_PLACE})


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, *, chats: bool = True) -> str:
    """What a tokenizer does to a text or a chat, or without `chats` to a text alone.

    Padding and truncation are its callers' matter.
    """
    content: dict[str, Any] = {"special": tokenizer.special_tokens_map}
    if chats:
        content["chat_template"] = tokenizer.chat_template
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        content["vocabulary"] = tokenizer.get_vocab()
    else:  # megabytes of JSON: version, truncation and padding come first, and what is asked for follows
        whole: str = fast.to_str()
        content["tokenizer"] = hashlib.sha256(whole[whole.index('"added_tokens"') :].encode()).hexdigest()
    return text_digest(content)


def text_digest(content: Any) -> str:
    """sha256 of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def is_cast(directory: Path, dtype: torch.dtype | None) -> bool:
    """Whether weights read from a directory as this dtype are others than those on disk, by the file headers."""
    if dtype is None:
        return False
    headers = [read_safetensors_header(path) for path in weight_files(directory)]
    stored = {FLOATS[entry["dtype"]] for header in headers for entry in header.values() if entry["dtype"] in FLOATS}
    return bool(stored - {str(dtype).removeprefix("torch.")})


def stamps(files: Iterable[Path]) -> Mapping[str, tuple[int, int]]:
    """{name: (size, time of the last change)}: what tells that files were written again without reading them."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
