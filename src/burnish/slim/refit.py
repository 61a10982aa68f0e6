"""The least-squares repair of every narrowed expert, layer by layer, with one Gram matrix in memory at a time.

The calibration text goes through the layers in step, as hidden states. What a layer's experts are given is kept while
that layer is done; the neurons' activations of one expert are computed from it again, so that no more than the widest
expert's statistics and the hidden states of the text are held beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import MatrixView, describe, hidden_neurons, routed
from burnish.calibrate.from_disk import FromDisk
from burnish.calibrate.walk import LayerByLayer, Stop
from burnish.calibrate.windows import Calibration
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.slim.collect import down_views
from burnish.slim.maths.refit import gram_terms, refit_down
from burnish.slim.surgery import Kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.checkpoint.on_disk import OnDisk


def refit(
    module: PreTrainedModel,
    tokens: Int[Tensor, "windows length"],
    kept: Kept,
    progress: Progress,
    on_disk: OnDisk | None = None,
) -> Iterator[tuple[tuple[int, int | None], Float[Tensor, "hidden width"]]]:
    """New down projections of routed and shared experts that are narrowed, as ((layer, expert), weights).

    Experts are numbered as in the smaller model.

    Args:
        module: the model before the cut, in evaluation mode; that of `on_disk`, without weights, where there is one.
        tokens: whole windows, no padding.
        kept: the neurons, and the experts, that stay.
        progress: where to show a bar.
        on_disk: of which one layer is in memory at a time; None for a network in memory.

    Raises:
        NumericalError: activations that are not finite, with the matrix's name.
    """
    views = down_views(module, "experts")
    views += [view for view in down_views(module, "shared_expert") if view.layer in kept.shared]
    walk = FromDisk(on_disk, views, changed=False) if on_disk else LayerByLayer(module, views, changed=False)
    num_layers = describe(module).num_layers
    with torch.no_grad(), progress.task("refitting", total=num_layers, unit="layers") as task:
        for stop in walk.stops(Calibration(tokens, num_folds=1)):
            with walk.at(stop):
                yield from _refitted_layer(walk, stop, kept)
            task.advance()


def _refitted_layer(
    walk: LayerByLayer, stop: Stop, kept: Kept
) -> Iterator[tuple[tuple[int, int | None], Float[Tensor, "hidden width"]]]:
    shared = [_SharedGram(view) for view in stop.views if view.expert is None]
    given = _given(walk, stop, shared)
    for one in shared:
        yield _refitted(one.view, None, one.checked(), kept.shared[_layer(one.view)])
    for view in stop.views:
        layer = _layer(view)
        if view.expert is None or layer not in kept.neurons:
            continue
        places = (
            (kept.experts[layer] == view.expert).nonzero()[:, 0].tolist() if layer in kept.experts else [view.expert]
        )
        for place in places:
            yield _refitted(view, place, _gram(view, given), kept.neurons[layer][place])


def _refitted(
    view: MatrixView, place: int | None, gram: Float[Tensor, "width width"], keep: Int[Tensor, " kept"]
) -> tuple[tuple[int, int | None], Float[Tensor, "hidden kept"]]:
    new = refit_down(view.tensor.double(), gram, keep.to(gram.device))
    return (_layer(view), place), new.to(view.tensor.dtype)


def _layer(view: MatrixView) -> int:
    assert view.layer is not None, "experts are parts of layers"
    return view.layer


class _SharedGram:
    """Aᵀ A of a shared expert, which sees every token, added up while the text goes past its down projection."""

    def __init__(self, view: MatrixView) -> None:
        width = view.shape[1]
        self.view = view
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=view.tensor.device)

    def __call__(self, owner: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].reshape(-1, args[0].shape[-1]).double()
        self.gram += gram_terms(rows, torch.ones_like(rows[:, :1]))

    def checked(self) -> Float[Tensor, "width width"]:
        return _finite(self.gram, self.view)


def _given(walk: LayerByLayer, stop: Stop, shared: Sequence[_SharedGram]) -> list[tuple[Tensor, ...]]:
    """What a layer's routed experts are given while the text goes past, batch by batch."""
    given: list[tuple[Tensor, ...]] = []
    owners = {view.owner for view in stop.views if view.expert is not None}
    hooks = [owner.register_forward_pre_hook(lambda of, args: given.append(routed(of, args))) for owner in owners]
    hooks += [one.view.owner.register_forward_pre_hook(one) for one in shared]
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
    return _finite(gram, view)


def _finite(gram: Float[Tensor, "width width"], view: MatrixView) -> Float[Tensor, "width width"]:
    if not torch.isfinite(gram).all():
        raise NumericalError("its activations on the calibration text are not finite", where=view.name)
    return gram
