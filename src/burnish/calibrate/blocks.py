"""Decoder layers one after the other, each with what comes into it behind changed layers and what should come out.

    for block in blocks(module, views, text):
        ...                                        # change the weights of block.views so that inputs give targets

Text goes through the network twice, side by side: as it was, which gives the targets, and as the caller has made it so
far, which gives the inputs. Only hidden states are kept between layers, so that layers may come from disk one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.arch import HiddenStates, MatrixView, first_inputs, layers
from burnish.calibrate.from_disk import give_back_freed_memory, with_embeddings
from burnish.calibrate.walk import check_finite
from burnish.calibrate.windows import BATCH_TOKENS, Calibration
from burnish.core.checkpoint.on_disk import OnDisk

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
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    text: Calibration,
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_disk: OnDisk | None = None,
) -> Iterator[Block]:
    """Every decoder layer that has some of the views, in order; its weights may be changed until the next one.

    Args:
        module: in memory; the layers that have not come up are still the original's.
        views: matrices inside decoder layers.
        text: all of its windows go through.
        batch_tokens: tokens that go through at a time.
        on_disk: whose module this is, where that holds no weights: those of a layer are there while it is at hand, and
            what was changed in them is gone behind it.

    Raises:
        NumericalError: a weight from disk is not finite.
    """
    with torch.no_grad(), with_embeddings(on_disk) if on_disk else nullcontext():
        batches = [
            batch
            for fold in range(text.num_folds)
            for batch in text.batches(fold, module.device, batch_tokens=batch_tokens)
        ]
        originals = [first_inputs(module, batch.tokens, batch.mask) for batch in batches]
    behind = [HiddenStates(states.hidden, states.arguments) for states in originals]
    for number, (path, layer) in enumerate(layers(module)):
        own = [view for view in views if view.layer == number]
        with on_disk.loaded(f"{path}.") if on_disk else nullcontext():
            if on_disk:
                check_finite(own)
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
        if on_disk:
            give_back_freed_memory()
