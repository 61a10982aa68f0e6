"""Two-sided adaptive rounding: RTN, GPTQ/LDLQ and YAQA as one function.

Minimises, greedily and one element after another, the proxy

    L(What) = tr(H_O E H_I E^T),      E = W - What,      W of shape (out, in)

with H_O (out, out) and H_I (in, in) positive definite. With H = L D L^T, L unit lower triangular, the target of an
element is the fixed point

    What = Q( W + (L_O - I)^T E (L_I - I) + (L_O - I)^T E + E (L_I - I) )

in which element (i, j) needs only rows >= i and columns >= j, so that rounding starts at the last row and column. For
any grid, with eta = L_O^T E L_I, which is target minus rounded value,

    tr(H_O E H_I E^T) = Σ_ij D_O[i] eta_ij² D_I[j].

H_O = None (the identity) gives GPTQ/LDLQ, both None gives nearest rounding.

The exact schedule keeps two accumulators, a = E (L_I - I) and f = (L_O - I)^T (E + a), with target = W + a + f, and
costs O(mn(m + n)). It is walked in square tiles: all tiles of one anti-diagonal are independent, and within a tile all
elements of one anti-diagonal are; what lies outside the tile comes in as matrix products. Many matrices of one shape
are rounded together, which is where a small model's speed comes from.

Columns (and rows) may be processed in any order; scales belong to elements and travel with them. The default puts the
column with the largest diagonal of H_I first, whose error all others can still make good.

Source: Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988); QuIP (2023, arXiv:2307.13304) for LDLQ; GPTQ (2022,
arXiv:2210.17323). The published program walks 16 x 16 tiles and recomputes the feedback for each; the result of the
schedule here is the same, element for element. Greedy order of columns follows GPTQ's `actorder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.quantize.maths.grid import Grid

Order = Literal["natural", "diagonal"]
Nearest = Callable[..., Tensor]

COLUMN_BLOCK = 64
TILE = 32


def round_two_sided(
    weight: Float[Tensor, "*batch out in"],
    output_factor: Float[Tensor, "... out out"] | None,
    input_factor: Float[Tensor, "... in in"] | None,
    grid: Grid,
    *,
    order: Order = "diagonal",
    feedback: Literal["element", "tile"] = "element",
    tile: int = TILE,
) -> Float[Tensor, "*batch out in"]:
    """Rounds a weight, or several of one shape, to a grid so that tr(H_O E H_I E^T) is small.

    Args:
        weight: W; computed in its dtype (float32 or float64).
        output_factor: H_O, None for the identity; one for all weights, or one each.
        input_factor: H_I likewise.
        grid: its parameters are those of the original weight and stay fixed.
        order: "diagonal" rounds rows and columns with a large diagonal first, "natural" starts at the last ones.
        feedback: "element" rounds one element at a time; "tile" hands the grid whole (tile, tile) blocks with feedback
            between blocks only (block LDL with identity diagonal blocks), as codebooks of vectors need.
        tile: side of the tiles. With element feedback it changes speed only.

    Returns:
        What, on the grid.

    Raises:
        torch.linalg.LinAlgError: a factor is not positive definite.
    """
    if feedback == "element":
        output_factor = None if output_factor is None or is_diagonal(output_factor) else output_factor
        input_factor = None if input_factor is None or is_diagonal(input_factor) else input_factor
    if output_factor is None and input_factor is None and feedback == "element":
        return grid.nearest(weight, *grid.parameters())

    problem = _Problem.of(weight, output_factor, input_factor, grid, order)
    if output_factor is None and feedback == "element":
        rounded = _sweep_columns(problem)
    else:
        rounded = _sweep_tiles(problem, tile, elementwise=feedback == "element")
    return problem.in_original_order(rounded).reshape(weight.shape)


def unit_lower(
    factor: Float[Tensor, "*batch n n"], block: int = 1
) -> tuple[Float[Tensor, "*batch n n"], Float[Tensor, "*batch n n"]]:
    """L and D of H = L D L^T: L unit (block) lower triangular, D (block) diagonal.

    With `block` > 1 the diagonal blocks of L are identities and D is block diagonal.
    """
    cholesky = torch.linalg.cholesky(factor)
    if block == 1:
        pivots = cholesky.diagonal(dim1=-2, dim2=-1)
        return cholesky / pivots.unsqueeze(-2), torch.diag_embed(pivots.square())
    starts = range(0, factor.shape[-1], block)
    blocks = [cholesky[..., s : s + block, s : s + block] for s in starts]
    lower = torch.cat(
        [
            torch.linalg.solve_triangular(b, cholesky[..., :, s : s + block], upper=False, left=False)
            for s, b in zip(starts, blocks, strict=True)
        ],
        dim=-1,
    )
    middle = torch.zeros_like(factor)
    for start, b in zip(starts, blocks, strict=True):
        middle[..., start : start + block, start : start + block] = b @ b.mT
    return lower, middle


def is_diagonal(factor: Float[Tensor, "*batch n n"]) -> bool:
    """A diagonal factor feeds nothing back: L is the identity whatever the diagonal."""
    return not bool((factor - torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1))).any())


def proxy_loss(
    error: Float[Tensor, "*batch out in"],
    output_factor: Float[Tensor, "... out out"] | None,
    input_factor: Float[Tensor, "... in in"] | None,
) -> Float[Tensor, "*batch"]:
    """tr(H_O E H_I E^T); None is the identity."""
    left = error if output_factor is None else output_factor @ error
    right = error if input_factor is None else error @ input_factor
    return (left * right).sum(dim=(-2, -1))


@dataclass(frozen=True)
class _Problem:
    """A batch of rounding problems, permuted so that rows go from last to first and columns from first to last.

    The mixed direction makes an anti-diagonal of the original problem a diagonal here, which torch can view.

    Attributes:
        weight: (batch, out, in).
        parameters: of the grid, like `weight`.
        nearest: of the grid.
        output_factor, input_factor: in the permuted order, None for the identity.
        rows, columns: where each permuted row and column comes from, (batch, out) and (batch, in).
    """

    weight: Tensor
    parameters: tuple[Tensor, ...]
    nearest: Nearest
    output_factor: Tensor | None
    input_factor: Tensor | None
    rows: Int[Tensor, "batch out"]
    columns: Int[Tensor, "batch in"]

    @classmethod
    def of(
        cls, weight: Tensor, output_factor: Tensor | None, input_factor: Tensor | None, grid: Grid, order: Order
    ) -> _Problem:
        out_features, in_features = weight.shape[-2:]
        weight = weight.reshape(-1, out_features, in_features)
        batch = weight.shape[0]
        parameters = [p.reshape(weight.shape) for p in grid.parameters()]

        def arrangement(factor: Tensor | None, size: int, first_is_last: bool) -> tuple[Tensor | None, Tensor]:
            natural = torch.arange(size, device=weight.device).expand(batch, size)
            if factor is None:
                return None, natural if first_is_last else natural.flip(-1)
            factor = factor.reshape(-1, size, size).expand(batch, size, size)
            if order == "diagonal":
                natural = factor.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, stable=True)
            index = natural if first_is_last else natural.flip(-1)
            picked = factor.gather(1, index.unsqueeze(-1).expand_as(factor))
            return picked.gather(2, index.unsqueeze(-2).expand_as(factor)), index

        output_factor, rows = arrangement(output_factor, out_features, first_is_last=True)
        input_factor, columns = arrangement(input_factor, in_features, first_is_last=False)

        def permuted(matrix: Tensor) -> Tensor:
            picked = matrix.gather(1, rows.unsqueeze(-1).expand_as(matrix))
            return picked.gather(2, columns.unsqueeze(-2).expand_as(matrix))

        return cls(
            permuted(weight),
            tuple(permuted(p) for p in parameters),
            grid.nearest,
            output_factor,
            input_factor,
            rows,
            columns,
        )

    def in_original_order(self, rounded: Float[Tensor, "batch out in"]) -> Float[Tensor, "batch out in"]:
        by_row = torch.empty_like(rounded).scatter_(2, self.columns.unsqueeze(-2).expand_as(rounded), rounded)
        return torch.empty_like(rounded).scatter_(1, self.rows.unsqueeze(-1).expand_as(rounded), by_row)

    def lower(self, block: int) -> Float[Tensor, "batch out out"] | None:
        """L_O - I: strictly lower, rows feed back to rows above them."""
        return None if self.output_factor is None else _without_identity(unit_lower(self.output_factor, block)[0])

    def upper(self, block: int) -> Float[Tensor, "batch in in"] | None:
        """L_I - I for columns in reversed order: strictly upper, columns feed forward to columns on their right."""
        if self.input_factor is None:
            return None
        if block == 1:  # the common case, with no more copies of a large factor than it needs
            lower = torch.linalg.cholesky(self.input_factor.flip(-2, -1))
            lower.div_(lower.diagonal(dim1=-2, dim2=-1).clone().unsqueeze(-2)).diagonal(dim1=-2, dim2=-1).zero_()
            return lower.flip(-2, -1)
        size = self.input_factor.shape[-1]
        front = -size % block  # tiles of columns are cut from the side where rounding starts
        natural = torch.nn.functional.pad(self.input_factor.flip(-2, -1), (front, 0, front, 0))
        natural.diagonal(dim1=-2, dim2=-1)[..., :front] = 1.0
        reversed_lower = unit_lower(natural, block)[0][..., front:, front:]
        return _without_identity(reversed_lower).flip(-2, -1).contiguous()


def _without_identity(unit: Tensor) -> Tensor:
    unit = unit.clone()
    unit.diagonal(dim1=-2, dim2=-1).zero_()
    return unit


def _sweep_columns(problem: _Problem) -> Float[Tensor, "batch out in"]:
    """H_O = I: one column after another, all rows at once; blocks of columns pass their error on by a product."""
    upper = problem.upper(1)
    assert upper is not None
    weight = problem.weight
    in_features = weight.shape[-1]
    rounded, error = torch.empty_like(weight), torch.zeros_like(weight)
    for start in range(0, in_features, COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, in_features)
        block = slice(start, stop)
        # (batch, column, row): a column is then contiguous
        target = (weight[..., block] + error[..., :start] @ upper[..., :start, block]).mT.contiguous()
        original = weight[..., block].mT.contiguous()
        parameters = [p[..., block].mT.contiguous() for p in problem.parameters]
        within = upper[..., block, block]
        for column in range(stop - start):
            value = problem.nearest(target[:, column], *(p[:, column] for p in parameters))
            rounded[..., start + column] = value
            column_error = original[:, column] - value
            error[..., start + column] = column_error
            target[:, column + 1 :].addcmul_(within[:, column, column + 1 :, None], column_error[:, None, :])
    return rounded


def _sweep_tiles(problem: _Problem, tile: int, *, elementwise: bool) -> Float[Tensor, "batch out in"]:
    """Both factors general. Tiles of one diagonal at a time, from the bottom left corner to the top right one.

    Layouts put the tile number first and the batch second, so that the tiles of a diagonal and the matrices of the
    batch are one batch dimension of every product. Suffixes: M tiles of rows, N tiles of columns, Z batch, R row in the
    tile, C column in the tile, O all rows, I all columns.
    """
    batch, out_features, in_features = problem.weight.shape
    num_m, num_n = math.ceil(out_features / tile), math.ceil(in_features / tile)
    # With element feedback the block L of the tiles' diagonal is the element-wise one, of which a part lies inside.
    block = 1 if elementwise else tile

    weight_MZRI = _tiled(problem.weight, tile)
    parameters_MZRI = [_tiled(p, tile, fill=1.0) for p in problem.parameters]
    lower, upper = problem.lower(block), problem.upper(block)
    error_MZRI = torch.zeros_like(weight_MZRI)
    rounded_MZRI = torch.zeros_like(weight_MZRI)
    lower_MZRO = lower_diagonal = upper_NZCI = upper_diagonal = None
    moved_NZCO = weight_MZRI.new_zeros((num_n, batch, tile, num_m * tile))  # (E + a)^T
    if lower is not None:
        lower_MZRO = _tiled(lower.mT, tile)
        lower_diagonal = _diagonal_tiles(lower_MZRO).mT.contiguous()
    if upper is not None:
        upper_NZCI = _tiled(upper.mT, tile)
        upper_diagonal = _diagonal_tiles(upper_NZCI).mT.contiguous()

    round_tiles = _RecordedTiles(min(num_m, num_n)) if problem.weight.is_cuda else _round_tile
    for offset in range(num_m - 1, -num_n, -1):
        first_m, first_n = max(offset, 0), max(-offset, 0)
        count = min(num_m - first_m, num_n - first_n)
        here_m, here_n = slice(first_m, first_m + count), slice(first_n, first_n + count)
        original = _diagonal_view(weight_MZRI, first_m, first_n, count).contiguous()
        parameters = [_diagonal_view(p, first_m, first_n, count).contiguous() for p in parameters_MZRI]
        along = torch.zeros_like(original)  # a, (count, Z, R, C)
        across = torch.zeros_like(original)  # f^T, (count, Z, C, R)
        done = (first_n + count) * tile
        if upper_NZCI is not None:
            along = _batched_product(error_MZRI[here_m][..., :done], upper_NZCI[here_n][..., :done])
        if lower_MZRO is not None:
            begin = first_m * tile
            across = _batched_product(moved_NZCO[here_n][..., begin:], lower_MZRO[here_m][..., begin:])
        if elementwise:
            rounded, error = round_tiles(
                original,
                parameters,
                problem.nearest,
                along,
                across,
                None if upper_diagonal is None else upper_diagonal[here_n],
                None if lower_diagonal is None else lower_diagonal[here_m],
            )
        else:
            rounded = problem.nearest(original + along + across.mT, *parameters)
            error = original - rounded
        _diagonal_view(rounded_MZRI, first_m, first_n, count).copy_(rounded)
        _diagonal_view(error_MZRI, first_m, first_n, count).copy_(error)
        _diagonal_view(moved_NZCO, first_n, first_m, count).copy_((error + along).mT)
    return rounded_MZRI.transpose(0, 1).reshape(batch, num_m * tile, num_n * tile)[:, :out_features, :in_features]


def _tiled(matrix: Float[Tensor, "batch rows columns"], tile: int, fill: float = 0.0) -> Tensor:
    """(Z, rows, columns) -> (tiles of rows, Z, tile, columns), padded to whole tiles."""
    padding = (0, -matrix.shape[2] % tile, 0, -matrix.shape[1] % tile)
    padded = torch.nn.functional.pad(matrix, padding, value=fill)
    return padded.unflatten(1, (-1, tile)).transpose(0, 1).contiguous()


def _round_tile(
    original: Tensor,
    parameters: list[Tensor],
    nearest: Nearest,
    along: Tensor,
    across: Tensor,
    upper: Tensor | None,
    lower: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Element-wise rounding inside independent tiles, one diagonal of elements at a time.

    Args:
        original, parameters: (count, Z, R, C).
        nearest: of the grid.
        along: a from outside the tile; on return also from inside.
        across: f^T from outside the tile, (count, Z, C, R); on return also from inside.
        upper: the tile of L_I - I on its diagonal, (count, Z, C, C).
        lower: the tile of L_O - I on its diagonal, (count, Z, R, R).

    Returns:
        rounded values and errors, (count, Z, R, C).
    """
    tile = original.shape[-1]
    rounded, error = torch.empty_like(original), torch.empty_like(original)
    for offset in range(tile - 1, -tile, -1):
        rows = slice(max(offset, 0), tile + min(offset, 0))
        columns = slice(max(-offset, 0), tile - max(offset, 0))
        moved_from_right = along.diagonal(-offset, -2, -1)
        target = original.diagonal(-offset, -2, -1) + moved_from_right
        target += across.diagonal(offset, -2, -1)
        value = nearest(target, *(p.diagonal(-offset, -2, -1) for p in parameters))
        difference = original.diagonal(-offset, -2, -1) - value
        rounded.diagonal(-offset, -2, -1).copy_(value)
        error.diagonal(-offset, -2, -1).copy_(difference)
        if lower is not None:
            moved = difference + moved_from_right
            across[..., columns, :].addcmul_(moved.unsqueeze(-1), lower[..., rows, :])
        if upper is not None:
            along[..., rows, :].addcmul_(difference.unsqueeze(-1), upper[..., columns, :])
    return rounded, error


class _RecordedTiles:
    """`_round_tile`, recorded as a CUDA graph and replayed.

    A tile is a thousand small kernels one after another, whose launches take several times as long as they run. The
    graph is recorded for as many tiles as the longest diagonal has; shorter ones fill a part of it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self,
        original: Tensor,
        parameters: list[Tensor],
        nearest: Nearest,
        along: Tensor,
        across: Tensor,
        upper: Tensor | None,
        lower: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        given = [along, across, original, *parameters, *(side for side in (upper, lower) if side is not None)]
        if self.graph is None:
            self._record(given, len(parameters), nearest, upper is not None, lower is not None)
        assert self.graph is not None
        count = len(original)
        for held, tensor in zip(self.held, given, strict=True):
            held[:count].copy_(tensor)
        self.graph.replay()
        along.copy_(self.held[0][:count])
        return self.rounded[:count], self.error[:count]

    def _record(
        self, like: Sequence[Tensor], num_parameters: int, nearest: Nearest, has_upper: bool, has_lower: bool
    ) -> None:
        self.held = [tensor.new_ones((self.capacity, *tensor.shape[1:])) for tensor in like]
        along, across, original, *rest = self.held
        parameters, sides = rest[:num_parameters], rest[num_parameters:]
        upper, lower = sides[0] if has_upper else None, sides[-1] if has_lower else None
        arguments = (original, parameters, nearest, along, across, upper, lower)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            _round_tile(*arguments)  # recording needs kernels that are loaded already
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.rounded, self.error = _round_tile(*arguments)


def _diagonal_view(tiles: Tensor, first: int, first_column: int, count: int) -> Tensor:
    """Tiles (first + k, first_column + k) of (tiles of rows, Z, tile, columns) as a view (count, Z, tile, tile)."""
    side = tiles.shape[2]
    step, batch, row, column = tiles.stride()
    return tiles.as_strided(
        (count, tiles.shape[1], side, side),
        (step + side * column, batch, row, column),
        tiles.storage_offset() + first * step + first_column * side * column,
    )


def _diagonal_tiles(tiles: Tensor) -> Tensor:
    return _diagonal_view(tiles, 0, 0, tiles.shape[0])


def _batched_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right^T over two leading batch dimensions."""
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1).mT)
    return product.unflatten(0, left.shape[:2])
