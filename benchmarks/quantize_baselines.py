"""How much of nearest rounding's loss does GPTQ repair, and is this GPTQ as good as llm-compressor's?

    python benchmarks/quantize_baselines.py --model models/smollm2 --work WORK make
    PEER_PYTHON benchmarks/peers/llmcompressor_gptq.py models/smollm2 WORK/windows.json WORK/llmcompressor-4bit 4 64
    python benchmarks/quantize_baselines.py --model models/smollm2 --work WORK measure

`make` writes the calibration windows (token ids, WikiText-2 valid) and our checkpoints: nearest rounding, GPTQ with the
original model's activations, and GPTQ with those of the layers quantized so far. The peer reads the same windows in its
own environment (benchmarks/env/llmcompressor.txt). `measure` evaluates all exported checkpoints alike: on other windows
of the validation text, which decide our default between the two GPTQs, and on WikiText-2 test, which is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.core.checkpoint import library_versions, load
from burnish.data import calibration, read_texts, windows
from burnish.data.windows import cut
from burnish.evaluate import Evaluate
from burnish.evaluate.maths.bootstrap import paired_bootstrap
from burnish.quantize.stage import Quantize

RESULTS = Path(__file__).parent / "results" / "quantize_baselines.json"
LENGTH, TOKENS, GROUP = 256, 16_384, 64
TUNING_WINDOWS = 16
REPORT = Evaluate(text="wikitext2-test", num_windows=8, context=1024, speed=False)

OURS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "gptq": {"method": "gptq"},
    "gptq-propagate": {"method": "gptq", "propagate": True},
}
PEER = "llmcompressor"
TITLES = {
    "rtn": "nearest rounding (RTN)",
    "gptq": "GPTQ, activations of the original",
    "gptq-propagate": "GPTQ, activations of the quantized layers",
    PEER: "llm-compressor GPTQ",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["make", "measure"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="*", default=[4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for bits in arguments.bits:
        if arguments.task == "make":
            make(arguments.model, arguments.work, bits)
        else:
            measure(arguments.model, arguments.work, bits)


def make(source: Path, work: Path, bits: int) -> None:
    model = load(source)
    ids = calibration(
        model.tokenizer,
        "wikitext2-valid",
        length=LENGTH,
        max_tokens=TOKENS,
        generator=torch.Generator().manual_seed(0),  # as the stage draws them
    )
    (work / "windows.json").write_text(json.dumps(ids.tolist()))
    for name, settings in OURS.items():
        target = work / f"{name}-{bits}bit"
        if target.exists():
            continue
        started = time.process_time()
        stage = Quantize(bits=bits, group_size=GROUP, tokens=TOKENS, length=LENGTH, **settings)
        quantized = stage(load(source), progress=True)
        seconds = time.process_time() - started
        quantized.save(target)
        (work / f"{name}-{bits}bit.seconds").write_text(f"{seconds:.1f}\n")
        print(f"{name}, {bits} bits: {seconds:.0f} CPU seconds", flush=True)


def measure(source: Path, work: Path, bits: int) -> None:
    original = load(source)
    tuning = tuning_texts(original.tokenizer)
    rows = {}
    for name in (*OURS, PEER):
        directory = work / f"{name}-{bits}bit"
        if not directory.exists():
            print(f"{directory} is not there and is left out", flush=True)
            continue
        row: dict[str, Any] = {}
        if name in ("gptq", "gptq-propagate"):
            choice = Evaluate(num_windows=TUNING_WINDOWS, context=LENGTH, speed=False)
            row["tuning_kl"] = choice(load(directory), original, text=tuning).metrics["kl"]["value"]
        evaluation = REPORT(load(directory), original)
        row |= {
            "kl": evaluation.sequences["kl"],
            "nats": evaluation.sequences["nats"],
            "tokens": evaluation.sequences["tokens"],
            "metrics": {key: value for key, value in evaluation.metrics.items() if value["value"] is not None},
            "protocol": evaluation.protocol,
            "cpu_seconds": seconds_of(work, name, bits),
        }
        rows[name] = row
        print(name, row["metrics"]["perplexity"]["value"], row["metrics"]["kl"]["value"], flush=True)
    baseline = REPORT(original).sequences
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results[f"{bits} bits"] = {"original_nats": baseline["nats"], "rows": rows}
    results |= {
        "settings": {"group_size": GROUP, "symmetric": True, "calibration_tokens": TOKENS, "window": LENGTH},
        "slices": {"tuning": ["validation text, windows not calibrated on"], "reporting": ["wikitext2-test"]},
        "seeds": [0],
        "machine": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": library_versions()
        | {"peer": (Path(__file__).parent / "env" / "llmcompressor.txt").read_text().split()},
        "note": "CPU time of one thread on a shared machine",
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def tuning_texts(tokenizer: Any) -> list[str]:
    """Windows of the validation text that calibration did not draw, as texts."""
    used = calibration(
        tokenizer,
        "wikitext2-valid",
        length=LENGTH,
        max_tokens=TOKENS,
        generator=torch.Generator().manual_seed(0),
    )
    seen = {tuple(row.tolist()) for row in used}
    rest = [row for row in windows(tokenizer, read_texts("wikitext2-valid"), LENGTH) if tuple(row.tolist()) not in seen]
    spread = torch.linspace(0, len(rest) - 1, TUNING_WINDOWS + 2).round().long().tolist()
    texts = [tokenizer.decode(rest[place]) for place in spread]
    cut(tokenizer, texts, LENGTH, num_windows=TUNING_WINDOWS)  # raises where they do not fill the windows
    return texts


def seconds_of(work: Path, name: str, bits: int) -> float | None:
    for path in (work / f"{name}-{bits}bit.seconds", work / f"{name}-{bits}bit" / "cpu_seconds.txt"):
        if path.is_file():
            return float(path.read_text())
    return None


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    found = {}
    for key, part in results.items():
        if not key.endswith(" bits"):
            continue
        rows, base = part["rows"], np.array(part["original_nats"])
        tokens = np.array(rows["rtn"]["tokens"])
        loss = {name: (np.array(row["nats"]) - base).sum() / tokens.sum() for name, row in rows.items()}
        reference = PEER if PEER in rows else "rtn"
        lines = [
            "| method | perplexity | KL per token | loss over the original, nats | of nearest rounding's loss repaired "
            f"| KL minus that of {TITLES[reference]} (95 %) | CPU s |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            f"| original | {np.exp(base.sum() / tokens.sum()):.2f} | 0 | 0 | | | |",
        ]
        for name, row in rows.items():
            difference = ""
            if name != reference:
                gap = paired_bootstrap(np.array(row["kl"]), np.array(rows[reference]["kl"]), tokens)
                difference = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
            repaired = "" if name == "rtn" else f"{1 - loss[name] / loss['rtn']:.0%}"
            seconds = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}"
            kl = np.sum(row["kl"]) / tokens.sum()
            perplexity = np.exp(np.sum(row["nats"]) / tokens.sum())
            lines.append(
                f"| {TITLES[name]} | {perplexity:.2f} | {kl:.4f} | {loss[name]:.3f} | {repaired} | {difference} "
                f"| {seconds} |"
            )
        found[key.replace(" bits", "bit")] = "\n".join(lines)
    return found


if __name__ == "__main__":
    main()
