"""What this machine can do: bandwidth of its memory, and the engine's own products with weights in every format.

Decoding reads every weight once a step, so that bytes over bandwidth bound its rate; whether fewer bytes are faster
depends on the product that unpacks them. For a batch of B,

    step(format) = sum over matrices of seconds(format, shape, B) + head(bfloat16, B) + fixed,

where `fixed` is all that is no product with a weight: attention, norms, scheduling, sampling. It is taken from a
measured step of the dense checkpoint, and then foretells the others: rate = B / step. (How much a step of more rows
costs is also the price of verifying so many proposed tokens.)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from burnish.arch import describe, matrices
from burnish.core.checkpoint import Model, without_weights
from burnish.core.errors import EngineError, SettingsError
from burnish.core.outside import parse_json
from burnish.evaluate.engines.environments import ENGINES
from burnish.evaluate.engines.process import engine_environment

WORKER = Path(__file__).with_name("kernels_worker.py")
ROWS = (1, 4, 9, 64)
"""Tokens of a step: one prompt, four, one with eight proposed tokens, a piece of a prompt."""
DENSE = "bfloat16"
MatrixShape = tuple[int, int]
"""(outputs, inputs)."""
TYPICAL: Mapping[MatrixShape, int] = {(960, 576): 1, (3072, 576): 1, (4096, 4096): 1, (11008, 4096): 1}
"""Where no checkpoint is named: joined matrices of a model of 135 million parameters, and some of one of 7 billion."""
_MOST_BYTES = 64 << 20
_TIMEOUT = 600


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second of one thread: reading alone, and copying, which reads and writes."""

    read: float
    copy: float


@dataclass(frozen=True)
class KernelTime:
    """Processor seconds of one product of `rows` tokens with a matrix in a format, and the bytes of its weights."""

    format: str
    shape: MatrixShape
    rows: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Products:
    """Matrices that one token is multiplied with, as vLLM joins them.

    Attributes:
        counts: {shape: how many}, without the output head.
        head: shape of the output head, which stays dense in every format.
    """

    counts: Mapping[MatrixShape, int]
    head: MatrixShape

    @property
    def shapes(self) -> list[MatrixShape]:
        return list(dict.fromkeys([*self.counts, self.head]))


def bandwidth(num_bytes: int = 256 << 20, rounds: int = 5) -> Bandwidth:
    """The best of some rounds over memory much larger than caches, in processor time."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    return Bandwidth(
        read=num_bytes / _least(lambda: source.sum(), rounds),
        copy=2 * num_bytes / _least(lambda: target.copy_(source), rounds),
    )


def _least(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken[1:])


def products(model: Model) -> Products:
    """Of a dense checkpoint's shape.

    Raises:
        SettingsError: a mixture, whose products depend on the routing.
    """
    module = without_weights(model)
    if describe(module).experts is not None:
        raise SettingsError("is a mixture of experts, whose products depend on its routing", where=str(model.path))
    joined: Counter[tuple[str, int]] = Counter()
    for view in matrices(module):
        if view.layer is not None:
            rows, columns = view.shape
            joined[view.fused_group or view.name, columns] += rows
    counts = Counter((rows, columns) for (_, columns), rows in joined.items())
    config = module.config.get_text_config()
    return Products(dict(counts), (config.vocab_size, config.hidden_size))


def time_kernels(
    python: Path, shapes: Sequence[MatrixShape], *, group_size: int = 64, rounds: int = 5, most_bytes: int = _MOST_BYTES
) -> list[KernelTime]:
    """vLLM's products for these shapes in every format that it has here.

    Raises:
        EngineError: they cannot be timed; the last words are in the message.
    """
    settings = {"shapes": shapes, "rows": ROWS, "group_size": group_size, "rounds": rounds, "most_bytes": most_bytes}
    command = [str(python), str(WORKER), json.dumps(settings)]
    environment = engine_environment(python, threads=torch.get_num_threads(), compiled=False, cache_gib=1)
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=os.environ | environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"its kernels cannot be timed ({error})", where=str(python)) from None
    if told.returncode:
        said = [line.strip() for line in told.stderr.splitlines() if line.strip()]
        last = said[-1] if said else f"status {told.returncode}"
        raise EngineError(f"its kernels cannot be timed ({last})", where=str(python), fix=ENGINES["vllm"].make)
    found = parse_json(told.stdout.splitlines()[-1], where=str(python), error=EngineError)
    return [
        KernelTime(one["format"], (one["out"], one["in"]), one["rows"], one["seconds"], one["bytes"])
        for one in found["kernels"]
    ]


# -- what follows ------------------------------------------------------------------------------------------------------


def formats(kernels: Sequence[KernelTime]) -> list[str]:
    return list(dict.fromkeys(one.format for one in kernels))


def product_seconds(kernels: Sequence[KernelTime], used: Products, name: str, rows: int) -> float:
    """All products of a step of `rows` tokens; shapes without a kernel for the format stay dense, as the head does."""
    known = {(one.format, one.shape): one.seconds for one in kernels if one.rows == rows}
    layers = sum(count * known.get((name, shape), known[DENSE, shape]) for shape, count in used.counts.items())
    return layers + known[DENSE, used.head]


def speedup(kernels: Sequence[KernelTime], shape: MatrixShape, name: str, rows: int) -> float | None:
    """How many times as fast as dense weights; None where the format has no kernel for the shape."""
    known = {one.format: one.seconds for one in kernels if one.shape == shape and one.rows == rows}
    return known[DENSE] / known[name] if name in known else None


def foretold_rate(kernels: Sequence[KernelTime], used: Products, name: str, batch: int, measured_dense: float) -> float:
    """Tokens a second that a format decodes at, from the rate of dense weights in the same engine at the same batch."""
    fixed = batch / measured_dense - product_seconds(kernels, used, DENSE, batch)
    return batch / (product_seconds(kernels, used, name, batch) + max(fixed, 0.0))
