"""How a parameter stores its matrices: as (out, in), transposed, stacked, fused, per head, or as filters.

An optimizer that treats a matrix as a whole must know where the whole is. A wrong axis or an ignored fusion runs
without error and is a different algorithm, so it is stated per parameter group:

* `neuron_dim`: -2 where the parameter is (..., out, in) as in `nn.Linear`, -1 where it is (..., in, out) as in GPT-2's
  Conv1D and some stacks of experts;
* `split_sizes`: output rows of the matrices that were fused into one, (q, k, v) or (gate, up);
* `num_heads`: every matrix is this many matrices of equal height;
* `flatten`: (out, in, kernel ...) filters, one matrix of out rows. Default for more than three dimensions.

Leading dimensions are a stack of independent matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError

LAYOUT_DEFAULTS: dict[str, Any] = {"neuron_dim": -2, "split_sizes": None, "num_heads": None, "flatten": None}


def blocks(like_parameter: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    """The matrices of a parameter, or of anything shaped like it, as views of shape (*stack, out, in).

    Writing into a view writes into the tensor. Matrices of one height come as one view; `split_sizes` gives several.
    """
    whole = like_parameter
    if _flattened(whole, group):
        whole = whole.view(whole.shape[0], whole.shape[1:].numel())
    if group["neuron_dim"] == -1:
        whole = whole.mT
    parts = whole.split(list(group["split_sizes"]), dim=-2) if group["split_sizes"] else (whole,)
    if group["num_heads"]:
        parts = tuple(part.unflatten(-2, (group["num_heads"], -1)) for part in parts)
    return list(parts)


def row_blocks(per_row: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    """The same cut of a tensor with one number per output row, of shape (*stack, out, 1) whatever the layout."""
    return blocks(per_row, {**group, "neuron_dim": -2, "flatten": False})


def num_rows_shape(parameter: Tensor, group: Mapping[str, Any]) -> tuple[int, ...]:
    """(*stack, out, 1): the shape of one number per output row."""
    if _flattened(parameter, group):
        return (parameter.shape[0], 1)
    return (*parameter.shape[:-2], parameter.shape[group["neuron_dim"]], 1)


def oriented(like_parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A parameter, or a shard of it, as a view of shape (*stack, out, in), uncut."""
    (view,) = blocks(like_parameter, {**group, "split_sizes": None, "num_heads": None})
    return view


def row_spans(num_rows: int, group: Mapping[str, Any]) -> list[tuple[int, int]]:
    """First and last + 1 output row of every matrix that `blocks` makes of one."""
    spans = []
    start = 0
    for size in group["split_sizes"] or (num_rows,):
        each = size // (group["num_heads"] or 1)
        spans += [(first, first + each) for first in range(start, start + size, each)]
        start += size
    return spans


def out_and_in_dims(num_dims: int, group: Mapping[str, Any]) -> tuple[int, int]:
    """Which dimensions of a parameter are its matrices' output rows and input columns (of filters, the first)."""
    if num_dims > 3 if group["flatten"] is None else group["flatten"]:
        return 0, 1
    return (num_dims - 2, num_dims - 1) if group["neuron_dim"] == -2 else (num_dims - 1, num_dims - 2)


def stack(views: list[Tensor]) -> Tensor:
    """Views of equal matrix size as one batch (num, out, in)."""
    flat = [view if view.ndim == 3 else view.reshape(-1, *view.shape[-2:]) for view in views]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def unstack(batch: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The pieces of a batch, shaped as the views that were stacked."""
    sizes = [view.shape[:-2].numel() for view in like]
    pieces = batch.split(sizes)
    return [piece.reshape(*view.shape[:-2], *piece.shape[-2:]) for piece, view in zip(pieces, like, strict=True)]


def check_layout(parameter: Tensor, group: Mapping[str, Any], where: str) -> None:
    """Refuses a layout that does not fit the parameter.

    Raises:
        SettingsError: too few dimensions, sizes that do not add up, or filters that are not contiguous.
    """
    if parameter.ndim < 2:
        raise SettingsError(
            f"a matrix update needs at least two dimensions, but this parameter has shape {tuple(parameter.shape)}",
            where=where,
            fix='put it into a group with algorithm="adamw", or let `for_model` route the parameters',
        )
    if group["neuron_dim"] not in (-1, -2):
        raise SettingsError(f"neuron_dim is {group['neuron_dim']!r}, but must be -2 or -1", where=where)
    if _flattened(parameter, group) and not parameter.is_contiguous():
        raise SettingsError("convolution filters must be contiguous (not channels_last)", where=where)
    rows = num_rows_shape(parameter, group)[-2]
    sizes = group["split_sizes"]
    if sizes is not None and (sum(sizes) != rows or min(sizes) < 1):
        raise SettingsError(f"split_sizes {tuple(sizes)} do not add up to the {rows} output rows", where=where)
    for size in sizes or (rows,):
        if group["num_heads"] and size % group["num_heads"]:
            raise SettingsError(f"num_heads {group['num_heads']} does not divide {size} output rows", where=where)


def _flattened(tensor: Tensor, group: Mapping[str, Any]) -> bool:
    return tensor.ndim > 3 if group["flatten"] is None else bool(group["flatten"])
