"""What does a sharded NorMuon step cost, in time, memory and traffic, on 1, 2 and 4 processes, and is traffic hidden?

    python benchmarks/sharded_step.py [--processes 1 2 4] [--rounds 5]

The matrices of eight decoder layers (width 256, SwiGLU of 704), sharded by FSDP2, random gradients, float32, gloo. Each
process counts its own CPU seconds, so that processes which share cores can be compared, and the highest resident memory
above what it had before the model was made. The same steps are taken once with the rounds overlapped, as they are, and
once one after the other; a profile of one step says how much of the all-to-alls' time the process was working in.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "sharded_step.json"
LAYER = [(256, 256), (64, 256), (64, 256), (256, 256), (704, 256), (704, 256), (256, 704)]
LAYERS = 8


def memory(field: str) -> int:
    """Bytes of resident memory of this process: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def one_process(rank: int, num: int, rounds: int, directory: str) -> None:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    import burnish.optim.sharded as sharded
    from burnish.optim import NorMuon

    torch.set_num_threads(1)
    rendezvous = f"file://{directory}/rendezvous{num}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num)
    mesh = init_device_mesh("cpu", (num,))
    generator = torch.Generator().manual_seed(0)
    before = memory("VmRSS")

    module = nn.Module()
    for number, shape in enumerate(LAYER * LAYERS):
        weight = nn.Parameter(0.02 * torch.randn(shape, generator=generator))
        layer = nn.Module()
        layer.register_parameter("weight", weight)
        fully_shard(layer, mesh=mesh)
        module.add_module(str(number), layer)
    parameters = list(module.parameters())
    for parameter in parameters:
        full = torch.randn(parameter.shape, generator=generator)
        gradient = distribute_tensor(full, mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]
        parameter.grad = gradient
    del full, gradient
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
        for way, run in ways.items():
            sharded.overlapped = run
            dist.barrier()
            started, worked = time.perf_counter(), time.process_time()
            optimizer.step()
            if number:  # the first step compares the processes and plans
                seconds[way].append(time.perf_counter() - started)
                cpu[way].append(time.process_time() - worked)
    sharded.overlapped = ways["overlapped"]
    peak = memory("VmHWM") - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    found = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_bytes": peak,
        "weights_gradients_state_bytes": held,
        **traffic(profile, num),
    }
    (Path(directory) / f"{num}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def traffic(profile: Any, num: int) -> dict[str, float]:
    """From the trace of one step: time that all-to-alls were under way, and how much of it was spent in products."""
    events = profile.events()
    moving = merged([e.time_range for e in events if "all_to_all" in e.name and e.name.startswith("gloo:")])
    working = merged([e.time_range for e in events if e.name in ("aten::baddbmm", "aten::bmm")])
    both = sum(max(0.0, min(b, d) - max(a, c)) for a, b in moving for c, d in working)
    matrices = sum(e.name == "aten::linalg_matrix_norm" for e in events)
    return {
        "all_to_alls": sum(e.name == "gloo:all_to_all" for e in events),
        "in_flight_seconds": sum(b - a for a, b in moving) / 1e6,
        "hidden_seconds": both / 1e6,
        "product_seconds": sum(b - a for a, b in working) / 1e6,
        "orthogonalisations": matrices,
    }


def merged(ranges: list[Any]) -> list[tuple[float, float]]:
    """Time ranges without overlaps among themselves, in microseconds."""
    result: list[tuple[float, float]] = []
    for start, end in sorted((r.start, r.end) for r in ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def sent_elements(num: int) -> list[int]:
    """Elements that each process sends to others in one step, both ways, from the plan."""
    from burnish.optim.maths.ownership import Spread, borders, received, rounds, sent
    from burnish.optim.sharded import ROUND_ELEMENTS

    spreads = [Spread(rows, cols, borders(rows, num), True) for rows, cols in LAYER * LAYERS]
    plan = rounds(spreads, num, ROUND_ELEMENTS["cpu"])
    return [
        sum(sum(way(one, spreads, r)) - way(one, spreads, r)[r] for one in plan for way in (sent, received))
        for r in range(num)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    found = json.loads(RESULTS.read_text())["processes"] if RESULTS.is_file() else {}
    for num in arguments.processes:
        with tempfile.TemporaryDirectory() as directory:
            torch.multiprocessing.spawn(one_process, args=(num, arguments.rounds, directory), nprocs=num)
            ranks = [json.loads((Path(directory) / f"{num}-{rank}.json").read_text()) for rank in range(num)]
        for rank, elements in zip(ranks, sent_elements(num), strict=True):
            rank["sent_bytes"] = elements * 4
        found[str(num)] = ranks
        write(found)


def write(found: dict[str, Any]) -> None:
    """Writes what has been measured so far."""
    import torch

    results = {
        "question": (__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, one thread per process, float32, gloo",
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "slices": {"tuning": [], "reporting": []},
        "parameters": sum(rows * cols for rows, cols in LAYER * LAYERS),
        "matrices": len(LAYER) * LAYERS,
        "processes": found,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    step = [
        "| processes | step, s, overlapped | one after the other | CPU s per process | peak memory per process, MB "
        "| weights, gradients, state, MB | sent per process, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    overlap = [
        "| processes | all-to-alls under way, s | of that in matrix products | matrix products, s |",
        "| --- | --- | --- | --- |",
    ]
    for num, ranks in sorted(results["processes"].items(), key=lambda entry: int(entry[0])):
        # A step ends when the slowest process ends.
        wall = {
            way: statistics.median(max(times) for times in zip(*(r["seconds"][way] for r in ranks), strict=True))
            for way in ranks[0]["seconds"]
        }
        cpu = max(statistics.median(rank["cpu_seconds"]["overlapped"]) for rank in ranks)
        peak, held = (max(rank[key] for rank in ranks) for key in ("peak_bytes", "weights_gradients_state_bytes"))
        sent = max(rank["sent_bytes"] for rank in ranks)
        step.append(
            f"| {num} | {wall['overlapped']:.2f} | {wall['one after the other']:.2f} | {cpu:.2f} | {peak / 1e6:.0f} "
            f"| {held / 1e6:.1f} | {sent / 1e6:.1f} |"
        )
        if int(num) > 1:
            moving = sum(rank["in_flight_seconds"] for rank in ranks) / len(ranks)
            hidden = sum(rank["hidden_seconds"] for rank in ranks) / len(ranks)
            work = sum(rank["product_seconds"] for rank in ranks) / len(ranks)
            overlap.append(f"| {num} | {moving:.2f} | {100 * hidden / moving:.0f} % | {work:.2f} |")
    return {"step": "\n".join(step), "overlap": "\n".join(overlap)}


if __name__ == "__main__":
    main()
