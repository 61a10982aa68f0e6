"""What does SwiftKV cost a model that was not trained with it, what does a distillation take back, and what is saved?

    python benchmarks/swiftkv.py --model models/smollm2 --data DIR --work WORK [--minutes 25]

Quality: KL(original || converted) and perplexity of SmolLM2-135M on windows of WikiText-2 test and of the programs of
HumanEval (DIR has humaneval.jsonl.gz), which are used for nothing else. The distillation trains the projections to
queries, keys and values behind the boundary on WikiText-2 valid and as much of Python's standard library; windows of
those that it does not see are the curve of what it learns. Its settings were written down before and nothing was
searched. Where fewer or more steps are asked for than when it was stopped, it goes on, and the results say so.

Prefill: products that a prompt takes are counted as they are called, and its CPU seconds are measured in turns with the
original, one thread, in float32; the cache and the logits of the last position are what both give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import care
import experiment
import ladder
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import burnish
from burnish.convert.swiftkv import prefill_share, swiftkv
from burnish.core.statistics import interval
from burnish.data import read_texts, windows

LENGTH = 64 if experiment.SMOKE else 256
WINDOWS = 2 if experiment.SMOKE else 6
"""Of each kind that KL is reported on."""
HELD_OUT = 1 if experiment.SMOKE else 2
"""Of each kind that the distillation is measured on."""
BOUNDARY = 15
BOUNDARIES = (24,) if experiment.SMOKE else (24, 20, 28)
"""Further values of `--from-layer`, of 30 layers."""
ONE_NORM = f"{BOUNDARY} with one norm"
"""As published: the first later layer's norm of the boundary's output, for all of them."""

TRAINED = "*.layers.1[5-9].self_attn.[qkv]_proj.*,*.layers.2?.self_attn.[qkv]_proj.*"
STEPS, BATCH = (2, 1) if experiment.SMOKE else (16, 4)
LR = 1e-3

PROMPTS = (64,) if experiment.SMOKE else (1024, 2048)
ROUNDS = 2 if experiment.SMOKE else 4


class Bench(care.TwoTexts):
    """All measurements; those of quality keep what they need of the original."""

    length, num_windows = LENGTH, WINDOWS

    def names(self) -> list[str]:
        return [
            "distilled",
            *(f"start, {which}" for which in ("original", str(BOUNDARY))),
            f"prefill, {PROMPTS[0]}",
            *(f"start, {which}" for which in (*map(str, BOUNDARIES), ONE_NORM)),
            *(f"prefill, {length}" for length in PROMPTS[1:]),
        ]

    def measure(self, name: str) -> dict[str, Any]:
        what, _, which = name.partition(", ")
        if what == "distilled":
            return self.distilled()
        if what == "prefill":
            return self.prefill(int(which))
        if which == "original":
            return self.quality(self.source.module)
        module = swiftkv(self.source.module, int(which.split()[0]))
        if which == ONE_NORM:
            share_norm(module, BOUNDARY)
        return self.quality(module)

    @cached_property
    def learned(self) -> tuple[list[str], list[str]]:
        """Texts to train on, of both kinds in turns, and those that are held out."""
        kinds, held = [], []
        for texts in (read_texts("wikitext2-valid"), care.library_sources()):
            every = care.spread(windows(self.source.tokenizer, texts, LENGTH, max_chars=1_500_000), 960, seed=0)
            rows = [str(self.source.tokenizer.decode(row)) for row in every]
            held += rows[:HELD_OUT]
            kinds.append(rows[HELD_OUT:])
        return [text for pair in zip(*kinds, strict=True) for text in pair], held

    def distilled(self) -> dict[str, Any]:
        """Quality, and [tokens, KL on held-out windows] on the way."""
        rows, held = self.learned
        student = burnish.SwiftKV(from_layer=BOUNDARY, custom_code=True)(self.source)
        settings = {"alpha": 1.0, "optimizer": "adamw", "lr": LR, "weight_decay": 0.0, "steps": STEPS, "batch": BATCH}
        stage = burnish.Distill(only=TRAINED, context=LENGTH, eval_every=STEPS // 4 or 1, save_every=4, **settings)
        work = self.arguments.work / "distilled"
        texts = {"data": rows, "validation": held}
        made = stage(student, **texts, teacher=self.source, work_dir=work, continue_with_changes=True)
        lines = [json.loads(line) for line in next(work.rglob("metrics.jsonl")).read_text().splitlines()]
        curve = [[line["tokens"], line["validation_loss"]] for line in lines if "validation_loss" in line]
        found = {"settings": settings, "continued": made.lineage.continued, "curve": curve}
        return found | {"tokens": STEPS * BATCH * LENGTH} | self.quality(made.module)

    def quality(self, module: Any) -> dict[str, Any]:
        found = {}
        for kind, ids in self.reporting.items():
            hidden = care.last_hidden(module, ids)
            kl = [sum(row) / len(row) for row in care.divergence(self.source.module, self.hidden[kind], hidden)]
            found[kind] = {"kl": kl, "nats": ladder.losses(self.source.module, hidden, ids)}
        return found

    def prefill(self, length: int) -> dict[str, Any]:
        """CPU seconds in turns, and products of linear layers, of the prompt's cache and its last logits."""
        ids = windows(self.source.tokenizer, read_texts("wikitext2-valid"), length, max_tokens=length)
        sides = {"original": self.source.module} | {
            str(layer): swiftkv(self.source.module, layer) for layer in (BOUNDARY, 24)
        }

        @torch.no_grad()
        def read(module: Any) -> Tensor:
            return module(input_ids=ids, use_cache=True, logits_to_keep=1).logits

        products = {}
        for name, module in sides.items():
            with FlopCounterMode(display=False) as counted:
                read(module)
            products[name] = sum(
                n for op, n in counted.get_flop_counts()["Global"].items() if "attention" not in str(op)
            )
        seconds = experiment.turns({name: lambda m=module: read(m) for name, module in sides.items()}, ROUNDS)
        return {"products": products, "seconds": seconds}

    def slices(self) -> dict[str, list[str]]:
        rows, held = self.learned
        reporting = [experiment.digest(ids) for ids in self.reporting.values()]
        return {"tuning": [experiment.digest("".join(rows)), experiment.digest("".join(held))], "reporting": reporting}


@torch.no_grad()
def share_norm(module: Any, first: int) -> None:
    """Scales later projections to keys and values so that the first later layer's norm is what they read."""
    layers = module.model.layers[first:]
    for layer in layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.mul_(layers[0].input_layernorm.weight / layer.input_layernorm.weight)


# -- the results -------------------------------------------------------------------------------------------------------


def content(bench: Bench) -> dict[str, Any]:
    """What has been measured so far, and the predicted share of products."""
    shapes = {name: tuple(value.shape) for name, value in bench.source.module.state_dict().items()}
    return {
        "settings": {"length": LENGTH, "windows": WINDOWS, "boundary": BOUNDARY, "held_out": HELD_OUT},
        "slices": bench.slices(),
        "runs": {name: bench.read(name) for name in bench.names() if bench.has(name)},
        "predicted": prefill_share(shapes, BOUNDARY),
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    runs = results["runs"]
    return {
        "quality": experiment.table(
            "from layer | KL, WikiText-2 (95 %): | perplexity: | KL, code (95 %): | perplexity:", quality_rows(runs)
        ),
        "distilled": experiment.table(
            "KL, over that of the start | WikiText-2 (95 %, paired): | code (95 %, paired):", pair_rows(runs)
        ),
        "curve": experiment.table(
            "tokens seen | KL on held-out windows:", [[f"{n:,}", f"{kl:.3f}"] for n, kl in runs["distilled"]["curve"]]
        ),
        "prefill": experiment.table(
            "tokens of the prompt | from layer | products of linear layers, of the original's: | CPU seconds, of the "
            "original's (95 %, paired):",
            prefill_rows(runs),
        ),
    }


def quality_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    for name, found in runs.items():
        what, _, which = name.partition(", ")
        if what not in ("start", "distilled"):
            continue
        cells = []
        for kind in care.KINDS:
            kl = np.asarray(found[kind]["kl"])
            cells.append("0" if which == "original" else experiment.cell(interval(kl, scale="log")))
            cells.append(f"{math.exp(sum(found[kind]['nats']) / len(found[kind]['nats'])):.1f}")
        yield [which or f"{BOUNDARY}, distilled on {found['tokens']:,} tokens", *cells]


def pair_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    """Against the start with every layer's own norm, window by window."""
    start = runs[f"start, {BOUNDARY}"]
    sides = {"distilled": "distilled", "as published, one norm": f"start, {ONE_NORM}"}
    for title, name in ((title, name) for title, name in sides.items() if name in runs):
        ratios = [experiment.ratio(runs[name][kind]["kl"], start[kind]["kl"]) for kind in care.KINDS]
        yield [title, *(experiment.cell(one, ".2f") for one in ratios)]


def prefill_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    for name, found in runs.items():
        what, _, length = name.partition(", ")
        if what == "prefill":
            seconds, products = found["seconds"], found["products"]
            for side in (side for side in seconds if side != "original"):
                saved = experiment.ratio(seconds[side], seconds["original"])
                yield [length, side, f"{products[side] / products['original']:.3f}", experiment.cell(saved, ".2f")]


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True, help="directory with humaneval.jsonl.gz")
    command.add_argument("--record", action="store_true", help="record what has been measured, and measure no more")
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    note = "one thread, CPU seconds, shared with other work"
    if arguments.record:
        experiment.record(arguments.out, __doc__, content(bench), note=note)
        return
    experiment.answer(bench, arguments, __doc__, lambda: content(bench), tables, note=note)


if __name__ == "__main__":
    main()
