"""The network of an EAGLE-3 draft: one Llama layer that goes on from hidden states of the model it drafts for.

    f_i       hidden states of the model after some of its layers at position i, joined
    g_i       = layer(fc(f_i), e(x_{i+1}))          what is known of the text up to x_{i+1}
    q(x_i+2)  = softmax(W_h norm(g_i))              W_h: the model's own head, cut to the draft's vocabulary
    g_{i+1}   = layer(g_i, e(x_{i+2}))              further tokens: its own state in place of the model's

The layer sees both inputs side by side, [norm(e) ; norm(h)], and adds to h. Names of parameters are those in the files
that vLLM loads (method `eagle3`). Embeddings are the model's and in no file.

Source: EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test, 2025,
arXiv:2503.01840; the forward pass is that of vLLM 0.32, which was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass
class DraftCache:
    """Keys and values (1, heads, length, depth) of the tokens that the layer has read."""

    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All of them, after new ones are put behind."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values

    def cut(self, length: int) -> None:
        """Drops what was read after the first `length`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]


class Projections(nn.Module):
    """Of attention, from both inputs side by side."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None and config.head_dim is not None, "their place is written"
        self.heads, self.kv_heads, self.depth = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        width = 2 * config.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.depth, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.depth, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.depth, bias=False)
        self.o_proj = nn.Linear(self.heads * self.depth, config.hidden_size, bias=False)

    def forward(self, mixed: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, length, depth) each, keys and values repeated for their queries."""
        queries, keys, values = (
            project(mixed).unflatten(-1, (-1, self.depth)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        shared = self.heads // self.kv_heads
        return queries, keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)


class DraftLayer(nn.Module):
    """Norms, attention and the feed-forward part."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Projections(config)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def mixed(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """What attention reads."""
        return torch.cat([self.input_layernorm(embeddings), self.hidden_norm(hidden)], -1)

    def after(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The output, of what attention found, (batch, heads, length, depth)."""
        hidden = hidden + self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class DraftNetwork(nn.Module):
    """The whole of it.

    Args:
        config: of the layer, with `draft_vocab_size` tokens to propose.
        num_states: hidden states of the model that are joined.
    """

    def __init__(self, config: LlamaConfig, num_states: int) -> None:
        super().__init__()
        self.fc = nn.Linear(num_states * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = DraftLayer(config)
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False).requires_grad_(False)
        self.rotary = LlamaRotaryEmbedding(config)

    def logits(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens size"]:
        """Of the draft's tokens."""
        return self.lm_head(self.norm(hidden))

    def read(
        self, hidden: Float[Tensor, "1 new hidden"], embeddings: Float[Tensor, "1 new hidden"], cache: DraftCache
    ) -> Float[Tensor, "1 new hidden"]:
        """g of new positions behind those of the cache, which then has them."""
        first, new = cache.length, hidden.shape[1]
        queries, keys, values = self._projected(hidden, embeddings, torch.arange(first, first + new))
        keys, values = cache.add(keys, values)
        seen = torch.ones(new, first + new, dtype=torch.bool, device=hidden.device).tril(first)
        return self.midlayer.after(
            hidden, nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        )

    def unrolled(
        self, states: Float[Tensor, "batch length joined"], embeddings: Float[Tensor, "batch length hidden"], steps: int
    ) -> list[Float[Tensor, "batch length hidden"]]:
        """g after 1, 2 ... `steps` tokens from every position at once, as drafting from there would find it.

        In step s position i reads the token at i + s, which is given: it sees the model's states up to i, its own
        earlier steps, and itself. Positions whose token lies behind the end hold nothing of use.

        Args:
            states: of the model.
            embeddings: of the text, unshifted.
            steps: tokens that are drafted in a row.
        """
        length, hidden = states.shape[1], self.fc(states)
        place = torch.arange(length, device=states.device)
        hides = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        found, beside = list[Tensor](), list[tuple[Tensor, Tensor]]()
        keys = values = torch.empty(0)
        for step in range(1, steps + 1):
            ahead = nn.functional.pad(embeddings[:, step:], (0, 0, 0, min(step, length)))
            queries, new_keys, new_values = self._projected(hidden, ahead, place + step - 1)
            if step == 1:
                keys, values = new_keys, new_values
            else:
                beside.append((new_keys, new_values))
            scores = (queries @ keys.transpose(-1, -2)).masked_fill(hides, -torch.inf)
            own = [(queries * one).sum(-1, keepdim=True) for one, _ in beside]
            weights = (torch.cat([scores, *own], -1) * queries.shape[-1] ** -0.5).softmax(-1)
            attended = weights[..., :length] @ values
            for number, (_, one) in enumerate(beside):
                attended = attended + weights[..., length + number, None] * one
            hidden = self.midlayer.after(hidden, attended)
            found.append(hidden)
        return found

    def _projected(self, hidden: Tensor, embeddings: Tensor, positions: Int[Tensor, " length"]) -> tuple[Tensor, ...]:
        cos, sin = self.rotary(hidden, positions.to(hidden.device)[None])
        return self.midlayer.self_attn(self.midlayer.mixed(hidden, embeddings), cos, sin)
