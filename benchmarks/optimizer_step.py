"""What does one optimizer step cost, beside torch's own Muon and fused AdamW?

    python benchmarks/optimizer_step.py [--only smollm2 ...] [--rounds 5]

The matrices of one decoder layer of SmolLM2-135M and of Qwen2.5-0.5B, float32, random gradients. Optimizers take turns,
one step each per round, and CPU time is counted, so that a busy machine disturbs all alike. torch.optim.Muon always
orthogonalises in bfloat16, which is slow on a CPU without bfloat16 instructions; its cast is replaced by a copy here,
so that both sides orthogonalise in float32.

What the checks of a step cost is measured where a step is cheapest, on our AdamW beside torch's fused one: reading the
gradients to see that they are finite, which a caller who knows their norm saves, and for bfloat16 weights the look for
what somebody else wrote into them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import experiment

LAYERS = {
    "smollm2": [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)],
    "qwen-0.5b": [(896, 896), (128, 896), (128, 896), (896, 896), (4864, 896), (4864, 896), (896, 4864)],
    "smoke": [(16, 24)],
}
TITLES = {"smollm2": "SmolLM2-135M", "qwen-0.5b": "Qwen2.5-0.5B", "smoke": "16 x 24"}
BASELINES = ("torch.optim.Muon", "Muon")


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
    rank = min(64, *(min(shape) for shape in shapes))
    made = {
        "torch.optim.Muon": lambda p: torch.optim.Muon(p, lr=1e-3, adjust_lr_fn="match_rms_adamw"),
        "Muon": lambda p: Muon(p, lr=1e-3, scale="rms_moonlight"),
        "NorMuon": lambda p: NorMuon(p, lr=1e-3),
        "COSMOS, rank 64": lambda p: COSMOS(p, lr=1e-3, rank=rank),
        "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    }
    optimizers = {}
    for name, make in made.items():
        parameters = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers[name] = make(parameters)
    with float32_muon():
        seconds = experiment.turns({name: optimizer.step for name, optimizer in optimizers.items()}, rounds)
    states = {
        name: sum(t.numel() for entry in optimizer.state.values() for t in entry.values() if t.numel() > 1)
        for name, optimizer in optimizers.items()
    }
    return {"seconds": seconds, "state_elements": states, "parameters": sum(m * n for m, n in shapes)}


def measure_checks(shapes: list[tuple[int, int]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every step of AdamW, by how it is called."""
    import torch

    from burnish.optim import AdamW

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def made(make: Any, dtype: torch.dtype) -> Any:
        parameters = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        return make(parameters, lr=1e-3)

    steps: dict[str, Any] = {
        "torch.optim.AdamW, fused, float32": made(lambda *a, **k: torch.optim.AdamW(*a, fused=True, **k), torch.float32)
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = f"AdamW, {str(dtype).removeprefix('torch.')}"
        steps[name] = made(AdamW, dtype)
        steps[f"{name}, norm given"] = made(AdamW, dtype)
    calls = {
        name: partial(optimizer.step, gradient_norm=1.0) if "norm given" in name else optimizer.step
        for name, optimizer in steps.items()
    }
    return experiment.turns(calls, rounds)


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--only", nargs="*", choices=list(LAYERS), default=["smollm2", "qwen-0.5b"])
    command.add_argument("--rounds", type=int, default=5)
    arguments = command.read()
    names = ["smoke"] if arguments.smoke else arguments.only
    layers = {name: measure(LAYERS[name], arguments.rounds) for name in names}
    checks = measure_checks(LAYERS[names[0]], 8 * arguments.rounds)
    with experiment.results(arguments.out) as known:
        layers = known.get("layers", {}) | layers
    content = {"layers": layers, "checks": checks}
    experiment.record(arguments.out, __doc__, content, note="one thread; CPU seconds, shared with other work")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    rows = []
    for layer, found in results["layers"].items():
        for name, mine in found["seconds"].items():
            against = [
                experiment.cell(experiment.ratio(mine, found["seconds"][other]), ".3g") if name != other else "1"
                for other in BASELINES
            ]
            share = found["state_elements"][name] / found["parameters"]
            rows.append([TITLES[layer], name, f"{statistics.median(mine):.3g}", *against, f"{share:.3f}"])
    header = (
        "one layer of | optimizer | CPU s per step, median | against torch.optim.Muon (95 %) | against our Muon (95 %) "
        "| state / weights"
    )
    found = results["checks"]
    fused = next(iter(found))
    checks = [
        [name, f"{1e3 * statistics.median(mine):.3g}", experiment.cell(experiment.ratio(mine, found[fused]), ".3g")]
        for name, mine in found.items()
    ]
    head = "AdamW on one layer of SmolLM2-135M | CPU ms per step, median | against torch's (95 %)"
    return {"step": experiment.table(header, rows), "checks": experiment.table(head, checks)}


if __name__ == "__main__":
    main()
