"""Do matrix optimizers reach AdamW's loss in fewer steps on a small language model?

    python benchmarks/optimizers.py --data DIR --work DIR [--only normuon ...] [--cells 4]

DIR holds `us_speeches.jsonl.gz` (tuning) and `tinyshakespeare.txt.gz` (reporting). A Llama of 0.86 M parameters with
a byte-level BPE of 1,024 tokens is trained from scratch for 200 steps of 16 x 128 tokens. Non-matrix parameters take
AdamW at 3e-3 in every run. The learning rate of the matrices is searched by factors of two on the speeches with seed
100, until the best rate has a worse neighbour on both sides; the best is then used on Shakespeare with seeds 0, 1, 2.
Every optimizer, AdamW too, gets the same search. Each run is one file in the work directory, so the script continues
where it was stopped (`--cells` stops it after so many runs), and several processes may share the work by `--only`.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "optimizers.json"
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
STEPS, BATCH, CONTEXT, EVAL_EVERY, HELD_OUT = 200, 16, 128, 10, 48
OTHER_LR = 3e-3
NAMES = {"adamw": "AdamW", "muon": "Muon", "normuon": "NorMuon", "cosmos": "COSMOS", "soap": "SOAP"}
FIRST_RATE = {"adamw": 0.012, "muon": 0.02, "normuon": 0.02, "cosmos": 0.02, "soap": 0.012}
OPTIONS: dict[str, dict[str, Any]] = {"cosmos": {"rank": 16}}
TUNING_SEED, SEEDS = 100, (0, 1, 2)
FIRST_DRAWN_STEP = 40
T_95 = 4.303  # two-sided 95 % quantile of Student's t with two degrees of freedom


def train(texts: tuple[str, str], algorithm: str, lr: float, seed: int) -> dict[str, Any]:
    """One training run; the loss on held-out rows every few steps."""
    import torch

    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.data.packing import documents, pack
    from burnish.optim import OPTIMIZERS
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
    optimizer = OPTIMIZERS[algorithm](groups, lr=lr, weight_decay=0.1, **options, **OPTIONS.get(algorithm, {}))
    loop = Loop(
        steps=STEPS,
        batch_size=BATCH,
        schedule=Schedule("wsd", warmup=0.08, decay=0.4),
        eval_every=EVAL_EVERY,
        save_every=0,
        log_every=EVAL_EVERY,
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
    """{tuning, reporting}: (text to train on, text to measure on)."""
    from burnish.data import read_texts

    speeches = read_texts(data / "us_speeches.jsonl.gz")
    held_out = speeches[::12]
    kept = [speech for number, speech in enumerate(speeches) if number % 12]
    (shakespeare,) = read_texts(data / "tinyshakespeare.txt.gz")
    cut = len(shakespeare) * 9 // 10
    return {
        # As much text as Shakespeare has, so that both slices are seen equally often.
        "tuning": ("\n".join(kept)[:cut], "\n".join(held_out)),
        "reporting": (shakespeare[:cut], shakespeare[cut:]),
    }


class CellsDone(Exception):
    """As many runs were made as were asked for."""


class Runs:
    """Training runs, each made once and kept as a file.

    Args:
        work: directory of the files.
        texts: {part: (text to train on, text to measure on)}.
        cells: runs to make before stopping; None makes all.
    """

    def __init__(self, work: Path, texts: dict[str, tuple[str, str]], cells: int | None) -> None:
        self.work, self.texts, self.cells = work, texts, cells

    def __call__(self, part: str, algorithm: str, lr: float, seed: int) -> dict[str, Any]:
        path = self.work / f"{part}-{algorithm}-{lr:g}-{seed}.json"
        if not path.is_file():
            if self.cells is not None:
                if not self.cells:
                    raise CellsDone
                self.cells -= 1
            result = train(self.texts[part], algorithm, lr, seed)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(result))
            temporary.replace(path)
            took = f"{result['cpu_seconds']:.0f} s"
            print(f"{part} {algorithm} lr {lr:g} seed {seed}: {result['final']:.4f} ({took})", flush=True)
        return json.loads(path.read_text())


def tune(run: Runs, algorithm: str) -> tuple[float, list[dict]]:
    """The best rate of a grid that is extended until the best is not at an edge."""
    first = FIRST_RATE[algorithm]
    tried = {rate: run("tuning", algorithm, rate, TUNING_SEED) for rate in (first, first * 2)}
    while True:
        rates = sorted(tried)
        best = min(rates, key=lambda rate: _score(tried[rate]))
        if best == rates[0]:
            more = rates[0] / 2
        elif best == rates[-1]:
            more = rates[-1] * 2
        else:
            return best, [tried[rate] for rate in rates]
        tried[more] = run("tuning", algorithm, more, TUNING_SEED)


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--cells", type=int)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    texts = slices(arguments.data)
    run = Runs(arguments.work, texts, arguments.cells)
    outcome: dict[str, Any] = {}
    try:
        for algorithm in arguments.only:
            best, tried = tune(run, algorithm)
            runs = [run("reporting", algorithm, best, seed) for seed in SEEDS]
            outcome[algorithm] = {"lr": best, "tried": tried, "runs": runs}
    except CellsDone:
        return
    if set(outcome) == set(NAMES):
        write(texts, outcome)


def write(texts: dict[str, tuple[str, str]], outcome: dict[str, Any]) -> None:
    import torch
    import transformers

    def digests(part: str) -> list[str]:
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts[part]]

    results = {
        "question": __doc__.splitlines()[0] if __doc__ else "",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other work, one thread, float32",
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
        | {"transformers": transformers.__version__},
        "slices": {part: digests(part) for part in texts},
        "setting": {
            "config": CONFIG,
            "steps": STEPS,
            "batch": BATCH,
            "context": CONTEXT,
            "other_lr": OTHER_LR,
            "options": OPTIONS,
            "tuning_seed": TUNING_SEED,
            "seeds": SEEDS,
        },
        "note": "CPU seconds of one process on a busy machine; steps are exact",
        "optimizers": outcome,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


# -- tables ------------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of paired differences over the seeds."""
    mean = statistics.mean(values)
    half = T_95 * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    found = results["optimizers"]
    final = {name: [run["final"] for run in entry["runs"]] for name, entry in found.items()}
    lines = [
        "| optimizer | matrix lr | final loss, seeds 0, 1, 2 (nats/token) | mean | minus AdamW, paired "
        "| minus Muon, paired "
        "| steps to AdamW's final loss | CPU s per run | state elements |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in found.items():
        needed = [
            steps_to(run["curve"], against["final"])
            for run, against in zip(entry["runs"], found["adamw"]["runs"], strict=True)
        ]
        reached = [steps for steps in needed if steps is not None]
        steps = f"{statistics.mean(reached):.0f}" if len(reached) == len(needed) else "not by every seed"
        cells = [
            NAMES[name],
            f"{entry['lr']:g}",
            ", ".join(f"{value:.3f}" for value in final[name]),
            f"{statistics.mean(final[name]):.3f}",
            *(
                interval([a - b for a, b in zip(final[name], final[other], strict=True)]) if name != other else ""
                for other in ("adamw", "muon")
            ),
            f"{steps} of {results['setting']['steps']}",
            f"{statistics.mean(run['cpu_seconds'] for run in entry['runs']):.0f}",
            f"{entry['runs'][0]['state_elements']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    tried = ["| optimizer | matrix lr: final loss on the tuning text |", "| --- | --- |"]
    for name, entry in found.items():
        runs = ", ".join(f"{run['lr']:g}: {run['final']:.3f}" for run in entry["tried"])
        tried.append(f"| {NAMES[name]} | {runs} |")
    return {"loss": "\n".join(lines), "tuning": "\n".join(tried)}


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """{picture: svg}: loss on held-out text against steps, mean over the seeds, from the end of the steep start on."""
    from picture import svg

    from burnish.report.charts import Datum, Figure, Series

    series = []
    for name, entry in results["optimizers"].items():
        curves = [run["curve"] for run in entry["runs"]]
        data = []
        for points in zip(*curves, strict=True):
            losses = [loss for _, loss in points]
            if points[0][0] >= FIRST_DRAWN_STEP:
                data.append(Datum(points[0][0], statistics.mean(losses), min(losses), max(losses)))
        series.append(Series(NAMES[name], data, line=True, markers=False))
    ends = ", ".join(f"{one.name} ends at {one.data[-1].y:.3f}" for one in series)
    figure = Figure(
        title="Loss on held-out text against steps, by optimizer",
        description=f"Mean of three seeds, with a band from the lowest to the highest: {ends}.",
        x_label="step",
        y_label="loss, nats per token",
        series=series,
        log_y=False,
    )
    return {"curves": svg(figure)}


if __name__ == "__main__":
    main()
