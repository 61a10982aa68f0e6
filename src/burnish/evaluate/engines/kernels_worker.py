"""vLLM's own products on a CPU, timed: `python kernels_worker.py SETTINGS`, prints one line of JSON.

It is run by the interpreter of vLLM's environment and stands on torch and vLLM alone. SETTINGS is JSON: {shapes: [[out,
in], ...], rows, group_size, rounds, most_bytes}. Every shape has as many copies as make `most_bytes` in bfloat16, and a
round goes through all of them once, so that weights come from memory as they do in a model, not from a cache.

The line: {kernels: [{format, out, in, rows, seconds, bytes}]}; seconds are of processor time for
one product, the median of the rounds, in which the formats take turns; bytes are those of its weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ |= {"VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def dense(rows: int, columns: int) -> tuple[Callable[[Any], Any], int]:
    """A product with bfloat16 weights, as vLLM would make it, and the bytes of the weights."""
    import torch
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    linear: Any = getattr(layer, "cpu_linear")  # noqa: B009 (vLLM has just put it there)
    return lambda x: linear(x, layer.weight, None), 2 * rows * columns


def int8(rows: int, columns: int) -> tuple[Callable[[Any], Any], int]:
    """int8 weights with a scale a row, inputs rounded to int8 token by token."""
    import torch
    from vllm import _custom_ops as ops

    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    scale = torch.rand(rows, 1) / 100
    handler = ops.create_onednn_scaled_mm(weight.t(), scale, torch.bfloat16, True, False, 32)

    def product(x: Any) -> Any:
        rounded, scales, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
        out = torch.empty((len(x), rows), dtype=x.dtype)
        ops.onednn_scaled_mm(handler, rounded, out, scales, None, None, None)
        return out

    return product, rows * columns


def packed(rows: int, columns: int, group_size: int) -> tuple[Callable[[Any], Any], int]:
    """4-bit weights in groups, inputs in bfloat16."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import _get_isa_hint

    codes = torch.randint(-(2**31), 2**31 - 1, (rows // 16, 2 * columns), dtype=torch.int32)
    scales = torch.rand(columns // group_size, rows, dtype=torch.bfloat16) / 100
    hint = _get_isa_hint(torch.bfloat16)

    def product(x: Any) -> Any:
        return ops.cpu_gemm_wna16(
            input=x, q_weight=codes, scales=scales, zeros=None, bias=None, pack_factor=8, isa_hint=hint
        )

    return product, rows * columns // 2 + 2 * scales.numel()


def makers(rows: int, columns: int, group_size: int) -> dict[str, Callable[[], tuple[Callable[[Any], Any], int]]]:
    """What can be timed for a shape: {format: how a product is made}."""
    import torch

    found: dict[str, Callable[[], Any]] = {"bfloat16": lambda: dense(rows, columns)}
    operators = torch.ops._C
    if hasattr(operators, "create_onednn_scaled_mm_handler"):
        found["w8a8-int8"] = lambda: int8(rows, columns)
    fits = rows % 32 == 0 and columns % 32 == 0 and columns % group_size == 0
    if hasattr(operators, "cpu_gemm_wna16") and fits:
        found["w4a16"] = lambda: packed(rows, columns, group_size)
    return found


def timed(rows: int, columns: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """All formats of a shape, in turns."""
    import torch

    copies = max(1, settings["most_bytes"] // (2 * rows * columns))
    made = {
        name: [make() for _ in range(copies)] for name, make in makers(rows, columns, settings["group_size"]).items()
    }
    results = []
    for number in settings["rows"]:
        x = torch.randn(number, columns, dtype=torch.bfloat16)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(settings["rounds"] + 1):
            for name in list(made)[:: -1 if turn % 2 else 1]:
                begun = time.process_time()
                for product, _ in made[name]:
                    product(x)
                if turn:
                    seconds[name].append((time.process_time() - begun) / copies)
        for name, found in seconds.items():
            facts = {"format": name, "out": rows, "in": columns, "rows": number}
            results.append(facts | {"seconds": median(found), "bytes": made[name][0][1]})
    return results


def main(settings: str) -> None:
    import torch
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    chosen = json.loads(settings)
    with torch.inference_mode():
        kernels = [one for rows, columns in chosen["shapes"] for one in timed(rows, columns, chosen)]
    print(json.dumps({"kernels": kernels}))


if __name__ == "__main__":
    main(sys.argv[1])
