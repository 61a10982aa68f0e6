"""`burnish reason serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.generate.speculation import Proposer
    from burnish.reason.serve import Backend

LONGEST = 8
"""Tokens that are proposed at a time, at most, where a controller chooses."""


def read_prompts(file: Path | None) -> dict[str, str]:
    """Those of a file; none of no file."""
    if file is None:
        return {}
    from burnish.core.errors import SettingsError
    from burnish.core.outside import read_bytes
    from burnish.reason.prompts import read_prompts as read

    return read(read_bytes(file, error=SettingsError).decode("utf-8", "replace"), where=str(file))


Dtype = Literal["float32", "bfloat16", "float16"]


def serve(
    *,
    upstream: str | None = None,
    local: Path | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    verifier: str | None = None,
    prompts: Path | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8321,
    allow_host: list[str] | None = None,
    timeout: Annotated[float, Parameter(validator=Number(gt=0))] = 600.0,
    concurrency: Annotated[int, Parameter(validator=Number(gte=1))] = 256,
    name: str | None = None,
    rows: Annotated[int, Parameter(validator=Number(gte=1))] = 64,
    speculate: str | None = None,
    dtype: Dtype = "float32",
    device: str = "cpu",
) -> None:
    """Serve strategies to any OpenAI client, in front of another server or of a checkpoint in this process.

    A request for "rsa(n=8,k=4,loops=3)@MODEL" is answered by the strategy, one for MODEL passes as it is. The key of
    the server behind is read from OPENAI_API_KEY. Another address than the loopback needs a key of its own, which is
    read from BURNISH_SERVE_KEY and asked for wherever it is set.

    Parameters
    ----------
    upstream:
        Address of an OpenAI-like server, up to /v1.
    local:
        A checkpoint directory, served by transformers in this process.
    out:
        A directory in which the calls of strategies are kept: a request with a seed goes on there after a crash.
    verifier:
        How strategies find and compare answers (math, number and others); without it they compare whole texts.
    prompts:
        A .toml file of texts by name (gsa, rsa, cue and others) in place of the package's own.
    host:
        Address to listen at.
    port:
        0 takes a free one, which is printed.
    allow_host:
        Further names by which clients call this server; requests that name others are refused.
    timeout:
        Seconds without a byte from the server behind, after which a request is given up.
    concurrency:
        Calls of strategies at a time, for each model.
    name:
        By which clients call the local model; its directory's where nothing is said.
    rows:
        Continuations of the local model that share a forward pass, at most.
    speculate:
        Of the local model, one continuation at a time: trie (of what was said), a draft's DIR, or trie,DIR for both.
    dtype:
        Of the local model; in the shorter two, texts depend on what else is asked for at the time.
    device:
        Where the local model is.
    """
    import os
    from contextlib import nullcontext

    from burnish.core import interrupts
    from burnish.core.apart import check_apart
    from burnish.core.errors import SettingsError
    from burnish.reason.serve import Guard, Upstream
    from burnish.reason.serve import serve as run
    from burnish.reason.serve.upstream import checked
    from burnish.verify import verifier as named

    if speculate is not None and local is None:
        raise SettingsError("is for a local model", where="--speculate", fix="give it to the server behind")
    if (upstream is None) == (local is None):
        raise SettingsError("one server behind this one is needed", fix="give either --upstream or --local")
    check_apart([out], [local, prompts])
    texts = read_prompts(prompts)
    guard = Guard(host, os.environ.get("BURNISH_SERVE_KEY", ""), tuple(allow_host or ()))
    backend: Backend
    if upstream is not None:
        keys = not guard.key  # else what clients send is the key of this server
        backend = Upstream(checked(upstream), forwards_key=keys, timeout=timeout, concurrency=concurrency)
    else:
        assert local is not None
        backend = _local(local, name, rows, dtype, device, speculate)

    def said(address: str) -> None:
        print(f"serving {backend.called} at {address}", flush=True)

    with named(verifier) if verifier else nullcontext() as answers:
        interrupts.run(run(backend, guard, port=port, said=said, out=out, answers=answers, prompts=texts))


def _local(
    directory: Path, name: str | None, rows: int, dtype: Dtype, device: str, speculate: str | None = None
) -> Backend:
    import torch

    from burnish.core.checkpoint import load
    from burnish.generate import Engine
    from burnish.reason.serve import Local

    model = load(directory, dtype=getattr(torch, dtype), device=device)
    called = name or directory.resolve().name
    identity = model.identity  # before a draft's hooks, which are another model in every process
    proposer = _proposer(model, speculate) if speculate is not None else None
    options = {"name": called, "identity": identity, "rows": rows, "proposer": proposer}
    return Local(Engine(model.module.eval(), model.tokenizer, **options))


def _proposer(model: Model, speculate: str) -> Proposer:
    """The trie, a draft, or both, between which a controller chooses by what they cost on this machine.

    Raises:
        SettingsError: neither, or no directory.
        CheckpointError: no draft, or one of another model.
    """
    from burnish.cli.serve import TRIE, draft_at
    from burnish.serve.speculate import Lookahead

    if speculate == TRIE:
        return Lookahead()
    both = speculate.removeprefix(f"{TRIE},")
    place = draft_at(both)
    from burnish.distill.speculator import Drafting, read_draft

    draft = read_draft(place)
    if both == speculate:
        return Drafting(model, draft)
    drafting = Drafting(model, draft, length=LONGEST)
    from burnish.distill.speculator.prices import LOOKING_UP, proposing, verifying
    from burnish.serve.speculate.controller import SpeculationController
    from burnish.serve.speculate.mixture import Mixture

    prices = {TRIE: [LOOKING_UP] * (1 + LONGEST), "draft": proposing(draft, LONGEST)}
    controller = SpeculationController(prices, verifying(model, LONGEST))
    return Mixture({TRIE: Lookahead(), "draft": drafting}, controller, asked_always={TRIE})
