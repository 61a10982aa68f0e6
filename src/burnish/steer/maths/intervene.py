"""The intervention: what leaves an attention layer is turned away from the directions of its chosen heads.

At a token that ends a step, with x the output of the attention's output projection (all heads summed), for every chosen
head in order of its probe's accuracy, with its probe w and its unit direction v,

    x' = x + c g(x·w) (x·v) v,        x <- x' ‖x‖ / ‖x'‖.

The probe's class 1 is a linear step, so x·w < 0 looks like checking or going back. c = -1 takes the component along v
away and is the form that the paper describes; c = -4, the default of the authors' release, turns a component a into
-3a before lengths are kept. Modes, by the names of the release:

    threshold   g = 1[x·w < 0]            after_o_proj_norm_threshold
    soft        g = 1 - sigmoid(x·w)      after_o_proj_norm
    ungated     g = 1                     after_o_proj_no_awareness_norm
    additive    x <- x + c (1 - sigmoid(x·w)) v, whatever x·v is, and the length changes    after_o_proj
    mean        x <- x + c (x·v - m) v, and the length changes    ours

What differs in the last is where the component goes. Zero is not what it is on steps that go on, so that at c = -1 the
others bring both kinds of steps to something that neither is; m is its mean over linear steps, and that is where c = -1
brings it, whichever side it comes from.

Source: Understanding and Steering the Cognitive Behaviors of Reasoning Models at Test-Time, 2025, arXiv:2512.24574.
What differs from its release: probes, gates and lengths are computed in float32 where x has less (the release rounds w
and v to the dtype of x, and a gate is a sign), x stays where x' vanishes (x parallel to v with c = -1; the release
divides by zero), and a row whose gate is closed keeps its bits.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mode = Literal["threshold", "soft", "ungated", "additive", "mean"]
MODES: tuple[Mode, ...] = get_args(Mode)
RELEASED: tuple[Mode, ...] = ("threshold", "soft", "ungated", "additive")
"""Those of the authors."""

VANISHED = 16
"""Roundings of ‖x‖ below which x' has no direction left."""


def steered(
    x: Float[Tensor, "rows hidden"],
    probes: Float[Tensor, "heads hidden"],
    directions: Float[Tensor, "heads hidden"],
    flags: Bool[Tensor, " rows"],
    *,
    targets: Float[Tensor, " heads"] | None = None,
    coef: float | Float[Tensor, " rows"] = -1.0,
    mode: Mode = "threshold",
) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "rows heads"]]:
    """The rows after the intervention, and how far each head's gate was open for each of them.

    Args:
        x: outputs of the output projection, in any dtype.
        probes, directions: of the chosen heads of this layer, the most accurate first; directions of unit length.
        flags: rows that are steered; every other keeps its bits.
        targets: m above, for the mode `mean` alone.
        coef: c above, for all rows or for each.
        mode: which gate.

    Returns:
        x in its own dtype, and gates from 0 to 1, 0 for rows without a flag.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    state, gates = x.to(dtype), []
    goals = torch.zeros(len(probes), dtype=dtype, device=x.device) if targets is None else targets.to(dtype)
    length = state.norm(dim=1)
    for probe, direction, goal in zip(probes.to(dtype), directions.to(dtype), goals, strict=True):
        gate = _gate(state @ probe, mode) * flags
        if mode == "mean":
            moved = state + (coef * gate * (state @ direction - goal))[:, None] * direction
        else:
            moved = _turned(state, direction, coef * gate, None if mode == "additive" else length)
        state = torch.where((gate > 0)[:, None], moved, state)
        gates.append(gate)
    if not gates:
        return x, x.new_zeros(len(x), 0, dtype=dtype)
    opened = torch.stack(gates, 1)
    return torch.where((opened > 0).any(1)[:, None], state.to(x.dtype), x), opened


def _gate(score: Float[Tensor, " rows"], mode: Mode) -> Float[Tensor, " rows"]:
    match mode:
        case "threshold":
            return (score < 0).to(score.dtype)
        case "ungated" | "mean":
            return torch.ones_like(score)
        case "soft" | "additive":
            return (-score).sigmoid()


def _turned(
    x: Float[Tensor, "rows hidden"],
    direction: Float[Tensor, " hidden"],
    amount: Float[Tensor, " rows"],
    length: Float[Tensor, " rows"] | None,
) -> Float[Tensor, "rows hidden"]:
    """x + amount (x·v) v at the length that is given, which is that of x; without one x + amount v."""
    if length is None:
        return x + amount[:, None] * direction
    moved = x + (amount * (x @ direction))[:, None] * direction
    after = moved.norm(dim=1)
    there = after > VANISHED * torch.finfo(x.dtype).eps * length
    return torch.where(there[:, None], moved * (length / after)[:, None], x)
