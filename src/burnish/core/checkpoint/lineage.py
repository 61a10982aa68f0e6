"""`burnish.json`: where a checkpoint comes from, what its files hash to, and the model card made of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.checkpoint.adapter import CONFIG as ADAPTER_CONFIG
from burnish.core.checkpoint.adapter import DIRECTORY as ADAPTER
from burnish.core.checkpoint.adapter import adapter_files
from burnish.core.checkpoint.durable import write_atomically
from burnish.core.checkpoint.identity import text_digest
from burnish.core.checkpoint.own_classes import NOT_STOCK
from burnish.core.errors import CheckpointError, OutputError
from burnish.core.kinds import STOCK_LOADER, Kind, Weights
from burnish.core.metric_names import called
from burnish.core.outside import kind_of_json, read_object

LINEAGE_FILE = "burnish.json"
LINEAGE_FORMAT = 2
"""Since 2 with a digest of itself."""
CARD_FILE = "README.md"


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
        continued: settings that were changed when an interrupted stage went on, as {after_step, change}; such a
            checkpoint is not what an uninterrupted run makes of its settings.
        methods: what the stage did by the names of the field, with sources, for the model card.
        loader: what reads it, where that is not the stock loader of its kind.
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
    continued: list[dict[str, Any]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    loader: str = ""

    @property
    def hash(self) -> str:
        """The content hash of the checkpoint: a digest over the digests of its files."""
        return content_hash(self.files)

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter was written beside the weights."""
        return f"{ADAPTER}/{ADAPTER_CONFIG}" in self.files

    def check_types(self) -> None:
        """Raises TypeError where a field is not what it must be: the file may be of others."""
        blank = Lineage()
        for name, value in vars(self).items():
            if not isinstance(value, type(getattr(blank, name))):
                raise TypeError(f"{name} is {kind_of_json(value)}")
        if not all(isinstance(value, str) for value in (*self.files.values(), *self.parents.values())):
            raise TypeError("files and parents hold hashes")
        if not all(isinstance(row, dict) for row in self.measurements.values()):
            raise TypeError("measurements holds objects")

    def write(self, directory: Path) -> None:
        content = json.loads(json.dumps({"format": LINEAGE_FORMAT} | asdict(self)))
        write_atomically(directory / LINEAGE_FILE, json.dumps(content | {"digest": text_digest(content)}, indent=2))

    def write_measured(self, directory: Path, metrics: dict[str, dict[str, Any]], protocol: str) -> None:
        """Writes down what was measured, under the protocol of this hash, in the lineage and on the model card."""
        found = {name: one | {"protocol": protocol} for name, one in metrics.items() if one["value"] is not None}
        if found != self.measurements:
            self.measurements = found
            self.write(directory)
            write_atomically(directory / CARD_FILE, model_card(self))

    @classmethod
    def read(cls, directory: Path) -> Lineage | None:
        """The lineage of a checkpoint that burnish made, or None for any other directory."""
        path = directory / LINEAGE_FILE
        if not path.is_file():
            return None
        again = "delete this checkpoint and make it again"
        content = read_object(path, fix=f"the lineage file is damaged: {again}")
        try:
            digest = content.pop("digest", None)
            if content["format"] == LINEAGE_FORMAT and digest != text_digest(content):
                raise CheckpointError(
                    "the lineage file was changed by hand or damaged",
                    where=str(path),
                    fix=f"undo the change, or {again}",
                )
            written_by = content.pop("format")
            if written_by > LINEAGE_FORMAT:
                raise CheckpointError(
                    f"written by a newer burnish (lineage format {written_by}, this one reads up to {LINEAGE_FORMAT})",
                    where=str(path),
                    fix="upgrade burnish",
                )
            lineage = cls(**content | {"kind": Kind(content["kind"]), "weights": Weights(content["weights"])})
            lineage.check_types()
            return lineage
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the lineage file is damaged ({error})",
                where=str(path),
                fix=again,
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
    """The files that decide what a checkpoint computes: everything but lineage, model card and hidden files, with those
    of an adapter beside it."""
    own = (
        path
        for path in directory.iterdir()
        if path.is_file() and path.name not in (LINEAGE_FILE, CARD_FILE) and not path.name.startswith(".")
    )
    return sorted([*own, *adapter_files(directory)])


def hash_directory(directory: Path) -> dict[str, str]:
    """{file name: sha256} of a checkpoint, read from the files themselves."""
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in content_files(directory)}


def check_target(target: Path, *, overwrite: bool, kind: Kind | None = None) -> None:
    """Refuses to write over anything that burnish did not make, or that is of another kind than the one given.

    Raises:
        OutputError: it is not, or may not be overwritten.
    """
    if not target.exists():
        return
    if not target.is_dir() or (Lineage.read(target) is None and any(target.iterdir())):
        raise OutputError("exists and was not made by burnish", where=str(target), fix="choose another place with -o")
    older = Lineage.read(target)
    if older is not None and not overwrite:
        raise OutputError("exists already", where=str(target), fix="choose another place with -o, or pass --overwrite")
    if older is not None and kind is not None and older.kind is not kind:
        what = f"is of kind {older.kind}, and what is to replace it of kind {kind}"
        raise OutputError(what, where=str(target), fix="choose another place with -o")


def library_versions() -> dict[str, str]:
    """Versions that decide numbers."""
    import platform
    from importlib.metadata import version

    from burnish._version import __version__

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
    if lineage.loader:
        lines.append(f"Load it with `{lineage.loader}`: stock loaders do not read its packed embedding.")
    elif lineage.kind is Kind.CUSTOM_CAUSAL_LM:
        how = f"`burnish.load`, or with `{STOCK_LOADER[lineage.kind]}.from_pretrained(..., trust_remote_code=True)`"
        lines.append(f"Load it with {how}: {NOT_STOCK}.")
    else:
        lines.append(f"Load it with `{STOCK_LOADER[lineage.kind]}.from_pretrained`; no custom code is needed.")
    if lineage.has_adapter:
        lines.append(f"That is the model with its LoRA adapter off, which lies in `{ADAPTER}`; on: `burnish.load`, or")
        unpacked = " of the model loaded with `CompressedTensorsConfig(dequantize=True)`"
        unpacked = unpacked if lineage.weights is Weights.PACKED else ""
        lines.append(f"`peft.PeftModel.from_pretrained(model, DIRECTORY + '/{ADAPTER}')`{unpacked}.")
    lines.append(f"Licence: {lineage.licence or 'that of the base model, which its files do not state'}.")
    if lineage.methods:
        lines += ["", "## Method", "", *(f"- {method}" for method in lineage.methods)]
    if lineage.settings:
        lines += ["", "## Settings", "", "| setting | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in sorted(lineage.settings.items())]
    if lineage.continued:
        lines += ["", "## Changed on the way", "", "An uninterrupted run with these settings makes other weights:", ""]
        lines += [f"- after step {row['after_step']}: {row['change']}" for row in lineage.continued]
    if lineage.measurements:
        lines += ["", "## Measured", "", "| metric | value | 95 % interval | protocol |", "| --- | --- | --- | --- |"]
        for metric, row in sorted(lineage.measurements.items()):
            interval = f"{row['low']:.5g} to {row['high']:.5g}" if row.get("low") is not None else ""
            value = f"{row['value']:.5g} {row.get('unit', '')}"
            lines.append(f"| {called(metric)} | {value} | {interval} | {row.get('protocol', '')[:12]} |")
    return "\n".join(lines) + "\n"
