"""Does two-sided rounding with held-out shrinkage preserve a model better than one-sided rounding?

    python benchmarks/yaqa.py --model models/smollm2 --work WORK collect --seed 0      # factors, resumable
    python benchmarks/yaqa.py --model models/smollm2 --work WORK measure --seed 0      # rounds and measures

All methods round the same weights to the same grids (symmetric integers, groups of 64, the format's own scales) with
statistics of the same windows of WikiText-2 valid. Which setting of a method is reported is chosen on a tuning slice:
other windows of the same text. WikiText-2 test is measured once per chosen setting and used for nothing else. One-sided
rounding gets the same search. Where `--folds` is less than all, only that much of the calibration text is used.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from burnish.arch import MatrixView, matrices
from burnish.core.checkpoint import library_versions, load
from burnish.core.progress import Progress
from burnish.data import calibration, read_texts, windows
from burnish.evaluate.maths.divergence import cross_entropy, kl_divergence, normalise
from burnish.quantize.collect import collect
from burnish.quantize.export import Scheme
from burnish.quantize.maths.grid import IntegerGrid, integer_grid
from burnish.quantize.maths.rounding import round_two_sided
from burnish.quantize.method import Factors, MatrixSums, Rounding, batches_of_one_shape, choose_factors
from burnish.quantize.plan import select
from burnish.quantize.statistics import Calibration, Statistics

RESULTS = Path(__file__).parent / "results" / "yaqa.json"
TOKENS, LENGTH, FOLDS, GROUP = 65_536, 256, 8, 64
TUNING_WINDOWS = 16
REPORT_WINDOWS, REPORT_LENGTH, REPORT_CHARS = 8, 1024, 400_000
LAYERS_TOGETHER = 3

RTN, GPTQ, YAQA = "rtn", "gptq", "yaqa"
SETTINGS: dict[str, list[float | None]] = {RTN: [None], GPTQ: [None, 0.01, 0.1], YAQA: [None, 0.1, 0.3]}
"""Dampings tried for each method; None is chosen per matrix and side on held-out folds."""


@dataclass(frozen=True)
class Variant:
    """One way to round the whole model."""

    method: str
    damping: float | None
    bits: int

    @property
    def name(self) -> str:
        setting = "" if self.method == RTN else f", damping {'held-out' if self.damping is None else self.damping}"
        return f"{self.method}{setting}, {self.bits} bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["collect", "measure"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where factors are kept (5 GB per seed)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn labels")
    parser.add_argument("--sketch", choices=["a", "b"], default="b")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)), help="parts of the text to use")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--only", nargs="*", default=[RTN, GPTQ, YAQA], help="methods to measure")
    parser.add_argument("--dampings", nargs="*", help="settings to try, 'held-out' or numbers; all where not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model, dtype=torch.float32)
    slices = make_slices(model.tokenizer)
    directory = arguments.work / f"sketch-{arguments.sketch}-seed{arguments.seed}"
    if arguments.task == "collect":
        started = time.process_time()
        gather(model, slices, directory, arguments.sketch, arguments.seed, arguments.folds)
        append({"task": "collect"} | shared_facts(arguments, started))
        return
    measure(model, slices, directory, arguments)


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


def gather(model: Any, slices: dict[str, torch.Tensor], directory: Path, sketch: str, seed: int, folds: list[int]):
    views = select(matrices(model.module), ())
    return collect(
        model.module,
        views,
        Calibration(slices["calibration"], seed=seed, num_folds=FOLDS),
        directory,
        key={"model": model.hash},
        sketch=sketch,  # type: ignore[arg-type]
        memory_bytes=4_000_000_000,
        only_folds=folds,
        progress=Progress(),
    )


def measure(model: Any, slices: dict[str, torch.Tensor], directory: Path, arguments: argparse.Namespace) -> None:
    """Rounds with every setting, chooses on the tuning slice, reports on the other one."""
    started = time.process_time()
    statistics = gather(model, slices, directory, arguments.sketch, arguments.seed, arguments.folds)
    statistics = Statistics(directory, statistics.key, arguments.folds)
    wanted = None if arguments.dampings is None else [None if d == "held-out" else float(d) for d in arguments.dampings]
    variants = [
        Variant(method, damping, bits)
        for bits in arguments.bits
        for method in arguments.only
        for damping in SETTINGS[method]
        if wanted is None or method == RTN or damping in wanted
    ]
    module = model.module
    references = {name: Reference(module, slices[name]) for name in ("tuning", "reporting")}
    rounded, rows, seconds = round_all(module, statistics, variants)
    original = copy.deepcopy(module.state_dict())
    views = select(matrices(module), ())
    tuned: dict[Variant, float] = {}
    for variant in variants:
        fill(views, rounded[variant])
        tuned[variant] = references["tuning"].divergence(module)["kl_per_token"]
        print(f"{variant.name}: tuning {tuned[variant]:.4f}", flush=True)
    for bits in arguments.bits:
        for method in arguments.only:
            own = [v for v in variants if v.method == method and v.bits == bits]
            if not own:
                continue
            best = min(own, key=lambda variant: tuned[variant])
            fill(views, rounded[best])
            reported = references["reporting"].divergence(module)
            print(f"{best.name}: reported {reported['kl_per_token']:.4f}", flush=True)
            append(
                {
                    "task": "measure",
                    "method": method,
                    "bits": bits,
                    "chosen": best.damping,
                    "tried": {str(v.damping): tuned[v] for v in own},
                    "kl": reported["kl"],
                    "nats": reported["nats"],
                    "tokens_per_window": REPORT_LENGTH - 1,
                    "rounding_cpu_seconds": seconds[best],
                    "choices": rows.get((method, best.damping)),
                    "slices": {
                        "calibration": [digest(slices["calibration"])],
                        "tuning": [digest(slices["tuning"])],
                        "reporting": [digest(slices["reporting"])],
                    },
                }
                | shared_facts(arguments, started)
            )
    module.load_state_dict(original)


class Reference:
    """Hidden states of the original model on some windows, from which its distributions are made again."""

    def __init__(self, module: Any, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        with torch.inference_mode():
            self.states = [module.base_model(input_ids=row[None]).last_hidden_state[0, :-1] for row in tokens]

    def divergence(self, module: Any) -> dict[str, Any]:
        """Per window Σ KL(original || module) and Σ nats over the predicted tokens."""
        kl, nats = [], []
        with torch.inference_mode():
            for row, states in zip(self.tokens, self.states, strict=True):
                ours = module.base_model(input_ids=row[None]).last_hidden_state[0, :-1]
                total_kl = total_nats = 0.0
                for theirs, part, targets in zip(states.split(128), ours.split(128), row[1:].split(128), strict=True):
                    log_p, log_q = normalise(module.lm_head(theirs)), normalise(module.lm_head(part))
                    total_kl += float(kl_divergence(log_p, log_q).double().sum())
                    total_nats += float(cross_entropy(log_q, targets).double().sum())
                kl.append(total_kl)
                nats.append(total_nats)
        num_tokens = self.tokens.shape[0] * (self.tokens.shape[1] - 1)
        return {"kl": kl, "nats": nats, "kl_per_token": sum(kl) / num_tokens}


Rounded = dict[str, tuple[torch.Tensor, IntegerGrid]]


def round_all(
    module: Any, statistics: Statistics, variants: Sequence[Variant]
) -> tuple[dict[Variant, Rounded], dict[tuple[str, float | None], list[dict[str, Any]]], dict[Variant, float]]:
    """Codes of every variant; factors are read and chosen once for all bit widths.

    That is allowed because shrinkage depends on the grid only through the ratios of its steps, which are the same at
    every width of the symmetric grid.
    """
    views = select(matrices(module), ())
    rounded: dict[Variant, Rounded] = {variant: {} for variant in variants}
    seconds = dict.fromkeys(variants, 0.0)
    rows: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    last = max(view.layer or 0 for view in views) + 1
    for first in range(0, last, LAYERS_TOGETHER):
        together = [view for view in views if first <= (view.layer or 0) < first + LAYERS_TOGETHER]
        for batch in batches_of_one_shape(together):
            sums = [MatrixSums(statistics, view, views) for view in batch]
            for method, damping in dict.fromkeys((variant.method, variant.damping) for variant in variants):
                own = [variant for variant in variants if (variant.method, variant.damping) == (method, damping)]
                started = time.process_time()
                factors = [factors_of(v, s, own[0]) for v, s in zip(batch, sums, strict=True)]
                choosing = time.process_time() - started
                rows.setdefault((method, damping), []).extend(
                    choice_row(view, of_view) for view, of_view in zip(batch, factors, strict=True)
                )
                for variant in own:
                    started = time.process_time()
                    for view, result in zip(batch, round_together(batch, factors, variant.bits), strict=True):
                        rounded[variant][view.name] = result
                    seconds[variant] += time.process_time() - started + choosing
        print(f"rounded layers up to {first + LAYERS_TOGETHER}", flush=True)
    return rounded, rows, seconds


def factors_of(view: MatrixView, sums: MatrixSums, variant: Variant) -> Factors:
    scheme = Scheme(variant.bits, GROUP, True)
    rounding = Rounding(variant.method, scheme, torch.bfloat16, damping=variant.damping)  # type: ignore[arg-type]
    return choose_factors(view, rounding, None if variant.method == RTN else sums, grid_of(view, variant.bits))


def grid_of(view: MatrixView, bits: int) -> IntegerGrid:
    return integer_grid(view.tensor, bits=bits, group_size=GROUP, scale_dtype=torch.bfloat16)


def choice_row(view: MatrixView, factors: Factors) -> dict[str, Any]:
    return {
        "name": view.name,
        "rounding": factors.kind,
        "input": [factors.input_choice.damping, factors.input_choice.mix, round(factors.input_choice.loss, 4)],
        "output": [factors.output_choice.damping, round(factors.output_choice.loss, 4)],
    }


def round_together(
    batch: Sequence[MatrixView], factors: Sequence[Factors], bits: int
) -> list[tuple[torch.Tensor, IntegerGrid]]:
    """Codes of matrices of one shape; those with and without an output side apart."""
    found: dict[str, tuple[torch.Tensor, IntegerGrid]] = {}
    for two_sided in (False, True):
        part = [k for k, of_view in enumerate(factors) if (of_view.output_side is not None) == two_sided]
        if not part:
            continue
        grids = [grid_of(batch[k], bits) for k in part]
        stacked = replace(
            grids[0],
            scale=torch.stack([grid.scale for grid in grids]),
            zero=torch.stack([grid.zero for grid in grids]),
        )
        sides = [(factors[k].output_side, factors[k].input_side) for k in part]
        output_sides = [output_side for output_side, _ in sides if output_side is not None]
        input_sides = [input_side for _, input_side in sides if input_side is not None]
        values = round_two_sided(
            torch.stack([batch[k].tensor for k in part]),
            torch.stack(output_sides) if output_sides else None,
            torch.stack(input_sides) if input_sides else None,
            stacked,
        )
        codes = stacked.codes(values)
        for place, k in enumerate(part):
            found[batch[k].name] = (codes[place], grids[place])
    return [found[view.name] for view in batch]


def fill(views: Sequence[MatrixView], rounded: Rounded) -> None:
    """Writes the values that the checkpoint would hold, bfloat16, into the float32 model."""
    for view in views:
        codes, grid = rounded[view.name]
        view.write_(grid.values(codes).bfloat16().float())


def shared_facts(arguments: argparse.Namespace, started: float) -> dict[str, Any]:
    return {
        "sketch": arguments.sketch,
        "label_seed": arguments.seed,
        "calibration_tokens": TOKENS * len(arguments.folds) // FOLDS,
        "cpu_seconds": round(time.process_time() - started, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def append(row: dict[str, Any]) -> None:
    """Adds a row to the results file; rows of the same question replace older ones."""
    identity = ("task", "method", "bits", "sketch", "label_seed", "calibration_tokens")
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    key = [row.get(part) for part in identity]
    results["rows"] = [old for old in results["rows"] if [old.get(part) for part in identity] != key] + [row]
    results |= {
        "slices": row.pop("slices", results.get("slices", {})),
        "machine": platform.processor() or platform.machine(),
        "cores": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": library_versions(),
        "note": "CPU time of one thread on a shared machine; wall time was not measured",
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def digest(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def ratio_interval(first: Sequence[float], second: Sequence[float], resamples: int = 10_000) -> tuple[float, ...]:
    """Σ first / Σ second over windows, with a paired bootstrap interval (2.5 %, 97.5 %)."""
    a, b = np.array(first), np.array(second)
    picks = np.random.default_rng(0).integers(0, len(a), (resamples, len(a)))
    ratios = a[picks].sum(1) / b[picks].sum(1)
    return a.sum() / b.sum(), float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: methods side by side, the curve over calibration tokens, what was tried."""
    measured = [row for row in results["rows"] if row["task"] == "measure"]
    budgets = sorted({row["calibration_tokens"] for row in measured})
    head = (
        "| tokens | bits | RTN | GPTQ | YAQA | KL of YAQA / GPTQ (95 %) | perplexity: GPTQ, YAQA |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
    lines, tried = [], ["| tokens | bits | method | tried (KL on the tuning slice) | chosen |", "| - | - | - | - | - |"]
    for tokens in budgets:
        for bits in sorted({row["bits"] for row in measured}):
            own = [row for row in measured if row["calibration_tokens"] == tokens and row["bits"] == bits]
            by_method = {method: [row for row in own if row["method"] == method] for method in (RTN, GPTQ, YAQA)}
            if not by_method[GPTQ] or not by_method[YAQA]:
                continue
            per_token = {name: [np.sum(r["kl"]) / num_predicted(r) for r in rows] for name, rows in by_method.items()}
            mean = {name: f"{np.mean(values):.3f}" if values else "" for name, values in per_token.items()}
            value, low, high = ratio_interval(
                np.mean([row["kl"] for row in by_method[YAQA]], axis=0).tolist(),
                np.mean([row["kl"] for row in by_method[GPTQ]], axis=0).tolist(),
            )
            perplexities = [
                f"{np.exp(np.mean([np.sum(row['nats']) / num_predicted(row) for row in by_method[method]])):.2f}"
                for method in (GPTQ, YAQA)
            ]
            lines.append(
                f"| {tokens:,} | {bits} | {mean[RTN]} | {mean[GPTQ]} | {mean[YAQA]} | {value:.2f} ({low:.2f} to "
                f"{high:.2f}) | {', '.join(perplexities)} |"
            )
            for method in (GPTQ, YAQA):
                for row in by_method[method]:
                    scores = ", ".join(f"{held_out(k)}: {v:.4f}" for k, v in row["tried"].items())
                    tried.append(f"| {tokens:,} | {bits} | {method} | {scores} | {held_out(str(row['chosen']))} |")
    return {"main": "\n".join([*head, *lines]), "tried": "\n".join(tried)}


def held_out(damping: str) -> str:
    return "held-out choice" if damping == "None" else damping


def num_predicted(row: dict[str, Any]) -> int:
    return len(row["kl"]) * row["tokens_per_window"]


if __name__ == "__main__":
    main()
