"""At one size, are mixed widths closer to the original, what foretells that, and does a domain want its own map?

    python benchmarks/mixed_widths.py --model models/smollm2 --data DIR --work WORK [--only REGEX]

Everything is rounded as in `low_bits.py` (YAQA, sketch A, damping 0.1, scales refitted once, symmetric integers in
groups of 64) from its first draw of 8,192 tokens, whose statistics WORK shares with it, and once for every width, so
that what is compared differs in widths alone. Widths of 2 to 5 bits (and 3 bits in groups of 192) are chosen by the
product's knapsack over its sensitivities: of the error that this rounding leaves, by which `burnish quantize --target`
foretells, and of the one that one-sided rounding leaves. Measured on the texts of `low_bits.py`.

Rank: 40 groups of matrices rounded alone to 2, 3 and 4 bits, divergence on 2 windows of 256 tokens of WikiText-2 test.

Files: of a size that the layers alone cannot reach, with an embedding of 8 bits, and with one whose width the knapsack
chooses too; rounded as text weighs it (`burnish quantize --target 75MB --quantize-embedding 8` and `auto`, no trial).

Domains: sums of 3 x 6,144 tokens of WikiText-2 valid, reviews and speeches, in nine parts of 2,048. Weights are rounded
with a part of each; a domain's own map comes from the sensitivities of the same rounded weights under its own three
parts, the general one from a part of each.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiment
import low_bits
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Tensor

from burnish.arch import MatrixView, matrices
from burnish.calibrate.collect import collect
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import load
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.data import read_texts
from burnish.quantize.budget import Group, budget_of, groups_of
from burnish.quantize.factors import SplitSums
from burnish.quantize.formats import FORMATS
from burnish.quantize.maths.allocation import allocate, sensitivity
from burnish.quantize.method import Rounding
from burnish.quantize.outside import embedding_of_target, outside_of, saved_bytes
from burnish.quantize.plan import select
from burnish.quantize.rule import Strength
from burnish.quantize.rules import RULES
from burnish.quantize.scheme import Scheme
from burnish.quantize.settings import SchemeSettings
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import WINDOWS, Original, filled, rounded_under
from burnish.quantize.vocabulary import VocabularyRounding

FORM = FORMATS["int"]
CHOICES: dict[str, Scheme] = {
    "2": FORM(2, 64, True),
    "3, groups of 192": FORM(3, 192, True),
    "3": FORM(3, 64, True),
    "4": FORM(4, 64, True),
    "5": FORM(5, 64, True),
}
WHOLE = ("2", "3", "4", "5")
RANKED = ("2", "3", "4")
WAYS = BOTH, ONE_SIDED = "as rounded", "one-sided"
FORECAST = Strength(input_damping=0.1)
"""Of the one-sided rounding."""
NUM_RANKED, RANK_WINDOWS, RANK_LENGTH = (3, 1, 32) if experiment.SMOKE else (40, 2, 256)
DOMAIN_PARTS, PART_WINDOWS, LENGTH = (3, 8, 32) if experiment.SMOKE else (3, 8, 256)
UNIFORM, HALVES = "one width", "every second layer"
KNAPSACKS = {
    "knapsack": (BOTH, WHOLE),
    "knapsack, forecast one-sided": (ONE_SIDED, WHOLE),
    "knapsack, groups of 192 too": (BOTH, tuple(CHOICES)),
}
MODELS = (
    *((3.0, way) for way in (UNIFORM, *KNAPSACKS)),
    *((3.5, way) for way in (HALVES, *KNAPSACKS)),
)
LEARNED = {
    "learned, one width": ("learned, yaqa, sensitivity", UNIFORM),
    "learned, knapsack": ("learned, yaqa, sensitivity", "knapsack"),
    "65k tokens, refit 3 times, one width": ("yaqa-a, 65k tokens, refit 3 times", UNIFORM),
    "65k tokens, refit 3 times, knapsack": ("yaqa-a, 65k tokens, refit 3 times", "knapsack"),
    "learned, 65k tokens, refit 3 times, knapsack": (
        "learned, 65k tokens, yaqa, refit 3 times, sensitivity",
        "knapsack",
    ),
}
"""{cell: (rounding of `low_bits.py`, whose widths)}; those of a knapsack are of the first draw's 8,192 tokens."""
BESIDE_LEARNED = {
    "learned, knapsack": "learned, one width",
    "65k tokens, refit 3 times, knapsack": "65k tokens, refit 3 times, one width",
    "learned, 65k tokens, refit 3 times, knapsack": "65k tokens, refit 3 times, knapsack",
}
"""What they are compared with."""
EMBEDDED, MEASURED = (3, 4, 5, 6, 8), 4
FILES = tuple((size, embedding) for size in ("75MB", "60MB") for embedding in ("auto", "8"))
COMMAND = "burnish quantize --target"
BESIDE = {3.0: f"{UNIFORM}, that command's text", 3.5: f"{HALVES}, that command's text"}
ASKED = ("command", "beside")
"""Kinds of cells; the latter has what the former is compared with: other widths of the matrices that it rounded."""


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the other two texts are")
    parser.add_argument("--only", default=".*", help="cells, a regular expression")
    parser.keeps("where `low_bits.py` keeps its own, and what is rounded and measured here")
    arguments = parser.read()
    torch.set_num_threads(1)
    Measuring(arguments).run()


class Rounded:
    """All matrices rounded to every width from one set of statistics, kept on disk.

    Attributes:
        directory: of the values.
        statistics: that they are rounded with.
    """

    def __init__(self, views: Sequence[MatrixView], statistics: Statistics, directory: Path) -> None:
        self.views, self.statistics, self.directory = views, statistics, directory
        directory.mkdir(parents=True, exist_ok=True)

    def values(self, choice: str, rounding: str = BOTH) -> dict[str, Tensor]:
        file = (
            self.directory / f"{choice.replace(', ', '-').replace(' ', '_')}-{rounding.replace(' ', '_')}.safetensors"
        )
        if not file.exists():
            rule = Rounding(RULES["yaqa"], CHOICES[choice], torch.bfloat16, Strength(0.1, 0.1), "a", refit=1)
            if rounding == ONE_SIDED:
                rule = replace(rule, rule=RULES["gptq"], strength=FORECAST, refit=0)
            made = rounded_under(self.views, {"": rule}, self.statistics)[""]
            save_file({name: value.contiguous() for name, value in made.items()}, file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
        return load_file(file)

    def costs(self, choice: str, rounding: str, statistics: Statistics) -> dict[str, float]:
        """{name of a matrix: Ω of its error under these statistics}."""
        values, found = self.values(choice, rounding), {}
        for view in self.views:
            sums = SplitSums(statistics, view, self.views)
            error = view.tensor - values[view.name].float()
            found[view.name] = sensitivity(error, *sums.factors("a"), sums.all.num_tokens)
        return found


class Measuring:
    """Every cell: costs, ranks, whole models, domains, and learning from chosen widths."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model = load(arguments.model)
        self.dense = load(arguments.model, dtype=torch.float32).module
        self.views = select(matrices(self.dense), ())
        self.groups = groups_of(self.views, CHOICES["3"], None, 2)
        place = arguments.work / "mixed"
        place.mkdir(parents=True, exist_ok=True)
        self.kept = experiment.Kept(place)
        self.originals: dict[str, Original] = {}

    def run(self) -> None:
        self.kept.run(self.cells, self.measure, self.arguments.minutes)
        rows = [json.loads(path.read_text()) for path in sorted(self.kept.directory.glob("*.json"))]
        texts = [experiment.digest(self.reporting(domain).numpy()) for domain in low_bits.DOMAINS]
        experiment.record(self.arguments.out, __doc__, {"rows": rows, "slices": {"tuning": [], "reporting": texts}})

    def cells(self) -> Iterable[str]:
        every = [f"costs, {choice}" for choice in CHOICES]
        every += [f"model, {bits:g}, {way}" for bits, way in MODELS]
        every += ["rank", *(f"domains, {domain}" for domain in low_bits.DOMAINS)]
        every += ["costs, embedding"]
        every += [f"file, {size}, {embedding}" for size, embedding in FILES]
        every += [f"learned, 3, {way}" for way in LEARNED]
        every += [f"{kind}, {bits:g}" for bits in (3.5, 3.0) for kind in ("command", "beside")]
        return (name for name in every if re.fullmatch(self.arguments.only, name))

    def measure(self, name: str) -> dict[str, Any]:
        kind, _, rest = name.partition(", ")
        return {"kind": kind, "name": rest} | {
            "costs": self.costs,
            "model": self.whole_model,
            "rank": self.ranks,
            "domains": self.domain,
            "file": self.file,
            "learned": self.learned,
            "command": self.command,
            "beside": self.beside_the_command,
        }[kind](rest)

    # -- one draw of WikiText ----------------------------------------------------------------------------------------

    @property
    def drawn(self) -> Rounded:
        """From the first draw of `low_bits.py`."""
        text = Calibration(low_bits.windows_of_draw(self.model, 0), seed=0, num_folds=4)
        key = {"matrices": [view.name for view in self.views], "model": self.model.identity}
        directory = self.arguments.work / "draw-0-a" / "statistics"
        statistics = collect(self.dense, self.views, text, directory, key=key, sketches=["a"], progress=Progress())
        return Rounded(self.views, statistics, self.arguments.work / "mixed" / "draw-0")

    def costs(self, choice: str) -> dict[str, Any]:
        if choice == "embedding":
            return self.costs_of_embedding()
        drawn = self.drawn
        return {"costs": {rounding: drawn.costs(choice, rounding, drawn.statistics) for rounding in (BOTH, ONE_SIDED)}}

    def table_of_costs(self, rounding: str, choices: Sequence[str]) -> list[list[float]]:
        """Of every group at every choice."""
        found = {choice: self.kept.read(f"costs, {choice}")["costs"][rounding] for choice in choices}
        return [[sum(found[c][view.name] for view in group.views) for c in choices] for group in self.groups]

    def widths(self, bits: float, way: str) -> list[str]:
        """The choice of every group."""
        if way == UNIFORM:
            return [f"{bits:g}"] * len(self.groups)
        if way == HALVES:
            return [str(int(bits) + (group.views[0].layer or 0) % 2) for group in self.groups]
        rounding, choices = KNAPSACKS[way]
        return knapsack(self.table_of_costs(rounding, choices), self.groups, choices, bits)

    def whole_model(self, name: str) -> dict[str, Any]:
        bits, way = name.split(", ", 1)
        widths = self.widths(float(bits), way)
        kl = self.divergences(self.mixture(self.drawn, widths))
        shares = {
            c: sum(g.num_weights for g, w in zip(self.groups, widths, strict=True) if w == c) for c in set(widths)
        }
        size = sum(bytes_of(group, choice) for group, choice in zip(self.groups, widths, strict=True))
        return {"bits": float(bits), "way": way, "kl": kl, "weights": shares, "bytes": size}

    def mixture(self, rounded: Rounded, widths: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for choice in set(widths):
            values = rounded.values(choice)
            own = [group for group, width in zip(self.groups, widths, strict=True) if width == choice]
            found |= {view.name: values[view.name] for group in own for view in group.views}
        return found

    def ranks(self, _: str) -> dict[str, Any]:
        """Ω of single groups beside the divergence when they alone are rounded."""
        drawn, rows = self.drawn, []
        original = Original(self.dense, self.reporting("wikitext")[:RANK_WINDOWS, :RANK_LENGTH])
        places = np.linspace(0, len(self.groups) - 1, NUM_RANKED).round().astype(int)
        costs = {rounding: self.table_of_costs(rounding, RANKED) for rounding in (BOTH, ONE_SIDED)}
        for number, choice in enumerate(RANKED):
            values = drawn.values(choice)
            for place in places:
                group = self.groups[place]
                with filled(group.views, values):
                    measured = float(np.mean(original.divergence()))
                foretold = {rounding: costs[rounding][place][number] for rounding in costs}
                rows.append({"group": group.name, "roles": group.roles, "choice": choice, "kl": measured} | foretold)
        return {"rows": rows}

    # -- files of a size, with the embedding -------------------------------------------------------------------------

    @property
    def embedding(self) -> MatrixView:
        return next(view for view in matrices(self.dense) if view.role == "embedding")

    def vocabulary(self) -> VocabularyRounding:
        """Rounding of the embedding, as the first draw weighs it."""
        statistics = low_bits.vocabulary_of_draw(self.model, self.dense, [self.embedding], self.arguments.work, 0)
        rounding = Rounding(RULES["gptq"], CHOICES["4"], torch.bfloat16)
        return VocabularyRounding.of(Quantize(method="yaqa"), rounding, statistics)

    def costs_of_embedding(self) -> dict[str, Any]:
        """What is foretold at every width, and measured at one, on calibration text that is not in the draw."""
        vocabulary, view, costs, measured = self.vocabulary(), self.embedding, {}, {}
        original = Original(self.dense, self.other_windows())
        for bits in EMBEDDED:
            values = vocabulary.values(view, FORM(bits, 64, True))
            costs[str(bits)] = vocabulary.cost(view, values)
            if bits == MEASURED:
                measured[str(bits)] = float(np.mean(original.divergence([view], {view.name: values})))
            print(f"  embedding at {bits} bits: {costs[str(bits)]:.4f} foretold", flush=True)
        return {"embedding": costs, "measured": measured}

    def other_windows(self) -> Tensor:
        """Of the calibration text, that the first draw has not."""
        known = set(map(tuple, low_bits.windows_of_draw(self.model, 0).tolist()))
        others = [window for window in low_bits.windows_of_draw(self.model, 1) if tuple(window.tolist()) not in known]
        return torch.stack(others[:WINDOWS])

    def file(self, name: str) -> dict[str, Any]:
        """Widths of the layers, and of the embedding where it has none, for so many bytes."""
        size, given = name.split(", ")
        bits = int(given) if given.isdigit() else "auto"
        stage, before = Quantize(target=size, quantize_embedding=bits, **low_bits.YAQA_A), self.model.plan()
        outside, free = outside_of(stage, self.dense, [self.embedding]), None
        if bits == "auto":
            free = embedding_of_target(stage, self.dense, [self.embedding])
        saved = saved_bytes(outside, before)
        budget = budget_of(stage, CHOICES["3"], self.views, before, embedding=free, saved=saved)
        costs, sizes = (
            self.table_of_costs(BOTH, WHOLE),
            [[bytes_of(g, choice) for choice in WHOLE] for g in self.groups],
        )
        widths: list[Sequence[str]] = [WHOLE] * len(self.groups)
        if free:
            found = self.kept.read("costs, embedding")
            rows = json.loads((experiment.RESULTS / "low_bits.json").read_text())["rows"]
            (told,) = (row["told"] for row in rows if row["method"] == "target-100MB")  # by the command, on such text
            of_layers = [row["kl"] for row in told["widths tried"] if row["accepted"]][-1]
            of_layers /= sum(row["sensitivity"] for row in told["widths"])
            factor = found["measured"][str(MEASURED)] / found["embedding"][str(MEASURED)] / of_layers
            costs.append([factor * cost for cost in found["embedding"].values()])
            widths.append(tuple(found["embedding"]))
            sizes.append([budget.groups[-1].size_at(int(width)) for width in widths[-1]])
        places = allocate(costs, sizes, budget.allowed)
        total = budget.dense + sum(some[place] for some, place in zip(sizes, places, strict=True))
        chosen = [some[place] for some, place in zip(widths, places, strict=True)]
        if free:
            outside = [(self.embedding, FORM(int(chosen.pop()), 64, True))]
        schemes = {
            v.name: CHOICES[width] for group, width in zip(self.groups, chosen, strict=True) for v in group.views
        }
        rule = Rounding(
            RULES["yaqa"], CHOICES["3"], torch.bfloat16, Strength(0.1, 0.1), "a", refit=1, overrides=schemes
        )
        values = rounded_under(self.views, {"": rule}, self.drawn.statistics)[""]
        values |= {view.name: self.vocabulary().values(view, scheme) for view, scheme in outside}
        weights = dict.fromkeys(WHOLE, 0)
        for group, width in zip(self.groups, chosen, strict=True):
            weights[width] += group.num_weights
        return {
            "size": size,
            "embedding": given,
            "kl": self.divergences(values, [view for view, _ in outside]),
            "embedding_bits": outside[0][1].bits,
            "weights": weights,
            "bytes": total,
        }

    # -- domains -----------------------------------------------------------------------------------------------------

    def domain(self, name: str) -> dict[str, Any]:
        """Divergence on one text under every map."""
        domains = list(low_bits.DOMAINS)
        parts = [self.calibration(domain) for domain in domains]
        text = Calibration(torch.cat(parts), seed=0, num_folds=DOMAIN_PARTS * len(domains))
        directory = self.arguments.work / "mixed" / "domain-sums"
        key = {"matrices": [view.name for view in self.views], "model": self.model.identity}
        every = collect(self.dense, self.views, text, directory, key=key, sketches=["a"], progress=Progress())
        general = every.part([DOMAIN_PARTS * number for number in range(len(domains))])
        rounded = Rounded(self.views, general, self.arguments.work / "mixed" / "domains")
        sums = {domain: every.part(range(DOMAIN_PARTS * n, DOMAIN_PARTS * (n + 1))) for n, domain in enumerate(domains)}
        widths = {whose: self.map_of(whose, rounded, some) for whose, some in {"general": general, **sums}.items()}
        original = self.original(name)
        kl = {}
        for whose, some in widths.items():
            with filled(self.views, self.mixture(rounded, some)):
                kl[whose] = original.divergence()
            print(f"  {name} under the map of {whose}: {np.mean(kl[whose]):.4f}", flush=True)
        same = {
            whose: float(np.mean([a == b for a, b in zip(widths["general"], some, strict=True)]))
            for whose, some in widths.items()
        }
        return {"domain": name, "kl": kl, "same_as_general": same}

    def map_of(self, whose: str, rounded: Rounded, statistics: Statistics) -> list[str]:
        file = rounded.directory / f"costs-{whose}.json"
        if not file.exists():
            file.write_text(json.dumps({choice: rounded.costs(choice, BOTH, statistics) for choice in WHOLE}))
        costs = json.loads(file.read_text())
        table = [[sum(costs[c][view.name] for view in group.views) for c in WHOLE] for group in self.groups]
        return knapsack(table, self.groups, WHOLE, 3.0)

    def calibration(self, domain: str) -> Tensor:
        """Windows of a text behind what is reported on; of WikiText-2 valid."""
        if domain == "wikitext":
            texts = read_texts("wikitext2-valid")
        else:
            texts = experiment.texts_of(domain, self.arguments.data)
            ends = np.cumsum([len(text) for text in texts])  # the first that begins behind what is reported on
            texts = texts[int(np.searchsorted(ends, low_bits.REPORT_CHARS)) + 1 :]
        number, chars = DOMAIN_PARTS * PART_WINDOWS, 2 * low_bits.REPORT_CHARS
        return experiment.spread_windows(self.model.tokenizer, texts, LENGTH, number, max_chars=chars)

    # -- learning from chosen widths ---------------------------------------------------------------------------------

    def learned(self, name: str) -> dict[str, Any]:
        """One width, or those of a knapsack, with learned rounding, more text, or both."""
        bits, way = name.split(", ", 1)
        rounding, widths_by = LEARNED[way]
        same, theirs = f"draw 0, {bits} bits, {rounding}", experiment.Kept(self.arguments.work)
        if widths_by == UNIFORM and theirs.has(same):
            return {"bits": float(bits), "way": way, "kl": theirs.read(same)["kl"]}
        widths = self.widths(float(bits), widths_by)
        stage = Quantize(
            bits=int(bits),
            overrides={
                view.name: SchemeSettings(bits=CHOICES[choice].bits)
                for group, choice in zip(self.groups, widths, strict=True)
                for view in group.views
                if choice != bits
            },
            seed=0,
            **(low_bits.ALIKE | low_bits.OURS[rounding]),
        )
        place = self.arguments.work / "mixed" / f"learned-{experiment.digest(str(stage.canonical()))[:12]}"
        place.mkdir(exist_ok=True)
        if not (place / "statistics").exists():
            collected = low_bits.directory_of_statistics(self.arguments.work, 0, stage) / "statistics"
            collected.mkdir(parents=True, exist_ok=True)
            (place / "statistics").symlink_to(collected.resolve())
        made = stage(self.model, work_dir=place, progress=True).module
        values = {view.name: view.tensor.float() for view in matrices(made)}
        return {"bits": float(bits), "way": way, "kl": self.divergences(values)}

    def command(self, bits: str) -> dict[str, Any]:
        """What a target of so many bits gives, the knapsack's first answer corrected by measuring the whole model.

        It keeps more windows back to measure on, so that its statistics are of other windows of the same text. At three
        bits it is the checkpoint of 100 MB of `low_bits.py` where that has been measured.
        """
        same, theirs = "draw 0, 3 bits, target-100MB", experiment.Kept(self.arguments.work)
        if bits == "3" and theirs.has(same):
            return {"bits": 3.0, "way": COMMAND, "kl": theirs.read(same)["kl"]}
        stage = Quantize(
            target=f"{bits}bits",
            group_size=low_bits.GROUP,
            tokens=low_bits.TOKENS,
            length=low_bits.LENGTH,
            seed=0,
            calibration=low_bits.TEXT,
            **low_bits.YAQA_A,
            refit=1,
        )
        place = self.arguments.work / "mixed" / "command"  # statistics and rounded values are those of every target
        place.mkdir(exist_ok=True)
        ctx = Context({}, place, "cpu", seeded_generator(0), Progress(), Ledger(None))
        made = stage.run(self.model, ctx).module
        told = {row["name"]: row["rows"] for row in ctx.ledger.rows if row["row"] == "table"}
        values = {view.name: view.tensor.float() for view in matrices(made)}
        weights: dict[str, int] = dict.fromkeys(WHOLE, 0)
        for row, group in zip(told["widths"], self.groups, strict=True):
            weights[str(row["bits"])] += group.num_weights
        found = {"bits": float(bits), "way": COMMAND, "kl": self.divergences(values), "weights": weights}
        return found | {"bytes": sum(row["bytes"] for row in told["widths"]), "tried": told["widths tried"]}

    def beside_the_command(self, bits: str) -> dict[str, Any]:
        """Widths that nobody chose, of the values that the command has kept."""
        place, found = self.arguments.work / "mixed" / "command" / "widths", {}
        widths = self.widths(float(bits), UNIFORM if bits == "3" else HALVES)
        width_of = {v.name: width for group, width in zip(self.groups, widths, strict=True) for v in group.views}
        for width in sorted(set(widths)):
            for file in place.glob(f"*-{width}bits/values.safetensors"):
                found |= {name: value for name, value in load_file(file).items() if width_of[name] == width}
        return {"bits": float(bits), "way": BESIDE[float(bits)], "kl": self.divergences(found)}

    # -- what is measured on -----------------------------------------------------------------------------------------

    def divergences(self, values: Mapping[str, Tensor], outside: Sequence[MatrixView] = ()) -> dict[str, list[float]]:
        originals = {domain: self.original(domain) for domain in low_bits.DOMAINS}  # before anything is rounded
        with filled(self.views, values):
            kl = {domain: original.divergence(outside, values) for domain, original in originals.items()}
        print("  " + ", ".join(f"{domain} {np.mean(kl[domain]):.4f}" for domain in kl), flush=True)
        return kl

    def original(self, domain: str) -> Original:
        if domain not in self.originals:
            self.originals[domain] = Original(self.dense, self.reporting(domain))
        return self.originals[domain]

    def reporting(self, domain: str) -> Tensor:
        return low_bits.windows_of_domain(self.model, self.arguments.data, domain)


def knapsack(
    costs: Sequence[Sequence[float]], groups: Sequence[Group], choices: Sequence[str], bits: float
) -> list[str]:
    """The choice of every group within what all groups take at a width, or halfway between two."""
    sizes = [[bytes_of(group, choice) for choice in choices] for group in groups]
    whole = [sum(bytes_of(group, choice) for group in groups) for choice in WHOLE]
    budget = round(float(np.interp(bits, [int(choice) for choice in WHOLE], whole)))
    return [choices[place] for place in allocate(costs, sizes, budget)]


def bytes_of(group: Group, choice: str) -> int:
    return sum(CHOICES[choice].num_bytes(*view.shape, 2) for view in group.views)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: whole models, the forecast's ranks, and a domain's own map."""
    rows = results["rows"]
    models = {(row["bits"], row["way"]): row for row in rows if row["kind"] in ("model", "learned", *ASKED)}
    main = []
    for (bits, way), row in sorted(models.items(), key=lambda item: item[0][0]):
        base = models.get((bits, UNIFORM if bits == 3 else HALVES))
        if row["kind"] == "learned":
            base = models.get((bits, BESIDE_LEARNED.get(way, "")))
        elif row["kind"] in ASKED:
            base = models.get((bits, BESIDE[bits]))
        against = [
            "" if base in (None, row) else experiment.cell(experiment.ratio(row["kl"][d], base["kl"][d]), ".2f")
            for d in low_bits.DOMAINS
        ]
        total = sum(row.get("weights", {}).values())
        shares = ", ".join(
            f"{choice}: {count / total:.0%}" for choice, count in sorted(row.get("weights", {}).items()) if count
        )
        main.append([f"{bits:g}", way, shares, *(f"{np.mean(row['kl'][d]):.3f}" for d in low_bits.DOMAINS), *against])
    names = " | ".join(low_bits.DOMAINS.values())
    beside = " | ".join(f"{name}, ratio (95 %)" for name in low_bits.DOMAINS.values())
    foretold = " | ".join(f"rank correlation, forecast {way}" for way in WAYS)
    return {
        "main": experiment.table(f"bits | widths | weights at bits | {names} | {beside}", main),
        "rank": experiment.table(f"bits | groups | {foretold} | measured / forecast as rounded", ranks(rows)),
        "embedding": experiment.table("bits of the embedding | foretold, nats per token | measured", embedding(rows)),
        "files": experiment.table(
            f"target | MB of the file | embedding | its bits | layers' weights at bits | {names} | {beside}",
            files(rows),
        ),
        "domains": experiment.table(
            "measured on | map of | groups as in the general map | KL | against the general map (95 %)", domains(rows)
        ),
    }


def ranks(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """For every width and for all: correlations, and the middle eight tenths of measured over foretold."""
    found = []
    for choice in (*RANKED, "all"):
        some = [one for row in rows if row["kind"] == "rank" for one in row["rows"] if choice in (one["choice"], "all")]
        if not some:
            continue
        correlations = [spearmanr([one["kl"] for one in some], [one[way] for one in some])[0] for way in WAYS]
        low, high = np.quantile([one["kl"] / one[BOTH] for one in some], (0.1, 0.9))
        found.append([choice, len(some), *(f"{value:.2f}" for value in correlations), f"{low:.2f} to {high:.2f}"])
    return found


def embedding(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """What every width of the embedding is foretold to cost, and what was measured."""
    found = next((row for row in rows if row["kind"] == "costs" and "embedding" in row), {"embedding": {}})
    measured = found.get("measured", {})
    return [
        [bits, f"{cost:.4f}", f"{measured[bits]:.4f}" if bits in measured else ""]
        for bits, cost in found["embedding"].items()
    ]


def files(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """A chosen width of the embedding beside a given one, for every size."""
    of_size = {(row["size"], row["embedding"]): row for row in rows if row["kind"] == "file"}
    found = []
    for size, embedding in FILES:
        if (size, embedding) not in of_size:
            continue
        row, base = of_size[size, embedding], of_size.get((size, "8"))
        cells = [
            ""
            if base in (None, row)
            else experiment.cell(experiment.ratio(row["kl"][domain], base["kl"][domain]), ".2f")
            for domain in low_bits.DOMAINS
        ]
        total = sum(row["weights"].values())
        shares = ", ".join(f"{width}: {count / total:.0%}" for width, count in row["weights"].items() if count)
        how = "chosen" if embedding == "auto" else "given"
        means = [f"{np.mean(row['kl'][domain]):.3f}" for domain in low_bits.DOMAINS]
        found.append([size, f"{row['bytes'] / 1e6:.1f}", how, row["embedding_bits"], shares, *means, *cells])
    return found


def domains(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Every domain under every map."""
    found = []
    for row in rows:
        if row["kind"] != "domains":
            continue
        general = row["kl"]["general"]
        for whose, kl in row["kl"].items():
            against = "" if whose == "general" else experiment.cell(experiment.ratio(kl, general), ".3f")
            same = f"{row['same_as_general'][whose]:.0%}"
            found.append([low_bits.DOMAINS[row["domain"]], whose, same, f"{np.mean(kl):.4f}", against])
    return found


if __name__ == "__main__":
    main()
