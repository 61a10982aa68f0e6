"""`burnish doctor --speed`: which format pays on this machine, and what a checkpoint would decode at in each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.evaluate.engines.machine import KernelTime, Products

_BATCHES = (1, 4)
_CONTEXT = 128
_ANSWER = 16


def doctor_speed(place: str | None, named: str | None) -> None:
    """Prints bandwidth, then, with an environment of vLLM, products and what follows from them."""
    import torch

    from burnish.core.checkpoint import load
    from burnish.core.kinds import Weights
    from burnish.evaluate.engines.environments import ENGINES, interpreter
    from burnish.evaluate.engines.machine import TYPICAL, bandwidth, products, time_kernels
    from burnish.evaluate.measure import longest_context

    engine, python, model = ENGINES["vllm"], None, load(place) if place else None
    if named or os.environ.get(engine.variable):
        python = interpreter(engine, named)
    if model is not None and (model.lineage.weights is Weights.PACKED or model.packed):
        raise CheckpointError(
            "is packed, and formats are compared with dense weights", where=place, fix="name its base"
        )
    longest = None if model is None else longest_context(model)
    if longest is not None and longest <= _CONTEXT + _ANSWER:
        raise CheckpointError(
            f"has positions for {longest:,} tokens, and decoding is measured up to {_CONTEXT + _ANSWER + 1:,}",
            where=place,
            fix="leave out --model for products of typical shapes",
        )
    found = bandwidth()
    threads = torch.get_num_threads()
    print(f"memory, {threads} thread{'s' if threads > 1 else ''}: reads {found.read / 1e9:.1f} GB/s, ", end="")
    print(f"copies {found.copy / 1e9:.1f} GB/s")
    if python is None:
        print(f"which format pays here depends on vLLM's products, and {engine.variable} names none: {engine.make}")
        return
    used = products(model) if model is not None else None
    kernels = time_kernels(python, used.shapes if used else list(TYPICAL))
    _print_products(kernels, found.read)
    if used is not None and model is not None:
        _print_foretold(kernels, used, model, python, found.read)


def _print_products(kernels: Sequence[KernelTime], read: float) -> None:
    """A line for every shape and number of rows."""
    from burnish.evaluate.engines.machine import DENSE, ROWS, formats, speedup

    shapes, others = list(dict.fromkeys(one.shape for one in kernels)), [n for n in formats(kernels) if n != DENSE]
    print(f"\nvLLM's products, processor time, times as fast as {DENSE}:")
    print(f"{'matrix':>14} {'rows':>5} {DENSE:>12} {'of reading':>11}" + "".join(f"{name:>11}" for name in others))
    for shape in shapes:
        for rows in ROWS:
            dense = next(one for one in kernels if (one.format, one.shape, one.rows) == (DENSE, shape, rows))
            share = dense.bytes / dense.seconds / read
            times = [speedup(kernels, shape, name, rows) for name in others]
            cells = "".join(f"{f'{one:.2f}' if one else 'no kernel':>11}" for one in times)
            matrix = f"{shape[0]} x {shape[1]}"
            print(f"{matrix:>14} {rows:>5} {dense.seconds * 1e6:>9.0f} us {share:>10.0%} {cells}")
    for rows in ROWS:
        paying = {
            name: sorted(one for shape in shapes if (one := speedup(kernels, shape, name, rows)) is not None)
            for name in others
        }
        told = [f"{name} {_pays(found)}" for name, found in paying.items() if found]
        print(f"{rows} row{'s' if rows > 1 else ''}: {', '.join(told)}")


def _pays(times: Sequence[float]) -> str:
    """In words, of how many times as fast as dense weights a format is on several shapes."""
    span = f"({times[0]:.2f} to {times[-1]:.2f})"
    if times[0] > 1:
        return f"pays {span}"
    return f"is slower {span}" if times[-1] <= 1 else f"pays on some matrices {span}"


def _print_foretold(kernels: Sequence[KernelTime], used: Products, model: Model, python: Path, read: float) -> None:
    """Decoding of the checkpoint, measured, and what it would be in the other formats."""
    from burnish.evaluate import Evaluate
    from burnish.evaluate.engines.machine import DENSE, foretold_rate, formats, product_seconds

    settings = Evaluate(
        engine="vllm",
        engine_python=str(python),
        engine_batches=_BATCHES,
        engine_contexts=(_CONTEXT,),
        engine_rounds=3,
        decode_tokens=_ANSWER,
    )
    assert model.path is not None
    found = settings.together({"model": model.path}, progress=True)["model"]
    print(f"\ndecoding after {_CONTEXT} tokens in {found.protocol['engine']}, tokens a processor second:")
    for batch in _BATCHES:
        measured = found.metrics[f"decode_cpu_speed@{batch}x{_CONTEXT}"]["value"]
        seconds, dense = batch / measured, product_seconds(kernels, used, DENSE, batch)
        rates = {name: foretold_rate(kernels, used, name, batch, measured) for name in formats(kernels)}
        told = ", ".join(f"{name} {rate:.1f} foretold" for name, rate in rates.items() if name != DENSE)
        print(f"{batch} at a time: {DENSE} {measured:.1f} measured ({dense / seconds:.0%} of it products), {told}")
    weights = sum(2 * rows * columns * count for (rows, columns), count in used.counts.items())
    weights += 2 * used.head[0] * used.head[1]
    print(f"reading {weights / 1e6:.0f} MB of {DENSE} weights a token allows {read / weights:.0f} tokens/s at most")
