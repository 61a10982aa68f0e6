"""The intervention on a few rows, from products alone: what `intervene.steered` computes, in a handful of operations.

Whatever the heads of a layer do to a row x, it stays in the span of x and of their directions,

    x_t = s x + Σ_j a_j v_j,

and what decides the next head are numbers: x_t·w_j, x_t·v_j and ‖x_t‖². They follow from x·w_j, x·v_j and ‖x‖², one
product of matrices for a layer, and from w_j·v_h and v_j·v_h, which never change. So heads are gone through on numbers
of Python, and a second product makes the row. Where few rows are steered, an operation of torch costs more than its
arithmetic, and there are some ten of them here in place of fifteen a head.

Products and lengths are in float64. ‖x'‖² = ‖x‖² + 2 m (x·v) + m² ‖v‖² is a difference that loses half of the digits
where x' vanishes; of float64 more than `VANISHED` asks for are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.steer.maths.intervene import Mode

VANISHED = 1e-6
"""Of ‖x‖, below which x' has no direction left."""


@dataclass(frozen=True)
class HeadProducts:
    """What the chosen heads of one layer are steered by, with the products among them.

    Attributes:
        both: probes and then directions, as columns, float64.
        directions: of unit length, float64.
        probes_along: w_j·v_h at [h][j].
        directions_along: v_j·v_h at [h][j].
        targets: m of each head, for the mode `mean` alone.
    """

    both: Float[Tensor, "hidden twice_heads"]
    directions: Float[Tensor, "heads hidden"]
    probes_along: list[list[float]]
    directions_along: list[list[float]]
    targets: list[float]

    @classmethod
    def of(
        cls,
        probes: Float[Tensor, "heads hidden"],
        directions: Float[Tensor, "heads hidden"],
        targets: Float[Tensor, " heads"] | None = None,
    ) -> HeadProducts:
        """Of heads, the most accurate first; targets are needed for the mode `mean` alone."""
        w, v = probes.double(), directions.double()
        goals = [0.0] * len(v) if targets is None else targets.tolist()
        both = torch.cat([w, v]).T.contiguous()
        return cls(both, v.contiguous(), (v @ w.T).tolist(), (v @ v.T).tolist(), goals)


def steered_rows(
    x: Float[Tensor, "rows hidden"], heads: HeadProducts, coefs: Sequence[float], mode: Mode = "threshold"
) -> tuple[Float[Tensor, "rows hidden"], list[int]]:
    """The rows after the intervention, and how many heads had their gate open (more than half) for each of them.

    Args:
        x: outputs of the output projection, all of them of tokens that are steered, in any dtype.
        heads: of this layer.
        coefs: c of each row.
        mode: which gate, see `intervene`.

    Returns:
        x in its own dtype; a row whose gates are closed has the bits that it had.
    """
    wide = x.double()
    products = (wide @ heads.both).tolist()
    squares = torch.linalg.vecdot(wide, wide).tolist()
    found = [_of_row(*row, heads, mode) for row in zip(products, squares, coefs, strict=True)]
    scales, amounts = [scale for scale, _, _ in found], [amounts for _, amounts, _ in found]
    scaled = wide * wide.new_tensor(scales)[:, None]
    moved = torch.addmm(scaled, wide.new_tensor(amounts), heads.directions)
    return moved.to(x.dtype), [opened for _, _, opened in found]


def _of_row(
    products: list[float], square: float, coef: float, heads: HeadProducts, mode: Mode
) -> tuple[float, list[float], int]:
    """s and every a_j of one row, and how many of its gates were open.

    Args:
        products: x·w_j and then x·v_j.
        square: ‖x‖².
        coef, heads, mode: see `steered_rows`.
    """
    num = len(heads.targets)
    score, along = products[:num], products[num:]
    scale, amounts, opened = 1.0, [0.0] * num, 0
    for head in range(num):
        gate = _gate(score[head], mode)
        opened += gate > 0.5
        amount = coef * gate
        if mode == "mean":
            amount *= along[head] - heads.targets[head]
        elif mode != "additive":
            amount *= along[head]
        if not amount:
            continue
        with_probes, with_directions = heads.probes_along[head], heads.directions_along[head]
        kept = 1.0
        if mode not in ("mean", "additive"):
            after = square + amount * (2 * along[head] + amount * with_directions[head])
            if not after > VANISHED**2 * square:
                continue
            kept = math.sqrt(square / after)
            scale, amounts = kept * scale, [kept * one for one in amounts]
        amounts[head] += kept * amount
        for later in range(head + 1, num):
            score[later] = kept * (score[later] + amount * with_probes[later])
            along[later] = kept * (along[later] + amount * with_directions[later])
    return scale, amounts, opened


def _gate(score: float, mode: Mode) -> float:
    if mode == "threshold":
        return float(score < 0)
    if mode in ("ungated", "mean"):
        return 1.0
    return (1 - math.tanh(score / 2)) / 2  # 1 - sigmoid, which does not overflow
