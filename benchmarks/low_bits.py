"""Which checkpoint of 3 or 4 bits is closest to the original: rounded, with refitted scales, learned, AutoRound's?

    python benchmarks/low_bits.py windows --model models/smollm2 --data DIR --work WORK
    PEER_PYTHON benchmarks/peers/autoround.py models/smollm2 WORK/draw-0.json WORK/autoround-40-3bit-draw-0 3 64 40
    burnish quantize models/smollm2 --target 100MB --method yaqa --sketch a --damping 0.1 --refit 1 --tokens 8192 \\
        -o WORK/target-100MB-3bit-draw-0
    python benchmarks/low_bits.py measure --model models/smollm2 --data DIR --work WORK [--bits 3] [--draws 0]

All methods see 8,192 tokens of WikiText-2 valid in windows of 256, drawn anew for every draw, with other labels (the
same windows but for rtn and gptq, which draw without keeping others back, and mixed widths, which keep back more), and
make symmetric integers in groups of 64 (signed scales).
Nothing is tuned here: dampings are 0.1 for two-sided rounding and the product's own choice on held-out folds for GPTQ.
The divergence from the original is measured on three texts that no method has seen: WikiText-2 test, movie reviews
(movie_reviews.jsonl.gz in DIR) and presidents' speeches (us_speeches.jsonl.gz), 6 windows of 512 tokens each, spread
over the text. `windows` writes the calibration windows for the peer, which runs in its own environment
(benchmarks/env/autoround.txt). What has been measured is kept in WORK.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

from burnish.arch import matrices
from burnish.core.checkpoint import load
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.data import read_texts, windows
from burnish.quantize.plan import select
from burnish.quantize.run import calibration_windows
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import Original, filled

TOKENS, LENGTH, GROUP = (1024, 64, 64) if experiment.SMOKE else (8192, 256, 64)
REPORT_WINDOWS, REPORT_LENGTH, REPORT_CHARS = (1, 64, 20_000) if experiment.SMOKE else (6, 512, 400_000)
TEXT = "wikitext2-valid"
DOMAINS = {"wikitext": "WikiText-2 test", "movies": "movie reviews", "speeches": "speeches"}

YAQA_A = {"method": "yaqa", "sketch": "a", "damping": 0.1}
YAQA_B = {"method": "yaqa", "sketch": "b", "damping": 0.1}
OURS: dict[str, dict[str, Any]] = {
    f"{name}{suffix}": settings | {"refit": refit}
    for name, settings in {
        "rtn": {"method": "rtn"},
        "gptq": {"method": "gptq"},
        "yaqa-a": YAQA_A,
        "yaqa-b": YAQA_B,
    }.items()
    for suffix, refit in {"": 0, ", refit": 1, ", refit 3 times": 3}.items()
}
OURS |= {
    f"learned, {name}": {"method": "learned", "sketch": "a", "damping": 0.1, "iterations": 40} | settings
    for name, settings in {
        "rtn, plain": {"start": "rtn", "error": "plain"},
        "rtn, relative": {"start": "rtn", "error": "relative"},
        "rtn, sensitivity": {"start": "rtn"},
        "yaqa, relative": {"error": "relative"},
        "yaqa, sensitivity": {},
        "yaqa, refit, sensitivity": {"refit": 1},
    }.items()
}
OURS |= {
    "gptq, refit, mixed widths": {"method": "gptq", "refit": 1, "sketch": "a"},
    "yaqa-a, refit, mixed widths": YAQA_A | {"refit": 1},
}
EARLIER = ("positive scales, yaqa-a", "positive scales, yaqa-a, refit")
"""Measured at the commit before scales of packed integers could be negative; the present program does not make them."""
CHECKPOINTS = {
    "autoround-40": "AutoRound, 40 iterations",
    "autoround-200": "AutoRound, 200 iterations",
    "target-100MB": "burnish quantize --target 100MB",
}
"""What was made beforehand, as the lines above say; measured as stock transformers loads it."""
FRONTIER = "target-100MB"


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("task", choices=["windows", "measure"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the other two texts are")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="of calibration windows and labels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=".*", help="methods, a regular expression")
    parser.keeps("where statistics (2 GB a draw), the peer's checkpoints and what has been measured are kept")
    arguments = parser.read()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.model)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.task == "windows":
        for draw in arguments.draws:
            drawn = windows_of_draw(model, draw)
            (arguments.work / f"draw-{draw}.json").write_text(json.dumps(drawn.tolist()))
        return
    Measuring(model, arguments).run()


def windows_of_draw(model: Any, draw: int) -> torch.Tensor:
    """What two-sided rounding collects from: it keeps a few other windows back, even where it has nothing to choose."""
    stage = Quantize(tokens=TOKENS, length=LENGTH, seed=draw, calibration=TEXT, **YAQA_A)
    ctx = Context({}, Path(), "cpu", seeded_generator(draw), Progress(enabled=False), Ledger(None))
    views = select(matrices(model.module), ())
    return calibration_windows(stage, model, ctx, views)[0].tokens


class Measuring:
    """Every cell: a draw, a width and a method."""

    def __init__(self, model: Any, arguments: argparse.Namespace) -> None:
        self.model, self.arguments = model, arguments
        self.kept = experiment.Kept(arguments.work)
        self.dense = load(arguments.model, dtype=torch.float32).module
        self.views = select(matrices(self.dense), ())
        self.originals: dict[str, Original] = {}

    def run(self) -> None:
        self.kept.run(self.cells, self.measure, self.arguments.minutes)
        rows = [json.loads(path.read_text()) for path in sorted(self.kept.directory.glob("*.json"))]
        texts = [experiment.digest(self.windows_of(domain).numpy()) for domain in DOMAINS]
        found = {"rows": rows, "slices": {"tuning": [], "reporting": texts}} | self.told_by_the_target()
        experiment.record(self.arguments.out, __doc__, found)

    def told_by_the_target(self) -> dict[str, Any]:
        """The tables that the command with a target wrote: sizes around it, and widths that were tried."""
        place = self.checkpoint(FRONTIER, 3, 0)
        ledger = place.with_name(f"{place.name}.run") / "ledger.jsonl"
        rows = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
        return {row["name"]: row["rows"] for row in rows if row.get("name") in ("frontier", "widths tried", "widths")}

    def cells(self) -> Iterable[str]:
        a = self.arguments
        for draw in a.draws:
            for bits in a.bits:
                for method in (*OURS, *CHECKPOINTS):
                    if re.fullmatch(a.only, method) and (
                        method in OURS or self.checkpoint(method, bits, draw).is_dir()
                    ):
                        yield f"draw {draw}, {bits} bits, {method}"

    def checkpoint(self, method: str, bits: int, draw: int) -> Path:
        return self.arguments.work / f"{method}-{bits}bit-draw-{draw}"

    def measure(self, name: str) -> dict[str, Any]:
        draw_text, bits_text, method = name.split(", ", 2)
        draw, bits = int(draw_text.split()[1]), int(bits_text.split()[0])
        started = time.process_time()
        if method in CHECKPOINTS:
            place = self.checkpoint(method, bits, draw)
            module = load(place, dtype=torch.float32).module
            noted = place / "cpu_seconds.txt"
            seconds = float(noted.read_text()) if noted.exists() else 0.0
        else:
            module = self.quantized(method, bits, draw)
            seconds = time.process_time() - started
        values = {view.name: view.tensor.float() for view in matrices(module)}
        kl = {}
        for domain in DOMAINS:
            original = self.original(domain)
            with filled(self.views, values):
                kl[domain] = original.divergence()
            print(f"  {name}, {domain}: {np.mean(kl[domain]):.4f}", flush=True)
        return {"draw": draw, "bits": bits, "method": method, "kl": kl, "cpu_seconds": round(seconds, 1)}

    def quantized(self, method: str, bits: int, draw: int) -> Any:
        mixed = "mixed widths" in method
        stage = Quantize(
            bits=bits,
            target=f"{bits}bits" if mixed else None,
            group_size=GROUP,
            tokens=TOKENS,
            length=LENGTH,
            seed=draw,
            calibration=TEXT,
            **OURS[method],
        )
        statistics = self.arguments.work / f"draw-{draw}-{stage.sketch or 'covariance'}{'-mixed' if mixed else ''}"
        place = statistics
        if stage.method == "learned" or mixed:  # what was learned is kept apart, what was collected is shared
            place = statistics.with_name(f"{statistics.name}-{experiment.digest(str(stage.canonical()))[:12]}")
            place.mkdir(exist_ok=True)
            statistics.joinpath("statistics").mkdir(parents=True, exist_ok=True)
            if not place.joinpath("statistics").exists():
                place.joinpath("statistics").symlink_to(statistics.resolve() / "statistics")
        return stage(self.model, work_dir=place, progress=True).module

    def original(self, domain: str) -> Original:
        if domain not in self.originals:
            self.originals[domain] = Original(self.dense, self.windows_of(domain))
        return self.originals[domain]

    def windows_of(self, domain: str) -> torch.Tensor:
        return windows_of_domain(self.model, self.arguments.data, domain)


def windows_of_domain(model: Any, data: Path | None, domain: str) -> torch.Tensor:
    """What the divergence from a model is measured on; `data` is where the two texts are that the package lacks."""
    every = windows(model.tokenizer, texts_of(domain, data), REPORT_LENGTH, max_chars=REPORT_CHARS)
    return every[torch.linspace(0, len(every) - 1, REPORT_WINDOWS).round().long()]


def texts_of(domain: str, data: Path | None) -> list[str]:
    files = {"movies": "movie_reviews.jsonl.gz", "speeches": "us_speeches.jsonl.gz"}
    return read_texts((data or Path()) / files[domain] if domain in files else "wikitext2-test")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: every method beside AutoRound, and refitted scales beside those of the grid."""
    found: dict[tuple[int, str], dict[int, dict[str, list[float]]]] = {}
    for row in results["rows"]:
        found.setdefault((row["bits"], row["method"]), {})[row["draw"]] = row["kl"]
    main, refitted = [], []
    for bits in sorted({bits for bits, _ in found}):
        for method in (*OURS, *EARLIER, *CHECKPOINTS):
            if (bits, method) not in found:
                continue
            draws = found[bits, method]
            cells = [f"{np.mean([draws[draw][domain] for draw in draws]):.3f}" for domain in DOMAINS]
            peer = found.get((bits, "autoround-40"), {})
            against = [compared(draws, peer, domain) if method != "autoround-40" else "" for domain in DOMAINS]
            main.append([bits, CHECKPOINTS.get(method, method), len(draws), *cells, *against])
            plain = re.sub(", refit.*", "", method)
            if plain != method and (bits, plain) in found and "mixed" not in method:
                ratios = [compared(draws, found[bits, plain], domain) for domain in DOMAINS]
                refitted.append([bits, method, len(draws.keys() & found[bits, plain].keys()), *ratios])
    names = " | ".join(DOMAINS.values())
    sizes = []
    for row in results.get("frontier", []):
        kl = experiment.cell(row | {"mean": row["kl"]}, ".3f")
        place = "the target" if row["chosen"] else ""
        sizes.append([f"{row['bytes'] / 1e6:.1f}", f"{row['bits']:.2f}", kl, place])
    beside = " | ".join(f"{name}, against AutoRound, 40 iterations (95 %)" for name in DOMAINS.values())
    return {
        "main": experiment.table(f"bits | method | draws | {names} | {beside}", main),
        "refit": experiment.table(
            f"bits | method | draws | {names}, KL against that without refitting (95 %)", refitted
        ),
        "frontier": experiment.table("MB of the file | bits per weight, without scales | KL (95 %) | ", sizes),
    }


def compared(ours: dict[int, dict[str, list[float]]], theirs: dict[int, dict[str, list[float]]], domain: str) -> str:
    """Ratio of divergences on the draws that both have, with an interval over windows; the draws' own ratios behind."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return ""
    pairs = [np.mean([side[draw][domain] for draw in shared], axis=0) for side in (ours, theirs)]
    single = [np.mean(ours[draw][domain]) / np.mean(theirs[draw][domain]) for draw in shared]
    spread = f"; draws {min(single):.2f} to {max(single):.2f}" if len(shared) > 1 else ""
    return experiment.cell(experiment.ratio(*pairs), ".2f") + spread


if __name__ == "__main__":
    main()
