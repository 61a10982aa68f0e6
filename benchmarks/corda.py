"""Does a part of low rank that is taken out by what inputs use preserve a rounded model better than other parts?

    python benchmarks/corda.py --model models/small-original --work WORK      # again, until all is done

The model is the original of recipes/small_and_right.yaml: 0.64 million parameters, chains, tables and English. It is
rounded by GPTQ to 2 bits in groups of 32, with factors of rank 4 beside every matrix: none of them at the start (plain
LoRA: B = 0), the largest part of what rounding lost (LoftQ), the largest part of the weight (PiSSA), and what inputs
use most of it (CorDA) or least (CorDA, kpm), which are not rounded. Then the factors learn the original's predictions
for as many steps each, codes as they are. Beside them stand two models without factors whose scales and norms are
trained for as many steps: of the same 2 bits, and of 3 bits with one scale a row, which are about as many bits as 2 and
factors. Three draws of calibration windows and of the order of training, on text of the original's kinds; the learning
rate is one for all and was not searched. Reported is the divergence from the original on chains and tables that nothing
was made of, and on WikiText-2 test, before and after training.
"""

from __future__ import annotations

import copy
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

import burnish
from burnish.core.checkpoint import load
from burnish.data import read_texts
from burnish.data.chain import Chains, chain_rows
from burnish.data.table import Tables, table_rows
from burnish.evaluate.maths.divergence import kl_divergence

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0,) if experiment.SMOKE else (0, 1, 2)
RANK, GROUP = (2, 16) if experiment.SMOKE else (4, 32)
STEPS = 2 if experiment.SMOKE else 40
ROWS, TOKENS, WINDOWS, LENGTH = (24, 1024, 2, 96) if experiment.SMOKE else (1500, 8_192, 12, 96)
RATE = 1e-3
PLAIN, SCALES, WIDER = "plain LoRA", "no factors, scales trained", "no factors, 3 bits, scales trained"
STARTS = {"LoftQ": "loftq", "PiSSA": "pissa", "CorDA": "corda", "CorDA, kpm": "corda-kpm"}
ARMS = (SCALES, WIDER, PLAIN, *STARTS)
TEXTS = ("chains", "tables", "WikiText-2 test")
PROSE = "\n\n".join(read_texts("wikitext2-valid"))
KIND = Chains(steps=(1, 6), repeat=0, direct=0)
TAUGHT = {"context": LENGTH, "batch": 8, "alpha": 1.0, "optimizer": "adamw", "save_every": 0}


class Bench(experiment.Kept):
    """Every cell: a draw, what is beside the rounded weights."""

    def __init__(self, options: Any) -> None:
        super().__init__(options.work)
        self.model = load(options.model, dtype=torch.bfloat16)  # in which scales and factors are stored
        self.original = self.model.derive(module=copy.deepcopy(self.model.module).float())

    def names(self) -> list[str]:
        return [f"{seed}; {arm}" for seed in SEEDS for arm in ARMS]

    def measure(self, name: str) -> dict[str, Any]:
        number, arm = name.split("; ")
        seed, data = int(number), training(int(number))
        grid = {"bits": 3, "group_size": None} if arm == WIDER else {"bits": 2, "group_size": GROUP}
        factors = {"low_rank": RANK, "low_rank_init": STARTS[arm]} if arm in STARTS else {}
        how = {"method": "gptq", "damping": 0.1, "length": LENGTH, "tokens": TOKENS, "seed": seed}
        rounded = burnish.Quantize(**how, **grid, **factors)(self.model, calibration=data)
        settings: dict[str, Any] = TAUGHT | {"steps": STEPS, "seed": seed}
        if arm not in (SCALES, WIDER):
            settings |= {"lora_rank": RANK, "lora_alpha": None if arm in STARTS else RANK, "weight_decay": 0.0}
        stage = burnish.Tune if arm in (SCALES, WIDER) else burnish.Distill
        trained = stage(**settings, lr=RATE)(rounded, data=data, teacher=self.original)
        return {"rounded": self.divergences(rounded), "trained": self.divergences(trained), "bits": bits(trained)}

    @torch.inference_mode()
    def divergences(self, model: Any) -> dict[str, list[float]]:
        """KL(original || model), nats a token, of every window of every text."""
        found = {}
        module, original = copy.deepcopy(model.module).float().eval(), self.original.module.eval()
        for name, windows in self.windows.items():
            logs = [(original(w[None]).logits[0], module(w[None]).logits[0]) for w in windows]
            found[name] = [float(kl_divergence(*(part.log_softmax(-1) for part in pair)).mean()) for pair in logs]
        return found

    @cached_property
    def windows(self) -> dict[str, torch.Tensor]:
        chats = {
            "chains": list(chain_rows(KIND, 20 * WINDOWS, seed=700)),
            "tables": list(table_rows(Tables(), 20 * WINDOWS, seed=700)),
        }
        template = self.model.tokenizer.apply_chat_template
        texts = {
            name: ["".join(str(template(row["messages"], tokenize=False)) for row in rows)]
            for name, rows in chats.items()
        }
        texts["WikiText-2 test"] = read_texts("wikitext2-test")
        return {
            name: experiment.spread_windows(self.model.tokenizer, some, LENGTH, WINDOWS, max_chars=40_000)
            for name, some in texts.items()
        }


def training(seed: int) -> list[Any]:
    """Rows of the original's kinds."""
    chats = [*chain_rows(KIND, ROWS, seed=800 + seed), *table_rows(Tables(), ROWS // 3, seed=800 + seed)]
    return [*({"messages": row["messages"]} for row in chats), {"text": PROSE[: 40 * ROWS]}]


def bits(model: Any) -> float:
    """Of all that is stored of the rounded matrices, factors included, for each of their weights."""
    tensors = [tensor for some in model.packed.values() for name, tensor in some.items() if "shape" not in name]
    tensors += list(model.adapter.tensors.values()) if model.adapter is not None else []
    shapes = model.plan().shapes
    weights = sum(prod(shapes[name]) for name in model.packed)
    return 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / weights


def summary(bench: Bench) -> dict[str, Any]:
    """Divergences over draws and windows, paired with those of plain LoRA."""
    rows = {}
    cells = {arm: [bench.read(f"{seed}; {arm}") for seed in SEEDS] for arm in ARMS}
    for arm, found in cells.items():
        row: dict[str, Any] = {"bits": found[0]["bits"], "cpu_seconds": [one["cpu_seconds"] for one in found]}
        for when in ("rounded", "trained"):
            for text in TEXTS:
                own = np.array([one[when][text] for one in found])
                plain = np.array([one[when][text] for one in cells[PLAIN]])
                by_window = experiment.ratio(own.mean(0), plain.mean(0))
                draws = own.mean(1) / plain.mean(1)
                row[f"{when}, {text}"] = {
                    "kl": float(own.mean()),
                    "ratio": {"mean": by_window.value, "low": by_window.low, "high": by_window.high},
                    "draws": [float(draws.min()), float(draws.max())],
                }
        rows[arm] = row
    settings = {"bits": 2, "group_size": GROUP, "rank": RANK, "steps": STEPS, "lr": RATE, "windows": WINDOWS}
    return {
        "settings": settings | {"length": LENGTH, "calibration_tokens": TOKENS},
        "slices": {
            "tuning": [],
            "reporting": [experiment.digest(str(some.tolist())) for some in bench.windows.values()],
        },
        "seeds": list(SEEDS),
        "summary": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    made = {}
    for when in ("rounded", "trained"):
        lines = []
        for arm, row in results["summary"].items():
            line = [arm, f"{row['bits']:.2f}", *(f"{row[f'{when}, {text}']['kl']:.3f}" for text in TEXTS)]
            for text in TEXTS:
                one = row[f"{when}, {text}"]
                low, high = one["draws"]
                said = f"{experiment.cell(one['ratio'], '.2f')}; draws {low:.2f} to {high:.2f}"
                line.append("" if arm == PLAIN else said)
            lines.append(line)
        columns = f"beside the rounded weights | bits a weight: | {' | '.join(f'{text}:' for text in TEXTS)}"
        columns += "".join(f" | {text}, against {PLAIN} (95 %):" for text in TEXTS)
        made[when] = experiment.table(columns, lines)
    return made


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, required=True)
    options = command.read()
    torch.set_num_threads(1)
    bench = Bench(options)
    if bench.run(bench.names, bench.measure, options.minutes):
        found = summary(bench)
        experiment.record(options.out, __doc__, found)
        for table in tables(found).values():
            print(table)


if __name__ == "__main__":
    main()
