"""Is a new domain learned better under a bound on the loss of the old one than by mixing in a share of old text?

    python benchmarks/loss_bound.py --data DIR --work DIR --minutes 9      # again, until all is done

SmolLM2-135M (--model) goes on with the first 80 % of tinyshakespeare (in --data), all weights, AdamW, rows of 64
tokens. Replay: a share of the rows is WikiText-2 valid. Bounded: `train` with a loss bound that lets the loss on that
text rise by 0.02 nats, 6 rows of Shakespeare and 2 of the old text a step. Every way reads 8 rows a step for as many
steps; each row counts as a token through backward, also those of the bound at steps where it pulls at nothing.
Measured on 96 windows of 64 tokens of each: the last 20 % of Shakespeare, and the WikiText-2 test text. Nothing is
tuned: the learning rate is the first that was tried, penalty and shares are what they are.

The curve of replay is (rise of the old loss, new loss) over the shares, straight between two of them, which flatters
whoever is compared with it, for such curves are convex.
"""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import experiment
import numpy as np

LENGTH, BATCH, BOUND_BATCH = 64, 8, 2
PIECE = 8
RISE = 0.02
SHARES = (0.0, 0.125, 0.25, 0.5)
LR, PENALTY = 1e-4, 10.0
SEEDS = (10, 11, 12)
STEPS, WINDOWS = (2, 4) if experiment.SMOKE else (32, 96)


class Bench(experiment.Kept):
    """What is measured, by name: "start", and "seed, way, lr" with way "replay SHARE" or "bound PENALTY"."""

    def __init__(self, work: Path, model: str, data: Path) -> None:
        import burnish
        from burnish.data import read_texts

        super().__init__(work)
        self.work = work
        self.model = burnish.load(model)
        with gzip.open(data / "tinyshakespeare.txt.gz", "rt", encoding="utf-8") as file:
            text = file.read()
        cut = text.index("\n\n", int(0.8 * len(text)))
        self.new, new_held_out = text[:cut], text[cut:]
        self.old = read_texts("wikitext2-valid")[0]
        self.held_out = {"new": new_held_out, "old": read_texts("wikitext2-test")[0]}

    def names(self) -> list[str]:
        ways = ["replay 0", f"bound {PENALTY:g}", *(f"replay {share:g}" for share in SHARES[1:])]
        return ["start", *(f"{seed}, {way}, {LR:g}" for seed in SEEDS for way in ways)]

    def losses(self, name: str, domain: str) -> np.ndarray:
        return np.array(self.read(name)[domain])

    def rise(self, name: str) -> np.ndarray:
        """Of the old loss, in every window."""
        return self.losses(name, "old") - self.losses("start", "old")

    # -- one training --------------------------------------------------------------------------------------------------

    def measure(self, name: str) -> dict[str, Any]:
        if name == "start":
            return self.measured(self.model)
        seed, way, lr = name.split(", ")
        kind, number = way.split()
        ledger: list[dict[str, Any]] = []
        settings: dict[str, Any] = {"optimizer": "adamw", "lr": float(lr), "weight_decay": 0.0, "steps": STEPS}
        settings |= {"context": LENGTH, "seed": int(seed), "precision": "bfloat16", "save_every": STEPS // 2}
        if kind == "replay":
            inputs = {"data": self.mixture(float(number), int(seed)), "bound_data": None}
            settings["batch"] = BATCH
        else:
            inputs = {"data": self.drawn(self.new, STEPS * (BATCH - BOUND_BATCH), int(seed)), "bound_data": [self.old]}
            settings |= {"bound_rise": RISE, "bound_penalty": float(number), "bound_every": 4}
            settings |= {"bound_batch": BOUND_BATCH, "bound_holdout": 0.02, "batch": BATCH - BOUND_BATCH}
        model = self.trained(name, settings, inputs, ledger)
        tables = {row["name"]: row["rows"] for row in ledger if row["row"] == "table" and row["name"] != "loss"}
        return {"tables": tables} | self.measured(model)

    def mixture(self, share: float, seed: int) -> list[str]:
        """Texts of which that share of the rows is old, as many as are read once."""
        old = round(share * STEPS * BATCH)
        return self.drawn(self.new, STEPS * BATCH - old, seed) + self.drawn(self.old, old, seed)

    def drawn(self, text: str, rows: int, seed: int) -> list[str]:
        """Pieces of a text of a thousand tokens or so, with so many rows in all, drawn without replacement."""
        found: Any = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [first for first, _ in found["offset_mapping"]]
        cuts = [starts[place] for place in range(0, len(starts), PIECE * LENGTH)] + [len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(cuts)][:-1]
        order = np.random.default_rng(seed).permutation(len(pieces))
        return [pieces[number] for number in order[: -(-rows // PIECE)]]

    def trained(self, name: str, settings: dict[str, Any], inputs: dict[str, Any], ledger: list[dict[str, Any]]) -> Any:
        import shutil

        import burnish
        from burnish.core.ledger import Ledger
        from burnish.core.progress import Progress
        from burnish.core.stage import Context, seeded_generator
        from burnish.train.run import run

        place = self.work / f"state {name}"
        kept = Ledger(None)
        ctx = Context(inputs, place, "cpu", seeded_generator(0), Progress(enabled=False), kept)
        result = run(burnish.Train(**settings), self.model, ctx)
        shutil.rmtree(place)
        ledger += kept.rows
        return result

    def measured(self, model: Any) -> dict[str, list[float]]:
        """Mean loss of every window, in nats a token."""
        return {domain: losses_of(model, text) for domain, text in self.held_out.items()}


def windows(tokenizer: Any, text: str) -> Any:
    """At equal distances in the text."""
    import torch

    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[:: len(rows) // WINDOWS][:WINDOWS]


def losses_of(model: Any, text: str) -> list[float]:
    import torch

    module, values = model.module.float().eval(), []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for ids in windows(model.tokenizer, text).split(8):
            logits = module(input_ids=ids, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            values += loss.view(len(ids), -1).mean(1).tolist()
    return [round(value, 5) for value in values]


# -- what is made of it ------------------------------------------------------------------------------------------------


def at(rise: float, rises: list[float], losses: list[float]) -> float:
    """The new loss of the curve of replay at a rise of the old loss; beyond its ends, that of the nearer end."""
    order = np.argsort(rises)
    return float(np.interp(rise, np.array(rises)[order], np.array(losses)[order]))


def summary(bench: Bench) -> dict[str, Any]:
    ways = [f"replay {share:g}" for share in SHARES] + [f"bound {PENALTY:g}"]
    rows: dict[str, Any] = {}
    for way in ways:
        names = [f"{seed}, {way}, {LR:g}" for seed in SEEDS]
        rises = np.array([bench.rise(name) for name in names])
        news = np.array([bench.losses(name, "new") for name in names])
        rows[way] = {
            "rise": experiment.over_seeds(rises.mean(1)),
            "new": experiment.over_seeds(news.mean(1)),
            "rise_by_seed": rises.mean(1).tolist(),
            "rise_over_windows": experiment.over_seeds(rises.mean(0)),
            "new_by_seed": news.mean(1).tolist(),
            "tables": [bench.read(name)["tables"] for name in names] if way.startswith("bound") else [],
            "cpu_seconds": [bench.read(name)["cpu_seconds"] for name in names],
        }
    ours, replays = rows[ways[-1]], [rows[way] for way in ways[:-1]]
    gaps = [
        new - at(rise, [one["rise_by_seed"][seed] for one in replays], [one["new_by_seed"][seed] for one in replays])
        for seed, (rise, new) in enumerate(zip(ours["rise_by_seed"], ours["new_by_seed"], strict=True))
    ]
    kept = [one for one in replays if one["rise"]["mean"] <= RISE + 0.01]
    best = min(kept, key=lambda one: one["new"]["mean"]) if kept else None
    rows_of = {domain: windows(bench.model.tokenizer, text).numpy() for domain, text in bench.held_out.items()}
    return {
        "slices": {
            "tuning": [],
            "reporting": [experiment.digest(rows) for rows in rows_of.values()],
        },
        "seeds": list(SEEDS),
        "settings": {"steps": STEPS, "rows": BATCH, "length": LENGTH, "lr": LR, "penalty": PENALTY},
        "start": {domain: bench.losses("start", domain).mean() for domain in ("new", "old")},
        "rows": rows,
        "against_the_curve": experiment.over_seeds(gaps) | {"by_seed": gaps},
        "against_the_best_that_keeps_the_bound": None
        if best is None
        else experiment.over_seeds(np.array(ours["new_by_seed"]) - np.array(best["new_by_seed"])),
    }


def main() -> None:
    import torch

    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", default="models/smollm2", help="SmolLM2-135M")
    command.add_argument("--data", type=Path, required=True, help="directory with tinyshakespeare.txt.gz")
    command.keeps()
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments.work, arguments.model, arguments.data)
    if bench.run(bench.names, bench.measure, arguments.minutes):
        note = "one thread, bfloat16 products; shared with other work, CPU seconds"
        experiment.record(arguments.out, __doc__, summary(bench), note=note)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    lines = []
    for way, row in results["rows"].items():
        kind, number = way.split()
        name = f"{100 * float(number):g} % old text" if kind == "replay" else f"loss bound, rise at most {RISE}"
        seconds = f"{np.mean(row['cpu_seconds']):.0f}"
        gap = experiment.cell(results["against_the_curve"], "+.3f") if kind == "bound" else ""
        lines.append([name, experiment.cell(row["rise"], "+.3f"), experiment.cell(row["new"]), gap, seconds])
    head = f"{len(results['seeds'])} seeds, nats a token (95 %) | rise on the old domain: | loss on the new one: "
    return {"ways": experiment.table(head + "| against the curve of replay: | CPU s:", lines)}


if __name__ == "__main__":
    main()
