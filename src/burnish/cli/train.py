"""`burnish train` trains a checkpoint on, or a configuration from scratch; `burnish init` makes such a start."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.cli.entries import print_entry
from burnish.cli.options import Options
from burnish.cli.run import Flag, run_single
from burnish.core.apart import check_apart
from burnish.core.errors import SettingsError
from burnish.core.outside import MAX_SEED
from burnish.train.stage import Train

_DEFAULTS = Train.parse({}, where="defaults")


def train(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    tokenizer: str | None = None,
    explain: Flag = False,
    settings: Options[Train] = _DEFAULTS,
    evaluate: bool = False,
    overwrite: Flag = False,
    continue_with_changes: Flag = False,
    restart: Flag = False,
) -> None:
    """Train a model on texts or chats, further or from scratch.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id; with --tokenizer, a config.json or a directory that has one.
    out:
        Where the checkpoint goes; ledger and report go to OUT.run beside it; must be given unless --explain is.
    tokenizer:
        Train from scratch: bpe:N learns a BPE from the data, a checkpoint lends its own; the start is kept in OUT.init.
    explain:
        Only print which parameter gets which update, and why.
    evaluate:
        Measure before and after.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    continue_with_changes:
        Go on from the state of an interrupted run with changed settings: steps, batch, learning rate and the like.
    restart:
        Delete what an interrupted run has left, and start again.
    """
    if explain:
        _explain(model, settings)
        return
    if out is None:
        raise SettingsError("there is no place for the result", where="--out", fix="give -o DIRECTORY")
    if tokenizer is not None:
        place = out.parent / f"{out.name}.init"
        check_apart([out, place], [model, tokenizer, settings.data])
        model = str(_start(Path(model), tokenizer, settings, place))
    elif Path(model).suffix == ".json":
        raise SettingsError(
            "a configuration alone has no tokenizer", where=model, fix="give --tokenizer bpe:1024, or a checkpoint's"
        )
    how = {"overwrite": overwrite, "with_changes": continue_with_changes, "restart": restart}
    run_single(settings, model, out, evaluate=evaluate, **how)


def init(
    config: Path,
    /,
    *,
    tokenizer: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    data: str | None = None,
    chat_template: Path | None = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))] = 0,
    overwrite: Flag = False,
) -> None:
    """Make a checkpoint with random weights, for recipes that start from nothing.

    Parameters
    ----------
    config:
        A config.json, or a directory that has one; weights beside it are not read.
    tokenizer:
        bpe:N learns a BPE of N tokens from the data; a checkpoint lends its own.
    out:
        Where the checkpoint goes.
    data:
        What a BPE is learned from: texts, chats, or a directory of them.
    chat_template:
        A Jinja file that writes out chats.
    seed:
        Of the weights.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    from burnish.core.checkpoint.lineage import check_target
    from burnish.core.outside import read_bytes
    from burnish.data import rows_of
    from burnish.data.chat import chat_tokens, said_in
    from burnish.train.scratch import initialise

    check_apart([out], [config, tokenizer, data, chat_template])
    check_target(out, overwrite=overwrite)
    template = None
    if chat_template is not None:
        template = read_bytes(chat_template, error=SettingsError).decode(errors="replace").removesuffix("\n")
    rows = rows_of(data) if data is not None else []
    texts = [row if isinstance(row, str) else said_in(row) for row in rows]
    start = initialise(config, tokenizer=tokenizer, texts=texts, chat_template=template, seed=seed)
    if template is not None:
        chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        chat_tokens(start.tokenizer, chat, where=str(chat_template))
    start.save(out, overwrite=overwrite)
    print(f"checkpoint: {out}, {start.plan().num_parameters:,} parameters")


def _start(config: Path, tokenizer: str, settings: Train, place: Path) -> Path:
    """The checkpoint of random weights that training from scratch starts from; kept while nothing of it changes."""
    from burnish.core.checkpoint import Lineage
    from burnish.data import data_hash, read_texts
    from burnish.train.scratch import initialise, read_config_file

    content = read_config_file(config)
    if settings.data is None:
        raise SettingsError("no data is named", where="data", fix="give --data FILE")
    facts = {"config": content, "tokenizer": tokenizer, "data": data_hash(settings.data), "seed": settings.seed}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    lineage = Lineage.read(place) if place.is_dir() else None
    if lineage is None or lineage.key != key:
        texts = read_texts(settings.data) if tokenizer.startswith("bpe:") else []
        start = initialise(content, tokenizer=tokenizer, texts=texts, seed=settings.seed)
        start.lineage.key = key
        start.save(place, overwrite=lineage is not None and lineage.stage == "init")
    return place


def _explain(model: str, settings: Train) -> None:
    """The routing of a model, from its configuration alone."""
    import torch
    from transformers import AutoModelForCausalLM

    from burnish.core.checkpoint import config_from, load_config, resolve
    from burnish.optim import explain
    from burnish.train.lora import with_adapters
    from burnish.train.scratch import read_config_file

    if Path(model).suffix == ".json":
        config = config_from(read_config_file(Path(model)), where=model)
    else:
        config = load_config(resolve(model))
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    if settings.lora_rank:
        module = with_adapters(module, settings.model_copy(update={"lora_init": "default"}), None)
    rows = explain(module, split=settings.split_fused, lora=settings.lora_matrix, algorithm=settings.optimizer)
    print(f"{settings.optimizer} on {config.model_type}\n")
    for row in rows:
        count = f"{row['count']} x " if row["count"] > 1 else ""
        layout = f" ({row['layout']})" if row["layout"] else ""
        print_entry(f"{row['parameters']}: {count}{row['shape']}", [(f"{row['algorithm']}{layout}", row["reason"])])
