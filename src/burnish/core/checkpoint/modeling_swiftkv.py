"""SwiftKV: later layers have keys and values of an earlier layer's output, so that a prompt need not run them.

With x_l the residual stream behind the first l of L layers (l: `num_key_value_layers`) and h_j the one that layer
j >= l reads,

    keys, values    K_j = W^K_j norm_j(x_l),  V_j = W^V_j norm_j(x_l)    standard: of h_j
    queries         Q_j = W^Q_j norm_j(h_j);  attention, its output, the MLP and the residuals are as they were

so no position of a later layer needs what another position computed there. Where a cache is filled, only positions
whose logits are asked for (`logits_to_keep`, which `generate` sets to the last one) run the layers from l on. Cache and
logits are the same either way. Where l is L - 1 or more, all of it is the standard model.

    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

Source: SwiftKV (2024, arXiv:2410.03960), without sharing of keys and values among layers; there all later layers have
one norm of x_l, which their own norms equal when the matrices behind it are scaled. This file needs torch, transformers
and `derived_classes.py` beside it, and lies beside the weights of every checkpoint that has such layers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .derived_classes import ClassFamily, in_front, standard_of


class SwiftKVAttention(nn.Module):
    """Attention whose keys and values are of other hidden states than its queries, of which there may be fewer."""

    config: Any
    head_dim: int
    layer_idx: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    standard: type[nn.Module]

    def forward(
        self,
        hidden_states: Tensor,
        source: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """Args:
        hidden_states: (batch, queries, channels), of the last positions.
        source: (batch, positions, channels), for keys and values.
        position_embeddings: cosines and sines of all positions.
        attention_mask: of all positions; the last rows of it are used.
        """
        stock = sys.modules[self.standard.__module__]
        num_queries = hidden_states.shape[1]
        query = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        key = self.k_proj(source).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if getattr(self, "use_rope", True):
            cos, sin = position_embeddings
            # The stock function turns both by the same angles: it is given no heads of the other.
            query, _ = stock.apply_rotary_pos_emb(query, query[:, :0], cos[:, -num_queries:], sin[:, -num_queries:])
            _, key = stock.apply_rotary_pos_emb(key[:, :0], key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        how = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(how, stock.eager_attention_forward)
        if num_queries < source.shape[1]:
            attention_mask = last_rows(attention_mask, num_queries, key, how)
        sliding_window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


def last_rows(mask: Tensor | None, num_queries: int, key: Tensor, how: str) -> Tensor | None:
    """The mask of the last queries alone.

    Args:
        mask: (batch, 1, positions, keys), or a form that says nothing of queries, as of flash attention.
        num_queries: fewer than positions.
        key: (batch, heads, keys, channels).
        how: implementation of the attention; without a mask sdpa would take the last queries for the first.
    """
    if mask is not None:
        return mask[:, :, -num_queries:] if mask.ndim == 4 else mask
    if how != "sdpa" or num_queries == 1:
        return None
    num_keys = key.shape[2]
    rows = torch.ones(num_queries, num_keys, dtype=torch.bool, device=key.device)
    return rows.tril(num_keys - num_queries)[None, None]


class SwiftKVBlock(nn.Module):
    """A decoder layer with a norm in front of its attention and of its MLP, whose keys and values are of `source`.

    Attributes:
        is_first, is_last: whether it is the first of such layers, which reads the source and nothing else, or the last
            one, which does not hand it on.
    """

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module
    is_first: bool
    is_last: bool

    def forward(
        self, hidden_states: Tensor | tuple[Tensor, Tensor], num_queries: int = 0, **arguments: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.is_first:
            assert isinstance(hidden_states, Tensor)
            source, stream = hidden_states, hidden_states[:, -num_queries:]  # of all where it is 0
        else:
            stream, source = hidden_states
        normed = self.input_layernorm(stream), self.input_layernorm(source)
        stream = stream + self.self_attn(*normed, **arguments)[0]
        stream = stream + self.mlp(self.post_attention_layernorm(stream))
        return stream if self.is_last else (stream, source)


class SwiftKVDecoder:
    """Beside a class of transformers: layers from `num_key_value_layers` of the configuration on are such blocks."""

    config: Any
    base_model: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        number = config.num_key_value_layers
        self.set_key_value_layers(config.num_hidden_layers if number is None else number)

    def set_key_value_layers(self, number: int) -> None:
        """Lets as many first layers have keys and values of what they read themselves; weights stay as they are.

        Raises:
            ValueError: none, or more than there are.
        """
        layers = self.base_model.layers
        if type(number) is not int or not 1 <= number <= len(layers):
            raise ValueError(f"num_key_value_layers is {number}, but is from 1 to {len(layers)}")
        for place, layer in enumerate(layers):
            for module in (layer, layer.self_attn):
                module.__class__ = standard_of(module)
            if place >= number:
                layer.is_first, layer.is_last = place == number, place == len(layers) - 1
                layer.__class__ = in_front(SwiftKVBlock, type(layer))
                layer.self_attn.__class__ = in_front(SwiftKVAttention, type(layer.self_attn))
        self.config.num_key_value_layers = number


class SwiftKVHead(SwiftKVDecoder):
    """With a head: only positions whose logits are asked for run the later layers."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        fills_cache = past_key_values is not None or (self.config.use_cache if use_cache is None else use_cache)
        # Who fills no cache may want the states behind the last layer, as training does; masks of flex are not cut.
        if isinstance(logits_to_keep, int) and fills_cache and self.config._attn_implementation != "flex_attention":
            kwargs["num_queries"] = logits_to_keep
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


FAMILY = ClassFamily(
    __name__, "SwiftKV", ("num_key_value_layers", int), {"Model": SwiftKVDecoder, "ForCausalLM": SwiftKVHead}
)
__getattr__ = FAMILY.find
