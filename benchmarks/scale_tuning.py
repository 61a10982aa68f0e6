"""How much of what 3 bits cost do trained scales and norms give back, on text that nothing has seen?

    python benchmarks/scale_tuning.py --model models/smollm2 --data DIR --work WORK

Every start is a checkpoint of symmetric 3-bit integers in groups of 64, from 8,192 tokens of WikiText-2 valid, as in
low_bits.py: two-sided rounding with refitted scales, and learned rounding. `burnish tune` trains on rows of 256 tokens
of the same text, one row a step, and keeps the scales that are best on rows held out of it; the seed draws the order of
the rows. Beside it the same steps on the text's next tokens, without the original. The divergence from the original is
measured on three texts, as in low_bits.py: WikiText-2 test, movie reviews and presidents' speeches. Nothing is chosen
on them; the learning rate is the default. What has been measured is kept in WORK, and so are the checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from low_bits import DOMAINS, GROUP, LENGTH, OURS, TEXT, TOKENS, windows_of_domain

from burnish.core.checkpoint import load
from burnish.quantize.stage import Quantize
from burnish.tune.stage import Tune

STARTS = {"rounded": "yaqa-a, refit", "learned": "learned, yaqa, sensitivity"}
ARMS: dict[str, dict[str, Any]] = {
    "scales and norms": {},
    "scales": {"norms": False},
    "scales and norms, next tokens": {"alpha": 0.0},
}
UNTUNED = "not tuned"
STEPS = 2 if experiment.SMOKE else 96
SEEDS = (0, 1, 2)


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the other two texts are")
    parser.add_argument("--only", nargs="*", default=[], help="measure what begins so, such as 'rounded, scales'")
    parser.keeps("where checkpoints and what has been measured are kept")
    arguments = parser.read()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    bench.kept.run(bench.names, bench.measure, arguments.minutes)
    rows = [bench.kept.read(name) for name in bench.every() if bench.kept.has(name)]
    texts = [experiment.digest(bench.windows(domain).numpy()) for domain in DOMAINS]
    content = {"steps": STEPS, "rows": rows, "slices": {"tuning": [], "reporting": texts}}
    experiment.record(arguments.out, __doc__, content)


class Bench:
    """Every cell: a start, what is trained, a seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work, self.data, self.only = arguments.work, arguments.data, tuple(arguments.only)
        self.model = load(arguments.model)
        self.kept = experiment.Kept(self.work)
        self.wanted: dict[str, list[torch.Tensor]] = {}

    def every(self) -> Iterable[str]:
        for start in STARTS:
            yield f"{start}, {UNTUNED}, 0"
            yield from (f"{start}, {arm}, {seed}" for seed in SEEDS for arm in ARMS)

    def names(self) -> Iterable[str]:
        return (name for name in self.every() if not self.only or name.startswith(self.only))

    def measure(self, name: str) -> dict[str, Any]:
        start, arm, seed = name.split(", ", 1)[0], name.split(", ", 1)[1].rsplit(", ", 1)[0], name.rsplit(", ", 1)[1]
        before = self.start(start)
        began = time.process_time()
        if arm == UNTUNED:
            module = load(before, dtype=torch.float32).module
        else:
            stage = Tune(steps=STEPS, batch=1, seed=int(seed), precision="bfloat16", eval_every=32, **ARMS[arm])
            place = self.work / f"tune-{experiment.digest(name)[:12]}"
            texts = {"data": TEXT, "teacher": self.model}
            module = stage(load(before), work_dir=place, progress=True, **texts).module.float()
        seconds = time.process_time() - began
        kl = {domain: self.divergence(module, domain) for domain in DOMAINS}
        print(name, {domain: round(float(np.mean(values)), 4) for domain, values in kl.items()}, flush=True)
        return {"start": start, "arm": arm, "seed": int(seed), "kl": kl, "cpu_seconds": round(seconds, 1)}

    def start(self, name: str) -> Path:
        """The checkpoint that tuning begins with, made where it is not there."""
        place = self.work / f"start-{name}"
        if not place.is_dir():
            stage = Quantize(
                bits=3, group_size=GROUP, tokens=TOKENS, length=LENGTH, calibration=TEXT, **OURS[STARTS[name]]
            )
            stage(self.model, work_dir=self.work / f"quantize-{name}", progress=True).save(place)
        return place

    def windows(self, domain: str) -> torch.Tensor:
        return windows_of_domain(self.model, self.data, domain)

    def divergence(self, module: Any, domain: str) -> list[float]:
        """KL(original || module) of every window, nats a token."""
        windows = self.windows(domain)
        with torch.inference_mode():
            if domain not in self.wanted:
                original = load(self.model.path or "", dtype=torch.float32).module
                self.wanted[domain] = [original(ids[None]).logits[0, :-1].log_softmax(-1) for ids in windows]
            found = []
            for ids, wanted in zip(windows, self.wanted[domain], strict=True):
                ours, theirs = module(ids[None]).logits[0, :-1].log_softmax(-1), wanted
                found.append(float((theirs.exp() * (theirs - ours)).sum(-1).double().mean()))
        return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: each way of tuning beside its start, and beside it the ratio over windows and seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        found.setdefault((row["start"], row["arm"]), []).append(row)
    rows = []
    for (start, arm), runs in found.items():
        cells = [f"{np.mean([run['kl'][domain] for run in runs]):.3f}" for domain in DOMAINS]
        untuned = found.get((start, UNTUNED))
        ratios = ["", "", ""]
        if arm != UNTUNED and untuned:
            pairs = [(np.mean([run["kl"][d] for run in runs], axis=0), untuned[0]["kl"][d]) for d in DOMAINS]
            ratios = [experiment.cell(experiment.ratio(*pair), ".2f") for pair in pairs]
        seconds = np.mean([run["cpu_seconds"] for run in runs])
        rows.append([STARTS[start], arm, len(runs), *cells, *ratios, f"{seconds:.0f}" if arm != UNTUNED else ""])
    names = " | ".join(DOMAINS.values())
    beside = " | ".join(f"{name}, against the start (95 %)" for name in DOMAINS.values())
    return {"main": experiment.table(f"start | trained | seeds | {names} | {beside} | CPU s", rows)}


if __name__ == "__main__":
    main()
