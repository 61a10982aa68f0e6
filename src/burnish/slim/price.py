"""What a checkpoint with a width for each expert would keep more of the model than one with a single width.

Stock loaders read one width for all experts, so such a checkpoint is not made. It is priced: neurons are masked
(columns of down_proj set to zero, which computes what leaving them out computes), once as they are cut, and once with
as many neurons in every layer but wherever in it they score highest; and the forward KL of the model's distribution
from either is measured on windows that have scored nothing. Without the refit, in both. A model whose experts were
split into pieces is measured beside them, as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.arch import AllLogits, Head, MatrixView, head_of
from burnish.slim.collect import down_views
from burnish.slim.maths.keep import keep_highest
from burnish.train.maths.divergence import forward_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.stage import Context
    from burnish.slim.uncut import Uncut

WINDOWS = 8
"""Windows of text that the divergences are measured on."""
COMPARABLE = ("fisher", "taylor", "taylor_total", "energy")
"""Scores that estimate what the loss of a neuron costs, whichever expert it is in."""

Neurons = Mapping[int, Sequence[Int[Tensor, " kept"]]]
"""For each layer and expert the neurons that it keeps."""


def own_widths(scores: Mapping[int, Float[Tensor, "experts width"]], width: int) -> dict[int, list[Tensor]]:
    """The neurons of every layer with the highest scores in all of its experts, `width` times their number."""
    kept = {}
    for layer, of_experts in scores.items():
        count, every = of_experts.shape
        chosen = keep_highest(of_experts.flatten(), count * width)
        kept[layer] = [chosen[chosen // every == expert] % every for expert in range(count)]
    return kept


def say_price(
    network: PreTrainedModel,
    uncut: Uncut,
    windows: Int[Tensor, "windows length"],
    kept: Neurons,
    own: Neurons,
    ctx: Context,
    *,
    split: bool = False,
    pieces: PreTrainedModel | None = None,
) -> None:
    """What a width for each expert would gain, in the ledger and in a line; nothing where no window is left.

    Args:
        network: see `price`.
        uncut: the same model, whose weights stay.
        windows: that have scored nothing.
        kept, own: neurons with one width, and with a width for each expert.
        ctx: of the stage.
        split: whether the model that is made has experts in pieces, and neither of these ways.
        pieces: that model, where it is in memory.
    """
    if not len(windows):
        return
    downs = [view for view in uncut.matrices if view.part == "experts" and view.role == "down"]
    stored = {(view.layer, view.expert): view for view in downs}
    ways = {"one for all": kept, "each its own": own}
    rows = price(network, windows, ways, lambda view: uncut.matrix(stored[view.layer, view.expert]), pieces)
    ctx.ledger.table("slim widths", rows)
    one, each, *made = rows
    first = f"in pieces the model is {made[0]['nats per token']:.4f} nats per token from what it was; " if made else ""
    ctx.progress.log(
        f"{first}with one width {'it would be' if split else 'the model is'} {one['nats per token']:.4f} nats per "
        f"token from what it was; with a width for each expert ({each['narrowest']} to {each['widest']}) it would be "
        f"{each['nats per token']:.4f} ({'both ' if split else ''}before the refit, on {len(windows)} windows that "
        "scored nothing), and no stock loader reads that"
    )


def price(
    network: PreTrainedModel,
    windows: Int[Tensor, "windows length"],
    ways: Mapping[str, Neurons],
    weights: Callable[[MatrixView], Tensor],
    pieces: PreTrainedModel | None = None,
) -> list[dict[str, Any]]:
    """A row for each way: nats per token of forward KL, and the narrowest and widest expert.

    Args:
        network: the model before the cut, in memory; its experts stay masked the last way.
        windows: of text.
        ways: {name: neurons that are kept}.
        weights: gives down projections as they are before the cut.
        pieces: a model of pieces of its experts, for a last row.
    """
    divergence, rows = Distance(network, windows), []
    for name, kept in ways.items():
        for view in down_views(network, "experts"):
            assert view.layer is not None and view.expert is not None, "experts are parts of layers"
            if view.layer in kept:
                masked = torch.zeros_like(view.tensor)
                neurons = kept[view.layer][view.expert].to(masked.device)
                masked[:, neurons] = weights(view).to(masked)[:, neurons]
                view.write_(masked)
        widths = [len(neurons) for experts in kept.values() for neurons in experts]
        found = {"nats per token": divergence(network), "narrowest": min(widths), "widest": max(widths)}
        rows.append({"widths": name} | found)
    if pieces is not None:
        rows.append({"widths": "in pieces", "nats per token": divergence(pieces)})
    return rows


class Distance:
    """Nats per token of forward KL from a model as it is when this is made, on some windows of text."""

    def __init__(self, network: PreTrainedModel, windows: Int[Tensor, "windows length"]) -> None:
        self.windows, self.head = windows, head_of(network) or AllLogits()
        with torch.no_grad():
            self.original = list(_states(self.head, network, windows))

    def __call__(self, module: PreTrainedModel) -> float:
        total, own = 0.0, head_of(module) or AllLogits()
        with torch.no_grad():
            for ours, theirs in zip(_states(own, module, self.windows), self.original, strict=True):
                total += float(forward_kl(own.logits(ours).float(), self.head.logits(theirs).float()).sum())
        return total / self.windows.numel()


def _states(head: Head | AllLogits, module: PreTrainedModel, windows: Tensor) -> Iterator[Tensor]:
    """What the head takes, window by window."""
    for window in windows:
        yield head.last_hidden(module, input_ids=window[None].to(module.device), use_cache=False)[1]
