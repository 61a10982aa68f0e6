"""P(exchanged) made true by pairs that a person has decided.

From margins alone the rate of exchanged labels cannot be known. With C(m) the share of right labels that the reader
supports at a margin of size m, and labels exchanged at a rate e, it supports

    A(m) = e + (1 - 2 e) C(m),

and only A is seen. The noise model of `reliability` takes C for a logistic curve. A reader that is often sure and
wrong or sees only a part of what people judge by, and labels exchanged where answers are close, make other curves, and
its e is then wrong. Flips that are planted on purpose do not help: they turn A into 1 - A, which was known.

What tells is a person. Of the pairs decided (kept: the label is right; flipped: it was wrong) a correction is fitted to
the noise model's own log-odds,

    logit P = logit P_model + b0 + b1 m + b2 |m|,          ridge on b,

by maximum penalised likelihood. It may depend on the margin in any way that the three terms allow, so pairs may be
decided in any order that goes by rank; a sample over all ranks, denser where in doubt, tells most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from burnish.align.reliability import Reliability
from burnish.core.errors import DataError
from burnish.core.statistics import Interval

FEWEST = 20
"""Decided pairs below which the correction would be the penalty's."""

RIDGE = 0.5
LIMITS = (0.01, 0.99)
"""Of the model's probability: it is sure of more than it can know."""


def recalibrated(judged: Reliability, margins: np.ndarray, decided: Mapping[int, bool]) -> Reliability:
    """The same verdict with probabilities and noise rate corrected by decided pairs.

    Args:
        judged: of these margins.
        margins: per pair, for the label.
        decided: {place of a pair: whether its label is wrong}.

    Raises:
        DataError: fewer than `FEWEST` pairs are decided.
    """
    if len(decided) < FEWEST:
        raise DataError(
            f"{len(decided)} pairs are kept or flipped, and probabilities need at least {FEWEST}",
            where="the decided pairs",
            fix="decide more; the page can sort by what to decide first",
        )
    scaled = margins / max(float(np.sqrt(np.mean(margins**2))), 1e-12)
    terms = np.stack([np.ones_like(scaled), scaled, np.abs(scaled)], axis=1)
    model = logit(np.clip(judged.wrong, *LIMITS))
    places = np.array(sorted(decided))
    wrong = np.array([float(decided[place]) for place in places.tolist()])

    def objective(b: np.ndarray) -> tuple[float, np.ndarray]:
        odds = model[places] + terms[places] @ b
        value = float((np.logaddexp(0, odds) - wrong * odds).sum() + RIDGE / 2 * b @ b)
        return value, terms[places].T @ (expit(odds) - wrong) + RIDGE * b

    b = minimize(objective, np.zeros(3), jac=True, method="BFGS").x
    probability = expit(model + terms @ b)
    known = probability[places] * (1 - probability[places])
    covariance = np.linalg.inv((terms[places] * known[:, None]).T @ terms[places] + RIDGE * np.eye(3))
    noise = _rate(probability, terms, covariance)
    if not wrong.any():  # none of the decided was wrong: none at all is possible, which a logit never reaches
        noise = replace(noise, low=0.0)
    return replace(judged, wrong=probability, noise=noise, decided=len(decided))


def _rate(probability: np.ndarray, terms: np.ndarray, covariance: np.ndarray) -> Interval:
    """The mean probability with its 95 % interval by the delta method, on the logit."""
    rate = float(probability.mean())
    slope = ((probability * (1 - probability))[:, None] * terms).mean(axis=0) / (rate * (1 - rate))
    half = 1.96 * float(np.sqrt(slope @ covariance @ slope))
    return Interval(rate, float(expit(logit(rate) - half)), float(expit(logit(rate) + half)))
