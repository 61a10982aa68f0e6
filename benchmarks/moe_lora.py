"""What do adapters on experts bring, and what does it cost to let experts share what they can?

    python benchmarks/moe_lora.py --work runs/slim-benchmark --minutes 8      # again, until all is done

A mixture is taught another text (60 steps of 8 rows of 128): with adapters on attention alone, and on its experts too,
each with its own, or sharing A of gate and up and B of down; the two forms at one rank, and at the rank at which the
shared one has as many parameters as the other, and a few more. The mixtures are those of `slim.py`, byte-level, one per
seed, trained on WikiText-2; the new text is Shakespeare's Coriolanus, of which the last half is measured on windows,
every fourth to choose and the rest to report. Every way gets the same search over learning rates on the first seed: two
of them, and larger ones as long as the largest that was tried is the best.
"""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Any

import byte_windows
import experiment

import slim

STEPS, RATES = 60, (1e-2,) if experiment.SMOKE else (1e-2, 3e-2, 1e-1, 3e-1)
FIRST = 2
"""Rates that every way is tried at; as long as the largest that was tried is the best, the next is tried too."""
TEXT = Path(__file__).parent.parent / "examples" / "data" / "coriolanus.txt.gz"
EACH, SHARED = "experts, each its own, rank 8", "experts, shared"
WAYS: dict[str, dict[str, Any]] = {
    "attention alone, rank 8": {"lora_rank": 8},
    EACH: {"lora_rank": 8, "lora_experts": "each"},
    f"{SHARED}, rank 8": {"lora_rank": 8, "lora_experts": "shared"},
    f"{SHARED}, rank 11": {"lora_rank": 11, "lora_experts": "shared"},
}
BEFORE = "before"


class Bench(slim.Bench):
    """What is measured, by name: "seed; way", and with a learning rate in the search."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work, smoke=smoke)
        text = gzip.decompress(TEXT.read_bytes()).decode()
        cut = len(text) // 2
        self.new_text, self.test_text = text[:cut], text[cut:]

    def names(self) -> list[str]:
        found = [f"{seed}; {BEFORE}" for seed in self.seeds]
        for way in WAYS:
            found += [searched(way, lr) for lr in self.rates(way)]
            found += [f"{seed}; {way}" for seed in self.seeds]
        return found

    def measure(self, name: str) -> dict[str, Any]:
        number, way, *rate = name.split("; ")
        seed = int(number)
        if way == BEFORE:
            return self.losses(self.teacher(seed))
        lr = float(rate[0].removeprefix("lr ")) if rate else self.best(way)
        if not rate and seed == byte_windows.SEEDS[0]:  # is what the search has measured
            return self.read(searched(way, lr))
        return self.tuned(seed, way, lr) | {"lr": lr}

    def rates(self, way: str) -> list[float]:
        """What is tried: the first, and further ones while what was tried last is the best."""
        found = list(RATES[:FIRST])
        for lr in RATES[FIRST:]:
            if not all(self.has(searched(way, one)) for one in found) or self.lowest(way, found) != found[-1]:
                break
            found.append(lr)
        return found

    def best(self, way: str) -> float:
        return self.lowest(way, self.rates(way))

    def lowest(self, way: str, rates: list[float]) -> float:
        return min(rates, key=lambda lr: self.tuning_loss(searched(way, lr)))

    def tuned(self, seed: int, way: str, lr: float) -> dict[str, Any]:
        import burnish
        from burnish.train.lora import with_adapters

        settings = self.training(seed, 2 if self.smoke else STEPS, lr) | WAYS[way]
        stage = burnish.Train(**settings)
        found = self.losses(stage(self.teacher(seed), data=[self.new_text]))
        adapted = with_adapters(copy.deepcopy(self.teacher(seed).module), stage, None)
        return found | {"trained": sum(one.numel() for name, one in adapted.named_parameters() if ".lora_" in name)}


def searched(way: str, lr: float) -> str:
    return f"{byte_windows.SEEDS[0]}; {way}; lr {lr:g}"


def summary(bench: Bench) -> dict[str, Any]:
    def names(what: str) -> list[str]:
        return [f"{seed}; {what}" for seed in bench.seeds]

    base, rows = bench.reported(names(EACH)), {}
    for what in (BEFORE, *WAYS):
        values, runs = bench.reported(names(what)), bench.runs(names(what))
        rows[what] = {
            "mean": float(values.mean()),
            "by_seed": values.mean(1).tolist(),
            "against": {"name": EACH} | byte_windows.against(values, base),
            "lr": runs[0].get("lr"),
            "trained": runs[0].get("trained", 0),
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
        }
    slices = byte_windows.slices(bench.teacher(bench.seeds[0]).tokenizer, bench.test_text)
    return {
        "settings": {"steps": STEPS, "batch": byte_windows.BATCH, "length": byte_windows.LENGTH},
        "slices": slices | {"training": [experiment.digest(bench.new_text)]},
        "seeds": list(bench.seeds),
        "search": {
            name: bench.tuning_loss(name) for name in (searched(way, lr) for way in WAYS for lr in bench.rates(way))
        },
        "summary": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    rows = results["summary"]
    lines = []
    for what, row in rows.items():
        against = "" if what == EACH else experiment.cell(row["against"], "+.4f")
        rate = "" if row["lr"] is None else f"{row['lr']:g}"
        seconds = "" if row["lr"] is None else f"{sum(row['cpu_seconds']) / len(row['cpu_seconds']):.0f}"
        lines.append([what, f"{row['trained']:,}", f"{row['mean']:.4f}", against, rate, seconds])
    columns = f"{len(results['seeds'])} seeds | trained: | nats per byte: "
    columns += f"| against each its own ({experiment.rule(rows[BEFORE]['against'])}): | lr: | CPU seconds:"
    tried = [[name.split("; ")[1], name.split("; lr ")[1], f"{loss:.4f}"] for name, loss in results["search"].items()]
    search = experiment.table("first seed, windows that choose | lr: | nats per byte:", tried)
    return {"forms": experiment.table(columns, lines), "search": search}


if __name__ == "__main__":
    byte_windows.main(__file__, __doc__ or "", Bench, summary)
