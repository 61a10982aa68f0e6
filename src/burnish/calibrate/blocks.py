"""Decoder layers one after the other, each with what comes into it behind changed layers and what should come out.

    for block in blocks(module, views, text):
        ...                                        # change the weights of block.views so that inputs give targets

Text goes through the network twice, side by side: as it was, which gives the targets, and as the caller has made it so
far, which gives the inputs. Only hidden states are kept between layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.arch import HiddenStates, MatrixView, first_inputs, layers
from burnish.calibrate.windows import BATCH_TOKENS, Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One decoder layer and the text on both of its sides.

    Attributes:
        number: of the layer.
        path: of its module in the model.
        layer: the module.
        views: of its matrices that may be changed.
        weights: {name of a view: its weight as it was}.
        inputs: a few windows at a time, behind the layers as they are now.
        targets: the original layer's output for what the original layers before it give.
    """

    number: int
    path: str
    layer: nn.Module
    views: Sequence[MatrixView]
    weights: dict[str, Float[Tensor, "out in"]]
    inputs: Sequence[HiddenStates]
    targets: Sequence[Float[Tensor, "windows length hidden"]]


def blocks(
    module: PreTrainedModel, views: Sequence[MatrixView], text: Calibration, *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Block]:
    """Every decoder layer that has some of the views, in order; its weights may be changed until the next one.

    Args:
        module: in memory; the layers that have not come up are still the original's.
        views: matrices inside decoder layers.
        text: all of its windows go through.
        batch_tokens: tokens that go through at a time.
    """
    batches = [
        batch
        for fold in range(text.num_folds)
        for batch in text.batches(fold, module.device, batch_tokens=batch_tokens)
    ]
    with torch.no_grad():
        originals = [first_inputs(module, batch.tokens, batch.mask) for batch in batches]
    behind = [HiddenStates(states.hidden, states.arguments) for states in originals]
    for number, (path, layer) in enumerate(layers(module)):
        own = [view for view in views if view.layer == number]
        with torch.no_grad():
            targets = [states.through(number, layer) for states in originals]
        if own:
            weights = {view.name: view.tensor.clone() for view in own}
            yield Block(number, path, layer, own, weights, behind, targets)
        with torch.no_grad():
            for states in behind:
                states.hidden = states.through(number, layer)
        for states, target in zip(originals, targets, strict=True):
            states.hidden = target
