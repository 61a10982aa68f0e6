"""Are the audit's probabilities of a wrong label true, also where its noise model is wrong, and what makes them true?

    python benchmarks/align_calibration.py --data DIR

The answers of HH harmless-base test (Bai et al., 2022), 1,500 pairs, with labels drawn from a known reward, of which
a known share is then exchanged. The reward is the presence of 24 tokens of middling frequency with normal weights,
scaled to a standard deviation of 3 between the answers of a pair. The reader is the audit's: TF-IDF words, linear,
5-fold cross-fitted (Bradley-Terry), so it has to find the reward by itself. Worlds, of which only the first is the
noise model's:

    as the noise model     labels by the logistic of the reward, exchanges at random
    half unseen            a normal of standard deviation 3, which no text shows, is added to the reward of a pair
    sure people            labels by the reward's sign
    close calls            exchanges of probability proportional to exp(-|reward|), the same share in all

Sides: the noise model (as shipped); the same averaged over three curves (logistic, normal, Cauchy) by likelihood;
anchor points (of the 5 % of pairs with the largest margins only exchanged ones are contradicted, as confident
learning has it); the noise model corrected by 100 or 200 decided pairs, a sample over all ranks, by three terms
(`recalibration`) or by isotonic regression.

Measures: error of the rate; mean and largest distance of probability and truth over tenths of the pairs by
probability. A tenth has 150 pairs, so that the truth itself has an error of 2 to 4 points, and the largest of ten is
above zero for true probabilities too: "true probabilities" says how far above (labels drawn anew from a smoothed
truth). No setting is tuned here: the ridge of the correction was chosen on simulated margins, beside 0.3, 1 and 3.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, ndtr
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.isotonic import IsotonicRegression

from burnish.align.audit_page import sampling_order
from burnish.align.linear_reward import cross_fitted_margins, rotated, unit_scale
from burnish.align.recalibration import recalibrated
from burnish.align.reliability import reliability
from burnish.data.preferences import read_pairs
from burnish.data.prompts import question_groups, split_prompt

WORLDS = ("as the noise model", "half unseen", "sure people", "close calls")
RATES = (0.0, 0.05, 0.1, 0.2)
SEEDS = range(1) if experiment.SMOKE else range(8)
PAIRS = 300 if experiment.SMOKE else 1500
TOKENS, SPREAD, L2 = 24, 3.0, 1e-2
CURVES = {"logistic": expit, "normal": ndtr, "Cauchy": lambda x: 0.5 + np.arctan(x) / np.pi}
GRID = np.linspace(0, 0.5, 26)
SHIPPED = "noise model, as shipped"
SIDES = (
    SHIPPED,
    "three curves, averaged",
    "anchor points",
    "corrected by 100 decided pairs",
    "corrected by 200 decided pairs",
    "isotonic, 200 decided pairs",
)
TRUTH = "true probabilities"


def drawn_labels(seen: np.ndarray, world: str, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(sign of the label given to each pair, whether it was exchanged)."""
    draw = np.random.default_rng(seed)
    reward = seen + (draw.normal(0, SPREAD, len(seen)) if world == "half unseen" else 0)
    people = np.sign(reward + 1e-9)
    if world != "sure people":
        people = np.where(draw.random(len(seen)) < expit(reward), 1, -1)
    share = np.exp(-np.abs(reward)) if world == "close calls" else np.ones(len(seen))
    chance = share * rate / share.mean()
    exchanged = draw.random(len(seen)) < np.minimum(chance, 0.5)
    return np.where(exchanged, -people, people), exchanged


def averaged(margins: np.ndarray) -> tuple[float, np.ndarray]:
    """Rate and probabilities under three curves and all rates, weighted by likelihood."""
    scaled, fits = margins / np.sqrt(np.mean(margins**2)), []
    for curve in CURVES.values():
        for rate in GRID:

            def loss(log_slope: float, rate: float = rate, curve: Any = curve) -> float:
                return -np.log(np.maximum(rate + (1 - 2 * rate) * curve(np.exp(log_slope) * scaled), 1e-300)).sum()

            found = minimize_scalar(loss, bounds=(-7, 5), method="bounded", options={"xatol": 1e-3})
            slope = np.exp(found.x)
            wrong = rate * curve(-slope * scaled) / (rate + (1 - 2 * rate) * curve(slope * scaled))
            fits.append((-found.fun, rate, wrong))
    best = max(fit[0] for fit in fits)
    weights = np.exp([fit[0] - best for fit in fits]) / np.exp([fit[0] - best for fit in fits]).sum()
    return float(weights @ [fit[1] for fit in fits]), sum(w * fit[2] for w, fit in zip(weights, fits, strict=True))


def anchored(margins: np.ndarray) -> tuple[float, np.ndarray]:
    """Rate and probabilities where the reader is right of its surest 5 %, and agrees more with every margin."""
    size, supported = np.abs(margins), (margins > 0).astype(float)
    agreement = IsotonicRegression(y_min=0.5, y_max=1.0).fit(size, supported).predict(size)
    rate = float(1 - supported[size >= np.quantile(size, 0.95)].mean())
    clean = np.clip((agreement - rate) / max(1 - 2 * rate, 1e-6), 0.5, 1.0)
    given = np.where(margins > 0, clean, 1 - clean)
    exchanged = np.where(margins > 0, 1 - clean, clean)
    return rate, rate * exchanged / np.maximum((1 - rate) * given + rate * exchanged, 1e-9)


def distances(probability: np.ndarray, truth: np.ndarray, rate: float) -> dict[str, float]:
    tenths = np.array_split(np.argsort(probability, kind="stable"), 10)
    apart = [abs(probability[tenth].mean() - truth[tenth].mean()) for tenth in tenths]
    return {"rate": abs(rate - float(truth.mean())), "mean": float(np.mean(apart)), "largest": float(np.max(apart))}


def cell(features: Any, groups: list[str], seen: np.ndarray, world: str, rate: float, seed: int) -> dict[str, Any]:
    label, exchanged = drawn_labels(seen, world, rate, seed)
    generator = torch.Generator().manual_seed(seed)
    differences = features * label[:, None]
    (margins,) = cross_fitted_margins(differences, groups, "bt", l2=L2, num_folds=5, num_repeats=1, generator=generator)
    judged = reliability(margins, groups)
    rank = np.argsort(margins, kind="stable")
    turn = np.argsort(sampling_order(len(margins)))
    found = {SHIPPED: distances(judged.wrong, exchanged, judged.noise.value)}
    for side, (value, wrong) in {SIDES[1]: averaged(margins), SIDES[2]: anchored(margins)}.items():
        found[side] = distances(wrong, exchanged, value)
    for side, count in ((SIDES[3], 100), (SIDES[4], 200)):
        decided = {int(place): bool(exchanged[place]) for place in rank[turn[:count]]}
        better = recalibrated(judged, margins, decided)
        found[side] = distances(better.wrong, exchanged, better.noise.value)
        found[side]["held"] = float(better.noise.low <= exchanged.mean() <= better.noise.high)
    places = rank[turn[:200]]
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(judged.wrong[places], exchanged[places])
    wrong = isotonic.predict(judged.wrong)
    found[SIDES[5]] = distances(wrong, exchanged, float(wrong.mean()))
    smooth = IsotonicRegression(out_of_bounds="clip", increasing=False).fit(margins, exchanged).predict(margins)
    again = (
        np.random.default_rng(seed + 1000).random(len(smooth)) < smooth
    )  # labels of which these are the probabilities
    found[TRUTH] = distances(smooth, again, float(smooth.mean()))
    found[SHIPPED]["held"] = float(judged.noise.low <= exchanged.mean() <= judged.noise.high)
    agreement = judged.agreement
    return {"sides": found, "agreement": agreement.value, "can_judge": judged.can_judge}


def read(directory: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(the reader's features of every pair, its question, the difference of the known reward's tokens)."""
    pairs = read_pairs(directory / "hh_harmless_test.jsonl.gz", on_bad_pair="drop", limit=PAIRS)
    split = [split_prompt(row) for row in pairs.rows]
    first, second = [one[1] for one in split], [one[2] for one in split]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit(first + second)
    features = rotated(unit_scale(words.transform(first) - words.transform(second)))
    tokens = CountVectorizer(binary=True, min_df=0.05, max_df=0.3).fit(first + second)
    names = np.random.default_rng(0).permutation(len(tokens.vocabulary_))[:TOKENS]
    present = [tokens.transform(texts).toarray()[:, names].astype(float) for texts in (first, second)]
    return features, question_groups(pairs.rows), present[0] - present[1]


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--data", type=Path, required=True, help="directory with hh_harmless_test.jsonl.gz")
    arguments = command.read()
    torch.set_num_threads(1)
    started = time.process_time()
    features, groups, present = read(arguments.data)
    cells: dict[str, Any] = {}
    for world in WORLDS:
        for rate in RATES:
            rows = []
            for seed in SEEDS:
                weights = np.random.default_rng(100 + seed).normal(size=present.shape[1])
                seen = present @ weights
                rows.append(cell(features, groups, seen * SPREAD / seen.std(), world, rate, seed))
            cells[f"{world}, {rate:g}"] = rows
            print(world, rate, rows[0]["sides"], flush=True)
    content = {
        "seeds": list(SEEDS),
        "slices": {"tuning": ["margins simulated"], "reporting": [experiment.digest(features)]},
        "settings": {"pairs": len(groups), "tokens": TOKENS, "spread": SPREAD, "l2": L2},
        "cells": cells,
        "cpu_seconds": round(time.process_time() - started),
    }
    experiment.record(arguments.out, __doc__, content)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Worlds down, sides across: means over seeds and rates."""
    made = {}
    for name, measure, title in (
        ("rate", "rate", "error of the rate, points"),
        ("tenths", "mean", "mean distance over tenths, points"),
        ("largest", "largest", "largest distance of a tenth, points"),
    ):
        sides = [*SIDES, *([TRUTH] if measure != "rate" else [])]
        lines = [f"| {title} | " + " | ".join(WORLDS) + " |", "| --- |" + " --- |" * len(WORLDS)]
        for side in sides:
            values = []
            for world in WORLDS:
                rows = [row for rate in RATES for row in results["cells"][f"{world}, {rate:g}"]]
                values.append(100 * float(np.mean([row["sides"][side][measure] for row in rows])))
            lines.append(f"| {side} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
        made[name] = "\n".join(lines) + "\n"
    return made | {"clean": clean(results), "held": held(results)}


def clean(results: dict[str, Any]) -> str:
    """What each side says of labels none of which was exchanged."""
    lines = ["| said to be exchanged, of none, % | " + " | ".join(WORLDS) + " |", "| --- |" + " --- |" * len(WORLDS)]
    for side in SIDES:
        values = [np.mean([row["sides"][side]["rate"] for row in results["cells"][f"{w}, 0"]]) for w in WORLDS]
        lines.append(f"| {side} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def held(results: dict[str, Any]) -> str:
    """How many 95 % intervals of the rate hold it, where it is above 0."""
    lines = ["| intervals that hold the rate | " + " | ".join(WORLDS) + " |", "| --- |" + " --- |" * len(WORLDS)]
    for side in (SHIPPED, SIDES[3], SIDES[4]):
        values = []
        for world in WORLDS:
            rows = [row for rate in RATES[1:] for row in results["cells"][f"{world}, {rate:g}"]]
            values.append(f"{sum(row['sides'][side]['held'] for row in rows):.0f} of {len(rows)}")
        lines.append(f"| {side} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
