"""Which layers of a dense model can go, and how much of what that costs does distillation win back?

    python benchmarks/depth.py --work runs/depth --minutes 8      # again, until all is done

A byte-level Llama of 8 layers (hidden 64, 0.43 M parameters), trained from scratch by the `train` stage on the
WikiText-2 validation text, one per seed, loses 2 or 4 of its layers by each score, and is then distilled from what it
was for 60 steps of 1,024 tokens (7 % of its training). Losses are measured on windows of the WikiText-2 test text, of
which every fourth chooses (learning rate of the distillation, on the first seed, for every score) and the rest is
reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import byte_windows
import experiment

SCORES, LAYERS = ("influence", "divergence", "random"), (6, 4)
TRAIN_STEPS, LR, STEPS, SEARCH, CALIBRATION = 900, 3e-3, 60, (1e-3, 3e-3), 4096
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
}


class Bench(byte_windows.Bench):
    """What is measured, by name: "seed, whole", "seed, score, layers" and the same with "healed"."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work, smoke=smoke)
        self._whole = dict[int, Any]()

    def names(self) -> list[str]:
        cut = [f"{seed}, {what}" for seed in self.seeds for what in ("whole", *cuts())]
        tried = [searched(what, lr) for what in cuts() for lr in SEARCH]
        return [*cut, *tried, *(f"{seed}, {what}, healed" for seed in self.seeds for what in cuts())]

    def measure(self, name: str) -> dict[str, Any]:
        number, *rest = name.split(", ")
        seed = int(number)
        if rest == ["whole"]:
            return self.losses(self.whole(seed))
        score, layers, *healed = rest
        model = self.cut(seed, score, int(layers.split()[0]))
        if not healed:
            return self.losses(model)
        lr = float(healed[1].removeprefix("lr ")) if len(healed) > 1 else self.best(f"{score}, {layers}")
        return self.losses(self.healed(seed, model, lr)) | {"lr": lr}

    def whole(self, seed: int) -> Any:
        if seed not in self._whole:
            steps = 2 if self.smoke else TRAIN_STEPS
            self._whole[seed] = self.train(self.start(CONFIG, seed), seed, steps, LR, self.work / f"whole{seed}")
        return self._whole[seed]

    def cut(self, seed: int, score: str, layers: int) -> Any:
        import burnish

        tokens = 1024 if self.smoke else CALIBRATION
        stage = burnish.Slim(
            method="depth", num_layers=layers, score=score, seed=seed, tokens=tokens, length=byte_windows.LENGTH
        )
        return stage(self.whole(seed), calibration=[self.train_text])

    def healed(self, seed: int, model: Any, lr: float) -> Any:
        import burnish

        stage = burnish.Distill(**self.training(seed, 2 if self.smoke else STEPS, lr))
        return stage(model, data=[self.train_text], teacher=self.whole(seed))

    def best(self, what: str) -> float:
        return min(SEARCH, key=lambda lr: self.tuning_loss(searched(what, lr)))


def cuts() -> list[str]:
    return [f"{score}, {layers} layers" for layers in LAYERS for score in SCORES]


def searched(what: str, lr: float) -> str:
    return f"{byte_windows.SEEDS[0]}, {what}, healed, lr {lr:g}"


def summary(bench: Bench) -> dict[str, Any]:
    def names(what: str) -> list[str]:
        return [f"{seed}, {what}" for seed in bench.seeds]

    rows: dict[str, Any] = {}
    for what in cuts():
        base = f"{SCORES[0]}, {what.split(', ')[1]}"
        row: dict[str, Any] = {"lr": bench.read(f"{bench.seeds[0]}, {what}, healed")["lr"]}
        for part, tail in (("cut", ""), ("healed", ", healed")):
            values, theirs = (bench.reported(names(one + tail)) for one in (what, base))
            row[part] = {"loss": float(values.mean()), "by_seed": values.mean(1).tolist()}
            row[part] |= {"against": {"name": base} | byte_windows.against(values, theirs)}
        rows[what] = row | {"parameters": bench.read(f"{bench.seeds[0]}, {what}")["parameters"]}
    whole = bench.reported(names("whole"))
    return {
        "settings": {"training": TRAIN_STEPS, "steps": STEPS, "calibration": CALIBRATION},
        "slices": byte_windows.slices(bench.whole(bench.seeds[0]).tokenizer, bench.test_text),
        "seeds": list(bench.seeds),
        "whole": {"loss": float(whole.mean()), "parameters": bench.read(f"{bench.seeds[0]}, whole")["parameters"]},
        "search": {name: bench.tuning_loss(name) for name in (searched(w, lr) for w in cuts() for lr in SEARCH)},
        "summary": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    rows = results["summary"]
    rule = experiment.rule(next(iter(rows.values()))["cut"]["against"])
    lines = []
    for what, row in rows.items():
        cells = []
        for part in ("cut", "healed"):
            first = what == row[part]["against"]["name"]
            cells += [f"{row[part]['loss']:.3f}", "" if first else experiment.cell(row[part]["against"], "+.3f")]
        lines.append([what, f"{row['parameters']:,}", *cells])
    whole = results["whole"]
    columns = f"{len(results['seeds'])} seeds, nats per byte; 8 layers, {whole['parameters']:,}: {whole['loss']:.3f} "
    columns += f"| parameters: | cut: | against influence ({rule}): | distilled: | against influence:"
    return {"layers": experiment.table(columns, lines)}


if __name__ == "__main__":
    byte_windows.main(__file__, __doc__ or "", Bench, summary)
