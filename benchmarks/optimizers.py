"""Do matrix optimizers reach AdamW's loss in fewer steps on a small language model?

    python benchmarks/optimizers.py --data DIR --work DIR [--only normuon ...] [--minutes 9] [--longer]

DIR holds `us_speeches.jsonl.gz` (tuning) and `tinyshakespeare.txt.gz` (reporting). A Llama of 0.86 M parameters with
a byte-level BPE of 1,024 tokens is trained from scratch for 200 steps of 16 x 128 tokens. Non-matrix parameters take
AdamW at 3e-3 in every run. The learning rate of the matrices is searched by factors of two on the speeches with seed
100, until the best rate has a worse neighbour on both sides; the best is then used on Shakespeare with seeds 0, 1, 2.
Every optimizer, AdamW too, gets the same search. Each run is one file in the work directory, so the script continues
where it was stopped, and several processes may share the work by `--only`. The results file says of every optimizer
which rates were tried, and takes its runs where they are all there.

`--longer` asks the question of Muon and NorMuon once more: 300 steps on movie reviews (`movie_reviews.jsonl.gz`), which
are enough text for no row to come twice, at the rates that the search found.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment

from burnish.core.statistics import interval

PARTS = ("tuning", "reporting", "longer")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 344,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
STEPS = {"tuning": 200, "reporting": 200, "longer": 300} if not experiment.SMOKE else dict.fromkeys(PARTS, 20)
BATCH, CONTEXT, MEASUREMENTS, HELD_OUT = 16, 128, 20, 48
LONGER = ("muon", "normuon")
OTHER_LR = 3e-3
NAMES = {"adamw": "AdamW", "muon": "Muon", "normuon": "NorMuon", "cosmos": "COSMOS", "soap": "SOAP"}
FIRST_RATE = {"adamw": 0.003, "muon": 0.02, "normuon": 0.02, "cosmos": 0.02, "soap": 0.003}
OPTIONS: dict[str, dict[str, Any]] = {"cosmos": {"rank": 16}}
TUNING_SEED, SEEDS = 100, (0, 1, 2)
FIRST_DRAWN_STEP = 40


def train(texts: tuple[str, str], algorithm: str, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """One training run; the loss on held-out rows every few steps."""
    import torch

    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.data.packing import documents, pack
    from burnish.optim import optimizer_class
    from burnish.optim.routing import param_groups, route
    from burnish.train import Loop, Schedule, causal_lm_loss, fit
    from burnish.train.scratch import initialise

    torch.set_num_threads(1)
    model = initialise(CONFIG, tokenizer="bpe:1024", texts=texts[:1], seed=seed)
    rows = pack(documents(model.tokenizer, texts[:1]), CONTEXT)
    held_out = pack(documents(model.tokenizer, texts[1:]), CONTEXT)
    held_out, _ = held_out.split(len(held_out) - HELD_OUT)
    module = model.module
    options = {} if algorithm == "adamw" else {"adamw_lr": OTHER_LR}
    groups = param_groups(module, route(module, algorithm=algorithm))
    if algorithm == "adamw":  # the same split, so that only the rule of the matrices differs between runs
        groups = param_groups(module, route(module, algorithm="matrix"))
        for group in groups:
            group["lr"] = lr if group["algorithm"] == "matrix" else OTHER_LR
            group["algorithm"] = "adamw"
    optimizer = optimizer_class(algorithm)(groups, lr=lr, weight_decay=0.1, **options, **OPTIONS.get(algorithm, {}))
    loop = Loop(
        steps=steps,
        batch_size=BATCH,
        schedule=Schedule("wsd", warmup=0.08, decay=0.4),
        eval_every=steps // MEASUREMENTS,
        save_every=0,
        log_every=steps // MEASUREMENTS,
        seed=seed,
    )
    with TemporaryDirectory() as work:
        ctx = Context({}, Path(work), "cpu", seeded_generator(seed), Progress(enabled=False), Ledger(None))
        started = time.process_time()
        result = fit(module, rows, causal_lm_loss, optimizer, ctx, loop, validation=held_out)
    curve = [[row["step"], row["validation_loss"]] for row in result.rows]
    return {
        "optimizer": algorithm,
        "lr": lr,
        "seed": seed,
        "final": curve[-1][1],
        "curve": curve,
        "cpu_seconds": time.process_time() - started,
        "tokens": result.tokens,
        "state_elements": sum(
            tensor.numel() for entry in optimizer.state.values() for tensor in entry.values() if tensor.numel() > 1
        ),
    }


# -- the experiment ----------------------------------------------------------------------------------------------------


def slices(data: Path) -> dict[str, tuple[str, str]]:
    """{tuning, reporting, longer}: (text to train on, text to measure on)."""
    from burnish.data import read_texts

    speeches = read_texts(data / "us_speeches.jsonl.gz")
    held_out = speeches[::12]
    kept = [speech for number, speech in enumerate(speeches) if number % 12]
    (shakespeare,) = read_texts(data / "tinyshakespeare.txt.gz")
    cut = len(shakespeare) * 9 // 10
    reviews = read_texts(data / "movie_reviews.jsonl.gz")
    return {
        # As much text as Shakespeare has, so that both slices are seen equally often.
        "tuning": ("\n".join(kept)[:cut], "\n".join(held_out)),
        "reporting": (shakespeare[:cut], shakespeare[cut:]),
        "longer": ("\n".join(review for number, review in enumerate(reviews) if number % 20), "\n".join(reviews[::20])),
    }


def name_of(part: str, algorithm: str, lr: float, seed: int) -> str:
    return f"{part}, {algorithm}, {lr:g}, {seed}"


class Runs(experiment.Kept):
    """Training runs, each made once; their names are `name_of` them."""

    def names(self, algorithms: list[str], parts: list[str]) -> list[str]:
        """The runs that are wanted: those of the search, and where it has ended those at its best rate."""
        found = []
        for algorithm in algorithms:
            found += [name_of("tuning", algorithm, rate, TUNING_SEED) for rate in self.rates(algorithm)]
            if best := self.best(algorithm):
                found += [name_of(part, algorithm, best, seed) for part in wanted(algorithm, parts) for seed in SEEDS]
        return found

    def rates(self, algorithm: str) -> list[float]:
        """Those of the search as far as it is known: two, and more until the best has a neighbour on both sides."""
        tried = sorted((FIRST_RATE[algorithm], 2 * FIRST_RATE[algorithm]))
        while all(self.has(name_of("tuning", algorithm, rate, TUNING_SEED)) for rate in tried):
            best = min(tried, key=lambda rate: self.score(algorithm, rate))
            if tried[0] < best < tried[-1]:
                break
            tried = [tried[0] / 2, *tried] if best == tried[0] else [*tried, tried[-1] * 2]
        return tried

    def best(self, algorithm: str) -> float | None:
        """The best rate, None while the search goes on."""
        rates = self.rates(algorithm)
        if not all(self.has(name_of("tuning", algorithm, rate, TUNING_SEED)) for rate in rates):
            return None
        return min(rates, key=lambda rate: self.score(algorithm, rate))

    def score(self, algorithm: str, rate: float) -> float:
        return _score(self.read(name_of("tuning", algorithm, rate, TUNING_SEED)))

    def outcome(self, algorithm: str, part: str) -> dict[str, Any]:
        """The search, and the runs of a part at its best rate where they are all there."""
        tried = [name_of("tuning", algorithm, rate, TUNING_SEED) for rate in self.rates(algorithm)]
        best = self.best(algorithm)
        runs = [] if best is None else [name_of(part, algorithm, best, seed) for seed in SEEDS]
        there = bool(runs) and all(map(self.has, runs))
        if not there:
            print(f"the {part} runs of {algorithm} are not all there")
        found = {"lr": best if there else None, "runs": list(map(self.read, runs)) if there else []}
        return found | {"tried": [self.read(name) for name in tried if self.has(name)]}


def wanted(algorithm: str, parts: list[str]) -> list[str]:
    return [part for part in parts if part != "longer" or algorithm in LONGER]


def _score(run: dict) -> float:
    return run["final"] if math.isfinite(run["final"]) else math.inf


def steps_to(curve: list[list[float]], loss: float) -> float | None:
    """First step at which the curve, drawn straight between measurements, is at or below `loss`."""
    before: list[float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None or before[1] <= value:
                return step
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = [step, value]
    return None


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.keeps()
    parser.add_argument("--only", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--longer", action="store_true", help="the longer runs as well")
    arguments = parser.read()
    texts, runs = slices(arguments.data), Runs(arguments.work)
    parts = ["reporting", *(["longer"] if arguments.longer else [])]

    def measure(name: str) -> dict[str, Any]:
        part, algorithm, lr, seed = name.split(", ")
        return train(texts[part], algorithm, float(lr), int(seed), STEPS[part])

    runs.run(lambda: runs.names(arguments.only, parts), measure, arguments.minutes)
    more = {name: runs.outcome(name, "longer") for name in LONGER}
    setting = {"config": CONFIG, "steps": STEPS, "batch": BATCH, "context": CONTEXT, "other_lr": OTHER_LR}
    content = {
        "slices": {part: [experiment.digest(text) for text in texts[part]] for part in texts},
        "setting": setting | {"options": OPTIONS, "tuning_seed": TUNING_SEED, "seeds": SEEDS},
        "optimizers": {name: runs.outcome(name, "reporting") for name in NAMES},
        "longer": {name: {"lr": found["lr"], "runs": found["runs"]} for name, found in more.items() if found["runs"]},
    }
    note = "one thread, float32; CPU seconds of one process, shared with other work; steps are exact"
    experiment.record(arguments.out, __doc__, content, note=note)


# -- tables ------------------------------------------------------------------------------------------------------------


def fewer_steps(mine: list[dict], theirs: list[dict]) -> str:
    """How many fewer steps than theirs mine need to their final loss, mean over the seeds and range."""
    shares = []
    for run, against in zip(mine, theirs, strict=True):
        steps = steps_to(run["curve"], against["final"])
        if steps is None:
            return "not reached by every seed"
        shares.append(100 * (1 - steps / against["curve"][-1][0]))
    return f"{statistics.mean(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    tried = []
    for name, entry in results["optimizers"].items():
        runs = ", ".join(f"{run['lr']:g}: {run['final']:.3f}" for run in entry["tried"]) or "not run"
        tried.append([NAMES[name], runs])
    return {
        "loss": loss_table(results["optimizers"], ("adamw", "muon")),
        "longer": loss_table(results["longer"], ("muon",)),
        "tuning": experiment.table("optimizer | lr of the matrices: final loss on the tuning text", tried),
    }


def loss_table(optimizers: dict[str, Any], baselines: tuple[str, ...]) -> str:
    """Final losses by seed, beside those of the baselines."""
    found = {name: entry for name, entry in optimizers.items() if entry["runs"]}
    versus = [f"minus {NAMES[other]}, paired" for other in baselines]
    versus += [f"fewer steps than {NAMES[other]}" for other in baselines]
    rows = []
    for name, entry in found.items():
        final = [run["final"] for run in entry["runs"]]
        row = [NAMES[name], f"{entry['lr']:g}", ", ".join(f"{value:.3f}" for value in final)]
        row.append(f"{statistics.mean(final):.3f}")
        others = [found[other]["runs"] if other in found and other != name else None for other in baselines]
        for runs in others:
            gaps = [a - b["final"] for a, b in zip(final, runs or (), strict=bool(runs))]
            row.append(experiment.cell(interval(gaps), "+.3f") if runs else "")
        row += [fewer_steps(entry["runs"], runs) if runs else "" for runs in others]
        row.append(f"{statistics.mean(run['cpu_seconds'] for run in entry['runs']):.0f}")
        rows.append([*row, f"{entry['runs'][0]['state_elements']:,}"])
    titles = ["optimizer", "lr", "final loss by seed", "mean", *versus, "CPU s per run", "state elements"]
    return experiment.table(titles, rows)


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """{picture: svg}: loss on held-out text against steps, at the best rate of the search and in the reported runs."""
    found = results["optimizers"]
    best = {name: [min(entry["tried"], key=_score)] for name, entry in found.items() if entry["tried"]}
    made = {"search": curves("in the search, at the best rate so far", best)}
    reported = {name: entry["runs"] for name, entry in found.items() if entry["runs"]}
    if reported:
        made["curves"] = curves("mean of three seeds, band from the lowest to the highest", reported)
    return made


def curves(what: str, runs: dict[str, list[dict]]) -> str:
    """Loss against steps by optimizer, from the end of the steep start on."""
    from picture import svg

    from burnish.core.page import Datum, Figure, Series

    series = []
    for name, same in runs.items():
        data = []
        for points in zip(*(run["curve"] for run in same), strict=True):
            step, losses = points[0][0], [loss for _, loss in points]
            if step >= FIRST_DRAWN_STEP:
                data.append(Datum(step, statistics.mean(losses), min(losses), max(losses)))
        series.append(Series(NAMES[name], data, line=True, markers=False))
    ends = ", ".join(f"{one.name} ends at {one.data[-1].y:.3f}" for one in series)
    figure = Figure(
        title=f"Loss on held-out text against steps, {what}",
        description=ends,
        x_label="step",
        y_label="loss, nats per token",
        series=series,
        log_y=False,
    )
    return svg(figure)


if __name__ == "__main__":
    main()
