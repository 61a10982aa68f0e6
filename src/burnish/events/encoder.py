"""History to hidden state: the Transformer Hawkes encoder.

    X_0 = E[k];  layer = causal attention, residual, LayerNorm, GELU feed-forward, residual, LayerNorm
    relative clock:   q_i.k_j with q, k turned by the angles w t_i, w t_j, so that it depends on t_i - t_j alone
    absolute clock:   before every layer X <- X + z(t),  z(t)_j = sin(w_j t) for even j, cos for odd j
    w_j = 10000^(-2 floor(j/2) / M)

(Transformer Hawkes Process, Zuo et al., ICML 2020, arXiv 2002.09291, has the absolute clock; the turning is that of
RoFormer, Su et al., 2021, arXiv 2104.09864, in continuous time.) Four things differ. The relative clock is the default:
a stationary process must not depend on where the clock starts, and differences of times need not be learned. Times are
in mean gaps. Sequences are padded on the right, so the causal mask alone keeps padding out and attention runs in
torch's fused kernel. The recurrent layer on top, an LSTM in the original, is a GRU that also sees the gap itself in two
forms.

A learned vector stands for the empty history; it forecasts the first event and is not attended to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.core.errors import SettingsError
from burnish.events.batches import CALENDAR_FEATURES, EventBatch

NUM_GAP_FEATURES = 2


CLOCKS = ("relative", "absolute")


def frequencies(size: int, device: torch.device | None = None) -> Float[Tensor, " size"]:
    """w_j above, the same for a pair of neighbours, in float64."""
    exponent = (2 * (torch.arange(size, device=device) // 2)).to(torch.float64) / max(size, 1)
    return torch.pow(torch.tensor(10000.0, dtype=torch.float64, device=device), -exponent)


def turning(times: Float[Tensor, "*shape"], head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles w t of every pair of coordinates, each (*shape, head_dim // 2)."""
    pairs = head_dim // 2
    angle = times.unsqueeze(-1) * frequencies(2 * pairs, times.device)[::2].to(times)
    return torch.cos(angle), torch.sin(angle)


def turned(x: Float[Tensor, "*shape D"], cos: Tensor, sin: Tensor) -> Float[Tensor, "*shape D"]:
    """Pairs (x_j, x_{j + D/2}) turned by their angles; a last odd coordinate stays."""
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def temporal_encoding(times: Float[Tensor, "*shape"], size: int) -> Float[Tensor, "*shape size"]:
    """z(t) above."""
    j = torch.arange(size, device=times.device)
    angle = times.unsqueeze(-1) * frequencies(size, times.device).to(times)
    return torch.where(j % 2 == 0, torch.sin(angle), torch.cos(angle))


class EncoderLayer(nn.Module):
    """Causal self-attention and feed-forward, each with residual and post-LayerNorm."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        return query.transpose(-2, -3), key.transpose(-2, -3), value.transpose(-2, -3)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        attended = self.o_proj(attended.transpose(-2, -3).flatten(-2))
        x = self.attention_norm(x + self.dropout(attended))
        update = self.down_proj(self.dropout(F.gelu(self.up_proj(x))))
        return self.feed_forward_norm(x + self.dropout(update))

    def forward(
        self,
        x: Float[Tensor, "B L M"],
        bias: Float[Tensor, "B 1 L L"] | None,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "B L M"]:
        query, key, value = self.split_heads(x)
        if angles is not None:
            query, key = turned(query, *angles), turned(key, *angles)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=bias is None)
        return self.finish(x, attended)


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of the encoder, which every model over it takes by these names.

    Attributes:
        hidden_size, num_layers, num_heads, intermediate_size, dropout: of the Transformer.
        recurrent_size: width of the GRU on top, 0 for none.
        periods: of the calendar, in the data's unit, such as (86400.0, 604800.0) for times in seconds.
        num_covariates: numbers known at each event.
        num_exogenous: values that change between events, which the heads see, not the encoder.
        clock: "relative" (only differences of times are seen) or "absolute" (as published: time since the origin).
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    intermediate_size: int = 128
    dropout: float = 0.0
    recurrent_size: int = 64
    clock: str = "relative"
    periods: tuple[float, ...] = ()
    num_covariates: int = 0
    num_exogenous: int = 0

    def __post_init__(self) -> None:
        # No layers is a model: the recurrent part alone.
        for name, low in (("hidden_size", 1), ("num_heads", 1), ("num_layers", 0)):
            if getattr(self, name) < low:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least {low}")
        if not all(0 < period < math.inf for period in self.periods):
            raise SettingsError(f"periods are {list(self.periods)}, but must be positive and finite")
        if self.clock not in CLOCKS:
            raise SettingsError(f"clock is {self.clock!r}, but must be relative or absolute")


class HistoryEncoder(nn.Module):
    """Hidden states of every prefix of a sequence.

    Args:
        num_marks: event types.
        settings: sizes of its parts.
        num_location_features: 2 when events have places.
        num_vertices: size of the graph, 0 without one.
    """

    def __init__(
        self, num_marks: int, settings: EncoderSettings, *, num_location_features: int = 0, num_vertices: int = 0
    ) -> None:
        super().__init__()
        hidden_size, num_heads, recurrent_size = settings.hidden_size, settings.num_heads, settings.recurrent_size
        self.hidden_size = hidden_size
        self.mark_embedding = nn.Embedding(num_marks, hidden_size)
        self.location_proj = nn.Linear(num_location_features, hidden_size) if num_location_features else None
        self.vertex_embedding = nn.Embedding(num_vertices, hidden_size) if num_vertices else None
        self.vertex_coupling = nn.Parameter(torch.zeros(hidden_size, hidden_size)) if num_vertices else None
        head_dim = max(hidden_size // num_heads, 1)
        self.head_shape = (num_heads, head_dim)
        self.clock = settings.clock
        self.layers = nn.ModuleList(
            EncoderLayer(hidden_size, num_heads, head_dim, settings.intermediate_size, settings.dropout)
            for _ in range(settings.num_layers)
        )
        num_features = CALENDAR_FEATURES * len(settings.periods) + settings.num_covariates
        self.feature_proj = nn.Linear(num_features, hidden_size) if num_features else None
        self.begin_state = nn.Parameter(torch.zeros(hidden_size))
        self.recurrent = None
        if recurrent_size:
            self.recurrent = nn.GRU(hidden_size + NUM_GAP_FEATURES, recurrent_size, batch_first=True)
            self.recurrent_proj = nn.Linear(recurrent_size, hidden_size)

    def embed(self, batch: EventBatch) -> Float[Tensor, "B L M"]:
        x = self.mark_embedding(batch.marks)
        if self.location_proj is not None:
            assert batch.locations is not None, "a model with locations was given events without"
            x = x + self.location_proj(batch.locations)
        if self.vertex_embedding is not None:
            assert batch.vertices is not None, "a model over a graph was given events without vertices"
            x = x + self.vertex_embedding(batch.vertices)
        if self.feature_proj is not None:
            assert batch.features is not None, "a model with a calendar or covariates was given events without"
            x = x + self.feature_proj(batch.features)
        return x

    def attention_bias(self, batch: EventBatch) -> Float[Tensor, "B 1 L L"] | None:
        """e_{v_i}^T Omega e_{v_j} with the future masked out, or None: then the kernel's own causal mask is used."""
        if self.vertex_embedding is None or self.vertex_coupling is None:
            return None
        assert batch.vertices is not None
        vertices = self.vertex_embedding(batch.vertices)
        bias = vertices @ self.vertex_coupling @ vertices.transpose(-1, -2)
        future = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
        return bias.masked_fill(future, float("-inf")).unsqueeze(1)

    def forward(self, batch: EventBatch) -> Float[Tensor, "B L+1 M"]:
        x = self.embed(batch)
        bias = self.attention_bias(batch)
        relative = self.clock == "relative"
        code = 0.0 if relative else temporal_encoding(batch.times, self.hidden_size)
        angles = None
        if relative:
            cos, sin = turning(batch.times, self.head_shape[1])
            angles = cos.unsqueeze(-3), sin.unsqueeze(-3)
        for layer in self.layers:
            x = layer(x + code, bias, angles)
        if self.recurrent is not None:
            summary, _ = self.recurrent(torch.cat([x, gap_features(batch.gaps)], dim=-1))
            x = x + self.recurrent_proj(summary)
        begin = self.begin_state.expand(len(x), 1, -1)
        return torch.cat([begin, x], dim=1)


def gap_features(gaps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape features"]:
    """log(1 + gap) and a bounded log gap, both of order one for gaps in mean gaps."""
    return torch.stack([torch.log1p(gaps), torch.log(gaps.clamp_min(1e-6)) / 4], dim=-1)
