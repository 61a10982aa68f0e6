"""The tokenizer of a checkpoint, read from the checkpoint's own files and from nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint.reading import load_config, quiet_transformers
from burnish.core.errors import CheckpointError
from burnish.core.outside import answered_for, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SETTINGS = "tokenizer_config.json"
SMALL_FILES = (SETTINGS, "special_tokens_map.json", "added_tokens.json", "chat_template.json")


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in VOCABULARIES)


def read_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as stock loading reads it.

    Raises:
        CheckpointError: there is none, or its files cannot be read.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(directory):
        raise CheckpointError(
            "has no tokenizer (tokenizer.json)", where=str(directory), fix="copy it from the base model"
        )
    config = load_config(directory)
    for name in SMALL_FILES:
        if (directory / name).is_file():
            read_object(directory / name)
    fix = "copy the tokenizer's files from the base model"
    with (
        _own_files(directory) as place,
        quiet_transformers(),
        answered_for("the tokenizer cannot be read", where=str(directory), fix=fix),
    ):
        tokenizer = AutoTokenizer.from_pretrained(place, config=config, local_files_only=True, trust_remote_code=False)
        tokenizer("a b", add_special_tokens=False)
        tokenizer.name_or_path = str(directory)
    return tokenizer


@contextmanager
def _own_files(directory: Path) -> Iterator[Path]:
    """The directory, or a copy of its small files where the tokenizer's settings name files to read, or code."""
    path = directory / SETTINGS
    settings = read_object(path) if path.is_file() else {}
    safe = {key: value for key, value in settings.items() if not _leads_out(key, value)}
    if safe == settings:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="burnish-") as scratch:
        for file in directory.iterdir():
            if file.is_file() and file.suffix in (".json", ".model", ".txt", ".jinja"):
                shutil.copyfile(file, Path(scratch) / file.name)
        if (directory / "additional_chat_templates").is_dir():
            shutil.copytree(directory / "additional_chat_templates", Path(scratch) / "additional_chat_templates")
        (Path(scratch) / SETTINGS).write_text(json.dumps(safe), encoding="utf-8")
        yield Path(scratch)


def _leads_out(key: str, value: object) -> bool:
    """Whether a setting can make a file be opened that is not the checkpoint's, or code run."""
    names_files = key.endswith(("_file", "_files")) and value is not None
    return names_files or key in ("auto_map", "init_inputs")
