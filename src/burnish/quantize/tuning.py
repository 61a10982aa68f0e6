"""Which shrinkage: the strength with the smallest measured divergence on calibration windows that no factor has seen.

A proxy foretells what one matrix costs if all else stays as it is and the divergence is its second-order expansion. At
2 to 3 bits neither holds, so that the strength of shrinkage is measured instead: a sample of layers, spread over the
depth, is rounded with every strength of a rule's list, and KL(original || rounded) per token decides. The other layers
are rounded too, with the simplest one: among exact layers a strength looks best that trusts the factors too much,
because it puts its errors where the exact layers before give no activations, and those that are rounded do.

The same measurement over growing parts of the calibration text is the curve of KL against calibration tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.statistics import Statistics
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.evaluate.maths.divergence import kl_divergence, normalise
from burnish.quantize.factors import SplitSums
from burnish.quantize.method import Rounding, batches_of_one_shape, rounded_batch
from burnish.quantize.rule import Strength

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEGLIGIBLE = 0.005
"""A relative difference in divergence for which no simpler strength is left."""

NOISE = 1e-5
"""Divergences in nats that float32 logits cannot tell apart; without it ties would be decided by the last bit."""

SAMPLE_LAYERS = 5
"""Layers that are rounded to compare strengths: enough to average over, a sixth of the work for thirty layers."""

WINDOWS = 16
ROWS = 64
"""Positions whose distributions are compared at a time."""


class Original:
    """The unquantized network's predictions on some windows, remembered as its decoder's output.

    Rounding changes decoder layers alone, so that the head still makes the original's logits of it.
    """

    def __init__(self, module: PreTrainedModel, windows: Int[Tensor, "windows length"]) -> None:
        self.module, self.windows = module, windows
        with torch.inference_mode():
            self.outputs = [self.module.base_model(input_ids=ids, use_cache=False) for ids in self._batches()]

    def divergence(self) -> list[float]:
        """KL(original || the network as it is now), per window: mean over its predicted tokens, in nats."""
        found = []
        with torch.inference_mode():
            for ids, output in zip(self._batches(), self.outputs, strict=True):
                ours = self.module(input_ids=ids, use_cache=False).logits[0, :-1]
                with self._decoder_gives(output):
                    theirs = self.module(input_ids=ids, use_cache=False).logits[0, :-1]
                parts = zip(theirs.split(ROWS), ours.split(ROWS), strict=True)
                total = sum(float(kl_divergence(normalise(p), normalise(q)).double().sum()) for p, q in parts)
                found.append(total / len(ours))
        return found

    def _batches(self) -> Iterator[Tensor]:
        return (window[None].to(self.module.device) for window in self.windows)

    @contextmanager
    def _decoder_gives(self, output: Any) -> Iterator[None]:
        decoder = self.module.base_model
        decoder.forward = lambda *_args, **_kwargs: output
        try:
            yield
        finally:
            del decoder.forward


def rounded_under(
    views: Sequence[MatrixView], roundings: Mapping[str, Rounding], statistics: Statistics | None
) -> dict[str, dict[str, Tensor]]:
    """{name of a rounding: {name of a matrix: its values}}; statistics are read once, weights stay as they are.

    All roundings have the same schemes.
    """
    values: dict[str, dict[str, Tensor]] = {name: {} for name in roundings}
    for batch in batches_of_one_shape(views, next(iter(roundings.values()))):
        sums = [None if statistics is None else SplitSums(statistics, view, views) for view in batch]
        for name, rounding in roundings.items():
            for view, (codes, grid, _) in zip(batch, rounded_batch(batch, rounding, sums), strict=True):
                values[name][view.name] = grid.values(codes).to(rounding.scale_dtype)
    return values


@contextmanager
def filled(views: Sequence[MatrixView], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The network with these values in place of the weights."""
    weights = {view.name: _kept(view.tensor) for view in views}
    try:
        for view in views:
            view.write_(values[view.name].to(view.tensor.dtype))
        yield
    finally:
        for view in views:
            view.write_(weights[view.name].to(view.tensor.dtype))


def _kept(weight: Tensor) -> Tensor:
    """A copy, in bfloat16 where that loses nothing: most checkpoints come in it."""
    low = weight.to(torch.bfloat16)
    return low if torch.equal(low.to(weight.dtype), weight) else weight.clone()


def spread_over_depth(views: Sequence[MatrixView], count: int = SAMPLE_LAYERS) -> list[MatrixView]:
    """The views of `count` layers at equal distances, ends left out where there are more."""
    layers = sorted({view.layer for view in views if view.layer is not None})
    bounds = np.linspace(0, len(layers), min(count, len(layers)) + 1)
    chosen = {layers[int(middle)] for middle in (bounds[:-1] + bounds[1:]) / 2}
    return [view for view in views if view.layer in chosen]


def choose_strength(
    views: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics,
    original: Original,
    *,
    strengths: Sequence[Strength],
    progress: Progress | None = None,
) -> tuple[Strength, list[dict[str, Any]]]:
    """The simplest strength with in effect the smallest measured divergence of a sample of layers, and what each gave.

    Args:
        views: of all matrices that are going to be rounded.
        rounding: how; its own strength is replaced.
        statistics: collected with the rounding's sketch.
        original: predictions on windows that are in no fold of the statistics.
        strengths: what is tried, from the simplest.
        progress: where to show a bar.

    Returns:
        The strength, and rows {rule, kl, layers} for the ledger.
    """
    sample = spread_over_depth(views)
    sampled = {view.layer for view in sample}
    others = [view for view in views if view.layer not in sampled]
    roundings = {str(strength): replace(rounding, strength=strength) for strength in strengths}
    bars = progress or Progress(enabled=False)
    with bars.task("choosing shrinkage", total=len(strengths), unit="strengths") as task:
        company = rounded_under(others, {"": replace(rounding, strength=strengths[0])}, statistics)[""]
        values = rounded_under(sample, roundings, statistics)
        measured = {}
        with filled(others, company):
            for name in roundings:
                with filled(sample, values.pop(name)):
                    measured[name] = float(np.mean(original.divergence()))
                task.advance()
    enough = min(measured.values()) * (1 + NEGLIGIBLE) + NOISE
    best = next(strength for strength in strengths if measured[str(strength)] <= enough)
    num_layers = len({view.layer for view in sample})
    rows = [
        {"rule": name, "kl": kl, "layers": num_layers, "chosen": name == str(best)} for name, kl in measured.items()
    ]
    return best, rows


def curve(
    views: Sequence[MatrixView],
    roundings: Mapping[str, Rounding],
    statistics: Statistics,
    original: Original,
    *,
    tokens_of_fold: Sequence[int],
) -> list[dict[str, Any]]:
    """Rows {method, tokens, kl, low, high}: divergence of the whole model against calibration tokens.

    The parts of the text are its first quarter, half and whole; the interval is over windows.
    """
    rows = []
    for count in (len(statistics.folds) // 4, len(statistics.folds) // 2, len(statistics.folds)):
        part = statistics.part(statistics.folds[:count])
        values = rounded_under(views, roundings, part)
        for name in roundings:
            with filled(views, values.pop(name)):
                kl = np.array(original.divergence())
            mean = interval(kl, scale="log")
            tokens = sum(tokens_of_fold[fold] for fold in part.folds)
            rows.append({"method": name, "tokens": tokens, "kl": mean.value, "low": mean.low, "high": mean.high})
    return rows
