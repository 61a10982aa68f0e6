"""A whole model handed to AutoRound's library (`rules.autoround`), and its codes and scales taken back.

It reads the windows that our own rules would read, in batches of as many tokens, and works on a copy in the dtype that
the checkpoint has. Its scales are rounded to that dtype, as ours are.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import MatrixView
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.windows import BATCH_TOKENS, Calibration
from burnish.core.checkpoint import cast
from burnish.core.errors import MissingExtraError
from burnish.quantize.factors import SplitSums, known_factors
from burnish.quantize.maths.grid import IntegerGrid
from burnish.quantize.method import Quantized, Rounding, table_row
from burnish.quantize.scheme import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def handed_over(
    views: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Calibration,
    *,
    iterations: int,
    seed: int,
) -> Quantized:
    """Rounds every view in place, as `method.quantize_matrices` does.

    Args:
        views: of the matrices to round, weights of linear layers; all other such layers stay as they are.
        rounding: the grids, and the dtype of scales.
        statistics: for the table's one-sided proxy.
        module: their network.
        tokenizer: which the library asks for.
        text: the windows that it learns from.
        iterations: steps for a block; 0 is its nearest rounding.
        seed: of its draws.

    Raises:
        MissingExtraError: auto-round is not installed.
    """
    with _draws_of_its_own():
        made = _learned(module, views, rounding, tokenizer, text, iterations, seed)
    result = Quantized({}, {}, [])
    for view in views:
        codes, grid = taken_back(
            made.get_submodule(module_of(view)), rounding.scheme_of(view), rounding.scale_dtype, view.tensor
        )
        values = grid.values(codes)
        known = known_factors(SplitSums(statistics, view, views), rounding.sketch)
        result.rows.append(table_row(view, view.tensor, values, known) | {"rounding": "autoround"})
        result.codes[view.name], result.grids[view.name] = codes.cpu(), grid
        view.write_(values)
    return result


def module_of(view: MatrixView) -> str:
    return view.parameter.removesuffix(".weight")


def _learned(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    rounding: Rounding,
    tokenizer: PreTrainedTokenizerBase,
    text: Calibration,
    iterations: int,
    seed: int,
) -> nn.Module:
    """A copy of the network that the library has been through."""
    try:
        from auto_round import AutoRound
    except ImportError as error:
        raise MissingExtraError(error.name or "auto-round", "autoround", "method autoround") from None
    from torch.utils.data import DataLoader

    layers: dict[str, Any] = {
        name: {"bits": 16} for name, part in module.named_modules() if isinstance(part, nn.Linear)
    }
    layers |= {module_of(view): _settings(rounding.scheme_of(view)) for view in views}
    batch = max(BATCH_TOKENS // text.tokens.shape[1], 1)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in text.tokens]
    job: Any = AutoRound(
        cast(copy.deepcopy(module), rounding.scale_dtype),
        tokenizer=tokenizer,
        scheme=f"W{rounding.scheme.bits}A16",
        group_size=rounding.scheme.group_size or -1,
        sym=rounding.scheme.symmetric,
        layer_config=layers,
        iters=iterations,
        nsamples=len(rows),
        seqlen=text.tokens.shape[1],
        batch_size=batch,
        dataset=DataLoader(rows, batch_size=batch),  # type: ignore[arg-type]  # a list is a dataset
        device_map=str(module.device),
        seed=seed,
        low_cpu_mem_usage=False,
    )
    made, _ = job.quantize()
    return made


def _settings(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size or -1, "sym": scheme.symmetric}


def taken_back(
    layer: Any, scheme: Scheme, scale_dtype: torch.dtype, weight: Float[Tensor, "out in"]
) -> tuple[Int[Tensor, "out in"], IntegerGrid]:
    """Codes and grid of a layer that the library has rounded.

    Its codes count from 0 where ours count from -2^(b-1); symmetric ones have the middle as their zero point.

    Args:
        layer: with its `weight`, `scale` and `zp`.
        scheme: of the layer.
        scale_dtype: what the checkpoint stores scales in.
        weight: whose device and dtype the grid has.
    """
    scale = layer.scale.to(weight).reshape(len(weight), -1)
    zero = torch.zeros_like(scale)
    if not scheme.symmetric:
        zero = torch.as_tensor(layer.zp).to(weight).expand_as(scale) - 2 ** (scheme.bits - 1)
    grid = IntegerGrid(scheme.bits, scheme.symmetric, scheme.group_of(weight.shape[1]), scale=scale, zero=zero)
    codes = grid.codes(layer.weight.to(weight))
    return codes, replace(grid, scale=scale.to(scale_dtype).to(weight))


@contextmanager
def _draws_of_its_own() -> Iterator[None]:
    """The library seeds the global generators; afterwards they are as they were."""
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)
