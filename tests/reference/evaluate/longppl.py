"""Has two drawn models scored by the published LongPPL, and writes longppl.json.

    git clone https://github.com/PKU-ML/LongPPL PKU && git -C PKU checkout 1decd2a
    python tests/reference/evaluate/longppl.py PKU [--check]

Its functions are run on stand-ins: an evaluator and a model whose logits follow from drawn tables, and tokenizers that
cut one text into words and into pieces of other lengths. With --check nothing is written; the exit status says whether
it answers as the file does.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).with_name("longppl.json")
LENGTH, TRUNC, WINDOW, VOCAB = 60, 12, 8, 13
SETTINGS = {"alpha": 0.3, "beta": -2.6}


class Cut:
    """A tokenizer of drawn ids, whose tokens have the given lengths."""

    def __init__(self, seed: int, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(VOCAB, (1, len(lengths)), generator=generator)
        ends = np.cumsum(lengths)
        self.offsets = torch.tensor(np.stack([ends - lengths, ends], axis=1))[None]

    def __call__(self, text: str, **settings: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids, "offset_mapping": self.offsets}


class Reader:
    """Logits of a token from the sum of all before it."""

    device = "cpu"

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 0.45 * torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64)

    def __call__(self, ids: torch.Tensor) -> Any:
        return types.SimpleNamespace(logits=self.table[ids].cumsum(1) / 2)

    def losses(self, ids: torch.Tensor) -> list[float]:
        """Of all tokens but the first."""
        return torch.nn.functional.cross_entropy(self(ids).logits[0, :-1], ids[0, 1:], reduction="none").tolist()


def theirs(clone: Path) -> dict[str, Any]:
    sys.path.insert(0, str(clone / "longppl"))
    import longppl  # type: ignore

    rng = np.random.default_rng(0)
    own = rng.integers(1, 6, LENGTH).tolist()
    other = [int(part) for part in np.diff([0, *sorted(rng.choice(np.arange(1, sum(own)), 140, False)), sum(own)])]
    evaluator, model, by_evaluator, by_model = Reader(1), Reader(2), Cut(3, own), Cut(4, other)
    text = "x" * sum(own)
    how = {"trunc_len": TRUNC, "sliding_window": WINDOW}
    found = longppl.compute_longppl(text, model, evaluator, by_model, by_evaluator, **how, **SETTINGS)
    stretches = longppl.find_key_token(text, evaluator, by_evaluator, TRUNC, WINDOW, None, **SETTINGS)
    ids = by_evaluator.ids
    return {
        "settings": how | SETTINGS,
        "evaluator": {
            "offsets": by_evaluator.offsets[0].tolist(),
            "losses": evaluator.losses(ids),
            "pieces": [evaluator.losses(ids[:, at : at + TRUNC + WINDOW]) for at in range(0, LENGTH - TRUNC, WINDOW)],
        },
        "model": {"offsets": by_model.offsets[0].tolist(), "losses": model.losses(by_model.ids)},
        "stretches": stretches.tolist(),
        "n_key_token": found["n_key_token"],
        "longppl": float(found["longppl"]),
        "ppl": float(found["ppl"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    found = theirs(options.clone)
    if options.check:
        sys.exit(found != json.loads(FILE.read_text()))
    FILE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
