"""When does NorMuon reach a lower loss than Muon: by batch size, by width, by horizon?

    python benchmarks/optimizer_sweep.py --data DIR --work DIR --official DIR [--minutes 9]

DIR holds `us_speeches.jsonl.gz` (tuning) and `movie_reviews.jsonl.gz` (reporting, enough text for no row to come
twice). A Llama of 4 layers whose tokens are bytes, with feed-forward matrices four times as tall as wide, is trained
from scratch. The first cell is 8 rows of 128 bytes a step, width 128 (1.08 M parameters), 200 steps; every other cell
changes one of the three. Three seeds, and both sides see the same rows from the same weights.

The learning rate of the matrices is searched on the tuning text in the first cell, by factors of two with one seed,
until the best has a worse neighbour on both sides, for Muon and NorMuon alike. The other cells take that rate times the
root of their batch over that of the first; with width and horizon it stays, for the update of both programs is scaled
by the shape of a matrix already (`scale="reference"`). AdamW has everything else, at 3e-3 times the same root.

`--official` names a directory with the authors' programs, `muon.py` (KellerJordan/Muon) and `normuon.py`
(zichongli5/NorMuon, the last version that takes float32 weights): in the first cell they run beside ours at our rates.
Orthogonalisation is in bfloat16 on all four sides, as theirs has it. Each run is one file in the work directory.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment

from burnish.core.statistics import interval

CONTEXT, LAYERS, WARMUP, DECAY, WEIGHT_DECAY = 128, 4, 0.08, 0.4, 0.1
FIRST = {"batch": 8, "width": 128, "steps": 200}
CELLS: dict[str, dict[str, int]] = {
    "first": FIRST,
    "small batch": FIRST | {"batch": 2},
    "large batch": FIRST | {"batch": 24},
    "wide": FIRST | {"width": 192},
    "long": FIRST | {"steps": 500},
}
if experiment.SMOKE:
    CELLS = {"first": {"batch": 2, "width": 32, "steps": 4}, "wide": {"batch": 2, "width": 64, "steps": 4}}
SIDES = {"muon": "Muon", "normuon": "NorMuon"}
OFFICIAL = {"official muon": "Muon, official", "official normuon": "NorMuon, official"}
CLASSES = {"official muon": "SingleDeviceMuonWithAuxAdam", "official normuon": "SingleDeviceNorMuonWithAuxAdam"}
OTHER_LR, FIRST_RATE, MEASUREMENTS, HELD_OUT = 3e-3, 0.02, 4, 192 if not experiment.SMOKE else 4
TUNING_SEED, SEEDS = 100, (0, 1, 2)


def config(width: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "intermediate_size": 4 * width,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }


def train(texts: tuple[str, str], side: str, cell: dict[str, int], lr: float, seed: int, official: Path) -> dict:
    """One training run: the loss on held-out rows at its end and three times before."""
    import torch

    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.train import Loop, Schedule, causal_lm_loss, fit
    from burnish.train.scratch import initialise

    torch.set_num_threads(1)
    model = initialise(config(cell["width"]), tokenizer="bpe:257", texts=["bytes alone"], seed=seed)
    rows, held_out = packed(texts)
    optimizer = optimizer_of(side, model.module, lr, OTHER_LR * root(cell), official)
    loop = Loop(
        steps=cell["steps"],
        batch_size=cell["batch"],
        schedule=Schedule("wsd", warmup=WARMUP, decay=DECAY),
        eval_every=cell["steps"] // MEASUREMENTS,
        save_every=0,
        log_every=cell["steps"] // MEASUREMENTS,
        seed=seed,
    )
    with TemporaryDirectory() as work:
        ctx = Context({}, Path(work), "cpu", seeded_generator(seed), Progress(enabled=False), Ledger(None))
        started = time.process_time()
        result = fit(model.module, rows, causal_lm_loss, optimizer, ctx, loop, validation=held_out)
    curve = [[row["step"], row["validation_loss"]] for row in result.rows]
    return {
        "side": side,
        "lr": lr,
        "seed": seed,
        "final": curve[-1][1],
        "curve": curve,
        "cpu_seconds": round(time.process_time() - started, 1),
        "tokens": result.tokens,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
    }


@cache
def packed(texts: tuple[str, str]) -> tuple[Any, Any]:
    """Rows to train on, enough for every cell, and rows to measure on."""
    from burnish.data.packing import documents, pack
    from burnish.train.scratch import learn_tokenizer

    most = max(cell["batch"] * cell["steps"] for cell in CELLS.values()) * CONTEXT
    tokenizer = learn_tokenizer(["bytes alone"], 257)
    rows = pack(documents(tokenizer, [texts[0][: most + 2 * CONTEXT]]), CONTEXT)
    held_out = pack(documents(tokenizer, [texts[1][: (HELD_OUT + 1) * CONTEXT]]), CONTEXT)
    return rows, held_out.split(len(held_out) - HELD_OUT)[0]


def optimizer_of(side: str, module: Any, lr: float, other_lr: float, official: Path) -> Any:
    """Ours, or the authors' own with the same split of the parameters, rates and decay."""
    from burnish.optim import optimizer_class
    from burnish.optim.routing import param_groups, route

    algorithm = side.removeprefix("official ")
    ours = optimizer_class(algorithm)(
        param_groups(module, route(module, algorithm=algorithm)),
        lr=lr,
        weight_decay=WEIGHT_DECAY,
        adamw_lr=other_lr,
        scale="reference",
        ns_dtype="bfloat16",
    )
    if side in SIDES:
        return ours
    groups = []
    for group in ours.param_groups:
        kept = {key: group[key] for key in ("params", "lr", "weight_decay")}
        groups.append(kept | {"use_muon": group["algorithm"] == algorithm})
    return getattr(module_of(official / f"{algorithm}.py"), CLASSES[side])(groups)


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def root(cell: dict[str, int]) -> float:
    """What the rates of the first cell are multiplied by in another."""
    return math.sqrt(cell["batch"] / FIRST["batch"])


# -- the experiment ----------------------------------------------------------------------------------------------------


def slices(data: Path) -> dict[str, tuple[str, str]]:
    """{tuning, reporting}: (text to train on, text to measure on)."""
    from burnish.data import read_texts

    found = {}
    for part, name in (("tuning", "us_speeches"), ("reporting", "movie_reviews")):
        texts = read_texts(data / f"{name}.jsonl.gz")
        kept = [text for number, text in enumerate(texts) if number % 20]
        found[part] = ("\n".join(kept), "\n".join(texts[::20]))
    return found


class Runs(experiment.Kept):
    """Training runs, each made once, named by part, cell, side, rate and seed."""

    official, cells = True, tuple(CELLS)

    def names(self) -> list[str]:
        """The runs that are wanted, the search first: what comes later depends on it."""
        found = [name for side in SIDES for name in self.searched(side)]
        if not all(map(self.has, found)):
            return found
        return found + [name for cell in self.cells for name in self.reported(cell)]

    def searched(self, side: str) -> list[str]:
        return [f"tuning, first, {side}, {rate:g}, {TUNING_SEED}" for rate in self.rates(side)]

    def reported(self, cell: str) -> list[str]:
        sides = [SIDES, OFFICIAL] if cell == "first" and self.official else [SIDES]
        return [self.name(cell, side, seed) for some in sides for seed in SEEDS for side in some]

    def name(self, cell: str, side: str, seed: int) -> str:
        rate = (self.best(side.removeprefix("official ")) or 0) * root(CELLS[cell])
        return f"reporting, {cell}, {side}, {rate:.4g}, {seed}"

    def rates(self, side: str) -> list[float]:
        """Those of the search as far as it is known: two, and more until the best has a neighbour on both sides."""
        tried = [FIRST_RATE, 2 * FIRST_RATE]
        while all(self.has(f"tuning, first, {side}, {rate:g}, {TUNING_SEED}") for rate in tried):
            best = min(tried, key=lambda rate: self.score(side, rate))
            if tried[0] < best < tried[-1]:
                break
            tried = [tried[0] / 2, *tried] if best == tried[0] else [*tried, tried[-1] * 2]
        return tried

    def score(self, side: str, rate: float) -> float:
        found = self.read(f"tuning, first, {side}, {rate:g}, {TUNING_SEED}")["final"]
        return found if math.isfinite(found) else math.inf

    def best(self, side: str) -> float | None:
        """The best rate, None while the search goes on."""
        if not all(map(self.has, self.searched(side))):
            return None
        return min(self.rates(side), key=lambda rate: self.score(side, rate))


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--official", type=Path, help="a directory with the authors' muon.py and normuon.py")
    parser.add_argument("--only", nargs="*", choices=list(CELLS), default=list(CELLS), help="cells to run now")
    parser.keeps()
    arguments = parser.read()
    texts, runs = slices(arguments.data), Runs(arguments.work)
    runs.official, runs.cells = arguments.official is not None, arguments.only

    def measure(name: str) -> dict[str, Any]:
        part, cell, side, lr, seed = name.split(", ")
        return train(texts[part], side, CELLS[cell], float(lr), int(seed), arguments.official)

    runs.run(runs.names, measure, arguments.minutes)
    done = {cell: [runs.read(name) for name in runs.reported(cell) if runs.has(name)] for cell in CELLS}
    setting = {"context": CONTEXT, "layers": LAYERS, "config": config(FIRST["width"]), "other_lr": OTHER_LR}
    content = {
        "slices": {part: [experiment.digest(text) for text in texts[part]] for part in texts},
        "setting": setting | {"cells": CELLS, "tuning_seed": TUNING_SEED, "seeds": SEEDS, "held_out_rows": HELD_OUT},
        "search": {side: [runs.read(name) for name in runs.searched(side) if runs.has(name)] for side in SIDES},
        "cells": {cell: found for cell, found in done.items() if found},
    }
    note = "one thread, float32; CPU seconds of one process, shared with other work; losses are exact"
    experiment.record(arguments.out, __doc__, content, note=note)


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    rows, theirs = [], []
    for cell, runs in results["cells"].items():
        found = {side: by_seed(runs, side) for side in (*SIDES, *OFFICIAL)}
        seeds = [seed for seed in found["muon"] if seed in found["normuon"]]
        if len(seeds) < len(results["setting"]["seeds"]):
            continue
        gaps = [found["normuon"][seed]["final"] - found["muon"][seed]["final"] for seed in seeds]
        one, form = results["setting"]["cells"][cell], found["muon"][seeds[0]]
        size = f"{one['batch']} x {results['setting']['context']}"
        rates = " / ".join(f"{found[side][seeds[0]]['lr']:g}" for side in SIDES)
        means = [f"{statistics.mean(run['final'] for run in found[side].values()):.3f}" for side in SIDES]
        each = ", ".join(f"{gap:+.3f}" for gap in gaps)
        rows.append([cell, size, one["width"], one["steps"], f"{form['parameters'] / 1e6:.2f} M", rates, *means])
        rows[-1] += [each, experiment.cell(interval(gaps), "+.3f")]
        for side, title in OFFICIAL.items():
            if len(found[side]) == len(seeds):
                ours = found[side.removeprefix("official ")]
                gaps = [found[side][seed]["final"] - ours[seed]["final"] for seed in seeds]
                theirs.append([title, f"{statistics.mean(run['final'] for run in found[side].values()):.3f}"])
                theirs[-1] += [", ".join(f"{gap:+.4f}" for gap in gaps)]
    titles = "cell | bytes a step | width | steps | parameters | lr, Muon / NorMuon | Muon | NorMuon"
    searched = [
        [title, ", ".join(f"{run['lr']:g}: {run['final']:.3f}" for run in sorted(tried, key=lambda run: run["lr"]))]
        for title, tried in ((SIDES[side], results["search"][side]) for side in SIDES)
    ]
    return {
        "cells": experiment.table(f"{titles} | NorMuon minus Muon by seed | mean (95 %, Student's t)", rows),
        "official": experiment.table("program | final loss, mean | minus ours by seed", theirs),
        "search": experiment.table("optimizer | lr: final loss on the tuning text", searched),
    }


def by_seed(runs: list[dict[str, Any]], side: str) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in runs if run["side"] == side}


if __name__ == "__main__":
    main()
