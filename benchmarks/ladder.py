"""What do ladder residuals cost a model that was not trained with them, and what of an all-reduce do they hide?

    python benchmarks/ladder.py --model models/smollm2 --data DIR --work WORK [--minutes 25]

Quality: KL(original || converted) and perplexity of SmolLM2-135M on windows of WikiText-2 test and of the programs of
HumanEval (DIR has humaneval.jsonl.gz), which are used for nothing else; `auto:N` chooses on WikiText-2 valid and as
much of Python's standard library.

Overlap: two processes over gloo share a small Llama. Every sub-block of it is made to compute for so many milliseconds,
asleep or multiplying matrices, and every all-reduce to take as many, on a thread of its own. A forward pass with
ladders and one without take turns; the trace of the best one says how much of the communication lay under computation.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import care
import experiment
import torch
import torch.distributed as dist
from torch import Tensor, nn

from burnish.convert.ladder import costs, ladder, places
from burnish.convert.maths.ladder_time import NO_P2P, NVLINK, decoding_step
from burnish.core.checkpoint.modeling_ladder import split
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.data import read_texts, windows

LENGTH = 64 if experiment.SMOKE else 256
WINDOWS = 2 if experiment.SMOKE else 6
CHOICE_TOKENS, CHOICE_LENGTH = (64, 32) if experiment.SMOKE else (256, 128)
"""Calibration tokens that `auto:N` and the costs of layers are measured on, half of each kind."""
LAYERS = ("last:8",) if experiment.SMOKE else ("last:4", "last:8", "auto:8", "auto:4")

NUM_LAYERS = 2 if experiment.SMOKE else 8
ROUNDS = 2 if experiment.SMOKE else 8
LOADS = {"5 ms asleep": (5, False), "20 ms asleep": (20, False), "5 ms of products": (5, True)}
"""{name: (milliseconds of computation and of communication, whether it is computed)}."""

Interval = tuple[float, float]
"""Seconds from begin to end."""


class Bench(care.TwoTexts):
    """All measurements; those of quality keep what they need of the original."""

    length, num_windows = LENGTH, WINDOWS

    def names(self) -> list[str]:
        qualities = [f"quality, {layers}" for layers in ("original", *LAYERS)]
        return [*(f"overlap, {name}" for name in LOADS), *qualities, "layers, last:8"]

    def measure(self, name: str) -> dict[str, Any]:
        what, _, which = name.partition(", ")
        if what == "overlap":
            return overlap(*LOADS[which])
        if what == "layers":
            return {"costs": self.layer_costs(which)}
        found: dict[str, Any] = self.choice(which)
        network = ladder(self.source.module, found["layers"])
        for kind, ids in self.reporting.items():
            hidden = care.last_hidden(network, ids)
            found[kind] = {
                "kl": [sum(row) / len(row) for row in care.divergence(self.source.module, self.hidden[kind], hidden)],
                "nats": losses(self.source.module, hidden, ids),
            }
        return found

    @cached_property
    def tuning(self) -> Tensor:
        """Half of each kind."""
        found = []
        for texts in (read_texts("wikitext2-valid"), care.library_sources()):
            every = windows(self.source.tokenizer, texts, CHOICE_LENGTH, max_chars=1_500_000)
            found.append(care.spread(every, CHOICE_TOKENS // 2 // CHOICE_LENGTH, seed=0))
        return torch.cat(found)

    def costs(self, runs: list[list[int]]) -> list[float]:
        return costs(ladder(self.source.module, []), runs, self.tuning, Progress(enabled=False), "")

    def choice(self, which: str) -> dict[str, Any]:
        """Numbers of layers, and of `auto:N` what every place costs."""
        if which == "original":
            return {"layers": []}
        runs = places(which, self.source.config.num_hidden_layers)
        if len(runs) == 1:
            return {"layers": runs[0]}
        found = self.costs(runs)
        return {"layers": runs[found.index(min(found))], "places": found}

    def layer_costs(self, which: str) -> list[dict[str, float]]:
        """Nats a token of every layer alone, and with those behind it."""
        chosen = self.choice(which)["layers"]
        found = self.costs([[layer] for layer in chosen] + [chosen[place:] for place in range(len(chosen))])
        halves = found[: len(chosen)], found[len(chosen) :]
        return [{"layer": layer, "alone": one, "behind": two} for layer, one, two in zip(chosen, *halves, strict=True)]

    def slices(self) -> dict[str, list[str]]:
        reporting = [experiment.digest(ids) for ids in self.reporting.values()]
        return {"tuning": [experiment.digest(self.tuning)], "reporting": reporting}


@torch.no_grad()
def losses(source: Any, hidden: Tensor, ids: Tensor) -> list[float]:
    """Mean cross-entropy of the next token in every window, by the original's head."""
    head, found = source.get_output_embeddings(), []
    for states, window in zip(hidden, ids, strict=True):
        parts = zip(states[:-1].split(64), window[1:].split(64), strict=True)
        found.append(sum(float(nn.functional.cross_entropy(head(h), t, reduction="sum")) for h, t in parts))
    return [total / (ids.shape[1] - 1) for total in found]


# -- overlap -----------------------------------------------------------------------------------------------------------


class Delayed(dist.ProcessGroup):
    """Sums over ranks that take longer, one after the other on a thread of their own, as on a stream of a GPU.

    Args:
        inner: the group that sums.
        seconds: that every sum takes longer.
        name: by which functional collectives find it.
    """

    def __init__(self, inner: dist.ProcessGroup, seconds: float, name: str) -> None:
        super().__init__(inner.rank(), inner.size())
        self.inner, self.seconds, self.name = inner, seconds, name
        self.stream = ThreadPoolExecutor(1)
        self.times: list[Interval] = []
        torch._C._distributed_c10d._register_process_group(name, self)

    @property
    def group_name(self) -> str:
        return self.name

    def getBackendName(self) -> str:
        return "delayed"

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> Any:
        future: Any = torch.futures.Future()

        def communicate() -> None:
            started = time.perf_counter()
            time.sleep(self.seconds)
            dist.all_reduce(tensors[0], group=self.inner)
            self.times.append((started, time.perf_counter()))
            future.set_result(tensors)

        self.stream.submit(communicate)
        return torch._C._distributed_c10d._create_work_from_future(future)


class Computing:
    """Makes every sub-block compute for so long, and notes when."""

    def __init__(self, seconds: float, products: bool) -> None:
        self.seconds, self.products = seconds, products
        self.times: list[Interval] = []
        self.matrix = torch.ones(128, 128)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        started = time.perf_counter()
        if self.products:
            while time.perf_counter() < started + self.seconds:
                self.matrix @ self.matrix
        else:
            time.sleep(self.seconds)
        self.times.append((started, time.perf_counter()))


def overlap(milliseconds: int, products: bool) -> dict[str, Any]:
    """Seconds of forward passes with and without ladders, in turns, and the timeline of the best of each."""
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.spawn(rank_of_two, (Path(place), milliseconds / 1000, products), nprocs=2)
        found = json.loads((Path(place) / "found.json").read_text())
    return found | {"under": {side: share_under(*found["trace"][side]) for side in found["trace"]}}


@torch.no_grad()
def rank_of_two(rank: int, place: Path, seconds: float, products: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'store'}", rank=rank, world_size=2)
    inner = dist.group.WORLD
    assert inner is not None
    computing, group = Computing(seconds, products), Delayed(inner, seconds, "delayed")
    module, ids = small_model(), torch.ones(1, 1, dtype=torch.long)
    sides = {"standard": ladder(module, []), "ladder": ladder(module, range(NUM_LAYERS))}
    for network in sides.values():
        split(network, group)
        for layer in network.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(computing)
            layer.mlp.down_proj.register_forward_pre_hook(computing)
    timelines: dict[str, list[tuple[list[Interval], list[Interval]]]] = {side: [] for side in sides}

    def forward(side: str) -> Callable[[], None]:
        def run() -> None:
            computing.times, group.times = [], []
            sides[side](input_ids=ids, use_cache=False)
            timelines[side].append((group.times, computing.times))
            dist.barrier(group=inner)

        return run

    taken = experiment.turns({side: forward(side) for side in sides}, ROUNDS, clock=time.perf_counter)
    if rank == 0:
        best = {side: min(range(ROUNDS), key=seconds.__getitem__) for side, seconds in taken.items()}
        trace = {side: timelines[side][number + 1] for side, number in best.items()}  # the first warms up
        (place / "found.json").write_text(json.dumps({"seconds": taken, "trace": trace}))
    group.stream.shutdown()
    dist.destroy_process_group()


def small_model() -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = {"num_hidden_layers": NUM_LAYERS, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 64}
    return AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()


def share_under(communication: Sequence[Interval], computation: Sequence[Interval]) -> float:
    """The share of the time of communication in which something was computed; neither overlaps with itself."""
    under = sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in communication
        for other_begin, other_end in computation
    )
    return under / sum(end - begin for begin, end in communication)


def chrome_trace(trace: dict[str, Sequence[Sequence[Interval]]]) -> list[dict[str, Any]]:
    """The timelines as events that Perfetto and chrome://tracing show."""
    return [
        {"name": name, "ph": "X", "pid": side, "tid": name, "ts": 1e6 * begin, "dur": 1e6 * (end - begin)}
        for side, parts in trace.items()
        for name, times in zip(("communication", "computation"), parts, strict=True)
        for begin, end in times
    ]


# -- the results -------------------------------------------------------------------------------------------------------


def content(bench: Bench) -> dict[str, Any]:
    """All that has been measured, without the timelines, which are kept beside."""
    runs = {name: bench.read(name) for name in bench.names()}
    for name, found in runs.items():
        if "trace" in found:
            events = chrome_trace(found.pop("trace"))
            (bench.directory / f"{bench.file(name).stem}.trace").write_text(json.dumps(events))
    settings = {"length": LENGTH, "windows": WINDOWS, "choice_tokens": CHOICE_TOKENS, "layers": NUM_LAYERS}
    return {"settings": settings, "slices": bench.slices(), "runs": runs}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    runs = results["runs"]
    return {
        "quality": experiment.table(
            "layers in a ladder | which | KL, WikiText-2 (95 %): | perplexity: | KL, code (95 %): | perplexity:",
            quality_rows(runs),
        ),
        "pairs": experiment.table(
            "KL, over that of the last layers | WikiText-2 (95 %, paired): | code (95 %, paired):", pair_rows(runs)
        ),
        "layers": experiment.table(
            "layer | nats a token, alone: | with those behind it:",
            [[row["layer"], f"{row['alone']:.3f}", f"{row['behind']:.3f}"] for row in runs["layers, last:8"]["costs"]],
        ),
        "overlap": experiment.table(
            "a sub-block, and an all-reduce | standard, best of 8, ms: | ladder: | ratio: | median of ratios: "
            "| communication under computation, standard: | ladder:",
            overlap_rows(runs),
        ),
        "price": experiment.table(
            "ranks | sequences | NVLink, predicted | published | without P2P, predicted | published", price_rows()
        ),
    }


def quality_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    for name, found in runs.items():
        if not name.startswith("quality, "):
            continue
        numbers, cells = found["layers"], []
        for kind in care.KINDS:
            kl = torch.tensor(found[kind]["kl"]).numpy()
            cells.append(experiment.cell(interval(kl, scale="log")) if numbers else "0")
            cells.append(f"{math.exp(sum(found[kind]['nats']) / len(found[kind]['nats'])):.1f}")
        yield [name.partition(", ")[2], f"{numbers[0]} to {numbers[-1]}" if numbers else "none", *cells]


def pair_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    """Chosen layers against as many at the end, window by window."""
    for number in (4, 8):
        ours, theirs = (runs.get(f"quality, {how}:{number}") for how in ("auto", "last"))
        if ours and theirs:
            ratios = [experiment.ratio(ours[kind]["kl"], theirs[kind]["kl"]) for kind in care.KINDS]
            yield [f"auto:{number}", *(experiment.cell(one, ".2f") for one in ratios)]


def overlap_rows(runs: dict[str, Any]) -> Iterator[list[Any]]:
    for name, found in runs.items():
        if name.startswith("overlap, "):
            standard, with_ladders = (found["seconds"][side] for side in ("standard", "ladder"))
            ratios = sorted(b / a for a, b in zip(standard, with_ladders, strict=True))
            middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
            yield [
                name.partition(", ")[2],
                *(f"{1000 * min(side):.0f}" for side in (standard, with_ladders)),
                f"{min(with_ladders) / min(standard):.2f}",
                f"{middle:.2f}",
                *(f"{found['under'][side]:.0%}" for side in ("standard", "ladder")),
            ]


PUBLISHED = (
    *((1, 2, 36.7 / 35.4, 36.9 / 33.8), (1, 4, 67.5 / 59.4, 66.6 / 53.4), (1, 8, 101.2 / 77.4, 82.6 / 51.7)),
    *((4, 8, 331.5 / 258.6, 271.8 / 173.6), (16, 8, 1004 / 843, 739 / 547), (64, 8, 2242 / 1941, 1864 / 1454)),
)
"""Sequences, ranks, tokens a second with ladders over those without, by NVLink and without P2P."""


def price_rows() -> Iterator[list[Any]]:
    """The time model beside the published gains of a model of 70 billion parameters."""
    for batch, ranks, *published in PUBLISHED:
        model = {"num_layers": 80, "hidden_size": 8192, "weight_bytes": 141_100_000_000}
        gains = [decoding_step(**model, ranks=ranks, batch=batch, link=link).speed_up for link in (NVLINK, NO_P2P)]
        cells = [f"{value:.2f}" for pair in zip(gains, published, strict=True) for value in pair]
        yield [ranks, batch, *cells]


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True, help="directory with humaneval.jsonl.gz")
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    note = (
        "one thread a process, shared with other work but for overlap; seconds of overlap by the clock, of 8 rounds "
        "the best"
    )
    experiment.answer(bench, arguments, __doc__, lambda: content(bench), tables, note=note)


if __name__ == "__main__":
    main()
