"""Weighs drawn losses with two published programs, and writes token_weights.json.

    git clone https://github.com/UKPLab/naacl2025-token-weighting UKP && git -C UKP checkout 0b24454
    git clone https://github.com/PKU-ML/LongPPL PKU && git -C PKU checkout 1decd2a
    python tests/reference/train/token_weights.py UKP PKU [--check]

Of the first `ShortLongLoss` is run, on rows of losses; of the second `loss_weight`, on a stand-in for a model whose
prediction depends on everything before it. With --check nothing is written; the exit status says whether both answer
as the file does.
"""

from __future__ import annotations

import argparse
import ast
import json
import types
from pathlib import Path
from typing import Any, Optional

import torch
from torch.nn.functional import normalize, softmax

FILE = Path(__file__).with_name("token_weights.json")
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"transforms": ["absolute"], "interpolation": 0.75},
    "sparse": {"transforms": ["absolute"], "sparsification": 0.25},
    "ppmi": {"transforms": ["minus", "shift 1.5", "max"]},
    "npmi": {"transforms": ["shift 1.5", "max"]},
}
TOKENS, TRUNC, INTERNAL, VOCAB = 40, 12, 8, 13


def published(file: Path, names: set[str], scope: dict[str, Any]) -> dict[str, Any]:
    """Functions and classes of a program, without what stands around them."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in names]
    for node in ast.walk(tree):  # the class asserts a list of transforms that leaves out its own "shift x"
        if isinstance(node, ast.FunctionDef):
            node.body = [n for n in node.body if not (isinstance(n, ast.For) and isinstance(n.body[0], ast.Assert))]
    exec(compile(tree, str(file), "exec"), scope)
    return scope


class Reader:
    """Logits of a token from the sum of all before it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = 1.3 * torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)

    def __call__(self, ids: torch.Tensor) -> Any:
        return types.SimpleNamespace(logits=self.table[ids].cumsum(1) / 2)


def ours(clones: list[Path]) -> dict[str, Any]:
    scope = {"torch": torch, "Optional": Optional, "List": list, "normalize": normalize, "softmax": softmax}
    program = published(
        clones[0] / "src" / "trainer.py", {"ShortLongLoss", "get_top_kappa", "has_row_with_high_zero_ratio"}, scope
    )
    generator = torch.Generator().manual_seed(1)
    long, short = (3 * torch.rand(2, 2, TOKENS, generator=generator, dtype=torch.float64)).unbind()
    short[:, :10] = long[:, :10]
    found: dict[str, Any] = {"long": long.tolist(), "short": short.tolist()}
    for mode, settings in SETTINGS.items():
        loss = program["ShortLongLoss"](10, 5, normalization="L1", **settings)
        found[mode] = loss.calculate_weights(long.clone(), short.clone()).tolist()
    reader, ids = Reader(), torch.randint(VOCAB, (1, TOKENS), generator=generator)
    loss_weight = published(clones[1] / "finetune" / "finetune.py", {"loss_weight"}, {"torch": torch})["loss_weight"]
    weights, full = loss_weight(reader, ids, trunc_len=TRUNC, internal=INTERNAL)
    brief = full.clone()
    for start in range(0, TOKENS - TRUNC, INTERNAL):
        window = ids[:, start : start + TRUNC + INTERNAL]
        losses = torch.nn.functional.cross_entropy(reader(window).logits[0, :-1], window[0, 1:], reduction="none")
        brief[start + TRUNC - 1 : start + TRUNC + INTERNAL - 1] = losses[TRUNC - 1 :]
    found["longce"] = {"long": full.tolist(), "short": brief.tolist(), "weights": weights.tolist()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clones", nargs=2, type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = json.dumps(ours(arguments.clones)) + "\n"
    if arguments.check:
        raise SystemExit(text != FILE.read_text(encoding="utf-8"))
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
