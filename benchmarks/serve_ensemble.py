"""Do fewer queries of an ensemble miss their deadlines where each is given only the models that it needs?

    python benchmarks/serve_ensemble.py

Handwritten digits of scikit-learn, five splits: three models are fitted to 400 images, a validation set of 600 gives
profiles and every choice, and 3,000 queries are drawn from the other 797. Outputs are real; time is a virtual clock on
which a query takes 2, 5 and 9 ms of the three models' one worker each. Arrivals are bursts: a Poisson process whose
rate is four times as high in a fifth of the time, at 1.5 times what the slowest model can serve on average. A query's
deadline is 30 ms after its arrival. The static sub-ensemble is the one that answers most queries rightly in time on
arrivals of its own over the validation set. The balancer is measured with the same three models as variants on two
devices of which one is half as fast, with log-normal latencies and at the same bursts, for a rate that the fast and the
slow device together serve at 80 % with the most accurate model alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import experiment
import numpy as np

from burnish.core.statistics import paired_interval
from burnish.serve.balance import TailBalancer
from burnish.serve.ensemble import EnsembleRun, Schemble, Static, run_ensemble

TIMES = (0.002, 0.005, 0.009)
NAMES = ("naive Bayes", "logistic regression", "support vectors")
DEADLINE, LOAD = 0.030, 1.5
SEEDS = range(2) if experiment.SMOKE else range(5)
NUM = 200 if experiment.SMOKE else 3000
SLOWNESS = (1.0, 2.0)
SPREAD = 0.4


def bursts(num: int, rate: float, seed: int) -> np.ndarray:
    """Arrivals of a Poisson process that is four times as fast in a fifth of its time, in stretches of 0.1 to 0.5 s."""
    draw = np.random.default_rng(seed)
    slow = rate / (0.8 + 0.2 * 4)
    now, end, fast, found = 0.0, 0.0, False, []
    while len(found) < num:
        if now >= end:
            fast = bool(draw.random() < 0.2)
            end = now + draw.uniform(0.1, 0.5)
        gap = draw.exponential(1 / (slow * (4 if fast else 1)))
        if now + gap > end:
            now = end
            continue
        now += gap
        found.append(now)
    return np.array(found)


def models(seed: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    X, y = (np.asarray(one) for one in load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(len(y))
    parts = {"train": order[:400], "validation": order[400:1000], "test": order[1000:]}
    data = {f"{kind} {name}": of[rows] for name, rows in parts.items() for kind, of in (("X", X), ("y", y))}
    made = [
        GaussianNB(var_smoothing=1e-2),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)),
        SVC(C=3.0, probability=True, random_state=seed),  # pyright: ignore[reportArgumentType]
    ]
    return [one.fit(data["X train"], data["y train"]) for one in made], data


def one_seed(seed: int) -> dict[str, Any]:
    fitted, data = models(seed)
    made = Schemble(fitted, TIMES).fit(data["X validation"], data["y validation"])
    rate, draw = LOAD / max(TIMES), np.random.default_rng(1000 + seed)
    rows = {name: draw.integers(len(data[f"y {name}"]), size=NUM) for name in ("validation", "test")}
    outputs = {name: made.outputs(data[f"X {name}"])[:, rows[name]] for name in rows}
    labels = {name: data[f"y {name}"][rows[name]] for name in rows}
    arrivals = {"validation": bursts(NUM, rate, 2000 + seed), "test": bursts(NUM, rate, 3000 + seed)}

    def served(chooser: Any, name: str) -> EnsembleRun:
        bins = made.bins(data[f"X {name}"])[rows[name]]
        return run_ensemble(chooser, outputs[name], bins, arrivals[name].tolist(), (arrivals[name] + DEADLINE).tolist())

    tried, subset = {}, 0
    for subset in range(1, 8):
        tried[subset] = served(Static(TIMES, subset), "validation").accuracy(labels["validation"])
    subset = max(tried, key=lambda one: tried[one])
    plain = fifo(outputs["test"], arrivals["test"])
    found = {
        "all, in order of arrival": plain,
        "all, where in time": served(Static(TIMES), "test"),
        "one sub-ensemble": served(Static(TIMES, subset), "test"),
        "Schemble": served(made, "test"),
        "Schemble, one bin": served(without_bins(made), "test"),
    }
    whole = outputs["test"]
    return {
        "subset": subset,
        "tried": {str(one): value for one, value in tried.items()},
        "alone": [float((one.argmax(1) == labels["test"]).mean()) for one in (*whole, whole.mean(0))],
        "policies": {
            name: {
                "missed": one.missed,
                "accuracy": one.accuracy(labels["test"]),
                "models": float(np.mean([int(subset).bit_count() for subset in one.subsets])),
            }
            for name, one in found.items()
        },
    }


def fifo(outputs: np.ndarray, arrivals: np.ndarray) -> EnsembleRun:
    """Every query runs every model, in order of arrival, whether or not it is late already: a plain server."""
    num_models, num, _ = outputs.shape
    ends = np.zeros((num_models, num))
    for model, taken in enumerate(TIMES):
        free = 0.0
        for number, arrival in enumerate(arrivals):
            free = ends[model, number] = max(free, arrival) + taken
    last = ends.max(0)
    late = last > arrivals + DEADLINE
    answers = np.where(late, -1, outputs.mean(0).argmax(1))
    return EnsembleRun(np.where(late, 0, 7), answers, np.where(late, np.nan, last))


def without_bins(made: Schemble) -> Schemble:
    """The same plan with one profile for all queries: what the difficulty is worth."""
    plain = Schemble(made.models, made.times, num_bins=1)
    plain.regression, plain.edges = made.regression, np.array([])
    plain.rewards = np.tile(made.rewards.mean(0, keepdims=True), (made.num_bins, 1))
    return plain


# -- the balancer ------------------------------------------------------------------------------------------------------


def balanced(seed: int) -> dict[str, Any]:
    fitted, data = models(seed)
    made = Schemble(fitted, TIMES).fit(data["X validation"], data["y validation"])
    draw = np.random.default_rng(4000 + seed)
    bins = {name: made.bins(data[f"X {name}"]) for name in ("validation", "test")}
    right = {name: made.outputs(data[f"X {name}"]).argmax(2) == data[f"y {name}"] for name in bins}
    accuracy = np.array(
        [
            (right["validation"][:, bins["validation"] == place].sum(1) + 10 * right["validation"].mean(1))
            / ((bins["validation"] == place).sum() + 10)
            for place in range(made.num_bins)
        ]
    )
    mean = np.outer(SLOWNESS, TIMES)
    tails = mean * np.exp(1.645 * SPREAD - SPREAD**2 / 2)
    best = int(right["validation"].mean(1).argmax())
    arrivals = bursts(NUM, 0.8 * sum(1 / one for one in mean[:, best]), 5000 + seed)
    rows = draw.integers(len(data["y test"]), size=NUM)
    latencies = mean[None] * draw.lognormal(-(SPREAD**2) / 2, SPREAD, size=(NUM, 1, 1))
    target = float(right["validation"][best].mean())
    found = {}
    for name, allowed in [(NAMES[best], [best]), ("balancer", [0, 1, 2])]:
        limited = np.where(np.isin(np.arange(3), allowed), tails, np.inf)
        balancer = TailBalancer(limited, accuracy, target, means=mean)
        waits, hits = replayed(balancer, arrivals, latencies, lambda number: int(bins["test"][rows[number]]))
        answers = [bool(right["test"][variant, rows[number]]) for number, variant in enumerate(hits)]
        found[name] = {"p99": float(np.quantile(waits, 0.99)), "accuracy": float(np.mean(answers))}
    return {"single": NAMES[best], "single row": found[NAMES[best]], "balancer": found["balancer"]}


def replayed(
    balancer: TailBalancer, arrivals: np.ndarray, latencies: np.ndarray, difficulty: Callable[[int], int]
) -> tuple[list[float], list[int]]:
    """Seconds from arrival to end, and the variant, of every query."""
    free, ends, waits, variants = [0.0] * len(SLOWNESS), [], [], []
    for number, now in enumerate(arrivals):
        while ends and ends[0][0] <= now:
            moment, device = heapq.heappop(ends)
            balancer.ended(device, moment)
        device, variant = balancer.choose(float(now), difficulty(number))
        free[device] = max(free[device], float(now)) + float(latencies[number, device, variant])
        heapq.heappush(ends, (free[device], device))
        waits.append(free[device] - float(now))
        variants.append(variant)
    return waits, variants


# -- what is quoted ----------------------------------------------------------------------------------------------------


def summed(seeds: list[dict[str, Any]], balancers: list[dict[str, Any]]) -> dict[str, Any]:
    policies = {}
    for name in seeds[0]["policies"]:
        rows = [one["policies"][name] for one in seeds]
        policies[name] = {what: experiment.over_seeds([row[what] for row in rows]) for what in rows[0]}
        for other in ("all, where in time", "one sub-ensemble"):
            found = paired_interval(
                np.array([row["accuracy"] for row in rows]),
                np.array([one["policies"][other]["accuracy"] for one in seeds]),
            )
            policies[name][f"accuracy above {other}"] = [found.value, found.low, found.high]
    return {"seeds": seeds, "balancers": balancers, "policies": policies}


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for name, one in results["policies"].items():
        low, high = one["accuracy above one sub-ensemble"][1:]
        rows.append(
            [
                name,
                experiment.cell({key: 100 * one["missed"][key] for key in ("mean", "low", "high")}, ".1f"),
                experiment.cell({key: 100 * one["accuracy"][key] for key in ("mean", "low", "high")}, ".1f"),
                f"{100 * one['accuracy above one sub-ensemble'][0]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{one['models']['mean']:.2f}",
            ]
        )
    rows[[row[0] for row in rows].index("one sub-ensemble")][3] = ""
    balancer = [
        [
            number,
            f"{one['single']}",
            f"{1e3 * one['single row']['p99']:.0f}",
            f"{one['single row']['accuracy']:.1%}",
            f"{1e3 * one['balancer']['p99']:.0f}",
            f"{one['balancer']['accuracy']:.1%}",
        ]
        for number, one in enumerate(results["balancers"])
    ]
    return {
        "policies": experiment.table(
            "policy | missed, %: | right in time, %: | against one sub-ensemble: | models in an answer:", rows
        ),
        "balancer": experiment.table(
            "split | most accurate model | its p99, ms: | right: | balancer's p99, ms: | right:", balancer
        ),
    }


def main() -> None:
    options = experiment.Command(__file__, __doc__).read()
    seeds, balancers = [], []
    for seed in SEEDS:
        seeds.append(one_seed(seed))
        balancers.append(balanced(seed))
        print(seed, {name: (one["missed"], one["accuracy"]) for name, one in seeds[-1]["policies"].items()}, flush=True)
    slices = {"tuning": [f"validation {seed}" for seed in SEEDS], "reporting": [f"test {seed}" for seed in SEEDS]}
    results = summed(seeds, balancers) | {"slices": slices}
    experiment.record(options.out, __doc__, results, note="virtual time", libraries=("scikit-learn",))
    for table in tables(results).values():
        print(table)


if __name__ == "__main__":
    main()
