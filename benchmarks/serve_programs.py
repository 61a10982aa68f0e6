"""Do agents end sooner where their contexts are held through tool calls, and does a learned hold beat a fixed one?

    python benchmarks/serve_programs.py --work runs/serve-programs --minutes 10     # again, until all is done

Simulated: 250 drawn workflows a run, Poisson arrivals, geometric turns (mean 16), a first prompt of 12,000 tokens,
1,200 more each turn, 200 output tokens, a pool of 400,000 tokens; a prompt token takes 50 us and a step 10 ms. Pauses
by three laws. Rates are relative to the knee of a law: the rate at which first-come-first-served with plain caching
computes one final context per workflow a second time, the mean of the tuning seeds. On those seeds the turns of
growth that newcomers leave room for are chosen as well, for both holds alike. An oracle knows every pause under the
same order: the best, per seed, of holding where the pause costs less than a price times what it saves, over prices,
with the farthest return given up first under pressure. Learned holds are those of the published rule, which pays the
longest time of a hold (`charge: longest`); `benchmarks/serve_holds.py` has the other charge.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import experiment
import numpy as np

from burnish.core.statistics import interval
from burnish.serve.measures import contexts_recomputed, workflow_spans
from burnish.serve.policies.protocol import Hold, Job, Order, Retention, Room
from burnish.serve.policies.retention import SECOND, LearnedHold
from burnish.serve.settings import EngineSettings, LinearCost, PolicySettings
from burnish.serve.simulate import simulate
from burnish.serve.traces import drawn_programs
from burnish.serve.workload import Workload

LAWS: dict[str, tuple[str, Callable[[random.Random], tuple[str, float]]]] = {
    "short": ("log-normal, median 1 s, sigma 1.5", lambda draw: ("tool", draw.lognormvariate(0, 1.5))),
    "mixed": (
        "30 % of calls of a slow tool, log-normal, median 60 s, sigma 1; others median 1 s, sigma 1",
        lambda draw: (
            ("slow", draw.lognormvariate(math.log(60), 1))
            if draw.random() < 0.3
            else ("fast", draw.lognormvariate(0, 1))
        ),
    ),
    "middle": ("log-normal, median 10 s, sigma 1", lambda draw: ("tool", draw.lognormvariate(math.log(10), 1))),
}
RATES = (1.0,) if experiment.SMOKE else (0.5, 0.8, 1.0, 1.3, 1.5)
SEEDS = range(2) if experiment.SMOKE else range(10)
TUNING = (1000,) if experiment.SMOKE else (1000, 1001, 1002)
GROWTHS = (1.0, 3.0) if experiment.SMOKE else (1.0, 2.0, 4.0)
NUM = 30 if experiment.SMOKE else 250
START = {"short": 0.08, "mixed": 0.055, "middle": 0.065}
"""Workflows a second from which the knee is searched."""
POLICIES = {
    "cache, arrival order": PolicySettings(),
    "learned hold, arrival order": PolicySettings(hold="learned", charge="longest"),
    "cache, workflow order": PolicySettings(order="programs"),
    "2 s, workflow order": PolicySettings(order="programs", hold="fixed"),
    "learned hold, workflow order": PolicySettings(order="programs", hold="learned", charge="longest"),
    "learned hold, least service": PolicySettings(order="least-service", hold="learned", charge="longest"),
}
BASE, FIXED, LEARNED = "cache, arrival order", "2 s, workflow order", "learned hold, workflow order"
PRICES = (0.5, 2.0, math.inf)
ORACLE_SEEDS = SEEDS[:3]
ENGINE = EngineSettings(
    num_blocks=400_000 // 200, block_size=200, linear=LinearCost(step=10e6, prefill=50e3, context=0, decode=0)
)


class Knowing(LearnedHold):
    """Knows when every workflow returns; holds where that costs less than `price` times what it saves."""

    def __init__(self, recompute: Callable[[int], float], workload: Workload, price: float) -> None:
        super().__init__(recompute)
        self._known = {one.name: [turn.pause for turn in one.turns] for one in workload.workflows}
        self._price = price

    def on_finish(self, job: Job, tokens: int, room: Room) -> int:
        if not job.tool:
            return 0
        pause = self._known[job.program][job.turn]
        return pause + 1 if pause / SECOND <= self._price * self.worth(tokens, room.num_running) else 0

    def on_pressure(self, holds: Iterable[Hold], room: Room) -> Sequence[Hold]:
        return sorted(holds, key=lambda hold: (hold.returned, -hold.until))


class Bench(experiment.Kept):
    """What is measured, by name."""

    def names(self) -> list[str]:
        names = []
        for law in LAWS:
            names.append(f"{law}, knee")
            if self.has(f"{law}, knee"):
                names += [f"{law}, tuning, {growth}" for growth in GROWTHS]
        if all(self.has(f"{law}, tuning, {growth}") for law in LAWS for growth in GROWTHS):
            for rate in RATES:
                names += [f"{law}, {rate}, {seed}" for law in LAWS for seed in SEEDS]
            names += [f"{law}, oracle, {seed}" for law in LAWS for seed in ORACLE_SEEDS]
        return names

    def measure(self, name: str) -> dict[str, Any]:
        law, what, *rest = name.split(", ")
        if what == "knee":
            return self.knee(law)
        if what == "tuning":
            made = [
                served(self.workload(law, 1.3, seed), POLICIES[which], float(rest[0]))
                for which in (FIXED, LEARNED)
                for seed in TUNING
            ]
            return {"completion": fmean(one["completion"] for one in made)}
        if what == "oracle":
            workload = self.workload(law, 1.3, int(rest[0]))
            return {str(price): oracle(workload, price, self.growth()) for price in PRICES}
        workload = self.workload(law, float(what), int(rest[0]))
        chosen = POLICIES if float(what) == 1.3 else {key: POLICIES[key] for key in (BASE, FIXED, LEARNED)}
        return {key: served(workload, policy, self.growth()) for key, policy in chosen.items()}

    def growth(self) -> float:
        def score(growth: float) -> float:
            return fmean(self.read(f"{law}, tuning, {growth}")["completion"] for law in LAWS)

        return min(GROWTHS, key=score)

    def knee(self, law: str) -> dict[str, Any]:
        """By interpolation between rates that rise by a tenth."""
        rate, tried = START[law], []
        while not tried or (tried[-1][1] < 1 and len(tried) < 12):
            found = [served(draw(law, rate, seed), POLICIES[BASE], 1.0)["contexts"] for seed in TUNING]
            tried.append((rate, fmean(found)))
            rate *= 1.1
        (low, a), (high, b) = tried[-2] if len(tried) > 1 else (tried[-1][0] / 1.1, 0.0), tried[-1]
        return {"rate": low + (high - low) * (1 - a) / (b - a) if b > a else high, "tried": tried}

    def workload(self, law: str, relative: float, seed: int) -> Workload:
        return draw(law, relative * self.read(f"{law}, knee")["rate"], seed)


def draw(law: str, rate: float, seed: int) -> Workload:
    return drawn_programs(NUM, rate, LAWS[law][1], seed, law=LAWS[law][0])


def served(workload: Workload, policy: PolicySettings, growth: float) -> dict[str, float]:
    costs, settings = ENGINE.costs(), policy.model_copy(update={"growth": growth})
    return run(workload, lambda: settings.objects(costs))


def oracle(workload: Workload, price: float, growth: float) -> dict[str, float]:
    costs = ENGINE.costs()

    def made() -> tuple[Order, Retention]:
        order, _ = PolicySettings(order="programs", growth=growth).objects(costs)
        return order, Knowing(lambda tokens: 50e-6 * tokens, workload, price)

    return run(workload, made)


def run(workload: Workload, made: Callable[[], tuple[Order, Retention]]) -> dict[str, float]:
    found = simulate(workload, made, ENGINE.shape(), ENGINE.costs())
    return {
        "completion": fmean(workflow_spans(found.jobs).values()) / SECOND,
        "contexts": contexts_recomputed(found.jobs),
        "wasted": found.counters.wasted / max(1, found.counters.wasted + found.counters.useful),
        "preemptions": found.counters.preemptions,
    }


# -- what is quoted --------------------------------------------------------------------------------------------------


def summed(bench: Bench) -> dict[str, Any]:
    laws: dict[str, Any] = {}
    for law, (words, _) in LAWS.items():
        rows: dict[str, Any] = {}
        for rate in RATES:
            runs = [bench.read(f"{law}, {rate}, {seed}") for seed in SEEDS]
            keys = [key for key in runs[0] if key in POLICIES]
            rows[str(rate)] = {
                key: {
                    "completion": [one[key]["completion"] for one in runs],
                    "contexts": fmean(one[key]["contexts"] for one in runs),
                    "wasted": fmean(one[key]["wasted"] for one in runs),
                }
                for key in keys
            }
        best = [
            min(
                one["completion"]
                for price, one in bench.read(f"{law}, oracle, {seed}").items()
                if price != "cpu_seconds"
            )
            for seed in ORACLE_SEEDS
        ]
        laws[law] = {"words": words, "knee": bench.read(f"{law}, knee"), "rates": rows, "oracle": best}
    tuned = {f"{law}, {growth}": bench.read(f"{law}, tuning, {growth}") for law in LAWS for growth in GROWTHS}
    return {"laws": laws, "growth": bench.growth(), "tuning": tuned, "seeds": len(SEEDS)}


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows, other = [], []
    for law in results["laws"].values():
        for rate, found in law["rates"].items():
            base, fixed, learned = (found[key]["completion"] for key in (BASE, FIXED, LEARNED))
            rows.append(
                [
                    law["words"],
                    f"{float(rate) * law['knee']['rate']:.3f} ({rate})",
                    f"{found[BASE]['contexts']:.1f}",
                    ratio(base, fixed),
                    ratio(base, learned),
                    ratio(fixed, learned),
                    f"{found[LEARNED]['contexts']:.1f}",
                ]
            )
        if "1.3" not in law["rates"]:
            continue
        found = law["rates"]["1.3"]
        base = found[BASE]["completion"]
        first = found[LEARNED]["completion"][: len(law["oracle"])]
        other.append(
            [
                law["words"],
                *(ratio(base, found[key]["completion"]) for key in POLICIES if key not in (BASE, FIXED, LEARNED)),
                ratio(first, law["oracle"]),
            ]
        )
    others = [key for key in POLICIES if key not in (BASE, FIXED, LEARNED)]
    return {
        "ratios": experiment.table(
            "pauses | workflows/s (of the knee): | contexts again, cache alone: | workflow order + 2 s: | "
            "workflow order + learned: | learned / 2 s: | contexts again, learned:",
            rows,
        ),
        "others": experiment.table(["pauses", *(f"{key}:" for key in others), "oracle / learned hold:"], other),
    }


def ratio(slow: list[float], fast: list[float]) -> str:
    """Geometric mean over seeds of how many times sooner workflows end, with its interval."""
    logs = [math.log(one / two) for one, two in zip(slow, fast, strict=True)]
    return experiment.cell(interval(np.array(logs)).map(math.exp), ".2f")


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    options = command.read()
    bench = Bench(Path(options.work))
    seeds = {"tuning": [f"seed {one}" for one in TUNING], "reporting": [f"seed {one}" for one in SEEDS]}
    experiment.answer(bench, options, __doc__, lambda: summed(bench) | {"slices": seeds}, tables, note="simulated time")


if __name__ == "__main__":
    main()
