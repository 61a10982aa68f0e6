"""Collects the factors of yaqa_sketch_official.npz with the published program, and writes them there.

    git clone https://github.com/Cornell-RelaxML/yaqa CLONE && git -C CLONE checkout aa9a767
    python tests/reference/quantize/yaqa_sketch.py CLONE [--check]

The toy network and its labels (X, W1, W2, y) are numbers of the file itself and stay. Of the program its two linear
layers are run (`custom_linear_A.py`, `custom_linear_B.py`), in one process and on a CPU: what moves tensors to a GPU,
compiles them or sums over several processes is left out of its text before it runs. The two matrices over all weights
are made here, by automatic differentiation in float64.
With --check nothing is written; the exit status says whether the answers are still those of the file, to what float32
sums may differ in.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import HashStore, destroy_process_group, init_process_group

FILE = Path(__file__).with_name("yaqa_sketch_official.npz")
PASSES = {"A": ("a", 6), "B": ("b", 1), "Bpow": ("b", 3)}
"""{prefix of the keys: (sketch, passes over the text)}."""
LEFT_OUT = {
    "@torch.compile\n": "",  # as it stands there
    ".to(local_rank)": "",  # one process, whose tensors are on the CPU
    "device=local_rank": "device='cpu'",
    ".pin_memory()": "",
    "ReduceOp.AVG": "ReduceOp.SUM",  # the same over one process, and gloo knows it
}


def published(clone: Path, sketch: str) -> Any:
    """The linear layer that collects factors on its way back."""
    file = clone / "hessian_llama" / f"custom_linear_{sketch.upper()}.py"
    text = file.read_text(encoding="utf-8")
    for part, instead in LEFT_OUT.items():
        text = text.replace(part, instead)
    scope: dict[str, Any] = {}
    exec(compile(text, str(file), "exec"), scope)
    return scope


def collected(clone: Path, prefix: str, toy: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Both factors after every pass."""
    sketch, passes = PASSES[prefix]
    program = published(clone, sketch)
    rows, columns = toy["W1"].shape
    layer = program["CustomLinear"](0, True, str(FILE.with_suffix("")), True, False, columns, rows)
    layer.weight = torch.nn.Parameter(toy["W1"])
    found = {}
    for number in range(passes):
        logits = torch.tanh(layer(toy["X"], (number, True, True))) @ toy["W2"].T
        F.cross_entropy(logits.flatten(0, 1), toy["y"].flatten(), reduction="sum").backward()
        for side, size in (("hin", columns), ("hout", rows)):
            factor = program["flat_to_sym"](getattr(layer, side), size)
            found[f"{prefix}_it{number}_{side}"] = factor.double().numpy()
    return found


def exact(toy: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Hessian of KL(original || W1), and the Fisher matrix of the model's own labels; sums over a sequence's tokens."""
    inputs, first, second = (toy[name].double() for name in ("X", "W1", "W2"))
    rows = inputs.flatten(0, 1)

    def log_probabilities(flat: Tensor, some: Tensor = rows) -> Tensor:
        return F.log_softmax(torch.tanh(some @ flat.view_as(first).T) @ second.T, dim=-1)

    start = first.flatten()
    original = log_probabilities(start).detach()

    def divergence(flat: Tensor) -> Tensor:
        return (original.exp() * (original - log_probabilities(flat))).sum() / len(inputs)

    hessian: Any = torch.autograd.functional.hessian(divergence, start)
    fisher = torch.zeros_like(hessian)
    for token in range(len(rows)):
        some = rows[token : token + 1]
        slopes: Any = torch.autograd.functional.jacobian(
            lambda flat, some=some: log_probabilities(flat, some)[0], start
        )
        fisher += slopes.T @ (original[token].exp()[:, None] * slopes) / len(inputs)
    return {"KL_hessian_exact": hessian.numpy(), "Fisher_exact": fisher.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with np.load(FILE, allow_pickle=False) as kept:
        content = {name: kept[name] for name in kept.files}
    toy = {name: torch.from_numpy(content[name]) for name in ("X", "W1", "W2", "y")}
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    with contextlib.ExitStack() as stack:
        stack.callback(destroy_process_group)
        made = exact(toy)
        for prefix in PASSES:
            made |= collected(arguments.clone, prefix, toy)
    different = [name for name, value in made.items() if not np.allclose(value, content[name], rtol=1e-5, atol=1e-7)]
    if missing := content.keys() - made.keys() - toy.keys():
        raise SystemExit(f"nothing here makes {', '.join(sorted(missing))}")
    if arguments.check:
        raise SystemExit(f"other answers: {', '.join(different)}" if different else 0)
    np.savez_compressed(FILE, **content | made)


if __name__ == "__main__":
    main()
