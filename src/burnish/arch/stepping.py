"""A model run one decoder layer at a time, all of a text through one layer before the next.

Between layers only hidden states are kept, so a layer can be looked at, changed or taken out of memory on its own.

    batches = [first_inputs(module, tokens) for tokens in ...]
    for number, (_, layer) in enumerate(layers(module)):
        for batch in batches:
            batch.hidden = batch.through(number, layer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch.view import layers
from burnish.core.checkpoint.own_classes import is_own
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStates:
    """Hidden states of some windows between two layers, and what else every layer is called with.

    Attributes:
        hidden: (windows, length, hidden).
        arguments: by number of the layer.
    """

    def __init__(self, hidden: Tensor, arguments: dict[int, dict[str, Any]]) -> None:
        self.hidden, self.arguments = hidden, arguments

    def through(self, number: int, layer: Callable[..., Any]) -> Tensor:
        """The output of a layer; `hidden` stays as it is."""
        output = layer(self.hidden, **self.arguments[number])
        return output[0] if isinstance(output, tuple) else output


class _Enough(Exception):
    """Ends a forward pass once every layer's arguments are known."""


def first_inputs(module: PreTrainedModel, tokens: Tensor, mask: Tensor | None = None) -> HiddenStates:
    """What the first layer is given: one forward pass in which layers hand their input on unchanged.

    Args:
        module: only what comes before its layers needs to be in memory.
        tokens, mask: (windows, length), on its device; 1 in the mask where there is a token.

    Raises:
        CheckpointError: of a class whose layers hand on more than hidden states.
    """
    if is_own(module.config.model_type):
        raise CheckpointError(f"layers of a {module.config.model_type} cannot be run one at a time")
    first: list[Tensor] = []
    arguments: dict[int, dict[str, Any]] = {}
    decoder_layers = [layer for _, layer in layers(module)]
    originals = [layer.forward for layer in decoder_layers]

    def record(number: int):
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert not args, "decoder layers are called with keyword arguments"
            if number == 0:
                first.append(hidden_states)
            arguments[number] = kwargs
            if number == len(decoder_layers) - 1:
                raise _Enough
            return hidden_states

        return forward

    try:
        for number, layer in enumerate(decoder_layers):
            layer.forward = record(number)
        with torch.no_grad():
            module.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        for layer, original in zip(decoder_layers, originals, strict=True):
            layer.forward = original
    return HiddenStates(first[0], arguments)


@contextmanager
def behind_layers(module: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    """Inside the block a forward pass begins behind the decoder layers, which all give `hidden` and compute nothing.

    Args:
        module: of which neither its layers nor its embeddings need to be in memory.
        hidden: (windows, length, hidden), what the last layer gave for the tokens that the module is called with.
    """
    replaced = [module.get_input_embeddings(), *(layer for _, layer in layers(module))]
    originals = [part.forward for part in replaced]
    try:
        for part in replaced:
            part.forward = lambda *args, **kwargs: hidden
        yield
    finally:
        for part, original in zip(replaced, originals, strict=True):
            part.forward = original
