"""What views and weights of tokens add to a training step, in floating-point operations of one decoder.

A forward pass takes, for each of L tokens, 2 for each weight that it is multiplied with and 4 d for each key that it
looks at, in every layer; a training step 3 of them (2 where weights are frozen and adapters alone learn), and once more
the layers where activations are computed again.

    weights   one forward pass under the short mask, and the head once more for the predictions that are compared
    view      a second forward and backward pass; the head for half of the tokens, those behind the change

A dense mask saves nothing: every token is multiplied with all L keys, where a causal kernel leaves out half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Decoder:
    """What costs.

    Attributes:
        layer_weights: of all layers, that one token is multiplied with.
        head_weights: of the head.
        attention_width: heads times their width, over all layers.
    """

    layer_weights: int
    head_weights: int
    attention_width: int


def mean_keys(length: int, window: int | None = None, sinks: int = 0) -> float:
    """How many keys a token looks at, on average: itself and all before it, or those of its window and the sinks."""
    reach = length if window is None else window + sinks
    return float(np.minimum(np.arange(1, length + 1), reach).mean())


def overhead(
    model: Decoder,
    length: int,
    *,
    window: int | None = None,
    sinks: int = 0,
    weights_share: float = 1.0,
    view_share: float = 0.0,
    skips: bool = True,
    checkpointing: bool = False,
    adapters: bool = False,
) -> float:
    """What a step costs more, as a share of a plain step.

    Args:
        model: the decoder.
        length: tokens of a row, taken as one document.
        window, sinks: of the short context; no window for no weights.
        weights_share: of the steps that compute weights.
        view_share: of the steps that have a second view.
        skips: whether the kernel leaves out what the mask hides.
        checkpointing: activations are computed again.
        adapters: weights are frozen.
    """
    passes = 2 if adapters else 3

    def layers(keys: float) -> float:
        return 2 * model.layer_weights + 4 * model.attention_width * keys

    causal, all_keys = mean_keys(length), float(length)
    head = 2 * model.head_weights
    plain = (passes + checkpointing) * layers(causal) + passes * head
    short = view = 0.0
    if window is not None:
        short = layers(mean_keys(length, window, sinks) if skips else all_keys) + 2 * head
    if view_share:
        # The head for half of the tokens: the view's predictions forward, again, and backward; the standard ones once.
        view = (passes + checkpointing) * layers(causal if skips else all_keys) + (passes + 2) * head / 2
    return (weights_share * short + view_share * view) / plain
