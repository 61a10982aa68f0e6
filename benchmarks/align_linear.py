"""Does a capped pull help a reward that learns from wrong labels, and does a scale per pair tell clear from ambiguous?

    python benchmarks/align_linear.py

(a) A linear reward (d = 20) on 2,000 logistic pairs; labels clean, flipped at random, or flipped where they are
    clearest. Measure: share of 4,000 fresh clean pairs that the learned reward orders right. R3M against BT, paired by
    seed. Nothing is tuned: l2 = 1e-3 and the values of lambda are those of the published table.
(b) Half of the pairs are clear (nearly everybody agrees), half ambiguous (nearly a coin toss). Measures: calibration
    error of sigma(margin / tau) for APS and of sigma(margin) for both, each after one temperature fitted on the
    training labels; AUC with which |margin|, or tau, separates clear from ambiguous pairs on fresh data. APS's
    (rho0, tau_max) and the l2 of both are chosen on the tuning seeds 100-104, reported on the seeds 0-9.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from burnish.align.linear_reward import fit_linear_reward
from burnish.align.losses import aps
from burnish.align.maths.noise import clearest, uniform

RESULT = Path(__file__).parent / "results" / "align_linear.json"
FEATURES, PAIRS, FRESH = 20, 2000, 4000
SEEDS, TUNING_SEEDS = range(10), range(100, 105)
LAMBDAS = (0.2, 0.3, 0.5, 0.75)
L2 = 1e-3
CORRUPTION = {
    "none": (None, 0.0),
    "20 % at random": ("random", 0.2),
    "5 % clearest": ("clearest", 0.05),
    "10 % clearest": ("clearest", 0.1),
    "20 % clearest": ("clearest", 0.2),
}


def pairs_with(generator: torch.Generator, truth: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(differences, the answer labelled better first; true gap of that order), labels from the logistic model."""
    x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    gap = x @ truth
    label = torch.where(torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(gap), 1.0, -1.0)
    return x * label[:, None], gap * label


def corrupted(kind: str | None, share: float, gap: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if kind is None:
        return torch.zeros(len(gap), dtype=torch.bool)
    return uniform(len(gap), share, generator) if kind == "random" else clearest(gap, share)


def accuracies(seed: int) -> dict[str, dict[str, float]]:
    """{corruption: {loss: accuracy of the learned order on fresh pairs}}"""
    found = {}
    for name, (kind, share) in CORRUPTION.items():
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
        differences, gap = pairs_with(generator, truth, PAIRS)
        flip = corrupted(kind, share, gap, generator)
        learned_from = (differences * torch.where(flip, -1.0, 1.0)[:, None]).numpy()
        fresh = torch.randn(FRESH, FEATURES, generator=generator, dtype=torch.float64)
        right = torch.sign(fresh @ truth)
        row = {}
        for loss, settings in [("BT", {}), *((f"R3M {lam:g}", {"lam": lam}) for lam in LAMBDAS)]:
            weights = fit_linear_reward(learned_from, "bt" if loss == "BT" else "r3m", l2=L2, **settings)
            row[loss] = 100 * (torch.sign(fresh @ torch.from_numpy(weights)) == right).double().mean().item()
        found[name] = row
    return found


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % t interval over seeds."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}


# -- (b) clear and ambiguous pairs -----------------------------------------------------------------------------------


def mixed(seed: int, count: int, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(features, probability that the first answer is preferred, whether the pair is clear).

    Clear pairs: logit 6 times the reward difference; ambiguous ones: 0.5 times. One linear reward orders both.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    clear = torch.rand(count, generator=generator) < 0.5
    # what decides clarity is visible to the reward: clear pairs differ more
    x = x * torch.where(clear, 1.6, 0.4)[:, None]
    gap = x @ truth / truth.norm()
    return x, torch.sigmoid(torch.where(clear, 6.0, 0.5) * gap), clear


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(len(score))
    count = positive.sum()
    return float((ranks[positive].sum() - count * (count - 1) / 2) / (count * (len(score) - count)))


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Mean |predicted - true probability|; the truth is known here, so no bins are needed."""
    return float(np.abs(probability - truth).mean())


def ambiguous(seed: int, settings: dict[str, float], l2: float) -> dict[str, float]:
    truth = torch.randn(FEATURES, generator=torch.Generator().manual_seed(10_000 + seed), dtype=torch.float64)
    x, probability, _ = mixed(seed, PAIRS, truth)
    label = torch.where(
        torch.rand(PAIRS, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) < probability,
        1.0,
        -1.0,
    )
    fresh, fresh_probability, clear = mixed(seed + 20_000, FRESH, truth)
    loss = "aps" if settings else "bt"
    weights = fit_linear_reward((x * label[:, None]).numpy(), loss, l2=l2, **settings)
    margin = fresh.numpy() @ weights
    inside = (x * label[:, None]).numpy() @ weights
    scale = np.ones_like(margin)
    if settings:
        scale = aps(torch.from_numpy(margin), **settings)[1]["tau"].numpy()
        inside = inside / aps(torch.from_numpy(inside), **settings)[1]["tau"].numpy()
    # one temperature for both, fitted on the training labels, so that neither loses for a scale that is only a unit
    temperature = np.exp(
        minimize_scalar(lambda s: np.logaddexp(0, -inside * np.exp(-s)).mean(), bounds=(-4, 4), method="bounded").x
    )
    predicted = 1 / (1 + np.exp(-margin / scale / temperature))
    single = 1 / (1 + np.exp(-margin / _temperature((x * label[:, None]).numpy() @ weights)))
    return {
        "calibration error": calibration_error(predicted, fresh_probability.numpy()),
        "calibration error, margin alone": calibration_error(single, fresh_probability.numpy()),
        "AUC of |margin|": auc(np.abs(margin), clear.numpy()),
        "AUC of tau": auc(scale, clear.numpy()) if settings else float("nan"),
        "accuracy": float(100 * ((margin > 0) == (fresh_probability.numpy() > 0.5)).mean()),
    }


def _temperature(margin: np.ndarray) -> float:
    found = minimize_scalar(lambda s: np.logaddexp(0, -margin * np.exp(-s)).mean(), bounds=(-4, 4), method="bounded")
    return float(np.exp(found.x))


APS_GRID = [{"rho0": rho0, "tau0": 0.1, "tau_max": tau_max} for rho0 in (0.05, 0.1, 0.3) for tau_max in (3.0, 5.0)]
L2_GRID = (1e-4, 1e-3, 1e-2)


def ambiguous_pairs() -> dict:
    tried, chosen = [], {}
    for name, grid in (("BT", [{}]), ("APS", APS_GRID)):
        best = None
        for settings in grid:
            for l2 in L2_GRID:
                rows = [ambiguous(seed, settings, l2) for seed in TUNING_SEEDS]
                score = float(np.mean([row["calibration error, margin alone"] for row in rows]))
                tried.append({"loss": name, "settings": settings, "l2": l2, "calibration error": score})
                if best is None or score < best[0]:
                    best = (score, settings, l2)
        chosen[name] = {"settings": best[1], "l2": best[2]}
    rows = {name: [ambiguous(seed, **choice) for seed in SEEDS] for name, choice in chosen.items()}
    measures = [key for key in rows["BT"][0] if key != "AUC of tau"]
    summary = {
        key: {name: interval(np.array([row[key] for row in rows[name]])) for name in rows}
        | {"difference": interval(np.array([a[key] - b[key] for a, b in zip(rows["APS"], rows["BT"], strict=True)]))}
        for key in measures
    }
    tau = np.array([row["AUC of tau"] for row in rows["APS"]])
    margin = np.array([row["AUC of |margin|"] for row in rows["BT"]])
    summary["AUC of tau (APS) against |margin| (BT)"] = {
        "BT": interval(margin),
        "APS": interval(tau),
        "difference": interval(tau - margin),
    }
    return {"tuning_seeds": list(TUNING_SEEDS), "tried": tried, "chosen": chosen, "per_seed": rows, "summary": summary}


# -- writing ---------------------------------------------------------------------------------------------------------


def main() -> None:
    started = time.process_time()
    rows = [accuracies(seed) for seed in SEEDS]
    corruption = {}
    for name in CORRUPTION:
        values = {loss: np.array([row[name][loss] for row in rows]) for loss in rows[0][name]}
        corruption[name] = {loss: interval(value) for loss, value in values.items()} | {
            f"{loss} - BT": interval(value - values["BT"]) for loss, value in values.items() if loss != "BT"
        }
    content = {
        "question": __doc__,
        "seeds": list(SEEDS),
        "slices": {
            "tuning": [f"synthetic, seed {seed}" for seed in TUNING_SEEDS],
            "reporting": [f"synthetic, seed {seed}" for seed in SEEDS],
        },
        "settings": {"features": FEATURES, "pairs": PAIRS, "fresh": FRESH, "l2": L2, "lambdas": LAMBDAS},
        "machine": f"{platform.processor() or platform.machine()}, one thread",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "corruption": {"summary": corruption, "per_seed": rows},
        "ambiguous": ambiguous_pairs(),
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def tables(results: dict) -> dict[str, str]:
    losses = ["BT", *(f"R3M {lam:g}" for lam in results["settings"]["lambdas"])]
    corruption = ["| corrupted labels | " + " | ".join(losses) + " | R3M 0.2 - BT (95 % interval) |"]
    corruption.append("|" + " --- |" * (len(losses) + 2))
    for name, row in results["corruption"]["summary"].items():
        gain = row["R3M 0.2 - BT"]
        cells = " | ".join(f"{row[loss]['mean']:.1f}" for loss in losses)
        corruption.append(f"| {name} | {cells} | {gain['mean']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f}) |")
    ambiguous_rows = ["| measure | BT | APS | difference (95 % interval) |", "| --- | --- | --- | --- |"]
    for name, row in results["ambiguous"]["summary"].items():
        gain = row["difference"]
        ambiguous_rows.append(
            f"| {name} | {row['BT']['mean']:.3f} | {row['APS']['mean']:.3f} | {gain['mean']:+.3f} "
            f"({gain['low']:+.3f} to {gain['high']:+.3f}) |"
        )
    return {"corruption": "\n".join(corruption), "ambiguous": "\n".join(ambiguous_rows)}


if __name__ == "__main__":
    main()
