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
from torch import Tensor

from burnish.arch import MatrixView, describe, hidden_neurons
from burnish.calibrate.walk import LayerByLayer, Stop
from burnish.calibrate.windows import Calibration
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.slim.collect import down_views
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
    walk = LayerByLayer(module, down_views(module, "experts"), changed=False)
    num_layers = describe(module).num_layers
    with torch.no_grad(), progress.task("refitting", total=num_layers, unit="layers") as task:
        for stop in walk.stops(Calibration(tokens, num_folds=1)):
            given = _given(walk, stop)
            for view in stop.views:
                assert view.layer is not None and view.expert is not None, "these are routed experts"
                keep = kept.neurons[view.layer][view.expert].to(module.device)
                new = refit_down(view.tensor.double(), _gram(view, given), keep)
                yield (view.layer, view.expert), new.to(view.tensor.dtype)
            task.advance()


def _given(walk: LayerByLayer, stop: Stop) -> list[tuple[Tensor, ...]]:
    """What a layer's experts are given while the text goes past, batch by batch."""
    given: list[tuple[Tensor, ...]] = []
    owners = {view.owner for view in stop.views}
    hooks = [owner.register_forward_pre_hook(lambda _, args: given.append(args)) for owner in owners]
    for _ in walk.run(stop, 0, None):
        pass
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
