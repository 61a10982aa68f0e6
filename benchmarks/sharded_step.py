"""What does a sharded NorMuon step cost, in time, memory and traffic, on 1, 2 and 4 processes, and is traffic hidden?

    python benchmarks/sharded_step.py [--processes 1 2 4] [--rounds 6] [--again]

The matrices of eight decoder layers (width 256, SwiGLU of 704), sharded by FSDP2, random gradients, float32, gloo. Each
process counts its own CPU seconds, so that processes which share cores can be compared, and the highest resident memory
above what it had before the model was made. The same steps are taken with the rounds overlapped, as they are, and one
after the other, in turn; profiles of further steps say how much of the all-to-alls' time the process was working in.
Last, two steps of torch.optim.Muon on the same shards, in float32 too, the second timed: what one gets without this.

A number of processes that has been measured is not measured again without `--again`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import experiment

LAYER = [(256, 256), (64, 256), (64, 256), (256, 256), (704, 256), (704, 256), (256, 704)]
LAYERS = 1 if experiment.SMOKE else 8


def memory(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def one_process(rank: int, num: int, rounds: int, directory: str) -> None:
    import torch
    import torch.distributed as dist
    from optimizer_step import float32_muon
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    import burnish.optim.exchange as exchange
    import burnish.optim.normuon as single
    import burnish.optim.sharded_normuon as sharded
    from burnish.optim import NorMuon

    torch.set_num_threads(1)
    rendezvous = f"file://{directory}/rendezvous{num}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num)
    mesh = init_device_mesh("cpu", (num,))
    generator = torch.Generator().manual_seed(0)

    def make(shapes: list[tuple[int, int]]) -> list[torch.nn.Parameter]:
        """Sharded parameters with gradients."""
        layers = []
        for shape in shapes:
            layer = nn.Module()
            layer.register_parameter("weight", nn.Parameter(0.02 * torch.randn(shape, generator=generator)))
            layers.append(fully_shard(layer, mesh=mesh))
        parameters = [parameter for layer in layers for parameter in layer.parameters()]
        for parameter in parameters:
            full = torch.randn(parameter.shape, generator=generator)
            placements = parameter.placements  # type: ignore[attr-defined]
            parameter.grad = distribute_tensor(full, mesh, placements, src_data_rank=None)
        return parameters

    NorMuon(make([(8, 8)]), lr=1e-3).step()  # what is loaded at the first use is not counted
    before = memory("VmRSS")
    parameters = make(LAYER * LAYERS)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark counts from here
    optimizer = NorMuon(parameters, lr=1e-3)
    held = sum(p.to_local().numel() * 4 * 3 for p in parameters)  # type: ignore[attr-defined]

    def one_after_the_other(computations: Any) -> None:
        for computation in computations:
            for _ in computation:
                pass

    ways = {"overlapped": sharded.overlapped, "one after the other": one_after_the_other}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in sorted(ways, reverse=bool(number % 2)):
            sharded.overlapped = ways[way]
            dist.barrier()
            started, worked = time.perf_counter(), time.process_time()
            optimizer.step()
            if number:  # the first step compares the processes and plans
                seconds[way].append(time.perf_counter() - started)
                cpu[way].append(time.process_time() - worked)
    sharded.overlapped = ways["overlapped"]
    peak = memory("VmHWM") - before

    matrices = 0
    orthogonalised = single.orthogonalised

    def counted(batch: torch.Tensor, *arguments: Any) -> torch.Tensor:
        nonlocal matrices
        matrices += len(batch) if batch.ndim == 3 else 1
        return orthogonalised(batch, *arguments)

    single.orthogonalised = exchange.orthogonalised = counted
    traces = []
    for _ in range(5):
        matrices = 0
        dist.barrier()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        traces.append(traffic(profile))
    del optimizer

    stock = torch.optim.Muon(parameters, lr=1e-3)
    Path("/proc/self/clear_refs").write_text("5")
    took = (0.0, 0.0)
    with float32_muon():
        for _ in range(2):
            dist.barrier()
            started, worked = time.perf_counter(), time.process_time()
            stock.step()
            took = time.perf_counter() - started, time.process_time() - worked
    found = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "weights_gradients_state_bytes": held,
        "orthogonalisations": matrices,
        "torch_muon": {"seconds": took[0], "cpu_seconds": took[1], "peak_bytes": memory("VmHWM") - before},
        "traces": [{key: value for key, value in trace.items() if key != "milliseconds"} for trace in traces],
        "last_trace_milliseconds": traces[-1]["milliseconds"] if num == 2 else {},
    }
    (Path(directory) / f"{num}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def traffic(profile: Any) -> dict[str, Any]:
    """From the trace of one step: when all-to-alls were under way, when the process worked, and for how long both."""
    events = profile.events()
    moving = merged([e for e in events if e.name == "gloo:all_to_all"])
    products = merged([e for e in events if e.name in ("aten::baddbmm", "aten::bmm")])
    work = merged([e for e in events if e.name.startswith("aten::")])
    first = min(start for start, _ in work)
    return {
        "all_to_alls": sum(e.name == "gloo:all_to_all" for e in events),
        "in_flight_seconds": length(moving),
        "beside_products_seconds": length(common(moving, products)),
        "beside_work_seconds": length(common(moving, work)),
        "product_seconds": length(products),
        "milliseconds": {
            name: [[round((start - first) / 1e3, 2), round((end - first) / 1e3, 2)] for start, end in spans]
            for name, spans in {"all-to-alls under way": moving, "matrix products": products}.items()
        },
    }


Spans = list[tuple[float, float]]
"""Times from and to, in microseconds, one after the other."""


def length(spans: Spans) -> float:
    """In seconds."""
    return sum(end - start for start, end in spans) / 1e6


def common(ours: Spans, theirs: Spans) -> Spans:
    """What lies in both."""
    both = [(max(a, c), min(b, d)) for a, b in ours for c, d in theirs]
    return [(start, end) for start, end in both if start < end]


def merged(events: list[Any]) -> Spans:
    """When at least one of them was going on."""
    result: Spans = []
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def sent_elements(num: int) -> list[int]:
    """Elements that each process sends to others in one step, both ways, from the plan."""
    from burnish.optim.exchange import ROUND_ELEMENTS
    from burnish.optim.maths.ownership import Spread, borders, received, rounds, sent

    spreads = [Spread(rows, cols, borders(rows, num), True) for rows, cols in LAYER * LAYERS]
    plan = rounds(spreads, num, ROUND_ELEMENTS["cpu"])
    return [
        sum(sum(way(one, spreads, r)) - way(one, spreads, r)[r] for one in plan for way in (sent, received))
        for r in range(num)
    ]


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--again", action="store_true", help="measure what has been measured")
    arguments = parser.read()
    import torch

    with experiment.results(arguments.out, {"processes": {}}) as known:
        found = known["processes"]
    for num in arguments.processes:
        if str(num) in found and not arguments.again:
            continue
        with tempfile.TemporaryDirectory() as directory:
            torch.multiprocessing.spawn(one_process, args=(num, arguments.rounds, directory), nprocs=num)
            ranks = [json.loads((Path(directory) / f"{num}-{rank}.json").read_text()) for rank in range(num)]
        for rank, elements in zip(ranks, sent_elements(num), strict=True):
            rank["sent_bytes"] = elements * 4
        found[str(num)] = ranks
        sizes = {"parameters": sum(rows * cols for rows, cols in LAYER * LAYERS), "matrices": len(LAYER) * LAYERS}
        note = "one thread per process, float32, gloo"
        experiment.record(arguments.out, __doc__, sizes | {"processes": found}, note=note)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    step, overlap, stock = [], [], []
    for num, ranks in sorted(results["processes"].items(), key=lambda entry: int(entry[0])):
        # A step ends when the slowest process ends.
        wall = {
            way: statistics.median(max(times) for times in zip(*(r["seconds"][way] for r in ranks), strict=True))
            for way in ranks[0]["seconds"]
        }
        cpu = max(statistics.median(rank["cpu_seconds"]["overlapped"]) for rank in ranks)
        peak, held = (max(rank[key] for rank in ranks) for key in ("peak_bytes", "weights_gradients_state_bytes"))
        sent = max(rank["sent_bytes"] for rank in ranks)
        shares = sorted({rank["orthogonalisations"] for rank in ranks})
        matrices = " to ".join(map(str, [*shares[:1], *shares[1:][-1:]]))
        traffic = [f"{sent / 1e6:.1f}", f"{held / 1e6:.1f}", f"{peak / 1e6:.0f}"]
        times = [f"{wall['overlapped']:.2f}", f"{wall['one after the other']:.2f}", f"{cpu:.2f}"]
        step.append([num, *times, matrices, *traffic])
        theirs = {key: max(rank["torch_muon"][key] for rank in ranks) for key in ("cpu_seconds", "peak_bytes")}
        used = [f"{peak / 1e6:.0f}", f"{theirs['peak_bytes'] / 1e6:.0f}"]
        stock.append([num, f"{cpu:.2f}", f"{theirs['cpu_seconds']:.2f}", *used])
        if int(num) > 1:
            keys = ("in_flight_seconds", "beside_products_seconds", "beside_work_seconds")
            traces = [trace for rank in ranks for trace in rank["traces"]]
            moving, products, work = (statistics.mean(trace[key] for trace in traces) for key in keys)
            shares = [f"{100 * part / moving:.0f} %" for part in (products, work)]
            overlap.append([num, traces[0]["all_to_alls"], f"{moving:.2f}", *shares])
    return {
        "step": experiment.table(
            "processes | step, s | rounds one after the other, s | CPU s per process | matrices orthogonalised by each "
            "| sent by each, MB | weights, gradients, state, MB | peak memory, MB",
            step,
        ),
        "overlap": experiment.table(
            "processes | all-to-alls of each | under way, s | of that beside matrix products | beside any work", overlap
        ),
        "stock": experiment.table(
            "processes | CPU s per process, NorMuon | torch.optim.Muon | peak memory, MB, NorMuon | torch.optim.Muon",
            stock,
        ),
    }


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """{picture: svg}: the trace of one step of two processes, as bars over time."""
    from picture import INK, PAPER, RULE, SERIES

    ranks = results["processes"]["2"]
    end = max(span[1] for rank in ranks for spans in rank["last_trace_milliseconds"].values() for span in spans)
    left, width, bar, top = 232, 640, 18, 16
    rows = [
        (f"process {number}, {name}", spans)
        for number, rank in enumerate(ranks)
        for name, spans in rank["last_trace_milliseconds"].items()
    ]
    bottom = top + len(rows) * (bar + 12)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 24} {bottom + 34}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}" role="img">',
        "<title>One step of two processes</title>",
        "<desc>Bars where all-to-alls were under way and where matrices were multiplied</desc>",
        f'<rect width="{left + width + 24}" height="{bottom + 34}" fill="{PAPER}"/>',
    ]
    for tick in range(0, int(end) + 1, 50):
        x = left + width * tick / end
        parts.append(f'<path d="M{x:.1f} {top - 4}V{bottom}" stroke="{RULE}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{left + width}" y="{bottom + 31}" text-anchor="end">milliseconds</text>')
    for number, (name, spans) in enumerate(rows):
        y = top + number * (bar + 12)
        parts.append(f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{name}</text>')
        for start, stop in spans:
            at, long = left + width * start / end, max(0.5, width * (stop - start) / end)
            parts.append(f'<rect x="{at:.1f}" y="{y}" width="{long:.1f}" height="{bar}" fill="{SERIES[number % 2]}"/>')
    return {"trace": "\n".join([*parts, "</svg>"]) + "\n"}


if __name__ == "__main__":
    main()
