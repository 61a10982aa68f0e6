"""What does latent attention with a smaller cache cost, and which part of the conversion costs it?

    python benchmarks/care.py --model models/smollm2 --data DIR --work WORK [--seed 0] [--minutes 25]

SmolLM2-135M is converted without healing: calibration windows are drawn with a seed from WikiText-2 valid and, as many,
from the sources of Python's standard library; DIR has humaneval.jsonl.gz. Reported is KL(original || converted) on
windows of WikiText-2 test and of HumanEval's programs, which are used for nothing else. All conversions of a seed start
from the same moments of the original activations, but for those called "as shipped", which convert each layer on the
converted ones before it. What has been measured is not measured again; the results file is written anew from all of it.
"""

from __future__ import annotations

import gzip
import json
import sysconfig
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import experiment
import torch

from burnish.convert.stage import LatentAttention
from burnish.core.checkpoint import Model, cast, load
from burnish.core.statistics import interval
from burnish.core.store import Store
from burnish.data import read_texts, windows

LENGTH = 64 if experiment.SMOKE else 512
TOKENS = 8 * LENGTH if experiment.SMOKE else 10 * LENGTH
"""Calibration tokens of each kind."""
WINDOWS = 2 if experiment.SMOKE else 6
"""Reporting windows of each kind."""
LONG = 128 if experiment.SMOKE else 4096
KINDS = ("wikitext", "code")

EXACT = {"engine": "transformers", "norm": "bias", "sequential": False}
"""Nothing is lost to the norm, so that one part is seen at a time."""
HALF = {"rank": 129, "rope_dim": 64}
"""Half of SmolLM2's 384 numbers, and one for the constant."""
HEAL_TOKENS = 256 if experiment.SMOKE else 16_384
WHOLE = {"rank": 321, "rope_dim": 64, "allow_larger": True}
"""The latent is of full rank, so that only rotations are lost."""

OBJECTIVES = ("attention", "transmla", "svd", "two-sided", "care")
ROPES = ("free", "grid", "rorope", "freqfold:4")
CACHES = (0.5, 0.75, 1 / 3)
SHARES = (32, 96, 128)
NORMS = ("functional", "fold")

OF_HALF = {"engine": "transformers", "sequential": False, "rank": 128, "rope_dim": 64}

SETTINGS: dict[str, dict[str, Any]] = {
    **{f"objective {name}": EXACT | HALF | {"objective": name} for name in OBJECTIVES},
    **{f"rotations {name}": EXACT | WHOLE | {"rope": name} for name in ROPES},
    "as shipped vllm": {"cache": 0.5},
    **{f"norm {norm}": OF_HALF | {"norm": norm} for norm in NORMS},
    **{f"cache {share:.2f}": EXACT | {"cache": share} for share in CACHES},
    "as shipped transformers": {"cache": 0.5, "engine": "transformers"},
    "as shipped vllm healed": {"cache": 0.5, "heal_tokens": HEAL_TOKENS},
    "as shipped vllm refitted": {"cache": 0.5, "refit": True},
    **{f"share {rope_dim}": EXACT | {"rank": 193 - rope_dim, "rope_dim": rope_dim} for rope_dim in SHARES},
}
"""In the order of what is asked first, for whoever stops early."""
CLAIMS = (
    *("objective attention", "norm functional", "objective transmla", "as shipped vllm", "rotations free"),
    *("rotations grid", "cache 0.75", "cache 0.33"),
)
"""What the page says something of: all that further seeds measure."""
PAIRS = (("attention", "transmla"), ("transmla", "svd"))
"""Objectives that are compared window by window."""


class TwoTexts(experiment.Kept):
    """What a conversion makes of the original's predictions, on WikiText-2 test and on code."""

    length: ClassVar[int]
    num_windows: ClassVar[int]

    def __init__(self, arguments: Any) -> None:
        super().__init__(arguments.work)
        self.arguments = arguments

    @cached_property
    def source(self) -> Model:
        return load(self.arguments.model, dtype=torch.float32)

    @cached_property
    def reporting(self) -> dict[str, torch.Tensor]:
        texts = {"wikitext": read_texts("wikitext2-test"), "code": programs(self.arguments.data)}
        cut = {kind: windows(self.source.tokenizer, text, self.length) for kind, text in texts.items()}
        return {kind: spread(every, self.num_windows, seed=0) for kind, every in cut.items()}

    @cached_property
    def hidden(self) -> dict[str, torch.Tensor]:
        """Of the original, before its head."""
        return {kind: last_hidden(self.source.module, ids) for kind, ids in self.reporting.items()}


class Bench(TwoTexts):
    """The measurements of one seed."""

    length, num_windows = LENGTH, WINDOWS

    @cached_property
    def reporting(self) -> dict[str, torch.Tensor]:
        long = windows(self.source.tokenizer, read_texts("wikitext2-test"), LONG, max_tokens=LONG)
        return super().reporting | {"long": long}

    @cached_property
    def calibration(self) -> list[str]:
        """Texts of both kinds, as many windows of each, drawn with the seed."""
        tokenizer, found = self.source.tokenizer, []
        for texts in (read_texts("wikitext2-valid"), library_sources()):
            every = windows(tokenizer, texts, LENGTH, max_chars=1_500_000)
            found.append(spread(every, TOKENS // LENGTH, seed=self.arguments.seed))
        return [str(tokenizer.decode(row)) for row in torch.cat(found)]

    def measure(self, name: str) -> dict[str, Any]:
        _, what = name.split(", ")
        stage = LatentAttention(tokens=2 * TOKENS, length=LENGTH, **SETTINGS[what])
        work_dir = self.arguments.work / f"moments-{self.arguments.seed}"
        Store(work_dir / "converted").clear()  # of other settings
        ledger = Tables()
        made = run(stage, load(self.arguments.model), self.calibration, work_dir, ledger)
        module = cast(made.module, torch.float32)
        found: dict[str, Any] = {"rank": module.config.kv_lora_rank, "rope_dim": module.config.qk_rope_head_dim}
        kinds = [*KINDS, "long"] if what.startswith("as shipped") else KINDS
        for kind in kinds:
            found[kind] = divergence(self.source.module, self.hidden[kind], last_hidden(module, self.reporting[kind]))
        found["tables"] = ledger.found
        found["slices"] = {
            "tuning": [experiment.digest("".join(self.calibration))],
            "reporting": [experiment.digest(ids) for ids in self.reporting.values()],
        }
        return found


class Tables:
    """What the stage says of itself."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        self.found[name] = rows


def run(stage: LatentAttention, model: Model, texts: list[str], work_dir: Path, ledger: Any) -> Model:
    """The stage, with its tables kept."""
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator

    stage.plan(model.plan())
    ctx = Context({"calibration": texts}, work_dir, "cpu", seeded_generator(0), Progress(enabled=False), ledger)
    return stage.run(model, ctx)


def programs(directory: Path) -> list[str]:
    """Those of HumanEval, with their answers."""
    with gzip.open(directory / "humaneval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [row["prompt"] + row["canonical_solution"] for row in map(json.loads, lines)]


def library_sources() -> list[str]:
    """Modules of Python's standard library, in the order of their names."""
    directory = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(directory.glob("*.py"))]


def spread(every: torch.Tensor, number: int, *, seed: int) -> torch.Tensor:
    """So many windows, drawn without replacement, in the order of the text."""
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:number]
    return every[chosen.sort().values]


@torch.no_grad()
def last_hidden(module: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([module.base_model(input_ids=row[None], use_cache=False).last_hidden_state for row in ids])


@torch.no_grad()
def divergence(source: Any, original: torch.Tensor, converted: torch.Tensor) -> list[list[float]]:
    """KL(original || converted) of every window, as means over eighths of its positions."""
    head = source.get_output_embeddings()
    found = []
    for first, second in zip(original, converted, strict=True):
        by_position = []
        for ours, theirs in zip(first.split(64), second.split(64), strict=True):
            log_p, log_q = head(ours).log_softmax(-1), head(theirs).log_softmax(-1)
            by_position.append((log_p.exp() * (log_p - log_q)).sum(-1))
        found.append([float(part.mean()) for part in torch.cat(by_position).chunk(8)])
    return found


# -- the results -------------------------------------------------------------------------------------------------------


def summary(work: Path) -> dict[str, Any]:
    """All that has been measured, of every seed."""
    kept = experiment.Kept(work)
    runs: dict[str, dict[str, Any]] = {}
    slices: dict[str, list[str]] = {"tuning": [], "reporting": []}
    for path in sorted(kept.directory.glob("*.json")):
        found = json.loads(path.read_text())
        for use, digests in found.pop("slices").items():
            slices[use] = sorted({*slices[use], *digests})
        seed, _, rest = path.stem.partition("-")
        runs.setdefault(seed, {})[rest.replace("_", " ")] = found
    settings = {"calibration_tokens": 2 * TOKENS, "length": LENGTH, "reporting_windows": WINDOWS, "long": LONG}
    return {"settings": settings | {"runs": SETTINGS}, "slices": slices, "runs": runs}


def values(results: dict[str, Any], name: str, kind: str) -> list[float]:
    """KL of every window, by the mean over seeds."""
    found = [[sum(parts) / len(parts) for parts in run[name][kind]] for run in results["runs"].values() if name in run]
    return [sum(window) / len(window) for window in zip(*found, strict=True)]


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("directory of moments and of what was measured")
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True, help="directory with humaneval.jsonl.gz")
    command.add_argument("--seed", type=int, default=0, help="of the calibration draw")
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    names = [f"{arguments.seed}, {what}" for what in (CLAIMS if arguments.seed else SETTINGS)]
    bench.run(lambda: names, bench.measure, arguments.minutes)
    note = "one thread, shared with other work; CPU times only"
    experiment.record(arguments.out, __doc__, summary(arguments.work), note=note)


def figure(results: dict[str, Any], name: str, kind: str) -> str:
    return experiment.cell(interval(torch.tensor(values(results, name, kind)).numpy(), scale="log"))


def measured(results: dict[str, Any], name: str) -> bool:
    return any(name in run for run in results["runs"].values())


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    titles = {
        "objective": "what the latent is the best one for",
        "rotations": "which pairs turn (latent of full rank)",
        "cache": "share of the cache (widths by predicted error)",
        "share": "rotary channels of 192 numbers",
        "norm": "norm of the latent",
        "as shipped": "as shipped, half of the cache",
    }
    made = {}
    for title, heading in titles.items():
        rows = []
        for name in results["settings"]["runs"]:
            if not name.startswith(f"{title} ") or not measured(results, name):
                continue
            of_name = [run[name] for run in results["runs"].values() if name in run]
            widths = sorted({f"{run['rank']} + {run['rope_dim']}" for run in of_name})
            cells = [figure(results, name, kind) for kind in KINDS]
            rows.append([name.removeprefix(f"{title} "), ", ".join(widths), *cells, len(of_name)])
        header = f"{heading} | rank + rope_dim | KL, WikiText-2 (95 %): | KL, code (95 %): | seeds:"
        made[title.replace(" ", "-")] = experiment.table(header, rows)
    return made | {"pairs": pairs(results), "position": by_position(results)}


def pairs(results: dict[str, Any]) -> str:
    """Ratios of objectives, over the seeds that have both."""
    rows = []
    for ours, theirs in PAIRS:
        names = [f"objective {name}" for name in (ours, theirs)]
        both = {"runs": {seed: run for seed, run in results["runs"].items() if all(name in run for name in names)}}
        if both["runs"]:
            found = [experiment.ratio(*(values(both, name, kind) for name in names)) for kind in KINDS]
            rows.append([f"{ours} over {theirs}", *(experiment.cell(one, ".2f") for one in found), len(both["runs"])])
    return experiment.table("KL over KL | WikiText-2 (95 %, paired): | code (95 %, paired): | seeds:", rows)


def by_position(results: dict[str, Any]) -> str:
    """Divergence in each eighth of a long window, as shipped."""
    eighth = results["settings"]["long"] // 8
    header = ["as shipped", *(f"up to {eighth * (number + 1):,}:" for number in range(8))]
    rows = []
    for name in results["settings"]["runs"]:
        if name.startswith("as shipped ") and measured(results, name):
            found = [run[name]["long"][0] for run in results["runs"].values() if name in run]
            means = [sum(parts) / len(parts) for parts in zip(*found, strict=True)]
            rows.append([name.removeprefix("as shipped "), *(f"{mean:.3f}" for mean in means)])
    return experiment.table(header, rows)


if __name__ == "__main__":
    main()
