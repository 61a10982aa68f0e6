"""How much of nearest rounding's loss does GPTQ repair, and is this GPTQ as good as llm-compressor's?

    python benchmarks/quantize_baselines.py make --model models/smollm2 --work WORK --bits 4
    PEER_PYTHON benchmarks/peers/llmcompressor_quantize.py models/smollm2 WORK/16384/windows.json \
        WORK/16384/llmcompressor-4bit 4 64
    python benchmarks/quantize_baselines.py measure --model models/smollm2 --work WORK --bits 4

`make` writes the calibration windows (token ids of WikiText-2 valid) and our checkpoints: nearest rounding, GPTQ with
the original model's activations, the same with refitted scales, and GPTQ with the activations of the layers quantized
so far. The peer reads the same windows in its own environment (benchmarks/env/llmcompressor.txt). All use symmetric
integers in groups of 64 with scales of the original weight; ours may be negative, so that the extra level goes to the
side that needs it. `measure` evaluates every exported checkpoint alike, the peer's included, on the first 8 x 1,024
tokens of WikiText-2 test, which are used for nothing else; our two GPTQs also on other windows of the validation text,
which decide the default between them. What is already there is not made or measured again; `--tokens` and `--bits` name
the cells.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

from burnish.core.checkpoint import Model, load
from burnish.core.statistics import Interval, interval, paired_interval
from burnish.data import calibration, data_hash, read_texts, windows
from burnish.data.windows import cut
from burnish.evaluate import Evaluate
from burnish.quantize.stage import Quantize

LENGTH, GROUP, TUNING_WINDOWS = 256, 64, 16
REPORT = Evaluate(
    text="wikitext2-test",
    num_windows=2 if experiment.SMOKE else 8,
    context=32 if experiment.SMOKE else 1024,
    speed=False,
)
TUNING = Evaluate(num_windows=TUNING_WINDOWS, context=LENGTH, speed=False)

OURS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {"method": "gptq", "refit": 0},
    "gptq-refit": {"method": "gptq", "refit": 1},
    "gptq-propagate": {"method": "gptq", "propagate": True, "refit": 0},
}
PEER = "llmcompressor"
PEER_AS_STORED = "llmcompressor-none"
TITLES = {
    "rtn": "nearest rounding (RTN)",
    "gptq": "GPTQ, activations of the original",
    "gptq-refit": "the same, scales refitted (as shipped)",
    "gptq-propagate": "GPTQ, activations of the quantized layers",
    PEER: "llm-compressor GPTQ",
    PEER_AS_STORED: "llm-compressor GPTQ, first column first",
}


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("task", choices=["make", "measure"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384], help="calibration tokens")
    parser.add_argument("--only", nargs="+", default=list(TITLES), choices=list(TITLES))
    arguments = parser.read()
    torch.set_num_threads(1)
    for tokens in arguments.tokens:
        for bits in arguments.bits:
            for name in arguments.only:
                directory = arguments.work / str(tokens) / f"{name}-{bits}bit"
                if arguments.task == "make" and name in OURS:
                    make(arguments.model, directory, name, bits=bits, tokens=tokens)
                elif arguments.task == "measure" and directory.is_dir():
                    measure(arguments.model, directory, name, arguments.out, bits=bits, tokens=tokens)


def calibration_windows(model: Model, tokens: int) -> torch.Tensor:
    """The windows that the stage draws with its default seed."""
    generator = torch.Generator().manual_seed(0)
    return calibration(model.tokenizer, "wikitext2-valid", length=LENGTH, max_tokens=tokens, generator=generator)


def make(source: Path, target: Path, name: str, *, bits: int, tokens: int) -> None:
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    model = load(source)
    (target.parent / "windows.json").write_text(json.dumps(calibration_windows(model, tokens).tolist()))
    started = time.process_time()
    stage = Quantize(bits=bits, group_size=GROUP, tokens=tokens, length=LENGTH, **OURS[name])
    quantized = stage(model, progress=True)
    seconds = time.process_time() - started
    quantized.save(target)
    (target / "cpu_seconds.txt").write_text(f"{seconds:.1f}\n")
    print(f"{target}: {seconds:.0f} CPU seconds", flush=True)


def measure(source: Path, directory: Path, name: str, out: Path, *, bits: int, tokens: int) -> None:
    key = f"{bits} bits, {tokens} tokens"
    with experiment.results(out, {"cells": {}}) as known:
        if name in known["cells"].get(key, {}):
            return
    original, quantized = load(source), load(directory)
    evaluation = REPORT(quantized, original)
    row: dict[str, Any] = {
        "sequences": evaluation.sequences,
        "metrics": {key: value for key, value in evaluation.metrics.items() if value["value"] is not None},
        "protocol": evaluation.protocol,
        "cpu_seconds": float((directory / "cpu_seconds.txt").read_text()),
    }
    if name in ("gptq", "gptq-propagate"):
        row["tuning_kl"] = TUNING(quantized, original, text=tuning_texts(original, tokens)).sequences["kl"]
    nats = known.get("original_nats") or REPORT(original).sequences["nats"]
    with experiment.results(out) as known:  # as late as possible: another process may have measured another cell
        known["cells"].setdefault(key, {})[name] = row
        known["original_nats"] = nats
    tuned = ["windows of wikitext2-valid that were not calibrated on"]
    content = {
        "settings": {"group_size": GROUP, "symmetric": True, "window": LENGTH, "seeds": [0], "threads": 1},
        "slices": {"tuning": tuned, "reporting": [data_hash("wikitext2-test")]},
        "peer": (Path(__file__).parent / "env" / "llmcompressor.txt").read_text().split(),
    }
    experiment.record(out, __doc__, content, note="shared with other work; seconds are CPU time")
    print(f"{directory}: KL {experiment.cell(interval(row['sequences']['kl'], row['sequences']['tokens']), '.4f')}")


def tuning_texts(model: Model, tokens: int) -> list[str]:
    """Windows of the validation text that calibration did not draw, as texts."""
    seen = {tuple(row.tolist()) for row in calibration_windows(model, tokens)}
    every = windows(model.tokenizer, read_texts("wikitext2-valid"), LENGTH)
    rest = [row for row in every if tuple(row.tolist()) not in seen]
    spread = torch.linspace(0, len(rest) - 1, TUNING_WINDOWS + 2).round().long().tolist()
    texts = [model.tokenizer.decode(rest[place]) for place in spread]
    cut(model.tokenizer, texts, LENGTH, num_windows=TUNING_WINDOWS)  # raises where they do not fill the windows
    return texts


def repaired(nats: np.ndarray, nearest: np.ndarray, original: np.ndarray) -> Interval:
    """1 - (loss of a method) / (loss of nearest rounding), losses in nats over the original, paired over windows."""
    return interval(nearest - nats, nearest - original)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: a table for each width, `4bit`, and so on."""
    original = np.array(results["original_nats"])
    found: dict[str, list[list[str]]] = {}
    for cell, rows in results["cells"].items():
        bits, tokens = cell.removesuffix(" tokens").split(" bits, ")
        nearest = results["cells"][f"{bits} bits, 16384 tokens"].get("rtn")
        if nearest is None:
            continue
        num = np.array(nearest["sequences"]["tokens"])
        start = ["original", "", f"{np.exp(original.sum() / num.sum()):.2f}", "0", "", "", ""]
        lines = found.setdefault(f"{bits}bit", [start])
        for name in (name for name in TITLES if name in rows):
            sums = {key: np.array(rows[name]["sequences"][key]) for key in ("nats", "kl")}
            share = gap = ""
            if name != "rtn":
                part = repaired(sums["nats"], np.array(nearest["sequences"]["nats"]), original)
                share = experiment.cell(part, ".0%")
            if name != PEER and PEER in rows:
                gap = experiment.cell(paired_interval(sums["kl"], rows[PEER]["sequences"]["kl"], num), "+.4f")
            figures = [f"{np.exp(sums['nats'].sum() / num.sum()):.2f}", f"{sums['kl'].sum() / num.sum():.4f}"]
            calibrated = "" if name == "rtn" else f"{int(tokens):,}"
            lines.append([TITLES[name], calibrated, *figures, share, gap, f"{rows[name]['cpu_seconds']:.0f}"])
    header = (
        "method | calibration tokens | perplexity | KL per token | nearest rounding's loss repaired (95 %) "
        "| KL minus llm-compressor's (95 %) | CPU s"
    )
    return {name: experiment.table(header, lines) for name, lines in found.items()}


if __name__ == "__main__":
    main()
