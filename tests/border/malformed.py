"""Checkpoints that are damaged or made to harm: what is done to a good one, and the sentence that must follow.

Every entry takes a directory that holds a small Llama with its tokenizer and spoils it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], None]

DEEP = 100_000


def edited(name: str, **changes: Any) -> Spoil:
    """A JSON file with other values; `...` removes a key."""

    def spoil(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        content = {key: value for key, value in (content | changes).items() if value is not ...}
        (directory / name).write_text(json.dumps(content))

    return spoil


def config(**changes: Any) -> Spoil:
    return edited("config.json", **changes)


def written(name: str, text: str | bytes) -> Spoil:
    """A file with other content."""
    content = text.encode() if isinstance(text, str) else text

    def spoil(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return spoil


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The weights with another header over the same bytes."""

    def spoil(directory: Path) -> None:
        path = directory / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        new = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])

    return spoil


def entry(**changes: Any) -> Spoil:
    """One tensor's entry in the header with other values."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        return content | {NORM: content[NORM] | changes}

    return header(change)


def index(weight_map: Any, *, keep_whole: bool = False) -> Spoil:
    """An index in place of the one file, which is given another name."""

    def spoil(directory: Path) -> None:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        if not keep_whole:
            (directory / "model.safetensors").rename(directory / "part.safetensors")

    return spoil


def linked(name: str) -> Spoil:
    """A file of the checkpoint that is a link to one of the same content outside it."""

    def spoil(directory: Path) -> None:
        outside = directory.parent / "outside"
        outside.mkdir(exist_ok=True)
        (directory / name).rename(outside / name)
        (directory / name).symlink_to(outside / name)

    return spoil


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    def spoil(directory: Path) -> None:
        changed = change(load_file(directory / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, directory / "model.safetensors")

    return spoil


NORM = "model.norm.weight"

MALFORMED: dict[str, tuple[Spoil, str]] = {
    # -- config.json
    "a config that is a list": (written("config.json", "[]"), "config.json: holds a list where {...} is expected"),
    "a config that is null": (written("config.json", "null"), "config.json: holds null where {...} is expected"),
    "a config of brackets": (written("config.json", "[" * DEEP), "config.json: is nested deeper than 64 levels"),
    "a config with deep objects": (
        written("config.json", '{"model_type": "llama", "x": ' + '{"a":' * 200 + "1" + "}" * 201),
        "config.json: is nested deeper than 64 levels",
    ),
    "a config with a number of 5,000 digits": (
        written("config.json", '{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}"),
        "config.json: holds a number of 5,000 digits",
    ),
    "a config with half a surrogate pair": (
        written("config.json", '{"model_type": "llama", "architectures": ["\\ud800"]}'),
        "config.json: holds half of a surrogate pair",
    ),
    "a config that is no UTF-8": (written("config.json", b'{"model_type": "\xff"}'), "config.json: is not UTF-8 text"),
    "a config without model_type": (config(model_type=...), "config.json: names no model_type"),
    "a model_type that is a list": (config(model_type=["llama"]), "config.json: names no model_type"),
    "a model_type that nobody knows": (config(model_type="lama"), "'lama' is not an architecture"),
    "architectures that are a number": (config(architectures=7), "architectures is not a list of class names"),
    "architectures of numbers": (config(architectures=[7]), "architectures is not a list of class names"),
    "a quantization_config that is a text": (
        config(quantization_config="int4"),
        "quantization_config is not an object",
    ),
    "a quantization that is not ours to read": (
        config(quantization_config={"quant_method": "nonsense"}),
        "its weights are packed as 'nonsense'",
    ),
    "a torch_dtype of another kind": (
        config(dtype=..., torch_dtype="load"),
        "torch_dtype is 'load', which is no dtype",
    ),
    "a dtype that is a number": (config(dtype=16), "dtype is 16, which is no dtype"),
    "layers in words": (
        config(num_nextn_predict_layers="one"),
        "num_nextn_predict_layers is 'one', which is no number of layers or experts",
    ),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000, but no network has"),
    "a billion labels": (config(num_labels=10**9), "num_labels is 1,000,000,000, but no network has"),
    "a negative vocabulary": (config(vocab_size=-1), "cannot"),
    "no heads": (config(num_attention_heads=0), "is not a configuration of 'llama'"),
    "heads that do not divide": (config(num_attention_heads=5), "is not a configuration of 'llama'"),
    "hidden sizes in words": (config(hidden_size="many"), "is not a configuration of 'llama'"),
    "an activation that nobody knows": (config(hidden_act="sing"), "hidden_act is 'sing'"),
    "a rotation that nobody knows": (
        config(rope_parameters={"rope_type": "sing", "rope_theta": 10000.0}),
        "rope_type is 'sing'",
    ),
    "rope parameters that are a list": (config(rope_parameters=[1]), "is not a configuration of 'llama'"),
    "more layers than weights": (config(num_hidden_layers=3), "weights are missing"),
    "another width than the weights": (config(hidden_size=32), "but config.json asks for"),
    "remote code": (
        config(model_type="very_new", auto_map={"AutoModelForCausalLM": "modeling.Evil"}),
        "needs code that comes with the checkpoint, which burnish never runs",
    ),
    # -- the index
    "an index that leads up": (
        index({NORM: "../outside/x.safetensors"}),
        "names '../outside/x.safetensors', which lies outside the checkpoint",
    ),
    "an index with an absolute path": (
        index({NORM: "/etc/x.safetensors"}),
        "names '/etc/x.safetensors', which lies outside the checkpoint",
    ),
    "an index that is null": (index(None), "is not a valid shard index: it has no weight_map"),
    "an index of a list": (index([NORM]), "is not a valid shard index: it has no weight_map"),
    "an index of numbers": (index({NORM: 4}), f"says that {NORM} is in 4, which is no safetensors file"),
    "an index of pickles": (index({NORM: "a.bin"}), "is in 'a.bin', which is no safetensors file"),
    "an index with a NUL": (index({NORM: "a\0.safetensors"}), "which is no file name"),
    "an index of files that are not there": (index({NORM: "a.safetensors"}), "a.safetensors is missing"),
    "an index of tensors that are not there": (
        index({"nothing": "part.safetensors"}),
        "does not hold nothing, which the index says is in it",
    ),
    "an index beside another model": (
        lambda directory: (
            save_file({NORM: load_file(directory / "model.safetensors")[NORM]}, directory / "part.safetensors"),
            index({NORM: "part.safetensors"}, keep_whole=True)(directory),
        )[1],
        "holds model.safetensors and an index of other files",
    ),
    # -- links
    "weights that are a link outwards": (linked("model.safetensors"), "is a link out of the checkpoint, to "),
    "a config that is a link outwards": (linked("config.json"), "is a link out of the checkpoint, to "),
    "a tokenizer that is a link outwards": (linked("tokenizer.json"), "is a link out of the checkpoint, to "),
    # -- headers of the weights
    "weights that are empty": (written("model.safetensors", b""), "is not a safetensors file, or is cut short"),
    "a header that is a list": (header(lambda content: []), "header: is a list, not an object of tensors"),
    "a header that is null": (header(lambda content: None), "header: is null, not an object of tensors"),
    "a header of brackets": (
        written("model.safetensors", struct.pack("<Q", DEEP) + b"[" * DEEP),
        "header: is nested deeper than 64 levels",
    ),
    "a header that says it is huge": (
        written("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "is not a safetensors file, or is cut short",
    ),
    "metadata that is a number": (
        header(lambda content: content | {"__metadata__": {"format": 3}}),
        "has __metadata__ that is not an object of strings",
    ),
    "a dtype of no file": (entry(dtype="F99"), f"{NORM} has no dtype that safetensors knows"),
    "a dtype that is null": (entry(dtype=None), f"{NORM} has no dtype that safetensors knows"),
    "an entry that is a number": (header(lambda content: content | {NORM: 3}), f"{NORM} has no dtype"),
    "offsets below zero": (entry(data_offsets=[-256, 0]), f"data_offsets of {NORM} are not lists of sizes"),
    "offsets that are null": (entry(data_offsets=None), f"data_offsets of {NORM} are not lists of sizes"),
    "three offsets": (entry(data_offsets=[0, 1, 2]), f"data_offsets of {NORM} are not lists of sizes"),
    "offsets that overlap": (entry(data_offsets=[0, 256]), "overlaps the tensor before it"),
    "offsets beyond the file": (
        entry(data_offsets=[10**9, 10**9 + 256]),
        "does not begin where the one before it ends",
    ),
    "a shape of fractions": (entry(shape=[64.0]), f"the shape or data_offsets of {NORM} are not lists of sizes"),
    "a shape of another size": (entry(shape=[63]), f"{NORM} has 256 bytes, but shape [63] of F32 has 252"),
    "weights that are cut short": (
        lambda directory: written("model.safetensors", (directory / "model.safetensors").read_bytes()[:-10])(directory),
        "the file is incomplete or corrupt",
    ),
    "a weight that is missing": (
        tensors(lambda state: {name: tensor for name, tensor in state.items() if name != NORM}),
        f"weights are missing, the first is {NORM}",
    ),
    "a weight of another shape": (
        tensors(lambda state: state | {NORM: state[NORM][:32]}),
        f"{NORM} has the shape (32,), but config.json asks for (64,)",
    ),
    "an adapter beside the model": (
        written("adapter_config.json", '{"base_model_name_or_path": "someone/else"}'),
        "holds an adapter (adapter_config.json) beside the model",
    ),
    # -- the tokenizer
    "a tokenizer of brackets": (written("tokenizer.json", "[" * DEEP), "the tokenizer cannot be read"),
    "a tokenizer that is empty": (written("tokenizer.json", ""), "the tokenizer cannot be read"),
    "a tokenizer that is null": (written("tokenizer.json", "null"), "the tokenizer cannot be read"),
    "a tokenizer without a model": (edited("tokenizer.json", model=...), "the tokenizer cannot be read"),
    "settings of a tokenizer that are a list": (
        written("tokenizer_config.json", "[]"),
        "tokenizer_config.json: holds a list where {...} is expected",
    ),
    "a class of tokenizers that is a number": (
        edited("tokenizer_config.json", tokenizer_class=5),
        "the tokenizer cannot be read",
    ),
    "an end token that is a list": (edited("tokenizer_config.json", eos_token=[1]), "the tokenizer cannot be read"),
    # -- what burnish itself wrote
    "a lineage that is a list": (written("burnish.json", "[]"), "burnish.json: holds a list where {...} is expected"),
    "a lineage without a kind": (written("burnish.json", '{"format": 1}'), "the lineage file is damaged"),
    "a lineage of wrong types": (
        written("burnish.json", '{"format": 1, "kind": "causal-lm", "weights": "dense", "files": [1]}'),
        "the lineage file is damaged (files is a list)",
    ),
    "a lineage of the future": (
        written("burnish.json", '{"format": 99, "kind": "causal-lm", "weights": "dense"}'),
        "written by a newer burnish",
    ),
}
