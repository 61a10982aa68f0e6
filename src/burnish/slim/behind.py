"""The refit of a model that has been cut, layer by layer, behind layers that have been cut.

The refit of `refit.py` sees each expert alone and the layers in front of it as they were. Here the text goes through
the original and through what was cut from it in step. Down projections of a layer's routed experts are fitted, all of
the layer together, to what the original layer gave, so that each makes up for what others, and the layers before, have
lost. No expert needs to be a part of another one. Both networks are in memory.

Where experts do not add to the output of their layer (a norm or a projection comes behind them), they are fitted to
what the original's experts gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import HiddenStates, MatrixView, first_inputs, hidden_neurons, layers, routed, token_numbers
from burnish.calibrate.windows import Calibration
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.slim.collect import down_views
from burnish.slim.maths.refit import RIDGE, refit_together

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Columns = Mapping[int, Sequence[Int[Tensor, " columns"]]]
"""{layer: for each expert the neurons whose columns are fitted}."""

ADDITIVE = 0.05
"""Relative error up to which experts are taken to add to their layer's output; rounding to bfloat16 leaves 0.01."""


@torch.no_grad()
def refit_behind(
    original: PreTrainedModel,
    smaller: PreTrainedModel,
    tokens: Int[Tensor, "windows length"],
    progress: Progress,
    *,
    ridge: float = RIDGE,
    columns: Columns | None = None,
) -> Iterator[tuple[tuple[int, int], Float[Tensor, "hidden width"]]]:
    """New down projections of routed experts, as ((layer, expert), weights); they are written into `smaller` too.

    Args:
        original, smaller: in evaluation mode, on one device, with as many layers; `smaller` is changed.
        tokens: whole windows, no padding.
        progress: where to show a bar.
        ridge: see `refit_together`.
        columns: all where None.

    Raises:
        NumericalError: outputs of a layer that are not finite.
    """
    batches = [batch.tokens for batch in Calibration(tokens, num_folds=1).batches(0, smaller.device)]
    wholes, ours = ([first_inputs(module, batch) for batch in batches] for module in (original, smaller))
    of_wholes, downs = down_views(original, "experts"), down_views(smaller, "experts")
    pairs = list(zip(layers(original), layers(smaller), strict=True))
    with progress.task("refitting", total=len(pairs), unit="layers") as task:
        for number, ((path, whole), (_, layer)) in enumerate(pairs):
            views = [view for view in downs if view.layer == number]
            if views:
                owner = next(view.owner for view in of_wholes if view.layer == number)
                target = _Through(number, whole, wholes, owner)
                mine = _Through(number, layer, ours, views[0].owner)
                missing = _missing(target, mine)
                if not torch.isfinite(missing).all():
                    raise NumericalError("what it gives for the calibration text is not finite", where=path)
                chosen = None if columns is None else columns.get(number)
                for view, down in _refitted(views, mine, missing, ridge, chosen):
                    view.write_(down)
                    assert view.expert is not None, "routed experts are numbered"
                    yield (number, view.expert), view.tensor
            for states, module in ((wholes, whole), (ours, layer)):
                for one in states:
                    one.hidden = one.through(number, module)
            task.advance()


class _Through:
    """What a layer gives for the text, and what its experts are given and give.

    Attributes:
        made: outputs of the layer, batch by batch.
        given: (inputs, chosen experts, routing weights) of its experts.
        added: outputs of its experts.
        one_more: {what is added to the experts' output of the first batch: output of the layer then}.
    """

    def __init__(self, number: int, layer: nn.Module, states: Sequence[HiddenStates], experts: nn.Module) -> None:
        self.number, self.layer, self.states, self.experts = number, layer, states, experts
        self.given: list[tuple[Tensor, ...]] = []
        self.added: list[Tensor] = []
        with experts.register_forward_hook(self._note):
            self.made = [one.through(number, layer) for one in states]

    def _note(self, of: nn.Module, args: Any, output: Any) -> None:
        self.given.append(routed(of, args))
        self.added.append(output)

    def with_more(self, more: Tensor) -> Tensor:
        """The layer's output for the first batch, had its experts given so much more."""
        hook: Callable[..., Any] = lambda of, args, output: output + more  # noqa: E731
        with self.experts.register_forward_hook(hook):
            return self.states[0].through(self.number, self.layer)


def _missing(target: _Through, mine: _Through) -> Float[Tensor, "tokens hidden"]:
    """What experts would have to give beside what they give, float64."""
    multiplier = _multiplier(mine)
    if multiplier is None:
        pairs = zip(target.added, mine.added, strict=True)
        return torch.cat([wanted.double() - given.double() for wanted, given in pairs])
    pairs = zip(target.made, mine.made, strict=True)
    return torch.cat([(w.double() - m.double()).flatten(0, -2) for w, m in pairs]) / multiplier


def _multiplier(mine: _Through) -> float | None:
    """c, if the layer adds c times what its experts give to everything else; None if it does something else."""
    like = mine.added[0]
    if like.shape[-1] != mine.made[0].shape[-1]:
        return None
    scale = mine.made[0].float().square().mean().sqrt()
    draw = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    num_tokens = mine.made[0].flatten(0, -2).shape[0]
    more = draw * scale
    change = (mine.with_more(more).double() - mine.made[0].double()).flatten(0, -2)
    # Llama 4's experts give their parts one after the other, and the layer adds them up.
    asked = more.double().unflatten(0, (-1, num_tokens)).sum(0)
    multiplier = float((change * asked).sum() / asked.square().sum())
    error = float((change - multiplier * asked).norm() / asked.norm())
    return multiplier if multiplier and error <= ADDITIVE * abs(multiplier) else None


def _refitted(
    views: Sequence[MatrixView],
    mine: _Through,
    missing: Float[Tensor, "tokens hidden"],
    ridge: float,
    columns: Sequence[Tensor] | None,
) -> Iterator[tuple[MatrixView, Float[Tensor, "hidden width"]]]:
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    before = 0
    for made, (inputs, index, weights) in zip(mine.made, mine.given, strict=True):
        for number in range(len(views)):
            row, choice = torch.where(index == number)
            token = before + token_numbers(mine.experts, row, len(inputs))
            found.setdefault(number, []).append((token, inputs[row], weights[row, choice, None]))
        before += made.flatten(0, -2).shape[0]
    seen, parts, fitted = [], [], []
    for view in views:
        assert view.expert is not None, "routed experts are numbered"
        neurons = torch.arange(view.shape[1]) if columns is None else columns[view.expert]
        token, inputs, weights = (torch.cat(some) for some in zip(*found[view.expert], strict=True))
        if len(token) and len(neurons):
            seen.append(view)
            parts.append((token, partial(_weighted, view, inputs, weights, neurons.to(inputs.device))))
            fitted.append(neurons)
    for view, neurons, change in zip(seen, fitted, refit_together(parts, missing, ridge), strict=True):
        down = view.tensor.clone()
        down[:, neurons] += change.to(down.dtype)
        yield view, down


def _weighted(view: MatrixView, inputs: Tensor, weights: Tensor, neurons: Tensor) -> Float[Tensor, "tokens width"]:
    return hidden_neurons(view, inputs)[:, neurons].double() * weights.double()
