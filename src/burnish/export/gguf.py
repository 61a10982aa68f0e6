"""A checkpoint as one GGUF file, for llama.cpp and what is built on it (Ollama, LM Studio, llama-server).

Nothing is rounded on the way. Packed whole numbers keep their levels: symmetric ones of 2-4 bits become Q4_0, of 5 bits
and of 4 bits with zero points Q5_0, of up to 8 bits Q8_0 (`burnish.export.blocks`), each scale in float16, which holds
a bfloat16 scale exactly unless it is below 6e-5. A weight of which that is not so, or whose groups are no multiples of
32, is multiplied out as the stock loader does, and counted. Dense matrices keep their dtype, vectors become float32.
`dense="q8_0"` is the exception: it rounds dense matrices to 8 bits in blocks of 32.

The file appears whole or not at all; one tensor at a time is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from burnish.core.checkpoint import Model, load, replacing
from burnish.core.checkpoint.packed_integers import FORMATS, Packed, formats_of, packed_names, read_packed
from burnish.core.checkpoint.tensor_files import TensorReader
from burnish.core.errors import CheckpointError, MissingExtraError, OutputError, SettingsError
from burnish.core.kinds import UNPACK, Kind, packing
from burnish.core.outside import check_kind
from burnish.core.progress import Progress
from burnish.export.blocks import BLOCK, BlockType, smallest
from burnish.export.families import add_numbers, family_of, frequency_factors, row_order
from burnish.export.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

DenseType = Literal["as stored", "f32", "f16", "bf16", "q8_0"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NAMES = {dtype: name.upper() for name, dtype in DTYPES.items()}
MAGIC = b"GGUF"
PASSED_OVER = (".rotary_emb.inv_freq", ".input_scale", ".output_scale")
"""Ends of names of what the file needs not: frequencies follow from the configuration, activations are not packed."""
FACTORS = "rope_freqs.weight"


@dataclass
class GgufFile:
    """What a file holds.

    Attributes:
        path, num_bytes: the file.
        types: {GGUF's name of a type: tensors}.
        multiplied_out: packed weights that no block type holds exactly, written dense, with the reason.
        rounded: dense weights whose values the asked-for type does not hold.
        pre: how text is cut into words, by llama.cpp's name.
    """

    path: Path
    num_bytes: int
    types: Counter[str]
    multiplied_out: dict[str, str]
    rounded: list[str]
    pre: str


@dataclass(frozen=True)
class Entry:
    """A tensor of the file.

    Attributes:
        name, type: in the file.
        shape: of its numbers.
        disk: its name in the checkpoint.
        order: of its rows, where they change places.
        block: what packed levels go into; None for a weight that is written dense.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    disk: str
    order: np.ndarray | None = None
    block: BlockType | None = None


def write_gguf(
    source: str | Path,
    out: str | Path,
    *,
    dense: DenseType = "as stored",
    pre: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> GgufFile:
    """Writes a checkpoint as one GGUF file.

    Args:
        source: a directory or a hub id; dense, or packed as whole numbers (compressed-tensors).
        out: the file.
        dense: the type of matrices that are not packed, where it is to be another than theirs.
        pre: llama.cpp's name of how text is cut into words, where it is not found out.
        overwrite: whether to replace a GGUF file.
        progress: whether to show some on standard error.

    Raises:
        SettingsError: a model type, a setting, a tokenizer or a packing that GGUF or llama.cpp has no counterpart of.
        CheckpointError: files are missing or damaged.
        OutputError: the file exists, or cannot be written.
        MissingExtraError: gguf is not installed.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", "writing a GGUF file")
    model, path = load(source), Path(out)
    check_place(path, overwrite=overwrite)
    check_packing(model)
    tensors = Tensors(model, dense)
    words = vocabulary(tensors.directory, model.tokenizer, model.config.vocab_size, pre)
    shown = Progress(enabled=progress)
    with shown.task("reading", total=len(tensors.weights), unit="weights") as task:
        entries = []
        for entry in tensors.entries():
            entries.append(entry)
            task.advance()
    check_complete(entries, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, shown.task("writing", total=len(entries), unit="weights") as task:
        writer = laid_out(temporary, model, tensors.family.architecture, words, entries)
        for entry in entries:
            writer.write_tensor_data(tensors.data(entry))
            task.advance()
        writer.close()
        num_bytes = temporary.stat().st_size
    types = Counter(entry.type for entry in entries)
    return GgufFile(path, num_bytes, types, tensors.multiplied_out, tensors.rounded, words.pre)


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuses a place that something else takes."""
    if path.is_dir():
        raise OutputError("is a directory", where=str(path), fix="name a file, such as model.gguf")
    check_kind(path, lambda start: start.startswith(MAGIC))
    if path.exists() and not overwrite:
        raise OutputError("exists", where=str(path), fix="choose another place with -o, or replace it with --overwrite")


def check_packing(model: Model) -> None:
    """Refuses kinds of models and of packing that are not written."""
    if model.lineage.kind is not Kind.CAUSAL_LM:
        raise SettingsError(
            f"is a {model.lineage.kind}, and only a causal-lm is written as GGUF", where=str(model.path)
        )
    if model.adapter is not None:
        raise SettingsError(
            "has a LoRA adapter beside its weights, which a GGUF file of the weights would lose",
            where=str(model.path),
            fix=f"add it to the weights first: {UNPACK}",
        )
    config = packing(model.config)
    if not config:
        return
    method = config.get("quant_method")
    others = sorted(formats_of(config) - FORMATS) if method == "compressed-tensors" else [str(method)]
    if others:
        raise SettingsError(
            f"the weights are packed as {others[0]!r}, and whole numbers of compressed-tensors are written as they are",
            where=str(model.path),
            fix=f"make it dense first: {UNPACK}",
        )


def check_complete(entries: list[Entry], model: Model) -> None:
    """Refuses a checkpoint that lacks a tensor, in whose place llama.cpp may take another.

    Raises:
        CheckpointError: layers differ in what they have, or there is no head although it is not tied.
    """
    parts: dict[str, set[str]] = {str(i): set() for i in range(model.config.num_hidden_layers)}
    for entry in entries:
        if entry.name.startswith("blk."):
            _, layer, part = entry.name.split(".", 2)
            parts[layer].add(part)
    names = {entry.name for entry in entries}
    wanted = {f"blk.{layer}.{part}" for layer in parts for part in set().union(*parts.values())}
    wanted |= {"token_embd.weight", "output_norm.weight"}
    if not model.config.tie_word_embeddings:
        wanted.add("output.weight")
    if missing := sorted(wanted - names):
        what = f"has nothing for {len(missing)} tensors of the file, the first is {missing[0]}"
        raise CheckpointError(what, where=str(model.path), fix="download the checkpoint again")


class Tensors:
    """The weights of a checkpoint, and what becomes of each.

    Attributes:
        directory: of the checkpoint.
        weights: their names on disk.
        multiplied_out, rounded: as in `GgufFile`.
    """

    def __init__(self, model: Model, dense: DenseType) -> None:
        assert model.path is not None, "it was just opened"
        self.directory, self.config, self.dense = model.path, model.config, dense
        self.family = family_of(self.config)
        self.files = TensorReader(self.directory)
        self.packed = packed_names(self.files)
        inside = {name for names in self.packed.values() for name in names}
        self.weights = [name for name in self.files.meta if name not in inside] + list(self.packed)
        self.multiplied_out, self.rounded = dict[str, str](), list[str]()
        self._factors = frequency_factors(self.config)
        self._names = names_in_gguf(self.family.architecture, self.config.num_hidden_layers)

    def entries(self) -> Iterator[Entry]:
        """Every tensor of the file; packed ones are read to find what holds them.

        Raises:
            SettingsError: a tensor has no counterpart.
        """
        for disk in self.weights:
            if disk.endswith(PASSED_OVER) or (disk == "lm_head.weight" and self.config.tie_word_embeddings):
                continue
            name = self._names(disk)
            if name is None:
                raise SettingsError(f"has {disk}, which llama.cpp has no place for", where=str(self.directory))
            order = row_order(self.config, self.family, name)
            if disk in self.packed:
                yield self._packed(Entry(name, "", (), disk, order))
            else:
                stored = self.files.meta[disk]
                yield Entry(name, self._dense_type(disk, stored), tuple(stored.shape), disk, order)
        if self._factors is not None:
            yield Entry(FACTORS, "F32", self._factors.shape, "")

    def _packed(self, entry: Entry) -> Entry:
        weight = self._read(entry.disk)
        shape = tuple(weight.levels.shape)
        block, reason = block_of(weight)
        if block is None:
            self.multiplied_out[entry.disk] = reason
            return replace(entry, type=self._dense_type(entry.disk, weight.scale, shape), shape=shape)
        return replace(entry, type=block.name, shape=shape, block=block)

    def _dense_type(self, disk: str, stored: Tensor, shape: tuple[int, ...] | None = None) -> str:
        """Of numbers whose dtype is that of `stored`."""
        shape = shape or tuple(stored.shape)
        own = NAMES.get(stored.dtype)
        if own is None:
            raise CheckpointError(f"{disk} is {str(stored.dtype).removeprefix('torch.')}", where=str(self.directory))
        if len(shape) == 1:
            return "F32"
        wanted = own if self.dense == "as stored" else self.dense.upper()
        if wanted == "Q8_0" and shape[-1] % BLOCK:
            wanted = own
        if wanted not in (own, "F32"):
            self.rounded.append(disk)
        return wanted

    def _read(self, disk: str) -> Packed:
        return read_packed(disk, {name: self.files.read(name) for name in self.packed[disk]})

    def data(self, entry: Entry) -> np.ndarray:
        """The bytes of a tensor, in rows."""
        import gguf

        if entry.name == FACTORS and self._factors is not None:
            return self._factors.view(np.uint8)
        if entry.block is not None:
            weight = self._read(entry.disk)
            levels, scale = _ordered(weight.levels.to(torch.int8), entry), _ordered(weight.scale, entry)
            blocks = scale.to(torch.float16).repeat_interleave(levels.shape[1] // BLOCK // scale.shape[1], dim=1)
            return entry.block.pack(levels.numpy(), blocks.numpy())
        values = _ordered(
            self._read(entry.disk).product() if entry.disk in self.packed else self.files.read(entry.disk), entry
        )
        if entry.type == "Q8_0":
            return gguf.quants.quantize(values.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
        return values.to(DTYPES[entry.type.lower()]).contiguous().view(torch.uint8).numpy()


def block_of(weight: Packed) -> tuple[BlockType | None, str]:
    """The blocks that hold a packed weight exactly; None and the reason where none does."""
    inputs, groups = weight.levels.shape[1], weight.scale.shape[1]
    if (inputs // groups) % BLOCK:
        return None, f"groups of {inputs // groups} inputs are no multiples of {BLOCK}"
    if not torch.equal(weight.scale.to(torch.float16).to(torch.float64), weight.scale.to(torch.float64)):
        return None, "float16 does not hold its scales"
    low, high = int(weight.levels.min()), int(weight.levels.max())
    block = smallest(low, high)
    return block, "" if block else f"levels from {low} to {high} are more than 8 bits"


def names_in_gguf(architecture: str, num_layers: int) -> Callable[[str], str | None]:
    """(name on disk) -> name in the file, or None where it has none."""
    import gguf

    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(number, num_layers)
    return lambda disk: table.get_name(disk, try_suffixes=(".weight", ".bias"))


def laid_out(path: Path, model: Model, architecture: str, words: Vocabulary, entries: list[Entry]) -> GGUFWriter:
    """A file with everything but the weights."""
    import gguf

    lineage = model.lineage
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(lineage.base_model or (model.path.name if model.path else ""))
    if lineage.licence:
        writer.add_license(lineage.licence)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(int(file_type(entries)))
    add_numbers(writer, model.config)
    words.add_to(writer)
    for entry in entries:
        kind = gguf.GGMLQuantizationType[entry.type]
        shape = gguf.quant_shape_to_byte_shape(entry.shape, kind)
        writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), prod(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def file_type(entries: list[Entry]) -> Any:
    """What most numbers of matrices are, as llama.cpp shows it."""
    from gguf import LlamaFileType

    numbers = Counter[str]()
    for entry in entries:
        if len(entry.shape) > 1:
            numbers[entry.type] += prod(entry.shape)
    most = numbers.most_common(1)[0][0] if numbers else "F32"
    return LlamaFileType.ALL_F32 if most == "F32" else LlamaFileType[f"MOSTLY_{most}"]


def _ordered(tensor: Tensor, entry: Entry) -> Tensor:
    return tensor if entry.order is None else tensor[torch.from_numpy(entry.order)]
