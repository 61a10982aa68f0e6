"""Whether the audit's reader can judge a set of pairs at all, and how likely each label is wrong.

Cross-fitted margins m say how far rewards that have not seen a pair support its label. Three questions come before any
verdict on a single pair:

    agreement   the share of labels that the reader supports, over questions; one half is chance
    AUC         probability that a supported label has the larger |m|: 2 ranks of +m among -m
    noise       with probability e a label was exchanged after it was given:
                P(label | m) = (1 - e) sigma(a m) + e sigma(-a m)

The slope a makes margins probabilities and is fitted with e by maximum likelihood. Then

    P(exchanged | label, m) = e sigma(-a m) / P(label | m).

A label that is merely a close call is sigma's part, not e's. That the reader errs along sigma is an assumption, and
margins cannot test it. With a share k of errors of which the reader is as sure as can be, sigma becomes
k + (1 - 2 k) sigma, which is another e and the same likelihood: all that is seen of both is e + k - 2 e k. So any e
from none on is possible, and what margins give is a largest one:

    at most     the end of the profile likelihood's interval, widened by the design effect of several pairs a question,
                if labels are exchanged among close and clear answers alike
    in any case the share of labels that the reader contradicts: an exchange that it does not notice is made up for, and
                more, by labels that it contradicts wrongly

P(exchanged) is that of the likeliest e, and an upper end in this sense too. `recalibration` makes both true by pairs
that a person has decided.

Source: the noise model is that of robust DPO ("Provably Robust DPO", 2024, arXiv 2403.00409); out-of-sample judging of
labels is that of "Confident Learning", 2021, arXiv 1911.00068. The refusal is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from burnish.core.statistics import Interval, interval

JUDGES_ABOVE = 0.55
"""The lower end of the agreement's interval that a reader must reach. Just above chance most of what a reader
contradicts are its own errors: at 52 % agreement and 10 % wrong labels, 8 of 10 contradicted labels are right."""

RATES = np.linspace(0.0, 0.5, 101)
"""Noise rates whose profile likelihood is computed."""

CHI_SQUARE = 3.841458820694124
"""The 95 % quantile with one degree of freedom."""


@dataclass(frozen=True)
class Reliability:
    """What a reader's cross-fitted margins say about the labels as a whole.

    Attributes:
        agreement: share of labels supported, a tie counting half, with its interval over questions.
        auc: of |m| for telling supported labels from contradicted ones, in the sense above.
        noise: share of labels exchanged: the likeliest under the noise model, between none and what can be.
        evenly: largest share if close and clear answers are exchanged alike.
        slope: a, which turns margins into log-odds.
        log_likelihood: per pair, of the labels under the noise model.
        wrong: probability per pair that its label was exchanged, averaged over rates by their likelihood.
        decided: how many decided pairs these and the noise were corrected by (`recalibration`).
    """

    agreement: Interval
    auc: float
    noise: Interval
    evenly: float
    slope: float
    log_likelihood: float
    wrong: np.ndarray
    decided: int = 0

    @property
    def can_judge(self) -> bool:
        return bool(self.agreement.low >= JUDGES_ABOVE)

    def __str__(self) -> str:
        agreement, noise = self.agreement, self.noise
        seen = (
            f"the reader supports {agreement.value:.1%} of the labels ({agreement.low:.1%} to {agreement.high:.1%}), "
            f"AUC {self.auc:.2f}"
        )
        if not self.can_judge:
            return f"this reader cannot judge these pairs: {seen}, where chance is 50 %"
        if self.decided:
            rate = f"{noise.value:.1%} of the labels are exchanged ({noise.low:.1%} to {noise.high:.1%})"
            return f"{seen}; by {self.decided:,} decided pairs, {rate}"
        return (
            f"{seen}; of the labels {noise.low:.0%} to {self.evenly:.1%} can be exchanged, and up to {noise.high:.1%} "
            "if mostly on close calls: a reader's own errors look the same, and decided pairs tell them apart"
        )


def agreement_of(margins: np.ndarray, groups: Sequence[str]) -> Interval:
    """The share of labels that margins support, a tie half, with its interval over groups; one tells nothing."""
    place = _places(groups)
    supported = np.bincount(place, weights=(1 + np.sign(margins)) / 2)
    found = interval(supported, np.bincount(place).astype(np.float64), scale="logit")
    return found if len(supported) > 1 else Interval(found.value, 0.0, 1.0)


def _places(groups: Sequence[str]) -> np.ndarray:
    """A number per pair: that of its group."""
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    return np.array([names[group] for group in groups])


def reliability(margins: np.ndarray, groups: Sequence[str]) -> Reliability:
    """Of cross-fitted margins, one per pair; pairs of one group (question) are one observation."""
    agreement, place, supported = agreement_of(margins, groups), _places(groups), (1 + np.sign(margins)) / 2
    ranks = rankdata(np.concatenate([margins, -margins]))[: len(margins)]
    auc = float((ranks.sum() - len(margins) * (len(margins) + 1) / 2) / len(margins) ** 2)
    scaled = margins / max(float(np.sqrt(np.mean(margins**2))), 1e-12)
    slopes, likelihoods = zip(*(_best_slope(scaled, rate) for rate in RATES), strict=True)
    likelihood = np.array(likelihoods)
    best = int(likelihood.argmax())
    drop = len(margins) * (likelihood[best] - likelihood) / _design_effect(supported, place)
    near = 2 * drop <= CHI_SQUARE
    evenly = float(RATES[near].max())
    noise = Interval(float(RATES[best]), 0.0, max(evenly, 1 - agreement.low))
    # rates that fit nearly as well are as possible: the average over them does not overstate what the best one says
    weight = np.exp(-drop) / np.exp(-drop).sum()
    wrong = np.zeros(len(margins))
    for rate, slope, share in zip(RATES, slopes, weight, strict=True):
        if share > 1e-6:
            wrong += share * rate * expit(-slope * scaled) / _probability(scaled, slope, rate)
    slope = slopes[best]
    slope_of_margin = slope / max(float(np.sqrt(np.mean(margins**2))), 1e-12)
    return Reliability(agreement, auc, noise, evenly, slope_of_margin, float(likelihood[best]), wrong)


def _probability(margins: np.ndarray, slope: float, rate: float) -> np.ndarray:
    return rate + (1 - 2 * rate) * expit(slope * margins)


def _best_slope(margins: np.ndarray, rate: float) -> tuple[float, float]:
    """The slope with the largest likelihood at a noise rate, and that likelihood per pair."""

    def loss(log_slope: float) -> float:
        return -float(np.log(np.maximum(_probability(margins, np.exp(log_slope), rate), 1e-300)).mean())

    found = minimize_scalar(loss, bounds=(-7.0, 5.0), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x)), -float(found.fun)


def _design_effect(supported: np.ndarray, place: np.ndarray) -> float:
    """Variance of the mean over groups, over the variance that independent pairs would have; at least 1."""
    centred = supported - supported.mean()
    alone = float(centred @ centred)
    return max(1.0, float(np.square(np.bincount(place, weights=centred)).sum()) / alone) if alone > 0 else 1.0
