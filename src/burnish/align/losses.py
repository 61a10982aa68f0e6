"""Preference losses as functions of the margin: `f(margin, ...) -> (loss per pair, diagnostics)`.

A margin is m = r(chosen) - r(rejected) for a reward model, and for direct preference optimisation
m = beta [(log p_c - log p_c^ref) - (log p_r - log p_r^ref)]. Each loss below is a convex scalar function of m, averaged
over pairs by whoever calls it. Its gradient in m is exact and never passes through a solver; diagnostics are detached.

    loss, diagnostics = aps(margin, rho0=0.1, tau0=0.1, tau_max=5.0)
    loss.mean().backward()

Half-precision margins are computed, and returned, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.align.maths.adaptive import adaptive_scale, newton_scale, quadratic_scale, scaled_loss
from burnish.align.maths.bradley_terry import LOG_2, logistic_loss
from burnish.align.maths.robust import capped_loss, combined_loss, combined_scale, outlier_offset
from burnish.core.errors import NumericalError, SettingsError

Diagnostics = dict[str, Tensor]
PairLossName = Literal["bt", "aps", "aps_quadratic", "r3m", "aps_r3m"]


def bt(margin: Float[Tensor, " pairs"]) -> tuple[Float[Tensor, " pairs"], Diagnostics]:
    """Bradley-Terry: softplus(-m). Diagnostics: `weight`, which is -df/dm.

    Raises:
        NumericalError: a margin is not finite.
    """
    m = _finite(margin)
    return logistic_loss(m), {"weight": torch.sigmoid(-m.detach())}


def aps(
    margin: Float[Tensor, " pairs"],
    *,
    rho0: float = 0.1,
    tau0: float = 0.1,
    tau_max: float = 5.0,
    solver: Literal["exact", "newton"] = "exact",
    steps: int = 3,
) -> tuple[Float[Tensor, " pairs"], Diagnostics]:
    """Adaptive preference scaling: min over tau in [tau0, tau_max] of tau softplus(-m/tau) + (rho0 - log 2) tau.

    Args:
        margin: m per pair, any scale.
        rho0: radius of the robust problem in nats, as in the authors' code (their paper's rho is rho0 - log 2). From
            log 2 = 0.693 on every pair gets tau0.
        tau0, tau_max: bounds of the scale, in units of the margin.
        solver: "exact" (closed form) or "newton" (the authors' iteration, to reproduce published runs).
        steps: of the Newton iteration; the authors use 3 (control) and 5 (text).

    Returns:
        loss per pair, and diagnostics: `tau`, `weight` = -df/dm = sigma(-m/tau), and `loss_without_reg`, the loss
        without its (rho0 - log 2) tau, which is the value the authors' code reports.

    Raises:
        SettingsError: rho0 <= 0, tau0 <= 0, tau0 > tau_max, an unknown solver.
        NumericalError: a margin is not finite.

    Source: "Adaptive Preference Scaling for Reinforcement Learning with Human Feedback", 2024, arXiv 2406.02764.
    """
    check_aps(rho0=rho0, tau0=tau0, tau_max=tau_max)
    m = _finite(margin)
    if solver == "exact":
        tau = adaptive_scale(m, rho0, tau0, tau_max)
    elif solver == "newton":
        tau = newton_scale(m, rho0, tau0, tau_max, steps)
    else:
        raise SettingsError(f"solver is {solver!r}, but it is 'exact' or 'newton'", where="aps")
    fit = scaled_loss(m, tau)
    return fit + (rho0 - LOG_2) * tau, _scaled_diagnostics(m, tau) | {"loss_without_reg": fit.detach()}


def aps_quadratic(
    margin: Float[Tensor, " pairs"], *, rho0: float = 0.1, tau0: float = 0.1
) -> tuple[Float[Tensor, " pairs"], Diagnostics]:
    """APS with a quadratic price: min over tau >= tau0 of tau softplus(-m/tau) - log(2) tau + rho0 tau^2.

    No upper bound is needed: tau stays below log 2 / (2 rho0). Arguments, diagnostics, errors and source as in `aps`.
    """
    check_aps(rho0=rho0, tau0=tau0, tau_max=math.inf)
    m = _finite(margin)
    tau = quadratic_scale(m, rho0, tau0)
    fit = scaled_loss(m, tau)
    loss = fit - LOG_2 * tau + rho0 * tau.square()
    return loss, _scaled_diagnostics(m, tau) | {"loss_without_reg": fit.detach()}


def r3m(margin: Float[Tensor, " pairs"], *, lam: float = 0.75) -> tuple[Float[Tensor, " pairs"], Diagnostics]:
    """R3M: min over delta of softplus(-(m + delta)) + lam |delta|, the logistic loss with its pull capped at lam.

    Args:
        margin: m per pair.
        lam: price of an offset per pair, in (0, 1), and the largest weight a pair can get. Above 1/2 only wrongly
            ranked pairs are capped.

    Returns:
        loss per pair, and diagnostics: `delta` = max(log(1/lam - 1) - m, 0), the outlier score, and `weight` = -df/dm.

    Raises:
        SettingsError: lam outside (0, 1).
        NumericalError: a margin is not finite.

    Source: "Robust Reinforcement Learning from Corrupted Human Feedback", 2024, arXiv 2406.15568, eq. 3.3.
    """
    check_r3m(lam=lam)
    m = _finite(margin)
    weight = torch.sigmoid(-m.detach()).clamp(max=lam)
    return capped_loss(m, lam), {"delta": outlier_offset(m, lam), "weight": weight}


def aps_r3m(
    margin: Float[Tensor, " pairs"], *, rho0: float = 0.1, tau0: float = 0.1, tau_max: float = 5.0, lam: float = 0.75
) -> tuple[Float[Tensor, " pairs"], Diagnostics]:
    """Both at once: min over tau, delta of tau softplus(-(m + delta)/tau) + (rho0 - log 2) tau + lam |delta|.

    The joint minimum has a closed form (`maths.robust.combined_scale`). For lam small enough that log(1/lam - 1)
    exceeds the root u of h(u) = rho0, tau is tau_max for every pair and only the cap is left of the method.
    Arguments and errors as in `aps` and `r3m`; diagnostics `tau`, `delta` and `weight`.
    """
    check_aps(rho0=rho0, tau0=tau0, tau_max=tau_max)
    check_r3m(lam=lam)
    m = _finite(margin)
    tau = combined_scale(m, rho0, tau0, tau_max, lam)
    weight = torch.sigmoid(-m.detach() / tau).clamp(max=lam)
    loss = combined_loss(m, tau, lam) + (rho0 - LOG_2) * tau
    return loss, {"tau": tau, "delta": outlier_offset(m, lam, tau), "weight": weight}


LOSSES: dict[str, Callable[..., tuple[Tensor, Diagnostics]]] = {
    "bt": bt,
    "aps": aps,
    "aps_quadratic": aps_quadratic,
    "r3m": r3m,
    "aps_r3m": aps_r3m,
}

SETTINGS: dict[str, tuple[str, ...]] = {
    "bt": (),
    "aps": ("rho0", "tau0", "tau_max", "solver", "steps"),
    "aps_quadratic": ("rho0", "tau0"),
    "r3m": ("lam",),
    "aps_r3m": ("rho0", "tau0", "tau_max", "lam"),
}
"""Which settings each loss reads."""


def pair_loss(name: PairLossName, margin: Float[Tensor, " pairs"], **settings: Any) -> tuple[Tensor, Diagnostics]:
    """The loss called `name`, given those of `settings` that it reads."""
    return LOSSES[name](margin, **{key: settings[key] for key in SETTINGS[name] if key in settings})


def smoothed_pair_loss(
    name: PairLossName,
    margin: Float[Tensor, " pairs"],
    label_smoothing: float,
    *,
    right: Float[Tensor, " pairs"] | None = None,
    **settings: Any,
) -> tuple[Tensor, Diagnostics]:
    """(1 - e) f(m) + e f(-m): the expected loss when a label is wrong with probability e (cDPO for f = bt).

    Args:
        name: of f.
        margin: m per pair.
        label_smoothing: a probability for all pairs.
        right: soft labels: the probability of every pair that its label is right. With label_smoothing s,
            e = (1 - s) (1 - right) + s right.
        **settings: of f.

    Diagnostics are those of f(m), except `weight`, which stays -d/dm of the sum.

    Raises:
        SettingsError: a smoothing outside [0, 0.5), which would train towards the rejected answer.
    """
    check_label_smoothing(label_smoothing)
    loss, diagnostics = pair_loss(name, margin, **settings)
    if label_smoothing == 0 and right is None:
        return loss, diagnostics
    reverse, reversed_diagnostics = pair_loss(name, -margin, **settings)
    keep: Tensor | float = 1 - label_smoothing
    swap: Tensor | float = label_smoothing
    if right is not None:
        given = right.to(loss.dtype)
        keep, swap = keep * given + swap * (1 - given), keep * (1 - given) + swap * given
    weight = keep * diagnostics["weight"] - swap * reversed_diagnostics["weight"]
    return keep * loss + swap * reverse, diagnostics | {"weight": weight}


# -- settings and borders ------------------------------------------------------------------------------------------


def check_number(name: str, value: object, *, where: str) -> None:
    """Refuses text, true and false, and NaN; comparisons would let NaN through.

    Raises:
        SettingsError: `value` is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise SettingsError(f"{name} is {value!r}, but it must be a number", where=where)


def check_label_smoothing(value: object) -> None:
    check_number("label_smoothing", value, where="label_smoothing")
    if not 0 <= value < 0.5:  # type: ignore[operator]  # it is a number
        raise SettingsError(
            f"label_smoothing is {value:g}, which trains towards the rejected answer",
            where="label_smoothing",
            fix="give a probability below 0.5",
        )


def check_aps(*, rho0: float, tau0: float, tau_max: float) -> None:
    for name, value in (("rho0", rho0), ("tau0", tau0), ("tau_max", tau_max)):
        check_number(name, value, where="aps")
    if not rho0 > 0:
        raise SettingsError(f"rho0 is {rho0:g}, but it must be above 0", where="aps", fix="0.05 to 0.5 is usual")
    if not 0 < tau0 < math.inf:
        raise SettingsError(f"tau0 is {tau0:g}, but it must be finite and above 0", where="aps", fix="0.1 is usual")
    if tau0 > tau_max:
        raise SettingsError(f"tau0 is {tau0:g}, above tau_max {tau_max:g}", where="aps", fix="exchange them")


def check_r3m(*, lam: float) -> None:
    check_number("lam", lam, where="r3m")
    if not 0 < lam < 1:
        raise SettingsError(
            f"lam is {lam:g}, but it must lie strictly between 0 and 1", where="r3m", fix="0.75 is usual for text"
        )


def check_settings(name: str, *, rho0: float, tau0: float, tau_max: float, lam: float) -> None:
    """Checks what the loss called `name` reads, before any work is done."""
    if name not in LOSSES:
        raise SettingsError(f"pair loss is {name!r}, but it is one of {', '.join(LOSSES)}", where="pair_loss")
    if "rho0" in SETTINGS[name]:
        check_aps(rho0=rho0, tau0=tau0, tau_max=tau_max if "tau_max" in SETTINGS[name] else math.inf)
    if "lam" in SETTINGS[name]:
        check_r3m(lam=lam)


class MarginError(NumericalError):
    """A margin is not finite.

    Attributes:
        pair: its place in the batch.
        value: NaN or infinite.
    """

    def __init__(self, pair: int, value: float, *, where: str) -> None:
        super().__init__(
            f"the margin is {value}, but it must be finite",
            where=where,
            fix="lower the learning rate, or look for an empty answer in that pair",
        )
        self.pair, self.value = pair, value


def _finite(margin: Tensor) -> Tensor:
    """The margin in at least float32; refuses NaN and infinity, naming the first such pair."""
    finite = torch.isfinite(margin)
    if not finite.all():
        pair = int((~finite).nonzero()[0, 0])
        raise MarginError(pair, float(margin.detach().flatten()[pair]), where=f"pair {pair} of {margin.numel()}")
    return margin.float() if margin.dtype in (torch.float16, torch.bfloat16) else margin


def _scaled_diagnostics(margin: Tensor, tau: Tensor) -> Diagnostics:
    return {"tau": tau, "weight": torch.sigmoid(-margin.detach() / tau)}
