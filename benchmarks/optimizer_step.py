"""What does one optimizer step cost, beside torch's own Muon and fused AdamW?

    python benchmarks/optimizer_step.py [--only smollm2 ...] [--rounds 5]

The matrices of one decoder layer of SmolLM2-135M and of Qwen2.5-0.5B, float32, random gradients. Optimizers take turns,
one step each per round, and CPU time is counted, so that a busy machine disturbs all alike. torch.optim.Muon always
orthogonalises in bfloat16, which is slow on a CPU without bfloat16 instructions; its cast is replaced by a copy here,
so that both sides orthogonalise in float32.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "optimizer_step.json"
LAYERS = {
    "smollm2": [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)],
    "qwen-0.5b": [(896, 896), (128, 896), (128, 896), (896, 896), (4864, 896), (4864, 896), (896, 4864)],
}
TITLES = {"smollm2": "SmolLM2-135M", "qwen-0.5b": "Qwen2.5-0.5B"}


@contextmanager
def float32_muon() -> Iterator[None]:
    """torch.optim.Muon without its cast to bfloat16."""
    import torch

    kept = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = lambda self: self.clone()  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = kept  # type: ignore[method-assign]


def measure(shapes: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    """CPU seconds of every step, by optimizer."""
    import torch

    from burnish.optim import COSMOS, Muon, NorMuon

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    made = {
        "torch.optim.Muon": lambda p: torch.optim.Muon(p, lr=1e-3, adjust_lr_fn="match_rms_adamw"),
        "Muon": lambda p: Muon(p, lr=1e-3, scale="rms_moonlight"),
        "NorMuon": lambda p: NorMuon(p, lr=1e-3),
        "COSMOS, rank 64": lambda p: COSMOS(p, lr=1e-3, rank=64),
        "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    }
    optimizers = {}
    for name, make in made.items():
        parameters = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[name] = make(parameters)
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for number in range(rounds + 1):
        for name, optimizer in list(optimizers.items())[:: -1 if number % 2 else 1]:
            with float32_muon():
                started = time.process_time()
                optimizer.step()
                if number:  # the first round makes state and warms up
                    seconds[name].append(time.process_time() - started)
    states = {
        name: sum(t.numel() for entry in optimizer.state.values() for t in entry.values() if t.numel() > 1)
        for name, optimizer in optimizers.items()
    }
    return {"seconds": seconds, "state_elements": states, "parameters": sum(m * n for m, n in shapes)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    layers = json.loads(RESULTS.read_text())["layers"] if RESULTS.is_file() else {}
    for name in arguments.only:
        layers[name] = measure(LAYERS[name], arguments.rounds)
    results = {
        "question": (__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other work, one thread, float32",
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "slices": {"tuning": [], "reporting": []},
        "note": "CPU seconds; every ratio is the median over rounds of the ratio within a round",
        "layers": layers,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def spread(ratios: list[float]) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    lines = [
        "| one layer of | optimizer | CPU s per step, median | against torch.optim.Muon (range of rounds) "
        "| against our Muon (range of rounds) | state / weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for layer, found in results["layers"].items():
        seconds = found["seconds"]
        for name, mine in seconds.items():
            against = [
                spread([a / b for a, b in zip(mine, seconds[other], strict=True)]) if name != other else "1"
                for other in ("torch.optim.Muon", "Muon")
            ]
            share = found["state_elements"][name] / found["parameters"]
            lines.append(
                f"| {TITLES[layer]} | {name} | {statistics.median(mine):.3g} | {against[0]} | {against[1]} "
                f"| {share:.3f} |"
            )
    return {"step": "\n".join(lines)}


if __name__ == "__main__":
    main()
