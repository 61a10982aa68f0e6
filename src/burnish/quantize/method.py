"""RTN, GPTQ and YAQA over a whole model: grids, factors, shrinkage, rounding, one table row per matrix.

Matrices of one shape in a few neighbouring layers are rounded together. What differs between the methods is only which
factors they hand to `round_two_sided`:

* `rtn`: none.
* `gptq`: H_I = activation covariance, damped.
* `yaqa`: H_O and H_I of the sketch, each shrunk as far as held-out text asks for, H_I also toward the activation
  covariance. Where held-out text says that the output side does not help, it is left out: that matrix is rounded
  one-sidedly, and the table says so.

Experts that saw too few tokens borrow: their input side is the covariance of all experts of that role in the layer,
they have no output side, and where even those saw nothing, rounding is to nearest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import MatrixView
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.quantize.export import Scheme
from burnish.quantize.maths.float_grid import WeightGrid, float_grid
from burnish.quantize.maths.grid import combine, integer_grid, search_scale
from burnish.quantize.maths.rounding import Order, proxy_loss, round_two_sided
from burnish.quantize.maths.shrinkage import DAMPINGS, MIXES, Shrinkage, choose_shrinkage, normalised
from burnish.quantize.statistics import Statistics, Sums

Method = Literal["rtn", "gptq", "yaqa"]

BATCH_WEIGHTS = 8_000_000
"""Weights rounded together: enough to fill a core, few enough to stay in a few hundred megabytes."""


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded.

    Attributes:
        method: which factors are used.
        scheme: the grid.
        overrides: {name of a matrix: its grid} where that is another one.
        scale_dtype: what scales are stored in.
        damping: of the input side (and output side of yaqa), multiples of the mean diagonal; None chooses on held-out
            text, per matrix and side.
        scale_search: whether clipping ratios are searched, weighted by the diagonal of the input side.
        order: of rows and columns, see `round_two_sided`.
        min_expert_tokens: experts that saw fewer borrow from the layer's other experts.
        mixes: shares of the activation covariance in yaqa's input side that are tried.
    """

    method: Method
    scheme: Scheme
    scale_dtype: torch.dtype
    damping: float | None = None
    scale_search: bool = False
    order: Order = "diagonal"
    min_expert_tokens: int = 256
    mixes: tuple[float, ...] = MIXES
    overrides: Mapping[str, Scheme] = field(default_factory=dict)

    def scheme_of(self, view: MatrixView) -> Scheme:
        return self.overrides.get(view.name, self.scheme)


@dataclass
class Factors:
    """What one matrix is rounded with.

    Attributes:
        output_side, input_side: None for the identity.
        covariance: of the whole text, for the one-sided proxy in the table; None where nothing was collected.
        two_sided: (H_O, H_I) of the whole text without shrinkage, for the two-sided proxy; None without a sketch.
        kind: "two-sided", "one-sided", "one-sided, borrowed" or "nearest".
        output_choice, input_choice: the shrinkage behind them.
        num_tokens: that the matrix saw.
    """

    output_side: Tensor | None
    input_side: Tensor | None
    covariance: Tensor | None
    two_sided: tuple[Tensor, Tensor] | None
    kind: str
    output_choice: Shrinkage
    input_choice: Shrinkage
    num_tokens: int


IDENTITY = Shrinkage(float("inf"))


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
    progress: Progress | None = None,
) -> Quantized:
    """Rounds every view in place and returns what is written to disk.

    Args:
        views: of the matrices to round; their tensors are overwritten with the values that the checkpoint will hold.
        rounding: how.
        statistics: from `collect`; None for rtn.
        progress: where to show a bar.
    """
    result = Quantized({}, {}, [])
    bars = progress or Progress(enabled=False)
    with bars.task("rounding", total=sum(math.prod(view.shape) for view in views), unit="weights") as task:
        for batch in batches_of_one_shape(views, rounding):
            round_batch(batch, rounding, statistics, views, result)
            task.advance(sum(math.prod(view.shape) for view in batch))
    position = {view.name: number for number, view in enumerate(views)}
    result.rows.sort(key=lambda row: position[row["name"]])
    return result


def check_finite(views: Sequence[MatrixView]) -> None:
    """Raises `NumericalError` with the name of the first matrix that is not finite."""
    for view in views:
        if not torch.isfinite(view.tensor).all():
            raise NumericalError("holds weights that are not finite", where=view.name, fix="check the checkpoint")


def batches_of_one_shape(views: Sequence[MatrixView], rounding: Rounding | None = None) -> Iterator[list[MatrixView]]:
    """Views in order, those of one shape (and one grid) together, up to `BATCH_WEIGHTS` weights."""
    waiting: dict[tuple[tuple[int, int], Scheme | None], list[MatrixView]] = {}
    for view in views:
        alike = view.shape, rounding.scheme_of(view) if rounding else None
        batch = waiting.setdefault(alike, [])
        batch.append(view)
        if len(batch) * math.prod(view.shape) >= BATCH_WEIGHTS:
            yield waiting.pop(alike)
    yield from waiting.values()


def round_batch(
    batch: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics | None,
    every_view: Sequence[MatrixView],
    result: Quantized,
) -> None:
    """Rounds matrices of one shape; those with the same sides present go through one call."""
    started = time.process_time()
    factors = {}
    grids = {}
    for view in batch:
        weight = view.tensor.to(_working_dtype(view.tensor))
        sums = None if statistics is None else MatrixSums(statistics, view, every_view)
        importance = None if sums is None else sums.importance()
        grid = make_grid(weight, rounding.scheme_of(view), rounding, importance)
        grids[view.name] = grid
        factors[view.name] = choose_factors(view, rounding, sums, grid)
    choosing = (time.process_time() - started) / len(batch)
    by_sides: dict[tuple[bool, bool], list[MatrixView]] = {}
    for view in batch:
        of_view = factors[view.name]
        by_sides.setdefault((of_view.output_side is None, of_view.input_side is None), []).append(view)
    for views in by_sides.values():
        started = time.process_time()
        weight = torch.stack([view.tensor.to(_working_dtype(view.tensor)) for view in views])
        grid = combine([grids[view.name] for view in views], torch.stack)
        sides = [factors[view.name] for view in views]
        rounded = round_two_sided(
            weight,
            _stack([of_view.output_side for of_view in sides]),
            _stack([of_view.input_side for of_view in sides]),
            grid,
            order=rounding.order,
        )
        rounding_seconds = (time.process_time() - started) / len(views)
        codes = grid.codes(rounded)
        values = grid.values(codes)
        for number, view in enumerate(views):
            row = table_row(view, weight[number], values[number], factors[view.name])
            result.rows.append(row | {"seconds": choosing + rounding_seconds})
            result.codes[view.name] = codes[number].cpu()
            result.grids[view.name] = grids[view.name]
            view.write_(values[number])


def make_grid(
    weight: Float[Tensor, "out in"], scheme: Scheme, rounding: Rounding, importance: Float[Tensor, " in"] | None
) -> WeightGrid:
    """The grid of the original weight."""
    if scheme.kind == "fp8-dynamic":
        return float_grid(weight, scale_dtype=rounding.scale_dtype)
    settings: dict[str, Any] = {
        "bits": scheme.bits,
        "group_size": scheme.group_of(weight.shape[1]),
        "symmetric": scheme.symmetric,
        "scale_dtype": rounding.scale_dtype,
    }
    if rounding.scale_search:
        return search_scale(weight, importance, **settings)
    return integer_grid(weight, **settings)


class MatrixSums:
    """The sums of one matrix: over all folds, and apart for fitting and holding out."""

    def __init__(self, statistics: Statistics, view: MatrixView, every_view: Sequence[MatrixView]) -> None:
        self.statistics, self.view, self.every_view = statistics, view, every_view
        self.all = statistics.read(view, statistics.folds)
        self._parts: tuple[Sums, Sums] | None = None

    @property
    def parts(self) -> tuple[Sums, Sums]:
        """Sums of the fitting part and of the held-out part."""
        if self._parts is None:
            fitting, held_out = self.statistics.fitting, self.statistics.held_out
            self._parts = self.statistics.read(self.view, fitting), self.statistics.read(self.view, held_out)
        return self._parts

    def covariance(self) -> Tensor:
        assert self.all.covariance is not None
        return self.all.covariance.to(self.view.tensor.device)

    def importance(self) -> Tensor:
        return self.covariance().diagonal()

    def borrowed(self) -> Tensor:
        """Covariance over all experts of this role in this layer."""
        siblings = [v for v in self.every_view if v.layer == self.view.layer and v.role == self.view.role]
        covariances = [self.statistics.read(sibling, self.statistics.folds).covariance for sibling in siblings]
        return torch.stack([c for c in covariances if c is not None]).sum(0).to(self.view.tensor.device)


def choose_factors(view: MatrixView, rounding: Rounding, sums: MatrixSums | None, grid: WeightGrid) -> Factors:
    """The factors of one matrix and the shrinkage of each, chosen on the held-out fold unless damping is given."""
    if sums is None or rounding.method == "rtn":
        return Factors(None, None, None, None, "nearest", IDENTITY, IDENTITY, 0)
    device, dtype = view.tensor.device, _working_dtype(view.tensor)
    num_tokens = sums.all.num_tokens
    covariance = sums.covariance().to(dtype)
    if view.expert is not None and num_tokens < rounding.min_expert_tokens:
        covariance = sums.borrowed().to(dtype)
        if not covariance.any():
            return Factors(None, None, None, None, "nearest", IDENTITY, IDENTITY, num_tokens)
        choice = Shrinkage(rounding.damping or 0.01)
        side = choice.apply(covariance)
        return Factors(None, side, covariance, None, "one-sided, borrowed", IDENTITY, choice, num_tokens)

    output_steps, input_steps = squared_steps(grid)

    def moved(matrix: Tensor | None) -> Tensor:
        assert matrix is not None
        return matrix.to(device, dtype)

    if rounding.method == "gptq":
        if rounding.damping is not None:
            choice = Shrinkage(rounding.damping)
        else:
            fitting, held_out = (moved(part.covariance) for part in sums.parts)
            choice = choose_shrinkage(fitting, held_out, steps=input_steps, dampings=DAMPINGS)
        return Factors(None, choice.apply(covariance), covariance, None, "one-sided", IDENTITY, choice, num_tokens)

    input_factor, output_factor = moved(sums.all.input_side), moved(sums.all.output_side)
    if rounding.damping is not None:
        input_choice = output_choice = Shrinkage(rounding.damping)
    else:
        fitting, held_out = sums.parts
        input_choice = choose_shrinkage(
            moved(fitting.input_side),
            moved(held_out.input_side),
            target=moved(fitting.covariance),
            steps=input_steps,
            mixes=rounding.mixes,
        )
        output_choice = choose_shrinkage(moved(fitting.output_side), moved(held_out.output_side), steps=output_steps)
    return Factors(
        output_choice.apply(output_factor),
        input_choice.apply(input_factor, covariance),
        covariance,
        (output_factor, input_factor),
        "one-sided" if output_choice.is_identity else "two-sided",
        output_choice,
        input_choice,
        num_tokens,
    )


def squared_steps(grid: WeightGrid) -> tuple[Float[Tensor, " out"], Float[Tensor, " in"]]:
    """Mean squared step of every row and of every column, each with mean 1."""
    squared = grid.scale.square()
    rows = squared.mean(dim=1)
    columns = squared.mean(dim=0).repeat_interleave(grid.group_size)
    return rows / rows.mean(), columns / columns.mean()


def table_row(
    view: MatrixView, weight: Float[Tensor, "out in"], rounded: Float[Tensor, "out in"], factors: Factors
) -> dict[str, Any]:
    """What the ledger keeps of one matrix. Proxies are relative to the proxy of the weight itself, and without
    damping: tr(E C E^T) / tr(W C W^T) one-sided, tr(H_O E H_I E^T) / tr(H_O W H_I W^T) two-sided."""
    error = weight - rounded
    row: dict[str, Any] = {
        "name": view.name,
        "role": view.role,
        "shape": list(view.shape),
        "rounding": factors.kind,
        "relative_error": float(error.norm() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)),
        "one_sided_proxy": None,
        "two_sided_proxy": None,
        "input_damping": None if factors.input_choice.is_identity else factors.input_choice.damping,
        "input_mix": factors.input_choice.mix,
        "input_gain": 1 - factors.input_choice.loss,
        "output_damping": None if factors.output_choice.is_identity else factors.output_choice.damping,
        "output_gain": 1 - factors.output_choice.loss,
        "num_tokens": factors.num_tokens,
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
