"""What a reward says of labelled pairs, from its margins m = r(chosen) - r(rejected) alone.

    accuracy        share of pairs with m > 0; a tie counts half, as a coin would
    confidence      sigma(|m|): by the Bradley-Terry model, the chance that the answer with the larger reward is better
    overconfidence  mean confidence minus accuracy; 0 for a calibrated reward
    log loss        softplus(-m), log 2 for a reward that knows nothing

A question's pairs share its texts, so a question is one observation in every interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from burnish.core.statistics import Interval, interval

BINS = 10
LONGEST_BAR = 40
"""Bars of the histogram at most."""


def right(margin: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """1 where the margin has the label's sign, 1/2 for a tie."""
    return (1 + np.sign(margin)) / 2


def confidence(margin: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    return expit(np.abs(margin))


def log_loss(margin: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """softplus(-m), in nats."""
    return np.logaddexp(0.0, -margin)


def mean_over(
    values: Float[np.ndarray, " pairs"], place: Int[np.ndarray, " pairs"], *, share: bool = False
) -> Interval:
    """The mean over pairs with its interval over questions; `place` is each pair's question. NaN of no pairs."""
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    sums, sizes = by_question(values, place)
    return interval(sums, sizes, scale="logit" if share else "linear")


def by_question(
    values: Float[np.ndarray, " pairs"], place: Int[np.ndarray, " pairs"]
) -> tuple[Float[np.ndarray, " questions"], Float[np.ndarray, " questions"]]:
    """Sums over the pairs of every question that has some, and how many these are."""
    sizes = np.bincount(place).astype(np.float64)
    held = sizes > 0
    return np.bincount(place, weights=values)[held], sizes[held]


def calibration(
    margin: Float[np.ndarray, " pairs"], place: Int[np.ndarray, " pairs"], bins: int = BINS
) -> list[dict[str, float]]:
    """Of parts of like size, by rising |m|: mean confidence, and accuracy with its interval."""
    order = np.argsort(np.abs(margin), kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))):
        found = mean_over(right(margin[part]), place[part], share=True)
        said = float(confidence(margin[part]).mean())
        rows.append({"confidence": said, "right": found.value, "low": found.low, "high": found.high})
        rows[-1]["pairs"] = len(part)
    return rows


def calibration_error(parts: Sequence[dict[str, float]]) -> float:
    """Mean distance of accuracy and confidence over the parts, by their sizes (expected calibration error).

    Never negative, so that it is above zero for a calibrated reward too, by about the noise of a part.
    """
    total = sum(row["pairs"] for row in parts)
    return sum(row["pairs"] * abs(row["right"] - row["confidence"]) for row in parts) / total


def histogram(margin: Float[np.ndarray, " pairs"], bars: int = LONGEST_BAR) -> list[dict[str, float]]:
    """Counts of margins in bars of equal width, one edge at zero; the outermost hold everything beyond them."""
    reach = float(np.quantile(np.abs(margin), 0.99)) or 1.0
    edges = np.linspace(-reach, reach, bars + 1)
    counts, _ = np.histogram(np.clip(margin, -reach, reach), bins=edges)
    return [
        {"margin": float((low + high) / 2), "pairs": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def length_bias(
    margin: Float[np.ndarray, " pairs"], longer: Int[np.ndarray, " pairs"], place: Int[np.ndarray, " pairs"]
) -> dict[str, Interval]:
    """How often the longer answer is preferred, by the labels and by the reward, and how often each kind is right.

    Args:
        longer: the sign of len(chosen) - len(rejected); pairs of like length say nothing here.
        place: each pair's question.
    """
    unlike = longer != 0
    m, sign, at = margin[unlike], longer[unlike], place[unlike]
    return {
        "reward_prefers_longer": mean_over(right(m * sign), at, share=True),
        "labels_prefer_longer": mean_over((1 + sign) / 2, at, share=True),
        "accuracy_longer_chosen": mean_over(right(m[sign > 0]), at[sign > 0], share=True),
        "accuracy_shorter_chosen": mean_over(right(m[sign < 0]), at[sign < 0], share=True),
    }
