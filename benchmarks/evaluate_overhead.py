"""What an evaluation costs beside the forward passes that it cannot do without.

    python benchmarks/evaluate_overhead.py --model models/smollm2 --work WORK.jsonl

Question: how much longer does `burnish.Evaluate` take than a bare loop over the same windows? The bare loop is
`module(input_ids=window)` and nothing else; the loop that most people write adds transformers' own loss. With a
reference, the bare loop is two such passes. All are run on one sample of the text after another, two windows each, in
an order that turns from sample to sample, in float32, and timed as CPU time of the process, because wall time on a
shared machine does not repeat. The quoted overhead is the ratio of the sums; its interval is a paired bootstrap over
samples. Every sample is written to WORK.jsonl when it is done, and a run that was stopped goes on behind the last one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOWS = 2
"""Windows per sample: what an evaluation does once, it does here once per sample and by default once per 20 windows."""
RESULTS = Path(__file__).parent / "results" / "evaluate_overhead.json"


def measure(model_path: Path, work: Path, *, num_samples: int, context: int) -> dict[str, Any]:
    import numpy as np
    import torch

    import burnish
    from burnish.core.checkpoint import library_versions
    from burnish.data import Slice, cut, data_hash, read_texts
    from burnish.evaluate.measure import device_name, network
    from burnish.evaluate.quality import measure_quality

    model = burnish.load(model_path)
    module = network(model, dtype=torch.float32, device="cpu")
    # The reference is a second network with the same weights, so that it must run: what it computes costs no less.
    reference = network(model, dtype=torch.float32, device="cpu")
    text = cut(
        model.tokenizer, read_texts("wikitext2-valid"), context, num_windows=WINDOWS * num_samples, max_chars=400_000
    )

    @torch.inference_mode()
    def bare(part: Slice) -> None:
        for window in part.tokens.split(1):
            module(input_ids=window, use_cache=False)

    @torch.inference_mode()
    def with_loss(part: Slice) -> None:
        for window in part.tokens.split(1):
            module(input_ids=window, labels=window, use_cache=False)

    @torch.inference_mode()
    def two_bare(part: Slice) -> None:
        for window in part.tokens.split(1):
            module(input_ids=window, use_cache=False)
            reference(input_ids=window, use_cache=False)

    arms: dict[str, Callable[[Slice], object]] = {
        "bare": bare,
        "with_loss": with_loss,
        "evaluate": lambda part: measure_quality(module, part),
        "two_bare": two_bare,
        "evaluate_with_reference": lambda part: measure_quality(module, part, reference=reference),
    }
    done = [json.loads(line) for line in work.read_text().splitlines()] if work.is_file() else []
    starts = range(0, WINDOWS * num_samples, WINDOWS)
    parts = [Slice(text.tokens[i : i + WINDOWS], text.num_bytes[i : i + WINDOWS]) for i in starts]
    bare(Slice(parts[0].tokens[:, :32], parts[0].num_bytes))  # warms up
    for index in range(len(done), num_samples):
        names = list(arms)
        row = {}
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.process_time()
            arms[name](parts[index])
            row[name] = time.process_time() - start
        done.append(row)
        with work.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
    seconds = {name: [row[name] for row in done] for name in arms}

    # What happens once and not per window: reading and cutting the text, sizes, the bootstrap.
    start = time.process_time()
    burnish.Evaluate(num_windows=2, context=8, speed=False)(burnish.Model(module=module, tokenizer=model.tokenizer))
    once = time.process_time() - start

    pairs = [("evaluate", "bare"), ("evaluate", "with_loss"), ("evaluate_with_reference", "two_bare")]
    generator = np.random.default_rng(0)
    draws = generator.integers(num_samples, size=(10_000, num_samples))
    overheads = []
    for arm, baseline in pairs:
        ours, theirs = np.array(seconds[arm]), np.array(seconds[baseline])
        ratios = ours[draws].sum(axis=1) / theirs[draws].sum(axis=1)
        low, high = np.quantile(ratios, [0.025, 0.975])
        overheads.append(
            {"arm": arm, "baseline": baseline, "ratio": ours.sum() / theirs.sum(), "low": low, "high": high}
        )
    return {
        "question": __doc__.split("\n\n")[2].replace("\n", " "),
        "machine": f"{device_name('cpu')}, {platform.system()}, nothing else running",
        "date": time.strftime("%Y-%m-%d"),
        "versions": library_versions(),
        "settings": {
            "model": model.name,
            "parameters": sum(p.numel() for p in module.parameters()),
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "context": context,
            "num_samples": num_samples,
            "windows_per_sample": WINDOWS,
            "time": "CPU time of the process, seconds",
            "seeds": [0],
        },
        "slices": {"tuning": [], "reporting": [data_hash("wikitext2-valid")]},
        "seconds_per_sample": seconds,
        "seconds_once": once,
        "overheads": overheads,
    }


LABELS = {
    "bare": "forward pass alone",
    "with_loss": "forward pass with transformers' loss",
    "two_bare": "two forward passes",
    "evaluate": "evaluation",
    "evaluate_with_reference": "evaluation against a reference",
}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables that docs/methods/evaluation.md shows."""
    settings = results["settings"]
    lines = [
        f"| {settings['num_samples']} samples of {settings['windows_per_sample']} windows of {settings['context']:,} "
        "tokens | baseline | CPU s per sample | baseline's | overhead | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["overheads"]:
        ours, theirs = (
            sum(results["seconds_per_sample"][row[key]]) / settings["num_samples"] for key in ("arm", "baseline")
        )
        lines.append(
            f"| {LABELS[row['arm']]} | {LABELS[row['baseline']]} | {ours:.2f} | {theirs:.2f} | {row['ratio'] - 1:+.1%} "
            f"| {row['low'] - 1:+.1%} to {row['high'] - 1:+.1%} |"
        )
    return {"overhead": "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--work", type=Path, default=Path("evaluate_overhead.tmp"))
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    results = measure(arguments.model, arguments.work, num_samples=arguments.num_samples, context=arguments.context)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    arguments.work.unlink()
    print(tables(results)["overhead"])


if __name__ == "__main__":
    main()
