"""On a CPU, do products of float32 matrices go faster in bfloat16, and does torch do that by itself?

    python benchmarks/fast_units.py

(2,048 x 1,536)ᵀ times itself, added to sums as statistics are, and a linear layer of 1,536 x 1,536 over 2,048 tokens,
on one thread: in float32; in float32 under the precision "medium", which collecting uses and which lets torch take
bfloat16 operands; and with operands that are cast to bfloat16 first, the casts and the sum in float32 counted. Once as
the machine is, and once with oneDNN held to AVX512_BF16, which stands for machines without AMX. The best of seven
turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import experiment

TOKENS, FEATURES = (256, 128) if experiment.SMOKE else (2048, 1536)
MACHINES = {"as it is": "", "without AMX": "AVX512_CORE_BF16"}
"""The instruction sets that oneDNN may use; empty for all."""


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--inside", action="store_true", help="measure in this process and print")
    arguments = parser.read()
    if arguments.inside:
        print(json.dumps(rates()))
        return
    rows = []
    for name, instructions in MACHINES.items():
        limit = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}
        command = [sys.executable, *sys.argv, "--inside"]
        found = subprocess.run(command, env=os.environ | limit, check=True, capture_output=True, text=True)
        rows += [{"machine": name} | row for row in json.loads(found.stdout)]
    experiment.record(arguments.out, __doc__, {"rows": rows})


def rates() -> list[dict[str, Any]]:
    """Billions of operations a second of every way."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, FEATURES, generator=generator)
    weight = torch.randn(FEATURES, FEATURES, generator=generator)
    sums, low = torch.zeros(FEATURES, FEATURES), torch.bfloat16

    def under(precision: str, linear: bool) -> None:
        torch.set_float32_matmul_precision(precision)
        if linear:
            torch.nn.functional.linear(inputs, weight)
        else:
            sums.addmm_(inputs.mT, inputs)

    def cast(linear: bool) -> None:
        moved = inputs.to(low)
        if linear:
            torch.nn.functional.linear(moved, weight.to(low)).float()
        else:
            sums.add_(moved.mT @ moved)

    rows = []
    for linear, product in ((False, "sum of products"), (True, "linear layer")):
        sides = {
            "float32": lambda linear=linear: under("highest", linear),
            'float32, "medium"': lambda linear=linear: under("medium", linear),
            "cast to bfloat16": lambda linear=linear: cast(linear),
        }
        seconds = experiment.turns(sides, 1 if experiment.SMOKE else 7, clock=time.process_time)
        operations = 2 * TOKENS * FEATURES**2
        rows += [{"product": product, "way": way, "gflops": operations / min(s) / 1e9} for way, s in seconds.items()]
    return rows


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    found = {(row["product"], row["way"], row["machine"]): row["gflops"] for row in results["rows"]}
    ways = dict.fromkeys((product, way) for product, way, _ in found)
    rows = [[*way, *(f"{found[*way, machine]:.0f}" for machine in MACHINES)] for way in ways]
    header = " | ".join(["product", "operands", *(f"{name}:" for name in MACHINES)])
    return {"main": experiment.table(header, rows)}


if __name__ == "__main__":
    main()
