"""Which rounding: the whole model is rounded under each candidate, and windows that no factor has seen decide.

A proxy foretells what one matrix costs if all else stays as it is and the divergence is its second-order expansion. At
2 to 3 bits neither holds, nor does a sample of layers foretell the whole model: so KL(original || rounded) per token is
measured on the whole model, for one-sided rounding and for two-sided rounding with every sketch and strength of a
rule's list; a sketch that is behind the other one under a strength, by the paired interval over windows, is not tried
under those that follow. Where the smallest divergence cannot be told from that of a simpler candidate, both are
measured on more windows; what these cannot tell apart either is a tie, and the simpler one is taken.

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
from burnish.calibrate.sums import Sketch
from burnish.core.progress import Progress
from burnish.core.statistics import interval
from burnish.evaluate.maths.divergence import kl_divergence, normalise
from burnish.quantize.factors import SplitSums
from burnish.quantize.method import Rounding, batches_of_one_shape, rounded_batch
from burnish.quantize.rule import Strength

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEGLIGIBLE = 0.005
"""A relative difference in divergence for which no simpler candidate is left."""

NOISE = 1e-5
"""Divergences in nats that float32 logits cannot tell apart; without it ties would be decided by the last bit."""

WINDOWS = 16
"""That are kept back to decide on."""
RESERVE = 48
"""More of them, for candidates that the first cannot tell apart; what these cannot tell apart either is a tie."""
ROWS = 64
"""Positions whose distributions are compared at a time."""


class Original:
    """The unquantized network's predictions on some windows, remembered as its decoder's output.

    Decoder layers may be changed behind its back: the head still makes the original's logits of what it remembers.

    Args:
        module: the network.
        windows: of token ids.
    """

    def __init__(self, module: PreTrainedModel, windows: Int[Tensor, "windows length"]) -> None:
        self.module, self.windows = module, windows
        with torch.inference_mode():
            self.outputs = [self.module.base_model(input_ids=ids, use_cache=False) for ids in self._batches()]

    def divergence(self, outside: Sequence[MatrixView] = (), values: Mapping[str, Tensor] | None = None) -> list[float]:
        """KL(original || the network as it is now), per window: mean over its predicted tokens, in nats.

        Args:
            outside: matrices outside of the decoder layers, that are rounded too.
            values: what they become, by name; they have them only while the rounded network runs.
        """
        found = []
        with torch.inference_mode():
            for ids, output in zip(self._batches(), self.outputs, strict=True):
                with filled(outside, values or {}):
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


def candidates(rounding: Rounding, strengths: Sequence[Strength], sketches: Sequence[Sketch]) -> dict[str, Rounding]:
    """{what the ledger calls it: a rounding}, from the simplest: every strength, two-sided ones with every sketch."""
    found = {}
    for strength in strengths:
        for sketch in sketches[:1] if strength.is_one_sided else sketches:
            named = f", sketch {sketch}" if len(sketches) > 1 and not strength.is_one_sided else ""
            found[f"{strength}{named}"] = replace(rounding, strength=strength, sketch=sketch)
    return found


def choose_rounding(
    views: Sequence[MatrixView],
    roundings: Mapping[str, Rounding],
    statistics: Statistics,
    original: Original,
    *,
    reserve: Int[Tensor, "windows length"] | None = None,
    progress: Progress | None = None,
) -> tuple[Rounding, list[dict[str, Any]]]:
    """The simplest rounding whose divergence cannot be told from the smallest, and what each gave.

    Args:
        views: of all matrices that are going to be rounded; they are left as they were.
        roundings: by name, from the simplest.
        statistics: with the sketches of all of them.
        original: predictions on windows that are in no fold of the statistics.
        reserve: more such windows, for those that the first cannot tell from the smallest.
        progress: where to show a bar.

    Returns:
        The rounding, and rows {rule, kl, windows, ratio, low, high, chosen} for the ledger: the ratio is that to the
        smallest divergence on the same windows, with its paired interval over them.
    """
    bars = progress or Progress(enabled=False)
    measured: dict[str, list[float]] = {}

    def measure(names: Sequence[str], on: Original) -> None:
        with bars.task("choosing how to round", total=len(names), unit="candidates") as task:
            for name in names:
                if name not in measured and (other := _sketch_ahead(roundings[name], roundings, measured)):
                    bars.log(f"{name} is not measured: its sketch is behind the one of {other}")
                else:
                    with filled(views, rounded_under(views, {"": roundings[name]}, statistics)[""]):
                        measured.setdefault(name, []).extend(on.divergence())
                task.advance()

    measure(list(roundings), original)
    open_ones = _not_told_apart(measured)
    if len(open_ones) > 1 and reserve is not None and len(reserve):
        bars.log(f"{len(original.windows)} windows cannot tell {' from '.join(open_ones)}: {len(reserve)} more")
        measure(open_ones, Original(original.module, reserve))
        open_ones = _not_told_apart({name: measured[name] for name in open_ones})
    most = max(map(len, measured.values()))
    best = min((name for name in measured if len(measured[name]) == most), key=lambda name: np.mean(measured[name]))
    rows = []
    for name, kl in measured.items():
        against = interval(np.add(kl, NOISE), np.add(measured[best][: len(kl)], NOISE), scale="log")
        ends = {"ratio": against.value, "low": against.low, "high": against.high}
        rows.append({"rule": name, "kl": float(np.mean(kl)), "windows": len(kl)} | ends)
    return roundings[open_ones[0]], [row | {"chosen": row["rule"] == open_ones[0]} for row in rows]


def _sketch_ahead(
    rounding: Rounding, roundings: Mapping[str, Rounding], measured: Mapping[str, Sequence[float]]
) -> str:
    """Name of a candidate that was ahead, by the paired interval, of one of the same strength with this one's sketch;
    empty where there is none. A strength does much the same to both sketches."""
    if rounding.strength.is_one_sided:
        return ""
    for name in measured:
        for other in measured:
            this, that = roundings[name], roundings[other]
            if this.strength == that.strength and this.sketch == rounding.sketch != that.sketch:
                against = interval(np.add(measured[name], NOISE), np.add(measured[other], NOISE), scale="log")
                if against.low > 1:
                    return other
    return ""


def _not_told_apart(measured: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of what could be taken, from the simplest; one alone is settled.

    The last is in effect as good as the best, and those before it are simpler and not told from the best by the paired
    interval.
    """
    best = min(measured, key=lambda name: np.mean(measured[name]))
    enough = float(np.mean(measured[best])) * (1 + NEGLIGIBLE) + NOISE
    found = []
    for name, kl in measured.items():
        if float(np.mean(kl)) <= enough:
            return [*found, name]
        against = interval(np.add(kl, NOISE), np.add(measured[best], NOISE), scale="log")
        if against.low <= 1:
            found.append(name)
    raise AssertionError("the best is as good as itself")


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
