"""The least-squares repair of every narrowed expert, layer by layer, with one Gram matrix in memory at a time.

The calibration text goes through the layers in step, as hidden states. What a layer's experts are given is kept while
that layer is done; the neurons' activations of one expert are computed from it again, so that no more than the widest
expert's statistics and the hidden states of the text are held beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import HiddenStates, MatrixView, first_inputs, hidden_neurons, layers
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.slim.collect import batches_of, down_views
from burnish.slim.maths.refit import gram_terms, refit_down
from burnish.slim.surgery import Kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refit(
    module: PreTrainedModel, tokens: Int[Tensor, "windows length"], kept: Kept, progress: Progress
) -> Iterator[tuple[tuple[int, int], Float[Tensor, "hidden width"]]]:
    """New down projections of routed experts, as ((layer, expert), weights).

    Args:
        module: the model before the cut, in evaluation mode.
        tokens: whole windows, no padding.
        kept: the neurons that stay.
        progress: where to show a bar.

    Raises:
        NumericalError: activations that are not finite, with the matrix's name.
    """
    views = down_views(module, "experts")
    decoder_layers = layers(module)
    with torch.no_grad(), progress.task("refitting", total=len(decoder_layers), unit="layers") as task:
        batches = [first_inputs(module, batch) for batch in batches_of(tokens, module.device)]
        for number, (_, layer) in enumerate(decoder_layers):
            own = [view for view in views if view.layer == number]
            given = _step(batches, number, layer, own)
            for view in own:
                assert view.expert is not None, "these are routed experts"
                keep = kept.neurons[number][view.expert].to(module.device)
                new = refit_down(view.tensor.double(), _gram(view, given), keep)
                yield (number, view.expert), new.to(view.tensor.dtype)
            task.advance()


def _step(
    batches: list[HiddenStates], number: int, layer: nn.Module, own: list[MatrixView]
) -> list[tuple[Tensor, ...]]:
    """Takes the hidden states through a layer; returns what its experts were given, batch by batch."""
    given: list[tuple[Tensor, ...]] = []
    hooks = [owner.register_forward_pre_hook(lambda _, args: given.append(args)) for owner in {v.owner for v in own}]
    for batch in batches:
        batch.hidden = batch.through(number, layer)
    for hook in hooks:
        hook.remove()
    return given


def _gram(view: MatrixView, given: list[tuple[Tensor, ...]]) -> Float[Tensor, "width width"]:
    """Aᵀ diag(g²) A of one expert, over all that its layer's experts were given: (inputs, chosen experts, weights)."""
    width = view.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=view.tensor.device)
    for inputs, index, weights in given:
        token, choice = torch.where(index == view.expert)
        if len(token):
            activations = hidden_neurons(view, inputs[token])
            gram += gram_terms(activations.double(), weights[token, choice, None].double())
    if not torch.isfinite(gram).all():
        raise NumericalError("its activations on the calibration text are not finite", where=view.name)
    return gram
