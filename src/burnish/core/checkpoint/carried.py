"""What a checkpoint holds beside what its class loads, carried along byte for byte.

Stock loading passes over tensors without a word: the layer for multi-token prediction of a DeepSeek-V3, the vision
tower of a model that is loaded for its text. They are the user's, so every checkpoint that is made of another holds
them again, in a file of their own, as they were; so do the small files that say how images become input.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from burnish.core.checkpoint.dialect import check_same, in_words_of
from burnish.core.checkpoint.passed_over import ignored_tensors
from burnish.core.checkpoint.reading import (
    BITS,
    read_safetensors_header,
    weight_files,
)
from burnish.core.checkpoint.shards import write_config
from burnish.core.outside import read_object

INDEX = "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""How images, sound and video become input; a tokenizer's own files are written by the tokenizer."""

CHUNK = 1 << 24


def keep_what_it_had(origin: Path, directory: Path) -> None:
    """Gives a checkpoint that is being written the words of the one it is made of, and what its class does not load.

    Args:
        origin: the checkpoint that it is made of.
        directory: where its tensors and config.json are written already.
    """
    names = carry(origin, directory)
    new = read_object(directory / "config.json")
    config = in_words_of(origin, new)
    if config is None:
        return
    check_same(config, new, str(directory / "config.json"))
    quantization = config.get("quantization_config")
    if names and isinstance(quantization, dict) and isinstance(quantization.get("ignore"), list):
        modules = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
        quantization["ignore"] = [*quantization["ignore"], *sorted(modules - {*quantization["ignore"]})]
    write_config(directory, config)


def carry(origin: Path, directory: Path) -> list[str]:
    """Adds to a checkpoint that is being written what the one it is made of holds beside its class.

    Returns:
        Names of the tensors that were added.
    """
    ignored, _ = ignored_tensors(origin)
    files = weight_files(directory)
    present = {name for path in files for name in read_safetensors_header(path)}
    names = sorted(ignored.keys() - present)
    if not names:
        return []
    for name in PROCESSORS:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, directory / name)
    count = len(files) + 1
    for number, path in enumerate(files, 1):
        path.rename(directory / _shard(number, count))
    _write_file(directory / _shard(count, count), {name: ignored[name] for name in names})
    _write_index(directory, [directory / _shard(number, count) for number in range(1, count + 1)])
    return names


def _shard(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_file(target: Path, sources: dict[str, Path]) -> None:
    """A safetensors file of tensors of other files, byte for byte."""
    headers = {path: read_safetensors_header(path) for path in set(sources.values())}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    # Wide numbers first, so that every tensor is aligned, as the package writes them.
    for name in sorted(sources, key=lambda name: (-BITS[headers[sources[name]][name]["dtype"]], name)):
        entry = headers[sources[name]][name]
        begin, end = entry["data_offsets"]
        header[name] = entry | {"data_offsets": [size, size + end - begin]}
        size += end - begin
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in list(header)[1:]:
            path = sources[name]
            begin, end = headers[path][name]["data_offsets"]
            with path.open("rb") as source:
                source.seek(8 + int.from_bytes(source.read(8), "little") + begin)
                while begin < end:
                    part = source.read(min(CHUNK, end - begin))
                    if not part:
                        raise OSError(f"{path} ended while {name} was read")
                    file.write(part)
                    begin += len(part)


def _write_index(directory: Path, files: list[Path]) -> None:
    weight_map, total = {}, 0
    for path in files:
        for name, entry in read_safetensors_header(path).items():
            weight_map[name] = path.name
            total += entry["data_offsets"][1] - entry["data_offsets"][0]
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(index, indent=2))
