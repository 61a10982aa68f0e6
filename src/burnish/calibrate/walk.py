"""The walk over a model's layers with text going through them: one walk, four sources.

| source | in memory | what the text goes through |
| --- | --- | --- |
| `WholeModel` | all layers | the original network from end to end, gradients too |
| `LayerByLayer` | all layers | one layer after the other, as it was or as the caller changed it |
| `FromDisk` | one layer | the same (`from_disk`) |
| `GradientsFromDisk` | one layer | the original, up through the layers and gradients down again (`from_disk`) |

A walk halts at some layers at a time. There text goes past an observer of their matrices, any number of folds one after
the other; then, at a `final` stop, the caller may change the weights of all matrices that the walk has passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from burnish.arch import HiddenStates, MatrixView, capture, first_inputs, layers
from burnish.calibrate.sums import Sketch, layer_groups
from burnish.calibrate.windows import BATCH_TOKENS, Calibration, WindowBatch
from burnish.core.errors import NumericalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[["PreTrainedModel", WindowBatch], Tensor]


class Observer(Protocol):
    """What sees the text go by: told which windows come, then called as a callback of `arch.capture`."""

    def begin(self, batch: WindowBatch) -> None: ...

    def __call__(self, view: MatrixView, inputs: Tensor, gradients: Tensor | None, token_index: Tensor, /) -> None: ...


@dataclass(frozen=True)
class Stop:
    """Where a walk halts.

    Attributes:
        layers: numbers of the decoder layers.
        views: of their matrices, those that the walk is for.
        final: whether all matrices that the walk has passed may be changed now.
    """

    layers: tuple[int, ...]
    views: Sequence[MatrixView]
    final: bool = True

    def __str__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        return f"layer {first}" if first == last else f"layers {first} to {last}"


class Walk:
    """What the three have in common.

    Attributes:
        module, views: the network, and the matrices that the walk is for, all inside decoder layers.
        precision: of the products of float32 matrices, see `torch.set_float32_matmul_precision`.
        resumable: whether sums of an interrupted walk are worth keeping.
    """

    resumable: ClassVar[bool] = False

    def __init__(self, module: PreTrainedModel, views: Sequence[MatrixView], *, precision: str = "highest") -> None:
        self.module, self.views, self.precision = module, views, precision

    def stops(self, text: Calibration | None, sketches: Sequence[Sketch] = ()) -> Iterator[Stop]:
        """Where the walk halts; without a text it passes matrices only."""
        raise NotImplementedError

    def at(self, stop: Stop) -> AbstractContextManager[None]:
        """Text goes past a stop inside this block."""
        return nullcontext()

    def run(self, stop: Stop, fold: int, observer: Observer | None, loss: Loss | None = None) -> Iterator[int]:
        """One fold of the text goes past; gives the number of tokens after each batch.

        Args:
            stop: the present one.
            fold: number of the part of the text.
            observer: of the stop's matrices; with None the network runs as it does unobserved.
            loss: to be differentiated, for output gradients; in a whole model only.
        """
        raise NotImplementedError

    def pieces(self, views: Sequence[MatrixView]) -> Iterator[Sequence[MatrixView]]:
        """Matrices with their weights in memory, as many as fit; what is written into them stays with the walk.

        Raises:
            NumericalError: a weight is not finite.
        """
        yield views


class WholeModel(Walk):
    """Text goes through the whole network: once, or as often as the growing sums of all layers take to fit.

    Args:
        module: the original model, in evaluation mode, on the device to use.
        views: of its matrices.
        precision: as in `Walk`.
        memory_bytes: bound on the sums held at once, None for none.
        batch_tokens: tokens per forward pass.
        checkpointing: whether activations are kept of one layer at a time, where there are gradients.
    """

    resumable: ClassVar[bool] = True

    def __init__(
        self,
        module: PreTrainedModel,
        views: Sequence[MatrixView],
        *,
        precision: str = "highest",
        memory_bytes: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(module, views, precision=precision)
        self.memory_bytes, self.batch_tokens, self.checkpointing = memory_bytes, batch_tokens, checkpointing

    def stops(self, text: Calibration | None, sketches: Sequence[Sketch] = ()) -> Iterator[Stop]:
        check_finite(self.views)
        self.text = text
        limit = math.inf if text is None or self.memory_bytes is None else self.memory_bytes
        groups = layer_groups(self.views, sketches=sketches, memory_bytes=limit)
        for number, group in enumerate(groups, start=1):
            yield Stop(numbers_of(group), group, final=number == len(groups))

    def run(self, stop: Stop, fold: int, observer: Observer | None, loss: Loss | None = None) -> Iterator[int]:
        assert self.text is not None, "there is a text to run"
        gradients, views = loss is not None, [] if observer is None else stop.views
        watched = capture(self.module, views, gradients=gradients, checkpointing=gradients and self.checkpointing)
        with watched as captured, products(self.precision):
            captured.callback = observer
            for batch in self.text.batches(fold, self.module.device, self.batch_tokens):
                if observer is not None:
                    observer.begin(batch)
                if loss is not None:
                    loss(self.module, batch).backward()
                else:
                    with torch.no_grad():
                        self.module.base_model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
                yield batch.tokens.numel()


class LayerByLayer(Walk):
    """All of the text goes through a layer before the next one; between layers only hidden states are kept.

    Args:
        module, views, precision: as in `Walk`.
        changed: whether a layer is run once more after its stop, so that the next ones see what the caller made of it.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        views: Sequence[MatrixView],
        *,
        precision: str = "highest",
        changed: bool,
    ) -> None:
        super().__init__(module, views, precision=precision)
        self.changed = changed

    def stops(self, text: Calibration | None, sketches: Sequence[Sketch] = ()) -> Iterator[Stop]:
        assert not sketches, "gradients go through a whole model"
        self.check_weights()
        self.folds = [] if text is None else self.first_hidden_states(text)
        self.layers = layers(self.module)
        for number in range(len(self.layers)):
            self.waiting = set(range(len(self.folds)))
            stop = Stop((number,), [view for view in self.views if view.layer == number])
            yield stop
            self.leave(stop)

    def check_weights(self) -> None:
        check_finite(self.views)

    def first_hidden_states(self, text: Calibration) -> list[list[tuple[WindowBatch, HiddenStates]]]:
        """Inputs of the first layer, fold by fold, with each layer's other arguments (masks, positions)."""
        device = self.module.device
        return [
            [(batch, first_inputs(self.module, batch.tokens, batch.mask)) for batch in text.batches(fold, device)]
            for fold in range(text.num_folds)
        ]

    def run(self, stop: Stop, fold: int, observer: Observer | None, loss: Loss | None = None) -> Iterator[int]:
        assert loss is None, "gradients go through a whole model"
        with capture(self.module, [] if observer is None else stop.views) as captured:
            captured.callback = observer
            for batch, states in self.folds[fold]:
                if observer is not None:
                    observer.begin(batch)
                self._through(stop, states, keep=not self.changed)
                yield batch.tokens.numel()
        if not self.changed:
            self.waiting.discard(fold)

    def leave(self, stop: Stop) -> None:
        """Takes the folds that still wait before the layer to its other side."""
        with self.at(stop):
            for fold in sorted(self.waiting):
                for _, states in self.folds[fold]:
                    self._through(stop, states, keep=True)

    def _through(self, stop: Stop, states: HiddenStates, *, keep: bool) -> None:
        (number,) = stop.layers
        with torch.no_grad(), products(self.precision):
            output = states.through(number, self.layers[number][1])
        if keep:
            states.hidden = output


def numbers_of(views: Sequence[MatrixView]) -> tuple[int, ...]:
    """Of the decoder layers of some matrices, ascending."""
    return tuple(sorted({view.layer for view in views if view.layer is not None}))


def check_finite(views: Sequence[MatrixView]) -> None:
    """Raises `NumericalError` with the name of the first matrix that is not finite."""
    for view in views:
        if not torch.isfinite(view.tensor).all():
            raise NumericalError("holds weights that are not finite", where=view.name, fix="check the checkpoint")


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Products of float32 matrices are computed so inside the block; those in float64 are not touched by it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
