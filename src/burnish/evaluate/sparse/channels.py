"""Double Sparsity's channels, measured on a text: of each head of keys those with the largest products.

The authors measure on a calibration text as well. What differs: magnitudes are those of rotated queries and keys, since
scores are computed from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from burnish.arch.attention import computed_by
from burnish.data.read import read_texts
from burnish.data.windows import cut
from burnish.evaluate.maths.selection import heavy_channels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "burnish_magnitudes"
TEXT, CONTEXT, WINDOWS = "wikitext2-valid", 512, 4
"""What is measured on: none of the tasks."""


def measured_channels(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num: int
) -> list[Int[Tensor, "kv_heads num"]]:
    """The channels of every layer."""
    texts = read_texts(TEXT, tokenizer=tokenizer)
    windows = cut(tokenizer, texts, CONTEXT, num_windows=WINDOWS, max_chars=400_000, where=TEXT).tokens
    return channels_on(module, windows, num)


@torch.inference_mode()
def channels_on(module: PreTrainedModel, windows: Sequence[Tensor] | Tensor, num: int) -> list[Tensor]:
    """The channels of every layer, on windows of tokens."""
    from transformers import AttentionInterface

    sums: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(layer: Any, query: Tensor, key: Tensor, *given: Any, **others: Any) -> Any:
        found = tuple(part.float().abs().sum(dim=(0, 2)) for part in (query, key))
        earlier = sums.get(layer.layer_idx, (0, 0))
        sums[layer.layer_idx] = (earlier[0] + found[0], earlier[1] + found[1])
        return AttentionInterface()["sdpa"](layer, query, key, *given, **others)

    with computed_by(module, NAME, attend):
        for window in windows:
            module(input_ids=window[None].to(module.device), use_cache=False)
    return [heavy_channels(*sums[layer], num) for layer in sorted(sums)]
