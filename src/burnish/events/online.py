"""One event at a time on one core: the encoder's step and the exact quantile in numpy.

A step of batch one is a few dozen products of small matrices. torch spends several microseconds on each call and numpy
about one, so a live stream runs here; the numbers are those of the batched code up to rounding (tested). Keys and
values of the history are kept, so a new event costs one row of attention; a forecast costs the 513 hazard evaluations
of the compensator table (see maths/inversion.py) in one product, and a few Newton steps inside one panel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor, nn

from burnish.events.distribution import FAR, NUM_PANELS
from burnish.events.encoder import EncoderLayer, HistoryEncoder, frequencies
from burnish.events.maths.inversion import NODES_PER_PANEL, panel_edges
from burnish.events.maths.quadrature import gauss_legendre
from burnish.events.smurf import SmurfTHP

Array = NDArray[Any]


def _array(tensor: Tensor | nn.Parameter) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _linear(layer: nn.Linear) -> tuple[Array, Array | float]:
    return _array(layer.weight), 0.0 if layer.bias is None else _array(layer.bias)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _turned(x: Array, cos: Array, sin: Array) -> Array:
    """See `encoder.turned`."""
    pairs = len(cos)
    first, second = x[:, :pairs], x[:, pairs : 2 * pairs]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[:, 2 * pairs :]], axis=1)


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = _array(norm.weight), _array(norm.bias), norm.eps

    def __call__(self, x: Array) -> Array:
        centred = x - x.sum() / len(x)
        return centred * (self.weight / math.sqrt(centred @ centred / len(x) + self.eps)) + self.bias


class _Layer:
    """One encoder layer with its keys and values."""

    def __init__(self, layer: EncoderLayer, capacity: int) -> None:
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.qkv, _ = _linear(layer.qkv_proj)
        self.out, self.out_bias = _linear(layer.o_proj)
        self.up, self.up_bias = _linear(layer.up_proj)
        self.down, self.down_bias = _linear(layer.down_proj)
        self.attention_norm, self.feed_forward_norm = _Norm(layer.attention_norm), _Norm(layer.feed_forward_norm)
        self.keys = np.zeros((self.num_heads, capacity, self.head_dim), self.qkv.dtype)
        self.values = np.zeros_like(self.keys)
        self.scale = 1 / math.sqrt(self.head_dim)

    def __call__(self, x: Array, position: int, bias: Array | None, angles: tuple[Array, Array] | None) -> Array:
        query, key, value = (self.qkv @ x).reshape(3, self.num_heads, self.head_dim)
        if angles is not None:
            query, key = _turned(query, *angles), _turned(key, *angles)
        self.keys[:, position] = key
        self.values[:, position] = value
        logits = (self.keys[:, : position + 1] @ (query * self.scale)[:, :, None])[:, :, 0]
        if bias is not None:
            logits = logits + bias
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        attended = (weights[:, None] @ self.values[:, : position + 1]).reshape(-1)
        x = self.attention_norm(x + self.out @ attended + self.out_bias)
        inner = self.up @ x + self.up_bias
        inner = inner * (0.5 * (1 + erf(inner * math.sqrt(0.5)))).astype(inner.dtype)
        return self.feed_forward_norm(x + self.down @ inner + self.down_bias)


class IncrementalEncoder:
    """The hidden states of `HistoryEncoder`, one event at a time, for up to `capacity` events."""

    def __init__(self, encoder: HistoryEncoder, *, capacity: int = 512) -> None:
        self.capacity, self.length = capacity, 0
        size = encoder.hidden_size
        self.marks = _array(encoder.mark_embedding.weight)
        self.dtype = self.marks.dtype
        self.relative = encoder.clock == "relative"
        pairs = encoder.head_shape[1] // 2
        wave = frequencies(2 * pairs)[::2] if self.relative else frequencies(size)
        self.frequency = wave.numpy().astype(self.dtype)
        self.even = np.arange(size) % 2 == 0
        self.layers = [_Layer(layer, capacity) for layer in encoder.layers if isinstance(layer, EncoderLayer)]
        self.location = None if encoder.location_proj is None else _linear(encoder.location_proj)
        self.features = None if encoder.feature_proj is None else _linear(encoder.feature_proj)
        self.vertices = None if encoder.vertex_embedding is None else _array(encoder.vertex_embedding.weight)
        self.coupling = None if encoder.vertex_coupling is None else _array(encoder.vertex_coupling)
        self.seen: list[Array] = []
        self.recurrent = None
        if encoder.recurrent is not None:
            gru = encoder.recurrent
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            self.recurrent = tuple(_array(getattr(gru, name)) for name in names)
            self.memory = np.zeros(gru.hidden_size, self.dtype)
            self.recurrent_proj = _linear(encoder.recurrent_proj)

    def step(
        self,
        time: float,
        gap: float,
        mark: int,
        location: Array | None = None,
        vertex: int | None = None,
        features: Array | None = None,
    ) -> NDArray[Any]:
        """The (M,) hidden state after one more event; time and gap in mean gaps, location and features standardised."""
        x = self.marks[mark]
        if self.location is not None:
            assert location is not None, "a model with locations was given an event without"
            x = x + self.location[0] @ location.astype(self.dtype) + self.location[1]
        if self.features is not None:
            assert features is not None, "a model with a calendar or covariates was given an event without"
            x = x + self.features[0] @ features.astype(self.dtype) + self.features[1]
        bias = None
        if self.vertices is not None and self.coupling is not None:
            assert vertex is not None, "a model over a graph was given an event without a vertex"
            own = self.vertices[vertex]
            x = x + own
            self.seen.append(own)
            bias = np.stack(self.seen) @ (own @ self.coupling)
        angle = self.dtype.type(time) * self.frequency
        code: Array | float = 0.0
        angles = None
        if self.relative:
            angles = np.cos(angle), np.sin(angle)
        else:
            code = np.where(self.even, np.sin(angle), np.cos(angle))
        for layer in self.layers:
            x = layer(x + code, self.length, bias, angles)
        self.length += 1
        if self.recurrent is not None:
            features = np.array([math.log1p(gap), math.log(max(gap, 1e-6)) / 4], self.dtype)
            self.memory = self._gru(np.concatenate([x, features]))
            x = x + self.recurrent_proj[0] @ self.memory + self.recurrent_proj[1]
        return x

    def _gru(self, x: Array) -> Array:
        assert self.recurrent is not None
        w_in, w_hidden, b_in, b_hidden = self.recurrent
        size = len(self.memory)
        from_input, from_memory = w_in @ x + b_in, w_hidden @ self.memory + b_hidden
        gates = _sigmoid(from_input[: 2 * size] + from_memory[: 2 * size])
        reset, update = gates[:size], gates[size:]
        new = np.tanh(from_input[2 * size :] + reset * from_memory[2 * size :])
        return new + update * (self.memory - new)

    @property
    def full(self) -> bool:
        return self.length >= self.capacity


@dataclass
class OnlineLaw:
    """The law of the next gap after one history, in the data's unit; see `NextEvents` for the definitions."""

    owner: OnlineHazard
    scale: Array
    shift: Array
    drive: Array
    prob_tie: float = 0.0

    def __post_init__(self) -> None:
        values = self.owner.hazard(self, self.owner.node_z, self.owner.node_fade)
        mass = (values[:-1].reshape(-1, NODES_PER_PANEL) @ self.owner.weights) * self.owner.width
        self.cumulative = np.concatenate([[0.0], np.cumsum(mass)])
        self.tail = float(values[-1])

    def compensator(self, gap: float) -> float:
        """Lam at a gap in mean gaps."""
        edges = self.owner.edges
        inside = min(max(gap, 0.0), float(edges[-1]))
        panel = min(int(np.searchsorted(edges, inside, side="right")) - 1, len(edges) - 2)
        value = self.cumulative[panel] + self._from_left(float(edges[panel]), inside - float(edges[panel]))
        return float(value + max(gap - inside, 0.0) * self.tail)

    def invert(self, target: float) -> float:
        """The gap in mean gaps with that compensator, by Newton steps held inside its panel."""
        if target >= self.cumulative[-1]:
            return float(self.owner.edges[-1] + (target - self.cumulative[-1]) / self.tail)
        panel = int(np.searchsorted(self.cumulative, target, side="right")) - 1
        low = left = float(self.owner.edges[panel])
        high = float(self.owner.edges[panel + 1])
        wanted = target - self.cumulative[panel]
        gap = left + (high - left) * wanted / (self.cumulative[panel + 1] - self.cumulative[panel])
        for _ in range(6):
            values = self._hazards_from_left(left, gap - left)
            excess = (gap - left) * float(values[:-1] @ self.owner.weights) - wanted
            if excess <= 0:
                low = gap
            if excess >= 0:
                high = gap
            step = gap - excess / float(values[-1])
            moved = step if low <= step <= high else (low + high) / 2
            done = abs(moved - gap) <= self.owner.tolerance * gap
            gap = moved
            if done:
                break
        return gap

    def _hazards_from_left(self, left: float, length: float) -> Array:
        return self.owner.at(self, left + length * self.owner.nodes_and_end)

    def _from_left(self, left: float, length: float) -> float:
        return length * float(self._hazards_from_left(left, length)[:-1] @ self.owner.weights)

    def quantile(self, q: float, elapsed: float = 0.0) -> float:
        """Residual wait not exceeded with probability q, given the elapsed time."""
        unit = self.owner.unit
        waited = elapsed / unit
        if not waited and self.prob_tie:
            q = max(q - self.prob_tie, 0.0) / (1 - self.prob_tie)
        start = self.compensator(waited) if waited else 0.0
        return max(self.invert(start - math.log1p(-q)) - waited, 0.0) * unit

    def cdf(self, gap: float, elapsed: float = 0.0) -> float:
        """P(the event comes within the next `gap`), given the elapsed time."""
        unit = self.owner.unit
        start = self.compensator(elapsed / unit) if elapsed else 0.0
        tie = 0.0 if elapsed else self.prob_tie
        return tie - (1 - tie) * math.expm1(start - self.compensator((gap + elapsed) / unit))


class OnlineHazard:
    """The hazard head of a `SmurfTHP` with its table of nodes standing ready."""

    def __init__(self, model: SmurfTHP) -> None:
        statistics = model.statistics
        self.unit, self.knee = statistics.mean_gap, statistics.knee
        self.has_ties = statistics.tie_share > 0
        self.tie_weight, self.tie_bias = _array(model.tie_weight), float(model.tie_bias.detach())
        head, excitation = model.time_head, model.excitation
        self.size, self.drive_shape = model.hidden_size, (excitation.num_decays, excitation.num_marks)
        self.decays, self.base = _array(excitation.decays), _array(excitation.base).sum(keepdims=True)
        self.scale, self.shift, self.out = (
            _linear(head.scale_proj), _linear(head.shift_proj), _linear(head.out_proj)
        )  # fmt: skip
        dtype = self.out[0].dtype
        self.tolerance = 8 * float(np.finfo(dtype).eps)
        like = torch.zeros((), dtype=torch.float64)
        edges = panel_edges(self.knee, max(FAR, 4 * statistics.longest), NUM_PANELS, like)
        nodes, weights = (t.numpy() for t in gauss_legendre(NODES_PER_PANEL, like))
        self.edges, self.width, self.weights = edges.numpy(), np.diff(edges.numpy()), weights
        self.nodes_and_end = np.append(nodes, 1.0)
        at = np.append((self.edges[:-1, None] + self.width[:, None] * nodes).ravel(), self.edges[-1])
        self.node_z = np.log1p(self.knee * at).astype(dtype)
        self.node_fade = np.exp(-np.multiply.outer(at, self.decays)).astype(dtype)

    def law(self, hidden: Array) -> OnlineLaw:
        """The law of the next gap for a hidden state."""
        state, excited = hidden[: self.size], hidden[self.size :]
        scale = np.tanh(self.scale[0] @ state + self.scale[1])
        tie = 0.0
        if self.has_ties:
            tie = 1 / (1 + math.exp(-float(self.tie_weight @ state + self.tie_bias)))
        drive = np.concatenate([self.base, excited.reshape(self.drive_shape).sum(1)])
        return OnlineLaw(self, scale, self.shift[0] @ state + self.shift[1], drive, tie)

    def hazard(self, law: OnlineLaw, z: Array, fade: Array) -> Array:
        """lam at points given by their z and exp(-b_d s)."""
        g = np.multiply.outer(z, law.scale)
        g += law.shift
        np.tanh(g, out=g)
        factor = np.exp(g @ self.out[0][0] + self.out[1])
        return ((fade @ law.drive) * factor).astype(np.float64)

    def at(self, law: OnlineLaw, gap: Array) -> Array:
        dtype = law.scale.dtype
        fade = np.exp(-np.multiply.outer(gap, self.decays)).astype(dtype)
        return self.hazard(law, np.log1p(self.knee * gap).astype(dtype), fade)
