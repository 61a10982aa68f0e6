"""A rounding rule over a whole model: grids, factors, shrinkage, rounding, one table row per matrix.

Matrices of one shape in a few neighbouring layers are rounded together. What differs between rules is only which
factors they hand to `round_two_sided`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.sums import Sketch
from burnish.core.errors import NumericalError
from burnish.quantize.factors import Factors, SplitSums, choose_factors
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.grid import combine
from burnish.quantize.maths.refit import refit_scales
from burnish.quantize.maths.rounding import Order, proxy_loss, round_two_sided
from burnish.quantize.maths.shrinkage import normalised, shrink
from burnish.quantize.rule import HELD_OUT, RoundingRule, Strength
from burnish.quantize.scheme import Scheme

BATCH_WEIGHTS = 8_000_000
"""Weights rounded together: enough to fill a core, few enough to stay in a few hundred megabytes."""
BATCH_WEIGHTS_ON_GPU = 64_000_000
"""There the steps of a rounding are counted, whatever the number of weights that take them together."""
SAFE_DAMPING = 0.01
"""Multiple of the mean diagonal with which float32 decomposes every factor of numbers that it can hold."""
REFIT_DAMPING = 0.1
"""Multiple of the mean diagonal under which scales are fitted."""


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded.

    Attributes:
        rule: which factors are used.
        scheme: the grid.
        overrides: {name of a matrix: its grid} where that is another one.
        scale_dtype: what scales are stored in.
        strength: how strongly factors are shrunk.
        sketch: which sketch Kronecker factors are from.
        scale_search: whether clipping ratios are searched, weighted by the diagonal of the input side.
        refit: how often scales are fitted to the codes, where something is known of the inputs; each time after the
            first the weights have been rounded anew to the scales of the time before.
        order: of rows and columns, see `round_two_sided`; None is natural for one-sided rounding and diagonal for
            two-sided, which was measured on the model as a whole. Large diagonals first lower each layer's own error in
            both.
        min_expert_tokens: experts that saw fewer borrow from the layer's other experts.
    """

    rule: RoundingRule
    scheme: Scheme
    scale_dtype: torch.dtype
    strength: Strength = HELD_OUT
    sketch: Sketch = "b"
    scale_search: bool = False
    refit: int = 0
    order: Order | None = None
    min_expert_tokens: int = 256
    overrides: Mapping[str, Scheme] = field(default_factory=dict)

    def scheme_of(self, view: MatrixView) -> Scheme:
        return self.overrides.get(view.name, self.scheme)

    def order_of(self, *, one_sided: bool) -> Order:
        return self.order or ("natural" if one_sided else "diagonal")


@dataclass
class Quantized:
    """The result for all matrices: codes, grids, and rows of the table `layers`."""

    codes: dict[str, Tensor]
    grids: dict[str, WeightGrid]
    rows: list[dict[str, Any]]


def quantize_matrices(
    views: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics | None,
    *,
    advance: Callable[[int], None] = lambda weights: None,
) -> Quantized:
    """Rounds every view in place and returns what is written to disk.

    Args:
        views: of the matrices to round; their tensors are overwritten with the values that the checkpoint will hold.
        rounding: how.
        statistics: of their inputs and gradients; None for a rule that needs none.
        advance: told how many weights are done.
    """
    result = Quantized({}, {}, [])
    for batch in batches_of_one_shape(views, rounding):
        round_batch(batch, rounding, statistics, views, result)
        advance(sum(math.prod(view.shape) for view in batch))
    position = {view.name: number for number, view in enumerate(views)}
    result.rows.sort(key=lambda row: position[row["name"]])
    return result


def batches_of_one_shape(views: Sequence[MatrixView], rounding: Rounding | None = None) -> Iterator[list[MatrixView]]:
    """Views in order, those of one shape (and one grid) together, up to `BATCH_WEIGHTS` weights (more on a GPU)."""
    waiting: dict[tuple[tuple[int, int], Scheme | None], list[MatrixView]] = {}
    for view in views:
        alike = view.shape, rounding.scheme_of(view) if rounding else None
        batch = waiting.setdefault(alike, [])
        batch.append(view)
        enough = BATCH_WEIGHTS_ON_GPU if view.tensor.is_cuda else BATCH_WEIGHTS
        if len(batch) * math.prod(view.shape) >= enough:
            yield waiting.pop(alike)
    yield from waiting.values()


def round_batch(
    batch: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics | None,
    every_view: Sequence[MatrixView],
    result: Quantized,
) -> None:
    """Rounds matrices of one shape in place."""
    started = time.process_time()
    sums = [None if statistics is None else SplitSums(statistics, view, every_view) for view in batch]
    rounded = rounded_batch(batch, rounding, sums)
    seconds = (time.process_time() - started) / len(batch)
    for view, (codes, grid, factors) in zip(batch, rounded, strict=True):
        values = grid.values(codes)
        weight = view.tensor.to(values.dtype)
        result.rows.append(table_row(view, weight, values, factors) | {"seconds": seconds})
        result.codes[view.name] = codes.cpu()
        result.grids[view.name] = grid
        view.write_(values)


def rounded_batch(
    batch: Sequence[MatrixView], rounding: Rounding, sums: Sequence[SplitSums | None]
) -> list[tuple[Tensor, WeightGrid, Factors]]:
    """Codes, grid and factors of matrices of one shape."""
    weights = [view.tensor.to(_working_dtype(view.tensor)) for view in batch]
    grids = [
        rounding.scheme_of(view).grid(
            weight,
            scale_dtype=rounding.scale_dtype,
            search=rounding.scale_search,
            importance=None if of_view is None else of_view.covariance().diagonal(),
        )
        for view, weight, of_view in zip(batch, weights, sums, strict=True)
    ]
    with definite_factors(batch, rounding.strength):
        factors = [
            choose_factors(view, rounding, of_view, grid)
            for view, of_view, grid in zip(batch, sums, grids, strict=True)
        ]
        codes = rounded_to(grids, weights, factors, rounding)
    for number in range(rounding.refit):
        if number:
            codes = rounded_to(grids, weights, factors, rounding)
        grids = [
            refitted(weight, code, grid, known, rounding.scale_dtype)
            for weight, code, grid, known in zip(weights, codes, grids, factors, strict=True)
        ]
    return list(zip(codes, grids, factors, strict=True))


@contextmanager
def definite_factors(batch: Sequence[MatrixView], strength: Strength) -> Iterator[None]:
    """Turns the failure of a decomposition inside into a sentence.

    Raises:
        NumericalError: a factor is so near to singular that its decomposition does not exist in float32.
    """
    try:
        yield
    except torch.linalg.LinAlgError:
        others = f" or one of {len(batch) - 1} matrices of its shape" if len(batch) > 1 else ""
        small = not strength.held_out and strength.input_damping < SAFE_DAMPING
        raise NumericalError(
            f"has a factor that is not positive definite with damping {strength}{others}",
            where=batch[0].name,
            fix=f"use damping: {SAFE_DAMPING} or more, more tokens, or leave damping out"
            if small
            else "use other text or more tokens, or name the matrix in ignore: what it sees is as good as zero",
        ) from None


def rounded_to(
    grids: Sequence[WeightGrid], weights: Sequence[Tensor], factors: Sequence[Factors], rounding: Rounding
) -> list[Tensor]:
    """Codes of matrices of one shape; those with the same sides present go through one call."""
    by_sides: dict[tuple[bool, bool], list[int]] = {}
    for place, of_view in enumerate(factors):
        by_sides.setdefault((of_view.output_side is None, of_view.input_side is None), []).append(place)
    codes: dict[int, Tensor] = {}
    for (one_sided, _), places in by_sides.items():
        grid = combine([grids[place] for place in places], torch.stack)
        rounded = round_two_sided(
            torch.stack([weights[place] for place in places]),
            _stack([factors[place].output_side for place in places]),
            _stack([factors[place].input_side for place in places]),
            grid,
            order=rounding.order_of(one_sided=one_sided),
        )
        codes.update(zip(places, grid.codes(rounded), strict=True))
    return [codes[place] for place in range(len(weights))]


def refitted(
    weight: Float[Tensor, "out in"], codes: Tensor, grid: WeightGrid, factors: Factors, scale_dtype: torch.dtype
) -> WeightGrid:
    """The grid with the scales that suit the codes, see `maths.refit`; as it is where no input was seen."""
    factor = factors.input_factor
    if factor is None or not factor.any():
        return grid
    factor = shrink(factor, damping=REFIT_DAMPING)
    return replace(grid, scale=refit_scales(weight, grid.levels(codes), grid.scale, factor, scale_dtype=scale_dtype))


def table_row(
    view: MatrixView, weight: Float[Tensor, "out in"], rounded: Float[Tensor, "out in"], factors: Factors
) -> dict[str, Any]:
    """What the ledger keeps of one matrix. Proxies are relative to the proxy of the weight itself, and without
    damping: tr(E C E^T) / tr(W C W^T) one-sided, tr(H_O E H_I E^T) / tr(H_O W H_I W^T) two-sided."""
    return {
        "name": view.name,
        "rounding": factors.kind,
        **proxies(weight, rounded, factors),
        "output_damping": None if factors.output_choice.is_identity else factors.output_choice.damping,
        "input_damping": None if factors.input_choice.is_identity else factors.input_choice.damping,
        "covariance_share": factors.input_choice.mix,
        "output_gain": 1 - factors.output_choice.loss,
        "input_gain": 1 - factors.input_choice.loss,
        "num_tokens": factors.num_tokens,
        "role": view.role,
        "shape": list(view.shape),
    }


def proxies(
    weight: Float[Tensor, "out in"], rounded: Float[Tensor, "out in"], factors: Factors
) -> dict[str, float | None]:
    """Measures of the error of one matrix, see `table_row`."""
    error = weight - rounded
    row: dict[str, float | None] = {
        "relative_error": float(error.norm() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)),
        "one_sided_proxy": None,
        "two_sided_proxy": None,
    }
    if factors.covariance is not None:
        covariance = normalised(factors.covariance)
        row["one_sided_proxy"] = _ratio(proxy_loss(error, None, covariance), proxy_loss(weight, None, covariance))
    if factors.two_sided is not None:
        output_side, input_side = (normalised(side) for side in factors.two_sided)
        row["two_sided_proxy"] = _ratio(
            proxy_loss(error, output_side, input_side), proxy_loss(weight, output_side, input_side)
        )
    return row


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if float(whole) > 0 else None


def _stack(sides: Sequence[Tensor | None]) -> Tensor | None:
    present = [side for side in sides if side is not None]
    if len(present) == 1:
        return present[0].unsqueeze(0)  # a large one is not copied
    return torch.stack(present) if present else None


def _working_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype is torch.float64 else torch.float32
