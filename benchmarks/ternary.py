"""What do a part of low rank, the ramp and the start of scales bring to weights of three or four levels?

    python benchmarks/ternary.py --work WORK --minutes 20      # again, until all is done

A reasoner of 0.64 million parameters learns chains of 1 to 6 steps (one per seed, as in repair.py; here in bfloat16),
and `burnish qat` trains it with few levels against its own predictions, on the text that it was trained on, questions
and solutions alike. At equal total bits stand plain ternary weights, two bits, and ternary weights with a part of low
rank: the group size makes up for it, with bits as they are stored (two for a ternary code, 16 for a scale or a number
of a factor). Beside them are the same without the ramp, from the other start of scales, what is trained three times as
long, and what rounding alone makes: to nearest, and by GPTQ. The divergence from the original is measured on 100
chains, over all tokens and over those of solutions, and accuracy is that of the likeliest answers to 300 chains, none
of which anything was made of. The learning rate is the better of two for plain ternary weights, on training rows held
out, for the first seed with a third of the steps; all forms take it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import repair
import torch

import burnish
from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.data.chain import chain_rows
from burnish.train.maths.divergence import forward_kl

SEEDS = (0,) if experiment.SMOKE else (0, 1, 2)
STEPS = 6 if experiment.SMOKE else 80
RATES = (1e-3, 4e-3)
TEXTS, MORE_TEXTS = (100, 100) if experiment.SMOKE else (4_000, 10_000)
ROW = {"context": 64, "batch": 4} if experiment.SMOKE else {"context": 96, "batch": 16}
MEASURED = 10 if experiment.SMOKE else 300
GROUP, SMALL = (8, 8) if experiment.SMOKE else (16, 4)

LONGER = "three times as long"
PLAIN, TWO, LOW = "ternary, rows", "2 bits, groups of 16", "ternary, rows, rank 4"
PLAIN_GROUPS, TWO_SMALL, LOW_LARGE = "ternary, groups of 16", "2 bits, groups of 4", "ternary, groups of 32, rank 16"
FORMS: dict[str, dict[str, Any]] = {
    PLAIN: {"bits": "ternary", "group_size": None},
    TWO: {"bits": "2", "group_size": GROUP},
    LOW: {"bits": "ternary", "group_size": None, "low_rank": 4},
    f"{PLAIN}, no ramp": {"bits": "ternary", "group_size": None, "ramp": 0.0},
    PLAIN_GROUPS: {"bits": "ternary", "group_size": GROUP},
    f"{PLAIN}, absmean": {"bits": "ternary", "group_size": None, "scale_init": "absmean"},
    TWO_SMALL: {"bits": "2", "group_size": SMALL},
    LOW_LARGE: {"bits": "ternary", "group_size": 2 * GROUP, "low_rank": 16},
}
FORMS |= {f"{form}, {LONGER}": FORMS[form] | {"steps": 3 * STEPS} for form in (LOW, TWO)}
PAIRS = (
    (LOW, TWO),
    (LOW, PLAIN_GROUPS),
    (PLAIN_GROUPS, TWO),
    (LOW_LARGE, TWO_SMALL),
    (f"{LOW}, {LONGER}", f"{TWO}, {LONGER}"),
    (LOW, PLAIN),
    (f"{PLAIN}, no ramp", PLAIN),
    (f"{PLAIN}, absmean", PLAIN),
)
"""Which divergence is divided by which."""
PAIRED = PAIRS[0]
"""What is measured first."""
ROUNDED, TRAINED, GPTQ = "rounded", "trained", "GPTQ, 2 bits, groups of 16"


class Bench:
    """Every cell: a form and a seed, trained or rounded alone."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.kept = experiment.Kept(work)
        self.run = self.kept.run
        self.originals = repair.Bench(work)

    def names(self) -> Iterable[str]:
        for seed in SEEDS:
            yield f"original; {seed}"
        yield from (f"{ROUNDED}; {GPTQ}; {seed}" for seed in SEEDS)
        yield from (f"search; {PLAIN}; {rate}" for rate in RATES)
        for forms in (PAIRED, FORMS):
            yield from (f"{TRAINED}; {form}; {seed}" for seed in SEEDS for form in forms)
        for form in FORMS:
            if not {"ramp", "steps"} & FORMS[form].keys():
                yield from (f"{ROUNDED}; {form}; {seed}" for seed in SEEDS)

    def measure(self, name: str) -> dict[str, Any]:
        kind, *form = name.split("; ")
        if kind == "original":
            return {
                "right": repair.right(
                    burnish.load(self.original(int(form[0])), dtype=torch.float32), asked(int(form[0]))
                )
            }
        if kind == "search":
            return {"held_out": self.searched(form[0], float(form[1]))}
        return self.measured(kind, form[0], int(form[1]))

    def original(self, seed: int) -> Path:
        """What repair.py teaches, in the dtype in which models are published."""
        place = self.work / f"original-bfloat16-{seed}"
        if not place.is_dir():
            self.originals.original(seed)
            burnish.load(self.work / f"original-{seed}", dtype=torch.bfloat16).save(place)
        return place

    def stage(self, form: str, seed: int, **settings: Any) -> Any:
        chosen = {"steps": STEPS} | FORMS[form] | settings
        return burnish.Qat(**ROW, **chosen, seed=seed, save_every=0, validation_rows=64)

    def texts(self, seed: int, number: int = TEXTS) -> list[str]:
        """Chains as the original was taught them."""
        tokenizer = burnish.load(self.original(seed)).tokenizer
        rows = chain_rows(repair.KIND, number, seed=100 + seed)
        return [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]

    def searched(self, form: str, rate: float) -> float:
        """The divergence on training rows held out, after a third of the steps."""
        place = self.work / "runs" / experiment.digest(f"{form} {rate}")[:12]
        stage = self.stage(form, 0, steps=STEPS // 3, lr=rate, eval_every=0)
        stage(burnish.load(self.original(0)), data=self.texts(0), work_dir=place)
        return losses(place)[-1]["validation_loss"]

    @property
    def rate(self) -> float:
        found = {rate: self.kept.read(f"search; {PLAIN}; {rate}")["held_out"] for rate in RATES}
        return min(found, key=lambda rate: found[rate])

    def measured(self, kind: str, form: str, seed: int) -> dict[str, Any]:
        start = burnish.load(self.original(seed))
        place = self.work / "runs" / experiment.digest(f"{kind} {form} {seed}")[:12]
        facts: dict[str, Any] = {}
        if form == GPTQ:
            tokens = 1024 if experiment.SMOKE else 32768
            stage = burnish.Quantize(method="gptq", bits=2, group_size=GROUP, length=64, tokens=tokens)
            model = stage(start, calibration=self.texts(seed, MORE_TEXTS))
        elif kind == ROUNDED:
            model = self.stage(form, seed, steps=1, ramp=0.0, lr=1e-12)(
                start, data=self.texts(seed)[:400], work_dir=place
            )
        else:
            stage = self.stage(form, seed, lr=self.rate, eval_every=STEPS // 3)
            model = stage(start, data=self.texts(seed), work_dir=place)
            rows = losses(place)
            facts = {"losses": [row["loss"] for row in rows], "lr": self.rate}
        model = burnish.load(model.save(self.work / "checkpoint", overwrite=True), dtype=torch.float32)
        original = burnish.load(self.original(seed), dtype=torch.float32)
        every, solutions = divergences(model, original, repair.texts(seed))
        right = repair.right(model, asked(seed))
        return facts | {"bits": bits_per_weight(model), "right": right, "kl": every, "kl_of_solutions": solutions}


def asked(seed: int) -> list[dict[str, Any]]:
    return repair.measured(seed)[:MEASURED]


@torch.inference_mode()
def divergences(model: Any, original: Any, rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """KL(original || model), nats a token, of every text, and of its solution alone."""
    every, solutions = [], []
    for row in rows:
        whole, question = (
            original.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
            for messages, opened in ((row["messages"], False), (row["messages"][:1], True))
        )
        ids = original.tokenizer(whole, add_special_tokens=False, return_tensors="pt")["input_ids"]
        asked = len(original.tokenizer(question, add_special_tokens=False)["input_ids"])
        found = forward_kl(model.module(ids).logits[0], original.module(ids).logits[0])
        every.append(float(found.mean()))
        solutions.append(float(found[asked - 1 : -1].mean()))
    return every, solutions


def losses(place: Path) -> list[dict[str, Any]]:
    """The loss table of a training."""
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def bits_per_weight(model: Any) -> float:
    """Of the packed matrices with all that they need: codes, scales and factors, as stored."""
    bits, number = 0, 0
    for _, weight in packed_weights(model):
        bits += 2 * weight.levels.numel() + 8 * weight.scale.element_size() * weight.scale.numel()
        number += weight.levels.numel()
    adapter = getattr(model, "adapter", None)
    return (bits + 16 * (adapter.num_parameters if adapter is not None else 0)) / number


def summary(bench: Bench) -> dict[str, Any]:
    """Every form with the seeds that are measured, and every pair whose two sides are there for all."""

    def cells(kind: str, form: str) -> list[dict[str, Any]]:
        return [bench.kept.read(name) for seed in SEEDS if bench.kept.has(name := f"{kind}; {form}; {seed}")]

    rows: dict[str, Any] = {}
    for kind, form in [(ROUNDED, GPTQ), *((kind, form) for form in FORMS for kind in (ROUNDED, TRAINED))]:
        if found := cells(kind, form):
            rows[f"{kind}; {form}"] = {
                "bits": found[0]["bits"],
                "kl": [float(np.mean(cell["kl"])) for cell in found],
                "kl_of_solutions": [float(np.mean(cell["kl_of_solutions"])) for cell in found],
                "accuracy": [float(np.mean(cell["right"])) for cell in found],
                "peak": [max(cell["losses"]) for cell in found] if kind == TRAINED else [],
                "cpu_seconds": [cell["cpu_seconds"] for cell in found],
            }
    ratios = {}
    for ours, theirs in PAIRS:
        sides = [rows.get(f"{TRAINED}; {form}") for form in (ours, theirs)]
        if all(side and len(side["kl"]) == len(SEEDS) > 1 for side in sides):
            for part in ("kl", "kl_of_solutions", "peak"):
                found = experiment.ratio(*(side[part] for side in sides))
                ratios[f"{ours}; {theirs}; {part}"] = {"mean": found.value, "low": found.low, "high": found.high}
    held = experiment.digest(str([row["question"] for row in asked(0)]))
    rates = {str(rate): bench.kept.read(f"search; {PLAIN}; {rate}")["held_out"] for rate in RATES}
    return {
        "settings": {"steps": STEPS, "texts": TEXTS, "measured": MEASURED, "rates": rates, "lr": bench.rate} | ROW,
        "slices": {"tuning": [experiment.digest("\n".join(bench.texts(0)))], "reporting": [held]},
        "seeds": list(SEEDS),
        "original": [float(np.mean(bench.kept.read(f"original; {seed}")["right"])) for seed in SEEDS],
        "rows": rows,
        "ratios": ratios,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    lines = []
    for name, row in results["rows"].items():
        kind, form = name.split("; ")
        each = [", ".join(f"{value:{how}}" for value in row[part]) for part, how in COLUMNS.items()]
        lines.append([form, kind, f"{row['bits']:.2f}", *each])
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in results["ratios"].items():
        ours, theirs, part = name.split("; ")
        pairs.setdefault((ours, theirs), {})[part] = experiment.cell(found, ".2f")
    titles = "weights | how | bits per weight: | KL, all tokens: | KL, solutions: | right: | highest loss of a step:"
    return {
        "forms": experiment.table(titles, lines),
        "pairs": experiment.table(
            "weights | divided by | KL, all tokens (95 %): | KL, solutions (95 %): | highest loss (95 %):",
            [[*sides, *(found[part] for part in ("kl", "kl_of_solutions", "peak"))] for sides, found in pairs.items()],
        ),
    }


COLUMNS = {"kl": ".3f", "kl_of_solutions": ".4f", "accuracy": ".1%", "peak": ".2f"}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--so-far", action="store_true", help="record what is measured")
    options = command.read()
    torch.set_num_threads(1)
    bench = Bench(options.work)
    if options.so_far or bench.run(bench.names, bench.measure, options.minutes):
        found = summary(bench)
        experiment.record(options.out, __doc__, found)
        for made in tables(found).values():
            print(made)


if __name__ == "__main__":
    main()
