"""How long a step of the engine takes, in nanoseconds.

A step computes chunks of prompts, (tokens, tokens before them) each, and one token of each of n requests that decode,
whose contexts are `context` tokens together. A model is one formula, `nanoseconds`, which must hold for numbers and for
arrays of contexts alike: a run of steps in which nothing changes but the contexts is then summed exactly as one step
after the other would be, each rounded to a nanosecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from burnish.core.errors import SettingsError

Chunks = Sequence[tuple[int, int]]
_MOST = 4096
"""Steps that are laid out at a time."""
_LONGEST = 1e15
"""Nanoseconds of a step, eleven days: `_MOST` of them together are within 64 bits."""


class CostModel(Protocol):
    """A formula of a step's time."""

    def nanoseconds(self, chunks: Chunks, decodes: int, context: Any) -> Any:
        """Of one step; `context` is a number or a float64 array."""
        ...


def step(model: CostModel, chunks: Chunks, decodes: int, context: int) -> int:
    """One step, at least a nanosecond.

    Raises:
        SettingsError: it would take longer than any step does.
    """
    return max(1, round(_possible(float(model.nanoseconds(chunks, decodes, float(context))))))


def _possible(longest: float) -> float:
    if not longest <= _LONGEST:
        what = f"a step would take {longest / 1e9:.3g} seconds"
        raise SettingsError(
            what, where="the engine's costs", fix="give nanoseconds, and what a device does in a second"
        )
    return longest


def run(model: CostModel, decodes: int, context: int, most: int, until: float = math.inf) -> tuple[int, int, int]:
    """Steps in which `decodes` requests make a token each, until a step ends at or after `until`, `most` at most.

    Args:
        model: the formula.
        decodes: requests.
        context: tokens that they hold before the first step, together.
        most: of steps.
        until: nanoseconds from the beginning of the first step.

    Returns:
        How many steps there are, when the last of them begins and when it ends.
    """
    if isinstance(model, Linear) and model.is_whole:
        return _run_linear(model, decodes, context, most, until)
    taken = begin = end = 0
    while taken < most and (end < until or not taken):
        num = min(_MOST, most - taken)
        contexts = float(context + decodes * taken) + float(decodes) * np.arange(num)
        times = np.broadcast_to(np.asarray(model.nanoseconds((), decodes, contexts)), num)
        _possible(float(times.max()))
        ends = end + np.cumsum(np.maximum(np.rint(times), 1.0).astype(np.int64))
        last = min(int(np.searchsorted(ends, until)), num - 1) if until < math.inf else num - 1
        begin, end = int(ends[last - 1]) if last else end, int(ends[last])
        taken += last + 1
    return taken, begin, end


def _run_linear(model: Linear, decodes: int, context: int, most: int, until: float) -> tuple[int, int, int]:
    """The same in closed form: step j takes first + j slope."""
    first = int(model.step + model.decode * decodes) + int(model.context) * context
    slope = int(model.context) * decodes

    def after(steps: int) -> int:
        return steps * first + slope * (steps * (steps - 1) // 2)

    if first < 1:
        first = 1
        slope = 0
    low, high = 1, most
    if after(most) <= until or until == math.inf:
        low = most
    while low < high and until < math.inf:
        middle = (low + high) // 2
        low, high = (low, middle) if after(middle) >= until else (middle + 1, high)
    return low, after(low - 1), after(low)


class Linear:
    """step + prefill * prompt tokens + context * tokens held by those that decode + decode * their number; ns each.

    Attributes:
        is_whole: whether all coefficients are whole numbers, so that runs of steps have a closed form.
    """

    def __init__(self, step: float = 0.0, prefill: float = 0.0, context: float = 0.0, decode: float = 0.0) -> None:
        self.step, self.prefill, self.context, self.decode = step, prefill, context, decode
        self.is_whole = all(float(value).is_integer() and value < 1e12 for value in (step, prefill, context, decode))

    def nanoseconds(self, chunks: Chunks, decodes: int, context: Any) -> Any:
        prompt = sum(tokens for tokens, _ in chunks)
        return self.step + self.prefill * prompt + self.decode * decodes + self.context * context


class Roofline:
    """The larger of the time to compute and the time to read.

    Args:
        parameters: of the model.
        layers, width: for the products of attention.
        kv_bytes: of one token, over all layers.
        weight_bytes: of one parameter.
        flops: that the device does in a second, dense.
        bandwidth: bytes that it reads in a second.
        efficiency: share of both that is reached.
    """

    def __init__(
        self,
        parameters: float,
        layers: int,
        width: int,
        kv_bytes: float,
        weight_bytes: float = 2.0,
        flops: float = 989e12,
        bandwidth: float = 3.35e12,
        efficiency: float = 0.6,
    ) -> None:
        self._flops_per_token, self._attention = 2 * parameters, 4.0 * layers * width
        self._kv_bytes, self._weight_bytes = kv_bytes, parameters * weight_bytes
        self._flops, self._bandwidth = flops * efficiency / 1e9, bandwidth * efficiency / 1e9

    def nanoseconds(self, chunks: Chunks, decodes: int, context: Any) -> Any:
        tokens = decodes + sum(num for num, _ in chunks)
        pairs = sum(num * (before + num / 2) for num, before in chunks) + context
        held = sum(before + num for num, before in chunks) + context
        compute = (self._flops_per_token * tokens + self._attention * pairs) / self._flops
        return np.maximum(compute, (self._weight_bytes + self._kv_bytes * held) / self._bandwidth)


class DynoSim:
    """The polynomials of NVIDIA's DynoSim, recovered from its outputs: of n prompt tokens of a step, and of decoding.

    4.21e-7 n^2 + 1.518344e-2 n + 16.50142 ms, and -25.74 p^2 + 54.01 p + 5.74 ms, with p the share of the pool that is
    in use by those who decode; a step with both takes both.
    """

    def __init__(self, pool_tokens: int) -> None:
        self._pool = pool_tokens

    def nanoseconds(self, chunks: Chunks, decodes: int, context: Any) -> Any:
        share = np.minimum(1.0, context / self._pool)
        n = sum(num for num, _ in chunks)
        prefill = 4.21e-7 * n * n + 1.518344e-2 * n + 16.50142 if chunks else 0.0
        return 1e6 * (prefill + (-25.74 * share * share + 54.01 * share + 5.74 if decodes else 0.0))


class Measured:
    """Between measured steps: decode time by the number of requests, prompt time by tokens; straight lines between.

    Args:
        prefill: (tokens, ns) in rising order.
        decode: (requests, ns) in rising order.
        context: ns for each token held by those that decode.
    """

    def __init__(
        self, prefill: Sequence[tuple[int, float]], decode: Sequence[tuple[int, float]], context: float = 0.0
    ) -> None:
        self._prefill, self._decode, self._context = prefill, decode, context

    def nanoseconds(self, chunks: Chunks, decodes: int, context: Any) -> Any:
        prompt = sum(num for num, _ in chunks)
        return (
            (_between(self._prefill, prompt) if prompt else 0.0)
            + (_between(self._decode, decodes) if decodes else 0.0)
            + self._context * context
        )


def _between(points: Sequence[tuple[int, float]], at: int) -> float:
    """Straight lines between points, the last one continued; before the first point its own value."""
    xs, ys = [float(x) for x, _ in points], [y for _, y in points]
    if at > xs[-1] and len(xs) > 1:
        return ys[-1] + (at - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return float(np.interp(at, xs, ys))
