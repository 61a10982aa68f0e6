"""`burnish reason serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def serve(
    *,
    local: Path,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8321,
    allow_host: list[str] | None = None,
    rows: int = 64,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
) -> None:
    """Serve a checkpoint to any OpenAI client, by transformers in this process.

    Another address than the loopback needs a key. It is read from BURNISH_SERVE_KEY, and asked for wherever it is set.

    Parameters
    ----------
    local:
        A checkpoint directory.
    name:
        By which clients call the model; the directory's where nothing is said.
    host:
        Address to listen at.
    port:
        0 takes a free one, which is printed.
    allow_host:
        Further names by which clients call this server; requests that name others are refused.
    rows:
        Continuations that share a forward pass, at most.
    dtype:
        Of the weights; in the shorter two, texts depend on what else is asked for at the time.
    device:
        Where the model is.
    """
    import asyncio
    import os

    import torch

    from burnish.core.checkpoint import load
    from burnish.generate import Engine
    from burnish.reason.serve import Guard, Local
    from burnish.reason.serve import serve as run

    guard = Guard(host, os.environ.get("BURNISH_SERVE_KEY", ""), tuple(allow_host or ()))
    model = load(local, dtype=getattr(torch, dtype), device=device)
    called = name or local.resolve().name
    engine = Engine(model.module.eval(), model.tokenizer, name=called, identity=model.identity, rows=rows)

    def said(address: str) -> None:
        print(f"serving {called} at {address}", flush=True)

    asyncio.run(run(Local(engine), guard, port=port, said=said))
