"""What the benchmark of engines makes of its results."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import engine_speed

PROTOCOL = {
    "engine": "vLLM 0.32.0", "mode": "eager", "threads": 1, "instructions": "AVX2", "device": "cpu (Example)",
    "batches": ["1x128", "4x128"], "in_turns": True,
}  # fmt: skip


def entry(slowness: float) -> dict[str, Any]:
    """A checkpoint that takes so many times as long as one that answers 50 tokens a second."""
    rounds, metrics = {}, {}
    for shape in PROTOCOL["batches"]:
        for name, seconds in (("prefill", 0.002), ("decode", 0.02)):
            taken = [slowness * seconds * drift for drift in (1.0, 1.1, 1.2)]
            rate = {"value": 1 / (slowness * seconds), "low": None, "high": None, "unit": "token/s", "note": ""}
            rounds |= {f"{name}@{shape}": taken, f"{name}_cpu@{shape}": taken}
            metrics |= {f"{name}_speed@{shape}": rate, f"{name}_cpu_speed@{shape}": rate}
    return {"metrics": metrics, "rounds": rounds, "facts": {"session": "a"}, "protocol": PROTOCOL}


def test_ratios_are_paired_and_what_is_foretold_stands_beside_what_was_measured():
    entries = {"bfloat16": entry(1.0), "int8": entry(0.75)}
    # At batch 1 a step of 20 ms has 10 ms of products, of which int8 needs half: 15 ms, as measured.
    kernels = [
        {"format": name, "shape": (8, 4), "rows": rows, "seconds": seconds, "bytes": 1}
        for rows in (1, 4)
        for name, seconds in (("bfloat16", 0.01), ("w8a8-int8", 0.005))
    ]
    head = [{"format": "bfloat16", "shape": (9, 4), "rows": rows, "seconds": 0.0, "bytes": 1} for rows in (1, 4)]
    products = {"counts": [[8, 4, 1]], "head": [9, 4], "kernels": kernels + head}
    parts = {"vLLM, eager": entries, "vLLM, compiled": entries, "llama.cpp": entries}
    made = engine_speed.tables({"parts": parts, "products": products})
    assert set(made) == {"eager", "compiled", "llama", "foretold"}
    assert (
        made["eager"].splitlines()[-1].startswith("| int8 | 666.7, 1.33 (1.33 to 1.33) | 66.7, 1.33 (1.33 to 1.33) |")
    )
    assert "| 1 | int8 | 66.7 | 66.7 | +0% |" in made["foretold"]
