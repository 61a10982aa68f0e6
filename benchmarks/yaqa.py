"""Does two-sided rounding preserve a model better than one-sided rounding, at which budget, and at what cost?

    python benchmarks/yaqa.py --model models/smollm2 --work WORK collect --seed 0 --folds 0 1 2     # resumable
    python benchmarks/yaqa.py --model models/smollm2 --work WORK tune --seed 0 --folds 0 1 2 --bits 3
    python benchmarks/yaqa.py --model models/smollm2 --work WORK measure --seed 0 --folds 0 1 2 --bits 3 4
    python benchmarks/yaqa.py --model models/smollm2 --work WORK order --seed 0 --folds 0 1 --bits 3 4
    python benchmarks/yaqa.py --model models/smollm2 --work WORK time --folds 0 1
    python benchmarks/yaqa.py --work WORK large --device cuda
    python benchmarks/yaqa.py --model models/smollm2 --work WORK --threads 2 command    # all else on the machine idle

All methods round the same weights to the same grids (symmetric integers, groups of 64, the format's own scales) with
statistics of the same windows of WikiText-2 valid. `tune` measures settings of both methods on a tuning slice, other
windows of the same text: a sample of layers is rounded under every rule, all others under the first (`burnish quantize`
itself compares whole models, with fewer rules). `measure` takes the winner of each method and rounds the whole model;
it reads WikiText-2 test, which is used for nothing else. `order` asks, on the tuning slice, in which order rows and
columns should be rounded. Folds are parts of the calibration text: the first ones alone give a smaller budget. Other
label seeds take the rule that was found with seed 0. `time` is the rounding of the whole model, `large` that of one
layer of 4,096 x 4,096 and, on a GPU, collecting from a million tokens for a network of a billion random weights;
`command` is `burnish quantize` as it is typed, with everything that it does by default.
Several processes may add to one file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
import transformers

from burnish.arch import MatrixView, matrices
from burnish.calibrate import Calibration, MatrixSums, Statistics, collect
from burnish.core.checkpoint import library_versions, load
from burnish.core.memory import peak_resident_bytes
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.data import calibration, read_texts, windows
from burnish.quantize.factors import SplitSums
from burnish.quantize.formats import FORMATS
from burnish.quantize.maths.grid import integer_grid
from burnish.quantize.maths.rounding import round_two_sided
from burnish.quantize.method import Rounding, batches_of_one_shape, rounded_batch
from burnish.quantize.plan import select
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES as ROUNDING_RULES
from burnish.quantize.tuning import Original, filled, rounded_under

TOKENS, LENGTH, GROUP = 65_536, 256, 64
FOLD_ENDS = (16, 32, 64, 128, 192, 256)
"""In windows: the first folds give 8k, 16k, 33k, 49k and 65k tokens, each with a part to hold out."""
TUNING_WINDOWS, SAMPLE_LAYERS = 8, 5
REPORT_WINDOWS, REPORT_LENGTH, REPORT_CHARS = 8, 1024, 400_000

METHODS = RTN, GPTQ, YAQA_A, YAQA_B = "rtn", "gptq", "yaqa-a", "yaqa-b"
ONE_SIDED = (
    Strength(input_damping=0.003),
    Strength(),
    Strength(input_damping=0.1),
    Strength(input_damping=0.3),
    HELD_OUT,
)
TWO_SIDED = (Strength(0.03, 0.03), Strength(0.1, 0.1), Strength(0.3, 0.3), Strength(1.0, 1.0), HELD_OUT)
RULES = {GPTQ: ONE_SIDED, YAQA_A: TWO_SIDED, YAQA_B: TWO_SIDED}
"""What is tried for each method, equally many."""
ORDER_RULES = {GPTQ: (Strength(), Strength(input_damping=0.1), HELD_OUT), YAQA_B: (Strength(0.3, 0.3), HELD_OUT)}
COMMANDS = {
    "gptq": ["--method", "gptq", "--bits", "4"],
    "yaqa": ["--method", "yaqa", "--bits", "3"],
    "yaqa, one sketch": ["--method", "yaqa", "--bits", "3", "--sketch", "a", "--damping", "0.1"],
    "learned": ["--method", "learned", "--bits", "3"],
}
"""What is timed as it is typed."""
NAMES = {str(rule): rule for rules in RULES.values() for rule in rules}


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    tasks = {"collect": gather, "tune": tune, "measure": measure, "order": compare_orders, "time": time_rounding}
    parser.add_argument("task", choices=[*tasks, "large", "command"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, help="where factors are kept (8 GB per seed)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn labels")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(len(FOLD_ENDS))), help="parts of the text")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="methods")
    parser.add_argument(
        "--rules", type=int, nargs="*", default=list(range(5)), help="which of a method's rules to tune"
    )
    parser.add_argument("--sketches", nargs="*", default=["a", "b"], help="what collect collects")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS), help="what to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.read()
    torch.set_num_threads(arguments.threads)
    if arguments.task == "large":
        time_large(arguments)
    elif arguments.task == "command":
        time_commands(arguments)
    else:
        model = load(arguments.model, dtype=torch.float32, device=arguments.device)
        tasks[arguments.task](model, make_slices(model.tokenizer), arguments)


def make_slices(tokenizer: Any) -> dict[str, torch.Tensor]:
    """Calibration and tuning windows, apart, of the validation text; report windows of the test text."""
    generator = torch.Generator().manual_seed(0)
    fit = calibration(tokenizer, "wikitext2-valid", length=LENGTH, max_tokens=TOKENS, generator=generator)
    every = windows(tokenizer, read_texts("wikitext2-valid"), LENGTH)
    used = {tuple(row.tolist()) for row in fit}
    rest = torch.stack([row for row in every if tuple(row.tolist()) not in used])
    spread = torch.linspace(0, len(rest) - 1, TUNING_WINDOWS).round().long()
    report = windows(
        tokenizer,
        read_texts("wikitext2-test"),
        REPORT_LENGTH,
        REPORT_WINDOWS * REPORT_LENGTH,
        max_chars=REPORT_CHARS,
    )
    return {"calibration": fit, "tuning": rest[spread], "reporting": report}


def gather(model: Any, slices: dict[str, torch.Tensor], arguments: argparse.Namespace) -> None:
    """Sketches of some folds, with what they cost."""
    for fold in arguments.folds:
        started, wall = time.process_time(), time.perf_counter()
        collect(
            model.module,
            select(matrices(model.module), ()),
            Calibration(slices["calibration"], seed=arguments.seed, num_folds=len(FOLD_ENDS), fold_ends=FOLD_ENDS),
            directory_of(arguments),
            key={"model": model.hash},
            sketches=arguments.sketches,
            memory_bytes=6_000_000_000,
            only_folds=[fold],
            progress=Progress(),
        )
        seconds = time.process_time() - started
        if seconds > 1:  # less: it was there already
            row = {  # alone on the machine, or the seconds say nothing
                "task": "collect",
                "fold": fold,
                "fold_tokens": tokens_of([fold]),
                "sketches": arguments.sketches,
                "threads": arguments.threads,
                "wall_seconds": round(time.perf_counter() - wall, 1),
            }
            record(row | facts(arguments, seconds), arguments)


class Remembered(Statistics):
    """Statistics whose sums are read once and then kept on the device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(directory_of(arguments), {}, arguments.folds)
        self.device = torch.device(arguments.device)
        self.kept: dict[tuple[str, tuple[int, ...]], MatrixSums] = {}

    def read(self, view: MatrixView, folds: Sequence[int]) -> MatrixSums:
        if self.device.type == "cpu":  # where memory is what there is least of
            return super().read(view, folds)
        name = view.name, tuple(folds)
        if name not in self.kept:
            sums = super().read(view, folds)
            sketches = {which: (a.to(self.device), b.to(self.device)) for which, (a, b) in sums.sketches.items()}
            covariance = None if sums.covariance is None else sums.covariance.to(self.device)
            self.kept[name] = MatrixSums(covariance, sketches, sums.num_tokens)
        return self.kept[name]


def tune(model: Any, slices: dict[str, torch.Tensor], arguments: argparse.Namespace) -> None:
    """Every method's rules (or some, by number) on the tuning slice, at each width."""
    views = select(matrices(model.module), ())
    statistics = Remembered(arguments)
    original = Original(model.module, slices["tuning"])
    for bits in arguments.bits:
        for method in arguments.only:
            if method == RTN:
                continue
            started = time.process_time()
            rules = [rule for number, rule in enumerate(RULES[method]) if number in arguments.rules]
            measured = of_a_sample(views, rounding_of(method, bits), statistics, original, rules)
            seconds = (time.process_time() - started) / len(measured)
            for rule, kl in measured.items():
                print(f"{method}, {bits} bits, {rule}: tuning {kl:.4f}", flush=True)
                tuned = {"task": "tune", "method": method, "bits": bits, "rule": rule, "kl": kl}
                record(tuned | facts(arguments, seconds), arguments, slices)


def of_a_sample(
    views: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics,
    original: Original,
    rules: Sequence[Strength],
) -> dict[str, float]:
    """Mean divergence with five layers, spread over the depth, under each rule, and all others under the first."""
    layers = sorted({view.layer for view in views if view.layer is not None})
    bounds = np.linspace(0, len(layers), min(SAMPLE_LAYERS, len(layers)) + 1)
    sampled = {layers[int(middle)] for middle in (bounds[:-1] + bounds[1:]) / 2}
    sample = [view for view in views if view.layer in sampled]
    others = [view for view in views if view.layer not in sampled]
    company = rounded_under(others, {"": replace(rounding, strength=rules[0])}, statistics)[""]
    values = rounded_under(sample, {str(rule): replace(rounding, strength=rule) for rule in rules}, statistics)
    measured = {}
    with filled(others, company):
        for name in list(values):
            with filled(sample, values.pop(name)):
                measured[name] = float(np.mean(original.divergence()))
    return measured


def measure(model: Any, slices: dict[str, torch.Tensor], arguments: argparse.Namespace) -> None:
    """Rounds the whole model with every method's winner and measures it on the reporting slice."""
    module = model.module
    views = select(matrices(module), ())
    statistics = Remembered(arguments)
    original = Original(module, slices["reporting"])
    for bits in arguments.bits:
        for method in arguments.only:
            rule = winner(method, bits, arguments)
            rounding = replace(rounding_of(method, bits), strength=rule)
            kl, seconds = of_whole_model(views, rounding, None if method == RTN else statistics, original)
            print(f"{method}, {bits} bits, {rule}: KL {np.mean(kl):.4f}, rounding {seconds:.0f} s", flush=True)
            row = {"task": "measure", "method": method, "bits": bits, "rule": str(rule), "kl": kl}
            record(row | facts(arguments, seconds), arguments, slices)


def of_whole_model(
    views: Sequence[MatrixView], rounding: Rounding, statistics: Statistics | None, original: Original
) -> tuple[list[float], float]:
    """Divergence per window with all matrices rounded, and the CPU seconds that rounding took."""
    started = time.process_time()
    values = rounded_under(views, {"": rounding}, statistics)[""]
    seconds = time.process_time() - started
    with filled(views, values):
        return original.divergence(), seconds


def compare_orders(model: Any, slices: dict[str, torch.Tensor], arguments: argparse.Namespace) -> None:
    """The whole model in natural order and with large diagonals first, on the tuning slice, under a few rules."""
    views = select(matrices(model.module), ())
    statistics = Remembered(arguments)
    original = Original(model.module, slices["tuning"])
    cells = [
        (bits, method, rule, order)
        for bits in arguments.bits
        for method in arguments.only
        for rule in ORDER_RULES.get(method, ())
        for order in ("natural", "diagonal")
    ]
    for bits, method, rule, order in cells:
        rounding = replace(rounding_of(method, bits), strength=rule, order=order)
        kl, seconds = of_whole_model(views, rounding, statistics, original)
        print(f"{method}, {bits} bits, {rule}, {order}: tuning {np.mean(kl):.4f}", flush=True)
        row = {"task": "order", "method": method, "bits": bits, "rule": str(rule), "order": order}
        record(row | {"kl": float(np.mean(kl))} | facts(arguments, seconds), arguments)


def time_rounding(model: Any, slices: dict[str, torch.Tensor], arguments: argparse.Namespace) -> None:
    """Wall time of rounding all matrices two-sidedly to 3 bits, apart from reading the statistics."""
    del slices
    views = select(matrices(model.module), ())
    rounding = replace(rounding_of(YAQA_B, 3), strength=Strength(0.3, 0.3))
    for _ in range(2 if arguments.device == "cuda" else 1):  # the first time kernels are loaded
        statistics = Remembered(arguments)
        wall, reading = 0.0, clock(arguments)
        for batch in batches_of_one_shape(views):
            sums = [SplitSums(statistics, view, views) for view in batch]
            started = clock(arguments)
            rounded_batch(batch, rounding, sums)
            wall += clock(arguments) - started
        reading = clock(arguments) - reading - wall
    record_time("rounding, all matrices of SmolLM2", wall, arguments, reading_seconds=round(reading, 1))


def time_large(arguments: argparse.Namespace) -> None:
    """Wall time of rounding one layer, and on a GPU of collecting for a network of Llama-3.2-1B's sizes."""
    side = 4096
    generator = torch.Generator().manual_seed(0)
    weight, root = torch.randn(2, side, side, generator=generator).to(arguments.device).unbind()
    factor = torch.eye(side, device=weight.device) + root @ root.T / side
    grid = integer_grid(weight, bits=3, group_size=GROUP)
    for _ in range(2 if arguments.device == "cuda" else 1):
        started = clock(arguments)
        round_two_sided(weight, factor, factor, grid)
        wall = clock(arguments) - started
    record_time(f"rounding, one layer of {side:,} x {side:,}", wall, arguments)
    if arguments.device == "cuda":
        collect_from_a_billion_weights(arguments)


def collect_from_a_billion_weights(arguments: argparse.Namespace) -> None:
    """Both costs of it: the sums, and writing them to the work directory."""
    config = transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=True,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(arguments.device):
        module = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(config.vocab_size, (2**20 // LENGTH, LENGTH))
    started = clock(arguments)
    collect(
        module,
        select(matrices(module), ()),
        Calibration(tokens, num_folds=2),
        arguments.work / "large",
        key={},
        sketches=("b",),
        memory_bytes=60_000_000_000,
        batch_tokens=8192,
        progress=Progress(),
    )
    record_time("collecting 1,048,576 tokens, sketch B, 1.2 B parameters", clock(arguments) - started, arguments)


def time_commands(arguments: argparse.Namespace) -> None:
    """Wall and CPU seconds, and peak memory, of commands that nothing was collected for before."""
    for name in arguments.commands:
        target = arguments.work / "commands" / name.replace(", ", "-").replace(" ", "-")
        for left in (target, target.with_name(f"{target.name}.run")):  # of an earlier call
            shutil.rmtree(left, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        options = [str(arguments.model), *COMMANDS[name], "--out", str(target), "--device", arguments.device]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(arguments.threads))
        command = [sys.executable, "-m", "burnish", "quantize", *options]
        started = time.perf_counter()
        process = subprocess.Popen(command, env=os.environ | threads)
        _, status, usage = os.wait4(process.pid, 0)  # of the process and of all that it waited for
        wall = time.perf_counter() - started
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        row = {"task": "time", "what": f"burnish quantize {' '.join(COMMANDS[name])}", "threads": arguments.threads}
        used = {"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_memory_bytes": usage.ru_maxrss * 1024}
        print(f"{row['what']}: {wall:.0f} s, {used}", flush=True)
        record(row | facts(arguments, 0) | used | {"wall_seconds": round(wall, 2)}, arguments)


def clock(arguments: argparse.Namespace) -> float:
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def record_time(what: str, wall_seconds: float, arguments: argparse.Namespace, **more: float) -> None:
    print(f"{what}: {wall_seconds:.2f} s {more or ''}", flush=True)
    row = {"task": "time", "what": what, "threads": arguments.threads, "wall_seconds": round(wall_seconds, 2)}
    record(row | more | facts(arguments, time.process_time()), arguments)


def rounding_of(method: str, bits: int) -> Rounding:
    sketch = "a" if method == YAQA_A else "b"
    rule = ROUNDING_RULES[method.partition("-")[0]]
    return Rounding(rule, FORMATS["int"](bits, GROUP, True), torch.bfloat16, sketch=sketch)


def winner(method: str, bits: int, arguments: argparse.Namespace) -> Strength:
    """The rule with the smallest divergence on the tuning slice with seed 0, at this width or the nearest tuned one."""
    if method == RTN:
        return HELD_OUT
    tokens = tokens_of(arguments.folds)
    tuned = tuned_rows(json.loads(arguments.out.read_text()), arguments.model.name, method, tokens)
    if not tuned:
        raise SystemExit(f"{method} has not been tuned at {tokens:,} tokens")
    nearest = min((row["bits"] for row in tuned), key=lambda width: abs(width - bits))
    return NAMES[min((row for row in tuned if row["bits"] == nearest), key=lambda row: row["kl"])["rule"]]


def tuned_rows(results: dict[str, Any], model: str, method: str, tokens: int) -> list[dict[str, Any]]:
    return select_rows(results["rows"], task="tune", method=method, model=model, calibration_tokens=tokens)


def directory_of(arguments: argparse.Namespace) -> Path:
    return arguments.work / f"seed{arguments.seed}"


def tokens_of(folds: Sequence[int]) -> int:
    bounds = (0, *FOLD_ENDS)
    return LENGTH * sum(bounds[fold + 1] - bounds[fold] for fold in folds)


def facts(arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    on_gpu = arguments.device == "cuda"
    return {
        "model": arguments.model.name if arguments.model else "",
        "label_seed": arguments.seed,
        "calibration_tokens": tokens_of(arguments.folds),
        "cpu_seconds": round(seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes(),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "versions": library_versions(),
        "date": time.strftime("%Y-%m-%d"),
    }


def record(row: dict[str, Any], arguments: argparse.Namespace, slices: dict[str, torch.Tensor] | None = None) -> None:
    """Adds a row to the results file; rows of the same question replace older ones."""
    identity = ("task", "model", "device", "fold", "what", "threads", "sketches")
    if row["task"] in ("tune", "measure", "order"):  # these do not depend on where they were computed
        identity = ("task", "model", "method", "bits", "label_seed", "calibration_tokens")
        identity += {"tune": ("rule",), "order": ("rule", "order"), "measure": ()}[row["task"]]
    hashes = {name: [experiment.digest(tokens.numpy())] for name, tokens in (slices or {}).items()}
    with experiment.results(arguments.out, {"rows": []}) as known:
        kept = select_rows(known["rows"], invert=True, **{part: row.get(part) for part in identity})
        known["rows"] = [*kept, row]
        known["slices"] = hashes or known.get("slices", {})
    note = "CPU seconds of one thread on a shared machine; wall seconds were measured alone on it"
    experiment.record(arguments.out, __doc__, {}, note=note)


def select_rows(rows: list[dict[str, Any]], *, invert: bool = False, **facts: Any) -> list[dict[str, Any]]:
    """The rows of which all these facts are true; with `invert` the others."""
    return [row for row in rows if all(row.get(name) == value for name, value in facts.items()) != invert]


def cells_of(rows: list[dict[str, Any]], *facts: str) -> list[tuple[Any, ...]]:
    """Values of these facts that occur together, SmolLM2's first."""
    return sorted({tuple(row[fact] for fact in facts) for row in rows}, key=lambda cell: (cell[0] != "smollm2", cell))


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: methods side by side over budgets and widths, the order of columns, and what it cost."""
    measured, ordered = (select_rows(results["rows"], task=task) for task in ("measure", "order"))
    main, orders, cost = [], [], []
    for model, bits, tokens in cells_of(measured, "model", "bits", "calibration_tokens"):
        per_window = {}
        for method in METHODS:
            budget = {} if method == RTN else {"calibration_tokens": tokens}
            rows = select_rows(measured, model=model, method=method, bits=bits, **budget)
            if rows:
                per_window[method] = np.mean([row["kl"] for row in rows], axis=0), len(rows)
        two_sided = [method for method in (YAQA_A, YAQA_B) if method in per_window]
        if GPTQ in per_window and two_sided:
            means = [f"{per_window[m][0].mean():.3f}" if m in per_window else "" for m in METHODS]
            ratios = {m: experiment.ratio(per_window[m][0], per_window[GPTQ][0]) for m in two_sided}
            against = [experiment.cell(ratios[m], ".2f") if m in ratios else "" for m in (YAQA_A, YAQA_B)]
            seeds = max(per_window[method][1] for method in two_sided)
            main.append([model, bits, f"{tokens:,}", seeds, *means, *against])
    for method, bits, rule in cells_of(ordered, "method", "bits", "rule"):
        kl = {row["order"]: row["kl"] for row in select_rows(ordered, method=method, bits=bits, rule=rule)}
        found = [f"{kl[order]:.3f}" if order in kl else "" for order in ("natural", "diagonal")]
        orders.append([method, bits, rule, *found])
    for row in (row for row in results["rows"] if row["task"] in ("collect", "time")):
        names = " and ".join(name.upper() for name in row.get("sketches", ()))
        what = row.get("what") or f"collecting {row['fold_tokens']:,} tokens of {row['model']}, sketch {names}"
        place = row["device"] if row["device"] != "CPU" else f"CPU, {row['threads']} thread(s)"
        on_one_thread = row["task"] == "collect" and place == "CPU, 1 thread(s)"
        seconds = f"{row['cpu_seconds']:,.0f} CPU" if on_one_thread else f"{row['wall_seconds']:,.1f} wall"
        cost.append([what, place, seconds, f"{row['peak_memory_bytes'] / 1e9:.1f} GB"])
    titles = {
        "main": "model | bits | tokens | label seeds | RTN | GPTQ | YAQA-A | YAQA-B "
        "| A / GPTQ (95 %) | B / GPTQ (95 %)",
        "order": "method | bits | damping | last stored first | large diagonals first",
        "cost": "what | on | seconds | peak memory",
    }
    return {name: experiment.table(titles[name], rows) for name, rows in zip(titles, (main, orders, cost), strict=True)}


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """{picture: svg}: divergence against calibration tokens, at 3 and at 4 bits, with intervals over windows."""
    from picture import svg

    from burnish.core.page import Datum, Figure, Series

    measured = select_rows(results["rows"], task="measure", model="smollm2")
    names = {GPTQ: "GPTQ", YAQA_A: "YAQA-A", YAQA_B: "YAQA-B"}
    made = {}
    for bits in (3, 4):
        series = []
        for method, name in names.items():
            data = []
            for tokens in sorted({row["calibration_tokens"] for row in measured}):
                rows = select_rows(measured, method=method, bits=bits, calibration_tokens=tokens)
                kl = np.mean([row["kl"] for row in rows], axis=0)
                mean = interval(kl, scale="log")
                data.append(Datum(tokens, mean.value, mean.low, mean.high))
            series.append(Series(name, data, line=True))
        figure = Figure(
            title=f"KL divergence from the original against calibration tokens, {bits} bits",
            description=", ".join(f"{one.name} ends at {one.data[-1].y:.3f}" for one in series),
            x_label="calibration tokens",
            y_label="KL, nats per token",
            series=series,
            log_x=True,
            log_y=False,
        )
        made[f"tokens-{bits}bit"] = svg(figure)
    return made


if __name__ == "__main__":
    main()
