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
learning has it); the noise model corrected by 100, 200 or 400 decided pairs in the page's order, by three terms
(`recalibration`), or 200 of them evenly over all ranks, or by isotonic regression; and a joint fit: the rate (logistic
in the size of the margin), the reader's slope and its share of sure errors, by maximum likelihood on all labels and the
200 decided pairs together.

Measures: error of the rate; mean and largest distance of probability and truth over tenths of the pairs by
probability. A tenth has 150 pairs, so that the truth itself has an error of 2 to 4 points, and the largest of ten is
above zero for true probabilities too: "true probabilities" says how far above (labels drawn anew from a smoothed
truth). The largest distance is also taken from the mean of the probabilities that the world itself has for a tenth's
pairs, which has no such error. No setting is tuned here: the ridge of the correction was chosen on simulated margins,
beside 0.3, 1 and 3.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
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
    "corrected by 400 decided pairs",
    "200 pairs, evenly over ranks",
    "joint fit, 200 decided pairs",
    "isotonic, 200 decided pairs",
)
SPREAD_OF_RATE, OF_REST = 4.0, 0.1
"""Of the joint fit, the penalties on how the rate changes with the margin, and on the reader's log-slope and errors."""
TRUTH = "true probabilities"


def drawn_labels(seen: np.ndarray, world: str, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sign of each pair's label, whether it was exchanged, the probability of that given label and world)."""
    draw = np.random.default_rng(seed)
    reward = seen + (draw.normal(0, SPREAD, len(seen)) if world == "half unseen" else 0)
    first = (reward > -1e-9).astype(float) if world == "sure people" else expit(reward)
    people = np.sign(reward + 1e-9)
    if world != "sure people":
        people = np.where(draw.random(len(seen)) < first, 1, -1)
    share = np.exp(-np.abs(reward)) if world == "close calls" else np.ones(len(seen))
    chance = share * rate / share.mean()
    chance = np.minimum(chance, 0.5)
    exchanged = draw.random(len(seen)) < chance
    label = np.where(exchanged, -people, people)
    given = np.where(label > 0, first, 1 - first)
    known = chance * (1 - given) / np.maximum((1 - chance) * given + chance * (1 - given), 1e-12)
    return label, exchanged, known


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


def joint(margins: np.ndarray, decided: dict[int, bool]) -> np.ndarray:
    """Probabilities of the joint fit: P(support | t) = e(t) + (1 - 2 e(t)) (k + (1 - 2 k) sigma(a t)), t = |margin|."""
    size, supported = np.abs(margins) / np.sqrt(np.mean(margins**2)), margins > 0
    places = np.array(sorted(decided))
    wrong = np.array([decided[place] for place in places.tolist()])
    rest = np.ones(len(margins), dtype=bool)
    rest[places] = False

    def parts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(label and exchanged), P(label and not exchanged), given the margin."""
        rate, sure = 0.5 * expit(theta[0] + theta[1] * (size - 1)), 0.5 * expit(theta[2])
        reader = sure + (1 - 2 * sure) * expit(np.exp(theta[3]) * size)
        reader = np.where(supported, reader, 1 - reader)
        return rate * (1 - reader), (1 - rate) * reader

    def loss(theta: np.ndarray) -> float:
        bad, good = parts(theta)
        told = np.log(np.where(wrong, bad[places], good[places]) + 1e-12).sum()
        held = OF_REST * ((theta[2] + 2) ** 2 + theta[3] ** 2) + OF_REST / 5 * (theta[0] + 2) ** 2
        return -np.log(bad + good)[rest].sum() - told + (SPREAD_OF_RATE * theta[1] ** 2 + held) / 4

    starts = ([-2.0, 0.0, -2.0, 0.0], [-1.0, 0.0, 0.0, 0.0])
    best = min((minimize(loss, start, method="BFGS") for start in starts), key=lambda found: found.fun)
    bad, good = parts(best.x)
    return bad / (bad + good)


def distances(probability: np.ndarray, truth: np.ndarray, known: np.ndarray, rate: float) -> dict[str, float]:
    tenths = np.array_split(np.argsort(probability, kind="stable"), 10)
    apart, known_apart = (
        [abs(probability[tenth].mean() - of[tenth].mean()) for tenth in tenths] for of in (truth, known)
    )
    return {
        "rate": abs(rate - float(truth.mean())),
        "mean": float(np.mean(apart)),
        "largest": float(np.max(apart)),
        "largest, known": float(np.max(known_apart)),
    }


def cell(features: Any, groups: list[str], seen: np.ndarray, world: str, rate: float, seed: int) -> dict[str, Any]:
    label, exchanged, known = drawn_labels(seen, world, rate, seed)
    generator = torch.Generator().manual_seed(seed)
    differences = features * label[:, None]
    (margins,) = cross_fitted_margins(differences, groups, "bt", l2=L2, num_folds=5, num_repeats=1, generator=generator)
    judged = reliability(margins, groups)
    rank = np.argsort(margins, kind="stable")
    turn = np.argsort(sampling_order(judged.wrong[rank]))
    even = np.argsort(sampling_order([0.5] * len(margins)))

    def apart(wrong: np.ndarray, value: float | None = None) -> dict[str, float]:
        return distances(wrong, exchanged, known, float(wrong.mean()) if value is None else value)

    found = {SHIPPED: apart(judged.wrong, judged.noise.value)}
    for side, (value, wrong) in {SIDES[1]: averaged(margins), SIDES[2]: anchored(margins)}.items():
        found[side] = apart(wrong, value)
    for side, places in (
        (SIDES[3], rank[turn[:100]]),
        (SIDES[4], rank[turn[:200]]),
        (SIDES[5], rank[turn[:400]]),
        (SIDES[6], rank[even[:200]]),
    ):
        better = recalibrated(judged, margins, {int(place): bool(exchanged[place]) for place in places})
        found[side] = apart(better.wrong, better.noise.value)
        found[side]["held"] = float(better.noise.low <= exchanged.mean() <= better.noise.high)
    places = rank[turn[:200]]
    found[SIDES[7]] = apart(joint(margins, {int(place): bool(exchanged[place]) for place in places}))
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(judged.wrong[places], exchanged[places])
    found[SIDES[8]] = apart(isotonic.predict(judged.wrong))
    smooth = IsotonicRegression(out_of_bounds="clip", increasing=False).fit(margins, exchanged).predict(margins)
    # labels of which these are the probabilities
    again = np.random.default_rng(seed + 1000).random(len(smooth)) < smooth
    found[TRUTH] = distances(smooth, again, smooth, float(smooth.mean()))
    found[SHIPPED]["held"] = float(judged.noise.low <= exchanged.mean() <= judged.noise.high)
    found[SHIPPED]["evenly held"] = float(exchanged.mean() <= judged.evenly)
    ends = {"end": judged.noise.high, "evenly": judged.evenly}
    agreement = judged.agreement
    return {"sides": found, "agreement": agreement.value, "can_judge": judged.can_judge, "ends": ends}


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
        ("known", "largest, known", "largest distance of a tenth from the world's probabilities, points"),
    ):
        sides = [*SIDES, *([TRUTH] if measure in ("mean", "largest") else [])]
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
    """How many intervals of the rate hold it, at all rates, and how far those without decided pairs reach."""
    lines = ["| intervals that hold the rate | " + " | ".join(WORLDS) + " |", "| --- |" + " --- |" * len(WORLDS)]
    rows = {world: [row for rate in RATES for row in results["cells"][f"{world}, {rate:g}"]] for world in WORLDS}
    sides = {"margins alone": (SHIPPED, "held"), "margins alone, if close and clear alike": (SHIPPED, "evenly held")}
    for name, (side, key) in (sides | {side: (side, "held") for side in SIDES[3:6]}).items():
        values = [
            f"{sum(row['sides'][side][key] for row in rows[world]):.0f} of {len(rows[world])}" for world in WORLDS
        ]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    for name, key in (("margins alone reach to, %", "end"), ("if close and clear alike, to, %", "evenly")):
        values = [np.mean([row["ends"][key] for row in rows[world]]) for world in WORLDS]
        lines.append(f"| {name} | " + " | ".join(f"{100 * value:.0f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
