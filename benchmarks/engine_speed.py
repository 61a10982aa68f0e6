"""Which format of a model is faster in the engine that serves it, on this machine, and can that be foretold?

    python benchmarks/engine_speed.py --model models/smollm2 --work WORK [--vllm PYTHON] [--llama PYTHON]

The model as it is (bfloat16), rounded to 4 bits in groups of 64 to nearest and by GPTQ (the same kernel: what differs
between the two is noise), and to int8 with int8 activations, in vLLM eager and compiled; as float16, 8 bits and 4 bits
in llama.cpp. Interpreters are those that VLLM_PYTHON and LLAMA_PYTHON name, unless others are given. All checkpoints
of an engine run at once and are asked the same batches in turns; the ratio to the first has an interval paired over
rounds, of wall time, or of processor time where other work disturbed the batch.

foretold: decoding by vLLM's own products on the checkpoint's shapes and the measured rate of bfloat16, as
    `burnish doctor --speed` does, beside the measured rate, in processor time.

Twelve minutes on two quiet cores. It can be stopped, and goes on with the next engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import experiment
import torch

from burnish.core.checkpoint import Model, cast, load
from burnish.evaluate import Evaluate, Evaluation
from burnish.evaluate.engines.machine import KernelTime, bandwidth, foretold_rate, formats, products, time_kernels
from burnish.quantize.stage import Quantize
from burnish.report.engine_speed import SpeedComparison, SpeedEntry
from burnish.report.run import values_of

QUANTIZED: dict[str, dict[str, Any]] = {
    "4 bits, nearest": {"method": "rtn", "bits": 4, "group_size": 64},
    "4 bits, GPTQ": {"method": "gptq", "bits": 4, "group_size": 64},
    "int8": {"method": "rtn", "scheme": "w8a8-int8"},
}
DENSE, HALF = "bfloat16", "float16"
KERNEL = {"4 bits, nearest": "w4a16", "4 bits, GPTQ": "w4a16", "int8": "w8a8-int8"}
"""The format of vLLM's product."""
IN_LLAMA = {HALF: HALF, "8 bits": "int8", "4 bits": "4 bits, nearest"}
"""{name: checkpoint that is exported}: float16, Q8_0 and Q4_0 with the embedding as it is."""
PARTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "vLLM, eager": ("vllm", [DENSE, *QUANTIZED], {"engine_rounds": 4}),
    "vLLM, compiled": ("vllm", [DENSE, "4 bits, nearest", "int8"], {"engine_rounds": 3, "engine_compiled": True}),
    "llama.cpp": ("llama.cpp", list(IN_LLAMA), {"engine_rounds": 3, "engine_contexts": (128,)}),
}
SETTINGS: dict[str, Any] = {"engine_batches": (1, 4, 16), "engine_contexts": (128, 2048), "decode_tokens": 32}
if experiment.SMOKE:
    QUANTIZED = {"int8": QUANTIZED["int8"]}
    IN_LLAMA = {HALF: HALF, "8 bits": "int8"}
    SETTINGS = {"engine_batches": (1,), "decode_tokens": 48}
    PARTS = {
        "vLLM, eager": ("vllm", [DENSE, "int8"], {"engine_rounds": 2, "engine_contexts": (16,)}),
        "llama.cpp": ("llama.cpp", list(IN_LLAMA), {"engine_rounds": 2, "engine_contexts": (16,)}),
    }


class EngineSpeed(experiment.Kept):
    """What is measured, an engine at a time."""

    def __init__(self, model: Path, work: Path, pythons: dict[str, str | None]) -> None:
        super().__init__(work)
        self.model, self.work, self.pythons = model, work, pythons

    def names(self) -> Iterable[str]:
        return [*PARTS, "products"]

    def measure(self, name: str) -> dict[str, Any]:
        if name == "products":
            return self.products()
        engine, of_checkpoints, more = PARTS[name]
        settings = Evaluate(**SETTINGS | more | {"engine": engine, "engine_python": self.pythons[engine]})
        places = {one: self.place(IN_LLAMA.get(one, one)) for one in of_checkpoints}
        found = settings.together(places, logs=self.work / "logs", progress=True)
        return {"entries": {one: _kept(evaluation) for one, evaluation in found.items()}}

    def products(self) -> dict[str, Any]:
        used = products(load(self.model))
        python = Path(str(self.pythons["vllm"] or os.environ["VLLM_PYTHON"]))
        memory = bandwidth()
        kernels = time_kernels(python, used.shapes, rounds=2 if experiment.SMOKE else 7)
        return {
            "read": memory.read,
            "copy": memory.copy,
            "counts": [[*shape, count] for shape, count in used.counts.items()],
            "head": used.head,
            "kernels": [vars(one) for one in kernels],
        }

    def place(self, name: str) -> Path:
        """A checkpoint, made once."""
        if name == DENSE:
            return self.model
        place = self.work / name.replace(", ", "-").replace(" ", "-")
        if not place.is_dir():
            model = load(self.model)
            made = half(model) if name == HALF else Quantize(**QUANTIZED[name])(model)
            made.save(place)
        return place


def half(model: Model) -> Model:
    """The same in float16, which is llama.cpp's own dense format."""
    return model.derive(module=cast(model.module, torch.float16))


def _kept(found: Evaluation) -> dict[str, Any]:
    return {"metrics": found.metrics, "rounds": found.sequences, "facts": found.facts, "protocol": found.protocol}


def content(bench: EngineSpeed) -> dict[str, Any]:
    return {"parts": {name: bench.read(name)["entries"] for name in PARTS}, "products": bench.read("products")}


# -- tables ------------------------------------------------------------------------------------------------------------


def compared(entries: dict[str, Any]) -> SpeedComparison:
    rows = [SpeedEntry(n, values_of(one["metrics"]), one["rounds"], one["facts"] or {}) for n, one in entries.items()]
    return SpeedComparison(next(iter(entries.values()))["protocol"], rows)


def speeds(found: SpeedComparison) -> str:
    """Tokens a second; beside each the ratio to the first."""
    shown = [("prefill", shape) for shape in found.shapes if shape.startswith("1x")]
    shown += [("decode", shape) for shape in found.shapes]
    titles = [f"{what} {shape.replace('x', ' x ')}:" for what, shape in shown]
    rows = [[entry.label, *(speed(found, entry, *one) for one in shown)] for entry in found.entries]
    return experiment.table([f"{found.engine.partition(' on ')[0]}, tokens a second", *titles], rows)


def speed(found: SpeedComparison, entry: SpeedEntry, what: str, shape: str) -> str:
    """`66.7, 1.33 (1.20 to 1.40)`, the ratio marked CPU where it is one of processor time."""
    value = entry.metrics[f"{what}_speed@{shape}"].value
    if value is None:
        return "not measured"
    judged = found.judged(entry, what, shape)
    if judged is None:
        return f"{value:.1f}"
    ratio, _, disturbed = judged
    return f"{value:.1f}, {experiment.cell(ratio, '.2f')}{' CPU' if disturbed else ''}"


def foretold(results: dict[str, Any]) -> str:
    """By products and the measured rate of bfloat16, beside what was measured."""
    from burnish.evaluate.engines.machine import Products

    known, entries = results["products"], results["parts"]["vLLM, eager"]
    kernels = [KernelTime(**one | {"shape": tuple(one["shape"])}) for one in known["kernels"]]
    used = Products({(rows, columns): count for rows, columns, count in known["counts"]}, tuple(known["head"]))
    rows = []
    protocol = entries[DENSE]["protocol"]
    timed = {one.rows for one in kernels}
    for shape in protocol["batches"]:
        batch = int(shape.partition("x")[0])
        if batch not in timed or shape.partition("x")[2] != protocol["batches"][0].partition("x")[2]:
            continue
        measured = {name: one["metrics"][f"decode_cpu_speed@{shape}"]["value"] for name, one in entries.items()}
        for name, rate in measured.items():
            if name in KERNEL and KERNEL[name] in formats(kernels) and rate:
                told = foretold_rate(kernels, used, KERNEL[name], batch, measured[DENSE])
                rows.append([batch, name, f"{rate:.1f}", f"{told:.1f}", f"{told / rate - 1:+.0%}"])
    return experiment.table("prompts at a time | checkpoint | measured: | foretold: | off by:", rows)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    names = {"vLLM, eager": "eager", "vLLM, compiled": "compiled", "llama.cpp": "llama"}
    found = {names[name]: speeds(compared(entries)) for name, entries in results["parts"].items()}
    return found | {"foretold": foretold(results)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--model", type=Path, required=True)
    command.keeps("where checkpoints are made and what has been measured is kept")
    command.add_argument("--vllm", help="interpreter of vLLM's environment, in place of VLLM_PYTHON")
    command.add_argument("--llama", help="interpreter of llama.cpp's environment, in place of LLAMA_PYTHON")
    options = command.read()
    bench = EngineSpeed(options.model, options.work, {"vllm": options.vllm, "llama.cpp": options.llama})
    note = f"{torch.get_num_threads()} thread(s), wall time unless a ratio is marked CPU"
    experiment.answer(bench, options, __doc__, lambda: content(bench), tables, note=note)


if __name__ == "__main__":
    main()
