"""What a hold is charged, and a model of events beside the law of a tool: which hold ends workflows sooner?

    python benchmarks/serve_holds.py --work runs/serve-holds --minutes 10     # again, until all is done

The drawn workflows, the engine, the seeds, the knees and the growth are those of `benchmarks/serve_programs.py`, whose
results are read. Workflow order throughout. A learned hold is charged its longest time, as the published rule has it,
or the time that it is expected to last; both are compared with two fixed seconds. The charge was chosen on the tuning
seeds at 1.3 times the knee. Up to the knee, where there is little to win, the question is whether it costs anything,
beside plain caching in order of arrival and beside two seconds.

A rate is sustained where workflows end on the mean within twice the time that they take on an idle engine (1 % of the
knee); it is interpolated between the rates that `serve_programs` has measured, which end at 1.5 times the knee, and for
the expected time between those measured here, on five seeds.

In another law half of the workflows have short pauses and half long ones, after a tool of the same name. A model of
events is trained on the pauses of the tuning seeds, and its hold is compared with the one that is learned by tool.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import experiment
import numpy as np
import serve_programs as programs

from burnish.serve.policies.pauses import LAST, pause_events
from burnish.serve.policies.retention import SECOND
from burnish.serve.settings import PolicySettings
from burnish.serve.traces import drawn_programs
from burnish.serve.workload import Workload

RATES = (1.3, 1.5)
BELOW = (1.0,) if experiment.SMOKE else (0.5, 0.7, 0.9, 1.0)
SEEDS = range(2) if experiment.SMOKE else range(10)
IDLE = 0.01
HOLDS = {
    "2 s": PolicySettings(order="programs", hold="fixed"),
    "longest": PolicySettings(order="programs", hold="learned", charge="longest"),
    "expected": PolicySettings(order="programs", hold="learned", charge="expected"),
}
BELOW_HOLDS = ("cache", "2 s", "expected")
BELOW_SEEDS = SEEDS[:5]
KINDS = "one tool, log-normal, sigma 0.5, median 1 s in half of the workflows and 30 s in the others"
KIND_MEDIANS = (1.0, 30.0)
KIND_HOLDS = ("cache", "2 s", "expected", "forecast")
KIND_SEEDS = SEEDS[:2] if experiment.SMOKE else SEEDS[:5]
SUSTAINED = (programs.BASE, programs.FIXED, programs.LEARNED)
EXPECTED = "expected"
KIND_RATE = 0.05
"""Workflows a second."""


class Bench(experiment.Kept):
    """What is measured, by name: "law, rate, seed, hold", "law, idle, seed" and "kinds, ..."."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.work = work
        self.before = json.loads((experiment.RESULTS / "serve_programs.json").read_text())

    def names(self) -> list[str]:
        names = ["kinds, model"]
        names += [f"kinds, {seed}, {hold}" for seed in KIND_SEEDS for hold in KIND_HOLDS]
        for law in programs.LAWS:
            names += [f"{law}, {rate}, {seed}, {hold}" for rate in RATES for seed in SEEDS for hold in HOLDS]
            names += [
                f"{law}, {rate}, {seed}, {hold}" for rate in BELOW for seed in BELOW_SEEDS for hold in BELOW_HOLDS
            ]
            names += [f"{law}, idle, {seed}" for seed in SEEDS]
        return names

    def measure(self, name: str) -> dict[str, Any]:
        law, what, *rest = name.split(", ")
        if what == "model":
            return trained(self.work / "model")
        growth = self.before["growth"]
        if law == "kinds":
            return programs.served(kinds(KIND_RATE, int(what)), self.policy(rest[0]), growth)
        knee = self.before["laws"][law]["knee"]["rate"]
        if what == "idle":
            return programs.served(programs.draw(law, IDLE * knee, int(rest[0])), HOLDS["2 s"], growth)
        return programs.served(programs.draw(law, float(what) * knee, int(rest[0])), self.policy(rest[1]), growth)

    def policy(self, hold: str) -> PolicySettings:
        if hold == "forecast":
            return HOLDS["expected"].model_copy(update={"pauses": str(self.work / "model")})
        return PolicySettings() if hold == "cache" else HOLDS[hold]


def kinds(rate: float, seed: int) -> Workload:
    """Half of the workflows pause shortly, half for long."""

    def law(median: float) -> Callable[[random.Random], tuple[str, float]]:
        return lambda draw: ("tool", draw.lognormvariate(math.log(median), 0.5))

    half, seeds = programs.NUM // 2, (seed, seed + 5000)
    parts = [drawn_programs(half, rate / 2, law(median), one) for median, one in zip(KIND_MEDIANS, seeds, strict=True)]
    merged = [
        replace(one, name=f"{one.name} of kind {kind}") for kind, part in enumerate(parts) for one in part.workflows
    ]
    merged.sort(key=lambda one: one.arrival)
    return Workload(tuple(merged), source=f"drawn workflows, pauses by {KINDS}", synthetic=parts[0].synthetic)


def trained(directory: Path) -> dict[str, Any]:
    """A log-normal mixture over the pauses of the tuning seeds."""
    from burnish.events import EventDataset, EventForecaster, EventSequence, LogNormalMixture

    def sequences(seeds: Sequence[int]) -> EventDataset:
        found = []
        for seed in seeds:
            for workflow in kinds(1.0, seed).workflows:
                events = pause_events([(turn.tool, turn.pause / SECOND) for turn in workflow.turns])
                times = np.array([time for time, _ in events])
                marks = np.array([int(mark == LAST) for _, mark in events])
                found.append(EventSequence(times, marks, start=0.0, name=f"{seed} {workflow.name}"))
        return EventDataset(tuple(found), ("tool", LAST), unit="seconds")

    forecaster = EventForecaster(LogNormalMixture(2, num_components=8, hidden_size=32, num_layers=1))
    epochs = 2 if experiment.SMOKE else 20
    fitted = forecaster.fit(sequences(programs.TUNING), sequences([2000]), epochs=epochs, batch_size=32, lr=0.01)
    forecaster.save_pretrained(directory, overwrite=True)
    return {"validation_loss": fitted.validation, "parameters": forecaster.model.num_parameters}


# -- what is quoted --------------------------------------------------------------------------------------------------


def summed(bench: Bench) -> dict[str, Any]:
    laws = {}
    for law, (words, _) in programs.LAWS.items():
        before = bench.before["laws"][law]
        idle = [bench.read(f"{law}, idle, {seed}")["completion"] for seed in SEEDS]
        laws[law] = {
            "words": words,
            "knee": before["knee"]["rate"],
            "oracle": before["oracle"],
            "idle": idle,
            "rates": {
                str(rate): {
                    hold: [bench.read(f"{law}, {rate}, {seed}, {hold}")["completion"] for seed in SEEDS]
                    for hold in HOLDS
                }
                for rate in RATES
            },
            "below": {
                str(rate): {
                    hold: [bench.read(f"{law}, {rate}, {seed}, {hold}")["completion"] for seed in BELOW_SEEDS]
                    for hold in BELOW_HOLDS
                }
                for rate in BELOW
            },
        }
        measured, rates = laws[law]["below"] | laws[law]["rates"], before["rates"]
        taken = {key: {rate: one[key]["completion"] for rate, one in rates.items()} for key in SUSTAINED}
        taken[EXPECTED] = {rate: one["expected"] for rate, one in measured.items()}
        laws[law]["sustained"] = {key: sustained(one, idle) for key, one in taken.items()}
    kind = {hold: [bench.read(f"kinds, {seed}, {hold}") for seed in KIND_SEEDS] for hold in KIND_HOLDS}
    return {"laws": laws, "kinds": {"words": KINDS, "model": bench.read("kinds, model"), "runs": kind}}


def sustained(completions: dict[str, list[float]], idle: Sequence[float]) -> list[float]:
    """Of each seed, the rate over the knee at which workflows take twice as long as on an idle engine, at most the
    largest that was measured.

    Args:
        completions: mean seconds of a workflow for each seed, by rate.
        idle: those on an idle engine.
    """
    points, found = sorted(completions, key=float), []
    for seed, alone in enumerate(idle[: min(map(len, completions.values()))]):
        taken = [completions[rate][seed] / (2 * alone) for rate in points]
        over = next((place for place, one in enumerate(taken) if one >= 1), len(points))
        if over in (0, len(points)):
            found.append(float(points[min(over, len(points) - 1)]))
            continue
        (low, a), (high, b) = ((float(points[place]), math.log(taken[place])) for place in (over - 1, over))
        found.append(low - (high - low) * a / (b - a))
    return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    ratio, rows, rates, below = programs.ratio, [], [], []
    for law in results["laws"].values():
        for rate, found in law["below"].items():
            pairs = [(found[slow], found["expected"]) for slow in ("cache", "2 s")]
            worst = [f"{min(one / two for one, two in zip(*pair, strict=True)):.3f}" for pair in pairs]
            below.append([law["words"], rate, ratio(*pairs[0]), worst[0], ratio(*pairs[1]), worst[1]])
        for rate, found in law["rates"].items():
            fixed = found["2 s"]
            pair = [ratio(fixed, found[charge]) for charge in ("longest", "expected")]
            oracle = law["oracle"][: len(found["expected"])]
            known = ratio(found["expected"][: len(oracle)], oracle) if rate == "1.3" else ""
            rows.append([law["words"], rate, *pair, known])
        reached = [law["sustained"][key] for key in (*SUSTAINED, EXPECTED)]
        means = [f"{fmean(one):.2f}" for one in reached]
        some = reached[0][: len(reached[3])]
        rates.append([law["words"], *means[:3], ratio(reached[2], reached[0]), means[3], ratio(reached[3], some)])
    runs = results["kinds"]["runs"]
    taken = {hold: [one["completion"] for one in runs[hold]] for hold in runs}
    kind = [
        [
            hold,
            f"{fmean(one['contexts'] for one in runs[hold]):.1f}",
            "" if hold == "cache" else ratio(taken["cache"], taken[hold]),
            ratio(taken["expected"], taken[hold]) if hold in ("2 s", "forecast") else "",
        ]
        for hold in runs
    ]
    return {
        "charges": experiment.table(
            "pauses | of the knee: | longest time / 2 s: | expected time / 2 s: | oracle / expected time:", rows
        ),
        "below": experiment.table(
            "pauses | of the knee: | expected time / cache, arrival order: | worst seed: | "
            "expected time / 2 s: | worst seed:",
            below,
        ),
        "sustained": experiment.table(
            "pauses | cache, arrival order: | workflow order + 2 s: | workflow order + longest time: | "
            "of the cache's: | workflow order + expected time: | of the cache's:",
            rates,
        ),
        "kinds": experiment.table(
            "hold | contexts again: | sooner than the cache alone: | than learned by tool:", kind
        ),
    }


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    options = command.read()
    bench = Bench(Path(options.work))
    seeds = {"tuning": [f"seed {one}" for one in programs.TUNING], "reporting": [f"seed {one}" for one in SEEDS]}
    experiment.answer(bench, options, __doc__, lambda: summed(bench) | {"slices": seeds}, tables, note="simulated time")


if __name__ == "__main__":
    main()
