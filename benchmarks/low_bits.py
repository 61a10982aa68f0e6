"""Which checkpoint of 3 or 4 bits is closest to the original: rounded, with refitted scales, learned, AutoRound's?

    python benchmarks/low_bits.py windows --model models/smollm2 --data DIR --work WORK
    PEER_PYTHON benchmarks/peers/autoround.py models/smollm2 WORK/draw-0.json WORK/autoround-40-3bit-draw-0 3 64 40
    PEER_PYTHON benchmarks/peers/llmcompressor_quantize.py models/smollm2 WORK/draw-0.json \\
        WORK/llmcompressor-awq-3bit-draw-0 3 64 --method awq --asymmetric
    burnish quantize models/smollm2 --target 100MB --method yaqa --sketch a --damping 0.1 --refit 1 --tokens 8192 \\
        -o WORK/target-100MB-3bit-draw-0
    burnish quantize models/smollm2 --target 100MB --sketch a --damping 0.1 -o WORK/command-100MB-3bit-draw-0
    burnish quantize models/smollm2 --target 75MB --quantize-embedding auto --sketch a --damping 0.1 \\
        --tokens 8192 -o WORK/target-75MB-4bit-draw-0
    python benchmarks/low_bits.py measure --model models/smollm2 --data DIR --work WORK [--bits 3] [--draws 0]

All methods see 8,192 tokens of WikiText-2 valid in windows of 256, drawn anew for every draw, with other labels (the
same windows but for rtn and gptq, which draw without keeping others back, and mixed widths, which keep back more), and
make symmetric integers in groups of 64 (signed scales), where a name does not say otherwise. Commands with a target
take 65,536 tokens unless they say so.
Nothing is tuned here: dampings are 0.1 for two-sided rounding and the product's own choice on held-out folds for GPTQ.
The divergence from the original is measured on three texts that no method has seen: WikiText-2 test, movie reviews
(movie_reviews.jsonl.gz in DIR) and presidents' speeches (us_speeches.jsonl.gz), 6 windows of 512 tokens each, spread
over the text. `windows` writes the calibration windows for the peers, which run in environments of their own
(benchmarks/env/autoround.txt, llmcompressor.txt). What has been measured is kept in WORK.

Beside whole methods, and at 3 bits: two and eight times the text, scales refitted three times with rounding in between,
YAQA with the inputs that rounded layers give, and what it costs to round the embedding too (which is the head): to
nearest or as calibration text weighs its rows.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch

from burnish.arch import MatrixView, matrices
from burnish.calibrate import Calibration, MatrixSums, Statistics, collect
from burnish.calibrate.collect import PRECISION, collected
from burnish.calibrate.vocabulary import LOOKED_UP, MULTIPLIED, Use, VocabularyStatistics, collect_vocabulary
from burnish.calibrate.walk import LayerByLayer
from burnish.core.checkpoint import load
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.evaluate.maths.divergence import kl_divergence, normalise
from burnish.quantize.formats import FORMATS
from burnish.quantize.method import Rounding, quantize_matrices
from burnish.quantize.plan import select
from burnish.quantize.rule import Strength
from burnish.quantize.rules import RULES
from burnish.quantize.run import calibration_windows
from burnish.quantize.scheme import Scheme
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import ROWS
from burnish.quantize.vocabulary import VocabularyRounding

TOKENS, LENGTH, GROUP = (1024, 64, 64) if experiment.SMOKE else (8192, 256, 64)
REPORT_WINDOWS, REPORT_LENGTH, REPORT_CHARS = (1, 64, 20_000) if experiment.SMOKE else (6, 512, 400_000)
TEXT = "wikitext2-valid"
DOMAINS = {"wikitext": "WikiText-2 test", "movies": "movie reviews", "speeches": "speeches"}


@dataclass(frozen=True)
class Embedding:
    """A packed embedding: its width, by which uses text weighs it (none: to nearest), how often it is refitted."""

    bits: int
    uses: tuple[str, ...] = ()
    refit: int = 0

    @property
    def scheme(self) -> Scheme:
        return FORMATS["int"](self.bits, GROUP, True)


ALIKE: dict[str, Any] = {"group_size": GROUP, "tokens": TOKENS, "length": LENGTH, "calibration": TEXT}
"""What all have."""
YAQA_A: dict[str, Any] = {"method": "yaqa", "sketch": "a", "damping": 0.1}
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
    f"yaqa-a, {name} tokens{suffix}": YAQA_A | {"tokens": times * TOKENS, "refit": refit}
    for name, times in {"16k": 2, "65k": 8}.items()
    for suffix, refit in {"": 0, ", refit": 1}.items()
}
OURS["learned, yaqa, refit 3 times, sensitivity"] = OURS["learned, yaqa, sensitivity"] | {"refit": 3}
OTHER_GRIDS = {
    f"{method}, {name}, {refit}": (f"{method}, {refit}", other)
    for method, refit in (("rtn", "refit"), ("gptq", "refit"), ("yaqa-a", "refit 3 times"))
    for name, other in {"zero points": {"symmetric": False}, "searched scales": {"scale_search": True}}.items()
}
"""{method: (that with the grids of all others, its grids)}."""
OURS |= {method: OURS[base] | grids for method, (base, grids) in OTHER_GRIDS.items()}
OURS["yaqa-a, 65k tokens, refit 3 times"] = YAQA_A | {"tokens": 8 * TOKENS, "refit": 3}
OURS["learned, yaqa, sensitivity, 200 iterations"] = OURS["learned, yaqa, sensitivity"] | {"iterations": 200}
OURS["learned, 65k tokens, yaqa, refit 3 times, sensitivity"] = OURS["learned, yaqa, sensitivity"] | {
    "tokens": 8 * TOKENS,
    "refit": 3,
    "iterations": 64,
}
OURS |= {
    "gptq, refit, mixed widths": {"method": "gptq", "refit": 1, "sketch": "a"},
    "yaqa-a, refit, mixed widths": YAQA_A | {"refit": 1},
}
INPUTS: dict[str, tuple[float, bool]] = {
    "yaqa-a, inputs of the original, refit": (1.0, False),
    "yaqa-a, inputs behind rounded layers, refit": (1.0, True),
    "yaqa-a, half from inputs behind rounded layers, refit": (0.5, True),
}
"""{method: (share of the inputs' plain covariance in H_I, whether these inputs come from rounded layers)}; the rest of
H_I, and H_O, are of the original model, as in "yaqa-a"."""
BOTH_USES = (LOOKED_UP, MULTIPLIED)
ROUNDED_EMBEDDINGS: dict[str, tuple[str, Embedding]] = {
    f"{base}{', ' if base else ''}embedding at {bits} bits{name}": (base, replace(how, bits=bits))
    for base in ("", "yaqa-a, refit")
    for name, how in {
        "": Embedding(0),
        ", as text weighs it": Embedding(0, BOTH_USES),
        ", as text weighs it, refit": Embedding(0, BOTH_USES, 1),
        ", as text weighs it, refit 3 times": Embedding(0, BOTH_USES, 3),
        ", as looked up, refit": Embedding(0, (LOOKED_UP,), 1),
        ", as the head, refit": Embedding(0, (MULTIPLIED,), 1),
    }.items()
    for bits in (8, 4, 3)
}
"""{method: (the one that rounds the layers, empty for none, what becomes of the embedding)}."""
EARLIER = ("positive scales, yaqa-a", "positive scales, yaqa-a, refit")
"""Measured at the commit before scales of packed integers could be negative; the present program does not make them."""
CHECKPOINTS = {
    "autoround-40": "AutoRound, 40 iterations",
    "autoround-200": "AutoRound, 200 iterations",
    "llmcompressor-gptq": "llm-compressor GPTQ",
    "llmcompressor-awq": "llm-compressor AWQ, with zero points",
    "target-100MB": "burnish quantize --target 100MB, 8k tokens, refit",
    "command-100MB": "burnish quantize --target 100MB --sketch a --damping 0.1",
    "target-75MB": "burnish quantize --target 75MB --quantize-embedding auto, 8k tokens",
}
"""What was made beforehand, as the lines above say; measured as it is loaded."""
PEER = "autoround-40"
TARGETS = ("target-100MB", "command-100MB", "target-75MB")
"""Those of commands with a target, which measure sizes around it themselves."""
WIDTHS: dict[str, tuple[str, float, str]] = {
    "learned, yaqa, sensitivity, mixed widths": ("learned", 3.0, "learned, knapsack"),
    "yaqa-a, 65k tokens, refit 3 times, mixed widths": ("learned", 3.0, "65k tokens, refit 3 times, knapsack"),
    "yaqa-a, refit, 3 and 4 bits in turn": ("model", 3.5, "every second layer"),
    "burnish quantize --target 3.5bits": ("command", 3.5, "burnish quantize --target"),
}
"""{method: its kind, width and name in the results of `mixed_widths.py`}."""
Draws = dict[int, dict[str, list[float]]]
"""{draw: {text: divergence of every window}}."""
PARTS = {
    "autoround-200": "autoround-40",
    "learned, yaqa, sensitivity, 200 iterations": "learned, yaqa, sensitivity",
    "yaqa-a, 16k tokens, refit": "yaqa-a, refit",
    "yaqa-a, 65k tokens, refit": "yaqa-a, refit",
    "gptq, refit 3 times": "gptq, refit",
    "yaqa-a, refit 3 times": "yaqa-a, refit",
    **{method: base for method, (base, _) in OTHER_GRIDS.items()},
    "learned, yaqa, refit 3 times, sensitivity": "learned, yaqa, sensitivity",
    "yaqa-a, 65k tokens, refit 3 times": "yaqa-a, 65k tokens, refit",
    **dict.fromkeys(INPUTS, "yaqa-a, refit"),
    **{method: base for method, (base, _) in ROUNDED_EMBEDDINGS.items() if base},
    **{
        method: method.partition(",")[0]
        for method, (base, embedding) in ROUNDED_EMBEDDINGS.items()
        if embedding.uses and not base
    },
}
"""{what is tried by itself: what it is compared with}."""


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


def directory_of_statistics(work: Path, draw: int, stage: Quantize) -> Path:
    """Where what a stage collects from a draw's text is kept; a target keeps other windows back."""
    more = f"-{stage.num_tokens}" if stage.num_tokens != TOKENS else ""
    return work / f"draw-{draw}-{stage.sketch or 'covariance'}{more}{'-mixed' if stage.target else ''}"


def text_of_draw(model: Any, draw: int) -> Calibration:
    """What two-sided rounding collects from: it keeps a few other windows back, even where it has nothing to choose."""
    stage = Quantize(tokens=TOKENS, length=LENGTH, seed=draw, calibration=TEXT, **YAQA_A)
    ctx = Context({}, Path(), "cpu", seeded_generator(draw), Progress(enabled=False), Ledger(None))
    views = select(matrices(model.module), ())
    return calibration_windows(stage, model, ctx, views)[0]


def windows_of_draw(model: Any, draw: int) -> torch.Tensor:
    return text_of_draw(model, draw).tokens


def vocabulary_of_draw(
    model: Any, dense: Any, views: Sequence[MatrixView], work: Path, draw: int
) -> VocabularyStatistics:
    """What a draw's text says of the embedding's rows."""
    text, place = text_of_draw(model, draw), work / f"vocabulary-draw-{draw}"
    return collect_vocabulary(dense, views, text, place, key={"model": model.identity}, precision=PRECISION)


def round_by_layer(
    views: Sequence[MatrixView],
    rounding: Rounding,
    text: Calibration,
    module: Any,
    directory: Path,
    *,
    changed: bool,
    key: dict[str, Any] | None = None,
) -> None:
    """Rounds a network in place, layer after layer, with sketches of the original, where the rule needs any, and the
    covariance of inputs that go through the layers as they were or, if `changed`, as they have become."""
    own = {"matrices": [view.name for view in views]}
    two_sided = "sketch" in rounding.rule.needs
    sketches = None
    if two_sided:
        sketches = collect(module, views, text, directory / "statistics", key=own | (key or {}), sketches=["a"])
    walk = LayerByLayer(module, views, precision=PRECISION, changed=changed)
    for some, inputs in collected(walk, text, directory / "inputs", key=own):
        assert inputs is not None, "there is a text"
        quantize_matrices(some, rounding, OtherInputs(inputs, sketches) if sketches else inputs)


class OtherInputs(Statistics):
    """Sums of which the inputs' covariance is that of another collection of the same text."""

    def __init__(self, inputs: Statistics, sketches: Statistics) -> None:
        super().__init__(inputs.store.directory, inputs.key, inputs.folds)
        self.sketches = sketches

    def read(self, view: MatrixView, folds: Sequence[int]) -> MatrixSums:
        covariance = super().read(view, folds).covariance
        return replace(self.sketches.read(view, folds), covariance=covariance)


class SomeUses(VocabularyStatistics):
    """Sums of the vocabulary's rows of which only some uses count."""

    wanted: tuple[str, ...] = ()

    def uses(self, view: MatrixView, folds: Sequence[int]) -> list[Use]:
        return [use for way, use in zip(BOTH_USES, super().uses(view, folds), strict=True) if way in self.wanted]


class Measuring:
    """Every cell: a draw, a width and a method."""

    def __init__(self, model: Any, arguments: argparse.Namespace) -> None:
        self.model, self.arguments = model, arguments
        self.kept = experiment.Kept(arguments.work)
        self.dense = self.copy()
        self.hidden: dict[str, list[torch.Tensor]] = {}

    def run(self) -> None:
        self.kept.run(self.cells, self.measure, self.arguments.minutes)
        rows = [json.loads(path.read_text()) for path in sorted(self.kept.directory.glob("*.json"))]
        for row in rows:
            row["bytes"] = self.bytes_of(row["method"], row["bits"])
        texts = [experiment.digest(self.windows_of(domain).numpy()) for domain in DOMAINS]
        found = {"rows": rows, "slices": {"tuning": [], "reporting": texts}}
        experiment.record(self.arguments.out, __doc__, found)

    def bytes_of(self, method: str, bits: int) -> int:
        """Of the weights' file, by the plan."""
        base, embedding = ROUNDED_EMBEDDINGS.get(method, (method, None))
        dense = self.model.plan()
        symmetric = OURS.get(method, {}).get("symmetric", method != "llmcompressor-awq")
        packed = self.stage(min(bits, 8), 0, {"method": "rtn", "symmetric": symmetric})
        size = (packed.plan(dense) if base else dense).num_bytes
        if embedding:
            shape = self.dense.get_input_embeddings().weight.shape
            size += embedding.scheme.num_bytes(*shape, 2) - 2 * shape.numel()
        return size

    def cells(self) -> Iterable[str]:
        a = self.arguments
        for draw in a.draws:
            for bits in a.bits:
                for method in (*OURS, *INPUTS, *ROUNDED_EMBEDDINGS, *CHECKPOINTS):
                    made = method not in CHECKPOINTS or self.checkpoint(method, bits, draw).is_dir()
                    if re.fullmatch(a.only, method) and made:
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
        elif method in ROUNDED_EMBEDDINGS:
            base, embedding = ROUNDED_EMBEDDINGS[method]
            module = (
                self.quantized(base, bits, draw) if base else load(self.arguments.model, dtype=torch.float32).module
            )
            self.round_embedding(module.float(), embedding, draw)
            seconds = time.process_time() - started
        else:
            module = self.with_inputs(method, bits, draw) if method in INPUTS else self.quantized(method, bits, draw)
            seconds = time.process_time() - started
        kl = {}
        for domain in DOMAINS:
            kl[domain] = self.divergence(module.float(), domain)
            print(f"  {name}, {domain}: {np.mean(kl[domain]):.4f}", flush=True)
        found = {"draw": draw, "bits": bits, "method": method, "kl": kl, "cpu_seconds": round(seconds, 1)}
        return found | ({"told": told_by(self.checkpoint(method, bits, draw))} if method in TARGETS else {})

    def quantized(self, method: str, bits: int, draw: int) -> Any:
        mixed = "mixed widths" in method
        stage = self.stage(bits, draw, OURS[method] | ({"target": f"{bits}bits"} if mixed else {}))
        statistics = directory_of_statistics(self.arguments.work, draw, stage)
        place = statistics
        if stage.method == "learned" or mixed:  # what was learned is kept apart, what was collected is shared
            place = statistics.with_name(f"{statistics.name}-{experiment.digest(str(stage.canonical()))[:12]}")
            place.mkdir(exist_ok=True)
            statistics.joinpath("statistics").mkdir(parents=True, exist_ok=True)
            if not place.joinpath("statistics").exists():
                place.joinpath("statistics").symlink_to(statistics.resolve() / "statistics")
        return stage(self.model, work_dir=place, progress=True).module

    def copy(self) -> Any:
        """The original, in float32."""
        return load(self.arguments.model, dtype=torch.float32).module

    def stage(self, bits: int, draw: int, settings: dict[str, Any]) -> Quantize:
        width = {} if "target" in settings else {"bits": bits}
        return Quantize(seed=draw, **(ALIKE | width | settings))

    def with_inputs(self, method: str, bits: int, draw: int) -> Any:
        """Rounded layer after layer, two-sidedly, with a share of the covariance of inputs that go through them."""
        share, changed = INPUTS[method]
        module = self.copy()
        strength = Strength(YAQA_A["damping"], YAQA_A["damping"], share)
        rounding = Rounding(RULES["yaqa"], FORMATS["int"](bits, GROUP, True), torch.bfloat16, strength, "a", refit=1)
        views = select(matrices(module), ())
        directory = directory_of_statistics(self.arguments.work, draw, self.stage(bits, draw, YAQA_A))
        key = {"model": self.model.identity}
        round_by_layer(views, rounding, text_of_draw(self.model, draw), module, directory, changed=changed, key=key)
        return module

    def round_embedding(self, module: Any, embedding: Embedding, draw: int) -> None:
        """In place; the head is the same tensor."""
        (view,) = (view for view in matrices(module) if view.role == "embedding")
        statistics, rule = None, RULES["gptq" if embedding.uses else "rtn"]
        if embedding.uses:
            rows = [one for one in matrices(self.dense) if one.role == "embedding"]
            whole = vocabulary_of_draw(self.model, self.dense, rows, self.arguments.work, draw)
            statistics = SomeUses(whole.store.directory, whole.key, whole.folds)
            statistics.wanted = embedding.uses
        rounding = Rounding(rule, embedding.scheme, torch.bfloat16, refit=embedding.refit)
        view.write_(VocabularyRounding(statistics, rounding).values(view, embedding.scheme))

    def divergence(self, module: Any, domain: str) -> list[float]:
        """KL(original || module) of every window of a text, per predicted token, in nats."""
        head, found = self.dense.get_output_embeddings(), []
        with torch.inference_mode():
            for window, hidden in zip(self.windows_of(domain), self.hidden_of(domain), strict=True):
                both = head(hidden)[:-1], module(input_ids=window[None], use_cache=False).logits[0, :-1]
                parts = zip(*(logits.split(ROWS) for logits in both), strict=True)
                total = sum(float(kl_divergence(*map(normalise, part)).double().sum()) for part in parts)
                found.append(total / (len(window) - 1))
        return found

    def hidden_of(self, domain: str) -> list[torch.Tensor]:
        """What the original's head reads."""
        if domain not in self.hidden:
            with torch.inference_mode():
                outputs = [self.dense.base_model(input_ids=w[None], use_cache=False) for w in self.windows_of(domain)]
            self.hidden[domain] = [output.last_hidden_state[0] for output in outputs]
        return self.hidden[domain]

    def windows_of(self, domain: str) -> torch.Tensor:
        return windows_of_domain(self.model, self.arguments.data, domain)


def told_by(place: Path) -> dict[str, Any]:
    """The tables that a command with a target wrote: sizes around it, widths that were tried, and those taken."""
    ledger = place.with_name(f"{place.name}.run") / "ledger.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    return {row["name"]: row["rows"] for row in rows if row.get("name") in ("frontier", "widths tried", "widths")}


def windows_of_domain(model: Any, data: Path | None, domain: str) -> torch.Tensor:
    """What the divergence from a model is measured on; `data` is where the two texts are that the package lacks."""
    texts = experiment.texts_of(domain, data)
    return experiment.spread_windows(model.tokenizer, texts, REPORT_LENGTH, REPORT_WINDOWS, max_chars=REPORT_CHARS)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: every method beside AutoRound, refitted scales, parts by themselves, and sizes around a
    target."""
    found: dict[tuple[float, str], Draws] = {}
    sizes: dict[tuple[float, str], int] = {}
    for row in results["rows"]:
        cell = row["bits"], row["method"]
        found.setdefault(cell, {})[row["draw"]] = row["kl"]
        sizes[cell] = row.get("bytes", 0)
    found |= of_mixed_widths()
    around = []
    for row in results["rows"]:
        for size in row.get("told", {}).get("frontier", []):
            if size["chosen"]:
                sizes[row["bits"], row["method"]] = size["bytes"]
            kl, place = experiment.cell(size | {"mean": size["kl"]}, ".3f"), "the target" if size["chosen"] else ""
            around.append([CHECKPOINTS[row["method"]], f"{size['bytes'] / 1e6:.1f}", f"{size['bits']:.2f}", kl, place])
    main, refitted, parts = [], [], []
    every = (*OURS, *EARLIER, *WIDTHS, *(name for name in CHECKPOINTS if name != PEER), PEER, *ROUNDED_EMBEDDINGS)
    for bits in sorted({bits for bits, _ in found}):
        for method in (name for name in every if (bits, name) in found):
            draws, size = found[bits, method], sizes.get((bits, method), 0)
            if not size and method in WIDTHS:
                size = round(float(np.interp(bits, (3, 4), [sizes[width, "yaqa-a, refit"] for width in (3, 4)])))
            against = beside(draws, {} if method == PEER else found.get((bits, PEER), {}))
            title = CHECKPOINTS.get(method, method)
            main.append([f"{bits:g}", title, f"{size / 1e6:.1f}", len(draws), *means(draws), *against])
            plain = re.sub(r", refit( \d times)?$", "", method)
            if plain != method and (bits, plain) in found:
                pair = draws, found[bits, plain]
                refitted.append([f"{bits:g}", method, len(draws.keys() & pair[1].keys()), *beside(*pair)])
        for method, base in PARTS.items():
            if (bits, method) in found and (bits, base) in found:
                shared = found[bits, method].keys() & found[bits, base].keys()
                pair = [{draw: found[bits, one][draw] for draw in shared} for one in (method, base)]
                titles = [CHECKPOINTS.get(one, one) for one in (method, base)]
                parts.append([f"{bits:g}", *titles, len(shared), *means(pair[0]), *beside(*pair)])
    names = " | ".join(DOMAINS.values())
    ratios = " | ".join(f"{name}, ratio (95 %)" for name in DOMAINS.values())
    peers = " | ".join(f"{name}, against {CHECKPOINTS[PEER]} (95 %)" for name in DOMAINS.values())
    return {
        "main": experiment.table(f"bits | method | MB of the file | draws | {names} | {peers}", main),
        "refit": experiment.table(
            f"bits | method | draws | {names}, KL against that without refitting (95 %)", refitted
        ),
        "parts": experiment.table(f"bits | what | against | draws | {names} | {ratios}", parts),
        "frontier": experiment.table(
            "command | MB of the file | bits per weight, without scales | KL (95 %) | ", around
        ),
    }


def of_mixed_widths() -> dict[tuple[float, str], Draws]:
    """What `mixed_widths.py` has measured on the same windows."""
    rows = json.loads((experiment.RESULTS / "mixed_widths.json").read_text(encoding="utf-8"))["rows"]
    names = {cell: name for name, cell in WIDTHS.items()}
    cells = [(names.get((row["kind"], row.get("bits"), row.get("way"))), row) for row in rows]
    return {(row["bits"], name): {0: row["kl"]} for name, row in cells if name}


def means(draws: Draws) -> list[str]:
    found = [float(np.mean([kl[domain] for kl in draws.values()])) for domain in DOMAINS]
    return [f"{value:.3f}" if value >= 0.01 else f"{value:.4f}" for value in found]


def beside(ours: Draws, theirs: Draws) -> list[str]:
    return [compared(ours, theirs, domain) for domain in DOMAINS]


def compared(ours: Draws, theirs: Draws, domain: str) -> str:
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
