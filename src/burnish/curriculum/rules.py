"""When a phase ends, and when an earlier one is being forgotten: rules over what was measured, and nothing else.

A value is a solve rate, or the loss with its sign turned, so that more is better. After every look t of a phase

    reached     v_t >= the level asked for
    plateau     e_t - e_(t-n) < x       e_0 = v_0,  e_t = (e_(t-1) + v_t) / 2,  from look n on
    forgotten   max_(s <= t) u_s - u_t > fall       u: the values of an earlier phase

"Infi-MMR", 2025, arXiv:2505.23091, goes through its phases by hand; rules of ending and the guard are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average with a half for what is new."""
    found: list[float] = []
    for value in values:
        found.append((found[-1] + value) / 2 if found else value)
    return found


def gain(values: Sequence[float], looks: int) -> float | None:
    """How much the smoothed value has risen over the last looks; None before there were so many."""
    curve = smoothed(values)
    return curve[-1] - curve[-1 - looks] if len(curve) > looks else None


def forgotten(values: Mapping[str, Sequence[float]], fall: float) -> dict[str, float]:
    """{phase: how far it is below its best} of those that are further below than `fall`."""
    below = {name: max(one) - one[-1] for name, one in values.items() if one}
    return {name: lost for name, lost in below.items() if lost > fall}
