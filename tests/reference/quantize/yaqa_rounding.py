"""Rounds the problems of yaqa_rounding_official.npz with the published program, and writes its answers there.

    git clone https://github.com/Cornell-RelaxML/yaqa CLONE && git -C CLONE checkout aa9a767
    python tests/reference/quantize/yaqa_rounding.py CLONE [--check]

The problems (weights, factors, settings) are numbers of the file itself and stay. Of the program two functions are run,
`LDLQ_2hess` and `block_LDL`, without what stands around them, which needs a GPU. Its codebook is a uniform grid here.
With --check nothing is written; the exit status says whether the program still answers as the file does.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).with_name("yaqa_rounding_official.npz")


class UniformGrid:
    """In the place of the program's codebook."""

    idx_dtype = torch.int64

    def __init__(self, step: float, lowest: float, highest: float) -> None:
        self.step, self.lowest, self.highest = step, lowest, highest

    def quantize(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = (target / self.step).round().clamp(self.lowest, self.highest)
        return codes * self.step, codes.long()


def published(clone: Path, file: str, name: str) -> Any:
    """One function of the program."""
    tree = ast.parse((clone / file).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    scope: dict[str, Any] = {"torch": torch, "tqdm": lambda steps: steps}
    exec(compile(tree, file, "exec"), scope)
    return scope[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    round_to = published(arguments.clone, "lib/algo/ldlq.py", "LDLQ_2hess")
    block_ldl = published(arguments.clone, "lib/utils/math_utils.py", "block_LDL")
    with np.load(FILE, allow_pickle=False) as kept:
        content = {name: kept[name] for name in kept.files}
    different = []
    for name in sorted({part.partition("/")[0] for part in content}):
        tile, step, lowest, highest, damping = content[f"{name}/settings"].tolist()
        tile = int(tile)
        sides = []
        for side in ("input_factor", "output_factor"):
            factor = torch.from_numpy(content[f"{name}/{side}"])
            factor = factor / factor.diagonal().mean()
            factor.diagonal().add_(damping)
            lower = block_ldl(factor, tile)[0]
            sides.append(lower - torch.eye(len(lower), dtype=lower.dtype))
        weight = torch.from_numpy(content[f"{name}/weight"])
        grid = UniformGrid(step, lowest, highest)
        rounded = round_to(weight, *sides, tile, tile, 1, grid, for_kernel=False)[0].numpy()
        if not np.array_equal(rounded, content[f"{name}/rounded"]):
            different.append(name)
        content[f"{name}/rounded"] = rounded
    if arguments.check:
        raise SystemExit(f"other answers: {', '.join(different)}" if different else 0)
    np.savez_compressed(FILE, **content)


if __name__ == "__main__":
    main()
