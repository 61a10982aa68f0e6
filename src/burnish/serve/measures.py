"""What a simulation is worth: latencies, goodput, fairness, and what was computed twice.

A quantile's interval is that of its order statistics, np ± 1.96 sqrt(n p (1 - p)) of n requests: it needs no law, but
takes requests as independent, and those of one burst are not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from burnish.serve.engine import SimulatedJob
from burnish.serve.simulate import Simulation

SECOND = 1e9
QUANTILES = (0.5, 0.9, 0.99)
WINDOWS = 60
"""Parts of the time in which fairness is looked at."""


def measure(found: Simulation, *, ttft: float, tpot: float, weight: Callable[[str], float]) -> dict[str, Any]:
    """Everything that a report shows, as JSON.

    Args:
        found: at least one request served.
        ttft, tpot: seconds that a request may take to its first token, and for each further one, to count as good.
        weight: of a tenant.
    """
    jobs, counters = found.jobs, found.counters
    first = _seconds(job.first_token - job.arrival for job in jobs)
    whole = _seconds(job.finished - job.arrival for job in jobs)
    each = _seconds((job.finished - job.first_token) / max(1, job.output - 1) for job in jobs)
    good = (first <= ttft) & (each <= tpot)
    spans = workflow_spans(jobs)
    seconds = found.makespan / SECOND
    outputs = sum(job.output for job in jobs)
    return {
        "requests": len(jobs),
        "refused": len(found.refused),
        "workflows": len(spans),
        "seconds": seconds,
        "ttft": _spread(first),
        "tpot": _spread(each[[job.output > 1 for job in jobs]]),
        "latency": _spread(whole),
        "completion": _spread(_seconds(spans.values())),
        "slo": {"ttft": ttft, "tpot": tpot},
        "goodput": float(good.sum()) / seconds,
        "good_share": float(good.mean()),
        "tokens_per_second": outputs / seconds,
        "prompt_tokens": sum(job.prompt for job in jobs),
        "cached_tokens": sum(job.cached for job in jobs),
        "evicted_tokens": sum(job.evicted for job in jobs),
        "redone_tokens": sum(job.redone for job in jobs),
        "contexts_recomputed": contexts_recomputed(jobs),
        "preemptions": counters.preemptions,
        "steps": counters.steps,
        "busy": counters.busy / max(1, found.makespan),
        "useful_block_seconds": counters.useful / SECOND,
        "wasted_block_seconds": counters.wasted / SECOND,
        "most_blocks_held": counters.pinned,
        "schedule": found.schedule,
        "tenants": by_tenant(jobs, first),
        "fairness": fairness(jobs, found.makespan, weight),
    }


def _seconds(nanoseconds: Iterable[float]) -> Float[np.ndarray, " num"]:
    """Also of whole numbers beyond 64 bits, as a trace of centuries has."""
    return np.array(list(nanoseconds), dtype=np.float64) / SECOND


def _spread(values: Float[np.ndarray, " num"]) -> dict[str, Any]:
    """Mean and quantiles, each with its interval."""
    if not len(values):
        return {"mean": None, "quantiles": {}}
    ranked, num = np.sort(values), len(values)
    quantiles = {}
    for q in QUANTILES:
        reach = 1.96 * math.sqrt(num * q * (1 - q))
        places = [min(num - 1, max(0, math.floor(num * q + shift))) for shift in (0, -reach, reach)]
        quantiles[f"{q:g}"] = [float(ranked[place]) for place in places]
    return {"mean": float(values.mean()), "quantiles": quantiles}


def workflow_spans(jobs: Sequence[SimulatedJob]) -> dict[str, int]:
    """Nanoseconds from the arrival of each workflow to its last end."""
    spans: dict[str, int] = {}
    for job in jobs:
        name = job.program or job.name
        spans[name] = max(spans.get(name, 0), job.finished - job.program_arrival)
    return spans


def contexts_recomputed(jobs: Sequence[SimulatedJob]) -> float:
    """Tokens that were computed a second time, over the final context of their workflow; the mean over workflows."""
    twice: dict[str, int] = defaultdict(int)
    final: dict[str, int] = defaultdict(int)
    for job in jobs:
        name = job.program or job.name
        twice[name] += job.evicted + job.redone
        final[name] = max(final[name], job.prompt + job.output)
    return float(np.mean([twice[name] / final[name] for name in final]))


def by_tenant(jobs: Sequence[SimulatedJob], first: Float[np.ndarray, " num"]) -> dict[str, dict[str, float]]:
    """Of each tenant, largest first: requests, tokens, and seconds to the first token."""
    rows: dict[str, list[int]] = defaultdict(list)
    for place, job in enumerate(jobs):
        rows[job.tenant].append(place)
    found = {
        tenant: {
            "requests": len(places),
            "prompt_tokens": sum(jobs[place].prompt for place in places),
            "output_tokens": sum(jobs[place].output for place in places),
            "ttft_mean": float(first[places].mean()),
            "ttft_99": float(np.quantile(first[places], 0.99)),
        }
        for tenant, places in rows.items()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]["requests"]))


def fairness(
    jobs: Sequence[SimulatedJob], makespan: int, weight: Callable[[str], float], prices: tuple[int, int] = (1, 2)
) -> dict[str, Any]:
    """Service of tenants over time, and how equal it is among those who wait.

    Service is price times uncached prompt tokens when a request is admitted, and price times output tokens spread
    evenly from the first to the last. In a window, those count of whom somebody waits all the time; Jain's index is
    (sum x)^2 / (n sum x^2) of their service over weight, 1 where all are equal. The largest gap is that of the service
    over weight that two of them had in any stretch of windows in which both waited.
    """
    edges = np.linspace(0, float(makespan), WINDOWS + 1)
    tenants = sorted({job.tenant for job in jobs})
    place = {tenant: row for row, tenant in enumerate(tenants)}
    served = np.zeros((len(tenants), WINDOWS + 1))
    waits: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for job in jobs:
        row = place[job.tenant]
        served[row] += prices[0] * (job.prompt - job.cached) * (edges >= job.admitted)
        span = max(1, job.finished - job.first_token)
        served[row] += prices[1] * job.output * np.clip((edges - job.first_token) / span, 0, 1)
        waits[row].append((job.arrival, job.admitted))
    backlogged = np.array([_covered(waits[row], edges) for row in range(len(tenants))])
    shares = np.diff(served, axis=1) / np.array([[weight(tenant)] for tenant in tenants])
    indices = [_jain(shares[here, window]) for window, here in enumerate(backlogged.T) if here.sum() > 1]
    return {
        "times": (edges / SECOND).tolist(),
        "served": {tenant: served[row].tolist() for row, tenant in enumerate(tenants)},
        "jain": float(np.mean(indices)) if indices else None,
        "windows": len(indices),
        "largest_gap": _largest_gap(shares, backlogged),
    }


def _covered(spans: Sequence[tuple[int, int]], edges: Float[np.ndarray, " num"]) -> list[bool]:
    """In which windows at least one of the spans is always there."""
    joined: list[list[int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return [any(b <= low and high <= e for b, e in joined) for low, high in pairwise(edges)]


def _jain(values: Float[np.ndarray, " num"]) -> float:
    squares = float((values**2).sum()) * len(values)
    return float(values.sum()) ** 2 / squares if squares else 1.0


def _largest_gap(shares: Float[np.ndarray, "tenants windows"], backlogged: np.ndarray) -> float | None:
    """max over pairs, and stretches in which both wait, of |difference of service|: the range of its partial sums."""
    largest = None
    for first in range(len(shares)):
        for second in range(first):
            low = high = total = 0.0
            for window in range(shares.shape[1]):
                if not (backlogged[first, window] and backlogged[second, window]):
                    low = high = total = 0.0
                    continue
                total += float(shares[first, window] - shares[second, window])
                low, high = min(low, total), max(high, total)
                largest = max(largest or 0.0, high - low)
    return largest


def relative(results: Mapping[str, dict[str, Any]], base: str) -> dict[str, float]:
    """Mean completion time of a baseline over that of every policy: above 1 is faster."""
    return {name: results[base]["completion"]["mean"] / one["completion"]["mean"] for name, one in results.items()}
