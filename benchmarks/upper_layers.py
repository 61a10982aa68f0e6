"""The upper layers of a model as a model of their own, over remembered states of the frozen layers below.

Training adapters in the last layers alone needs no gradient below them, and without dropout the layers below give a
sequence the same states at every visit. So they run once per sequence, and their states stand where the embedding
would: the small model is an ordinary causal LM that any trainer takes, and exactly the same function of the tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM


class Remembered(nn.Module):
    """In the place of the embedding: what the lower layers made of each sequence, by its tokens.

    Attributes:
        states: by tokens without padding.
        read: what makes the states of tokens that are not among them; without it they are an error.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.pad = pad
        self.read: Callable[[tuple[int, ...]], Tensor] | None = None

    def key(self, tokens: list[int]) -> tuple[int, ...]:
        """Without the padding at the end, nor the end mark, which is the same token: no other position reads it."""
        end = len(tokens)
        while end and tokens[end - 1] == self.pad:
            end -= 1
        return tuple(tokens[:end])

    def forward(self, ids: Tensor) -> Tensor:
        keys = [self.key(tokens) for tokens in ids.tolist()]
        if self.read is not None:
            self.states |= {key: self.read(key) for key in dict.fromkeys(keys) if key not in self.states}
        found = [self.states[key][: ids.shape[1]] for key in keys]
        rows = torch.zeros(*ids.shape, found[0].shape[1])
        for row, states in zip(rows, found, strict=True):
            row[: len(states)] = states
        return rows


def upper_layers(model: Any, count: int) -> Any:
    """The last layers of a Llama with its norm and head, over `Remembered` states."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.tie_word_embeddings = count, False
    upper: Any = LlamaForCausalLM(config)
    upper.model.layers = copy.deepcopy(model.model.layers[-count:])
    for index, layer in enumerate(upper.model.layers):
        layer.self_attn.layer_idx = index
    upper.model.norm.load_state_dict(model.model.norm.state_dict())
    upper.lm_head.weight.data.copy_(model.lm_head.weight)
    upper.model.embed_tokens = Remembered(model.config.pad_token_id)
    return upper


def lower_layers(model: Any, count: int) -> Any:
    """The layers below the last `count`; what they give is not normed."""
    lower = copy.copy(model.model)
    lower._modules = dict(model.model._modules)
    lower.layers = model.model.layers[:-count]
    lower.norm = nn.Identity()
    return lower
