"""Rows out of a reference to data: in memory, or of large files on disk, made once and kept with the states."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import tokenizer_digest
from burnish.core.stage import Context
from burnish.core.store import Store, digest_of
from burnish.data import files_digest, num_bytes, rows_of
from burnish.data.hub import is_hub, spooled
from burnish.data.packing import PackedRows, documents, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.train.stage import Train

LARGE = 1 << 26
"""Bytes of files from which on their rows are kept on disk."""
MOST_NAMED = 1000
"""Rows left out that the ledger names; the log says how many there are."""
SKIPPED_FILE = "skipped.json"


READ = ("data", "validation", "bound_data")
"""The references that a training reads rows of; a teacher's checkpoint is none of them."""


def is_large(data: Any) -> bool:
    """Whether the rows of a reference are kept on disk."""
    return is_hub(data) or num_bytes(data) >= LARGE


def any_large(inputs: Mapping[str, Any]) -> bool:
    """Whether those of one of a training's references are."""
    return any(is_large(inputs.get(name)) for name in READ)


def on_disk(ctx: Context) -> Context:
    """With files in the place of datasets of the hub, which are read here as far as an earlier start has not come.

    Raises:
        DataError, OSError: see `burnish.data.hub.spooled`.
    """
    inputs = dict(ctx.inputs)
    for name in READ:
        data = inputs.get(name)
        if isinstance(data, str) and is_hub(data):
            inputs[name] = str(spooled(data, ctx.work_dir / "streams", ctx.progress))
    return replace(ctx, inputs=inputs)


def packed(settings: Train, tokenizer: PreTrainedTokenizerBase, data: Any, ctx: Context, *, where: str) -> PackedRows:
    """The rows behind a data reference, or behind texts and chats that a Python caller gave.

    Where rows may be left out, the ledger says which and why, and the log how many.

    Raises:
        DataError: see `burnish.data.rows_of`, `documents` and `pack`.
        OSError: no room.
    """
    name = data if isinstance(data, str) else where
    skipped: list[str] | None = [] if settings.bad_rows == "skip" else None

    def made(directory: Path | None = None) -> PackedRows:
        found = documents(tokenizer, rows_of(data, skipped=skipped), where=name, skipped=skipped)
        return pack(found, settings.context, overlong=settings.overlong, where=name, directory=directory)

    if is_large(data):
        settled = {"context": settings.context, "overlong": settings.overlong, "bad_rows": settings.bad_rows}
        key = {"files": files_digest(data), "tokenizer": tokenizer_digest(tokenizer), **settled}
        rows = _kept(Store(ctx.work_dir / "rows"), f"{where}-{digest_of(key)[:12]}", key, made, skipped, ctx)
    else:
        rows = made()
    if skipped:
        ctx.progress.log(f"{name}: {len(skipped):,} rows are left out, the first: {skipped[0]}")
        ctx.ledger.table(f"rows left out of {where}", [{"row": text} for text in skipped[:MOST_NAMED]])
    return rows


def _kept(
    store: Store,
    name: str,
    key: dict[str, Any],
    made: Callable[[Path], PackedRows],
    skipped: list[str] | None,
    ctx: Context,
) -> PackedRows:
    """Rows on disk, from an earlier start of the same training where it came so far; `skipped` is filled either way."""
    kept = store.find(name, key)
    if kept is None:
        ctx.progress.log(f"making rows of {key['context']:,} tokens on disk: {name}")
        with store.writing(name, key) as path:
            made(path)
            (path / SKIPPED_FILE).write_text(json.dumps(skipped or []), encoding="utf-8")
        kept = store.directory / name
    elif skipped is not None:
        skipped += json.loads((kept / SKIPPED_FILE).read_text(encoding="utf-8"))
    return PackedRows.mapped(kept)
