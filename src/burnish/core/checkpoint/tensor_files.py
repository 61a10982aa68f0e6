"""Safetensors files read and written a tensor at a time, so that a checkpoint never has to fit into memory.

`TensorReader` reads into its own buffers: pages of a memory-mapped file would count as memory of this process. What
`TensorWriter` writes is laid out beforehand from shapes and dtypes, and is byte for byte the file that the safetensors
package writes from the same tensors in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from burnish.core.checkpoint.reading import read_safetensors_header, weight_files
from burnish.core.checkpoint.shards import shards_of, write_index

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}
"""In the order in which the package puts them into a file: by alignment, largest first."""

BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class TensorReader:
    """The tensors of a checkpoint directory, by name.

    Raises:
        CheckpointError: a file is missing or cut short.
    """

    def __init__(self, directory: Path) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        self.meta: dict[str, Tensor] = {}
        for path in weight_files(directory):
            with path.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
            for name, entry in read_safetensors_header(path).items():
                begin, end = entry["data_offsets"]
                self._places[name] = path, start + begin, end - begin
                self.meta[name] = torch.empty(entry["shape"], dtype=BY_NAME.get(entry["dtype"]), device="meta")

    def read(self, name: str) -> Tensor:
        path, start, size = self._places[name]
        tensor = torch.empty_like(self.meta[name], device="cpu")
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            buffer = memoryview(_bytes_of(tensor)) if size else memoryview(b"")
            filled = 0
            while filled < size:
                count = file.readinto(buffer[filled:])
                if not count:
                    raise OSError(f"{path} ended while {name} was read")
                filled += count
        return tensor


class TensorWriter:
    """One safetensors file whose tensors come in any order.

    Args:
        path: of the file.
        tensors: names, shapes and dtypes, as tensors on the meta device.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        self.path = path
        self.missing = dict(tensors)
        self._starts: dict[str, int] = {}
        order = list(DTYPES)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        size = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
            self._starts[name] = size
            end = size + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [size, end],
            }
            size = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        self._file = path.open("wb", buffering=0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._base + size)

    def write(self, name: str, tensor: Tensor) -> None:
        expected = self.missing.pop(name)
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype), f"{name} is not as it was laid out"
        data = memoryview(_bytes_of(tensor.detach().cpu().contiguous()))
        position = self._base + self._starts[name]
        while data:
            count = os.pwrite(self._file.fileno(), data, position)
            data, position = data[count:], position + count

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        assert kind is not None or not self.missing, f"{next(iter(self.missing))} was never written"


@contextmanager
def writing(directory: Path, tensors: dict[str, Tensor]) -> Iterator[Callable[[str, Tensor], None]]:
    """A checkpoint's files, laid out from tensors on the meta device; gives write(name, tensor), once for each."""
    shards = shards_of(dict(sorted(tensors.items())))
    write_index(directory, shards)
    writers: dict[str, TensorWriter] = {}
    with ExitStack() as stack:
        for file_name, some in shards.items():
            writers |= dict.fromkeys(some, stack.enter_context(TensorWriter(directory / file_name, some)))
        yield lambda name, tensor: writers[name].write(name, tensor)


def _bytes_of(tensor: Tensor) -> Any:
    """The memory of a contiguous CPU tensor, as an array of bytes."""
    return tensor.view(-1).view(torch.uint8).numpy()
