"""Walks over a checkpoint that does not fit into memory: one layer's weights are there at a time.

`FromDisk` takes the text through the layers once. `GradientsFromDisk` keeps what goes into each layer in files, so that
the gradients of a loss can come down through the layers again, each of which runs once more for that.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from burnish.arch import HiddenStates, MatrixView, behind_layers, capture, matrices, vectors
from burnish.calibrate.sums import Sketch
from burnish.calibrate.walk import LayerByLayer, Loss, Observer, Stop, check_finite, products
from burnish.calibrate.windows import Calibration, WindowBatch
from burnish.core.checkpoint import Model
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.errors import SettingsError
from burnish.core.memory import too_large

PIECE_WEIGHTS = 4_000_000
"""Weights from disk that are handed out at a time, if one matrix does not hold more: rounding needs several times their
memory."""


class FromDisk(LayerByLayer):
    """A checkpoint larger than memory: a layer's weights are read when its text comes, and again a few at a time."""

    def __init__(
        self, on_disk: OnDisk, views: Sequence[MatrixView], *, precision: str = "highest", changed: bool
    ) -> None:
        super().__init__(on_disk.module, views, precision=precision, changed=changed)
        self.on_disk = on_disk
        self.made: dict[str, Tensor] = {}

    def check_weights(self) -> None:
        """They are checked when they are handed out."""
        give_back_freed_memory()

    def first_hidden_states(self, text: Calibration) -> list[list[tuple[WindowBatch, HiddenStates]]]:
        with with_embeddings(self.on_disk):
            return super().first_hidden_states(text)

    def at(self, stop: Stop) -> AbstractContextManager[None]:
        return self.on_disk.loaded(f"{self.layers[stop.layers[0]][0]}.", instead=self.made)

    def pieces(self, views: Sequence[MatrixView]) -> Iterator[Sequence[MatrixView]]:
        for piece in pieces_on_disk(views):
            with self.on_disk.loaded(*(view.parameter for view in piece)):
                check_finite(piece)
                yield piece
                if self.changed and self.folds:
                    self.made |= {v.parameter: self.module.get_parameter(v.parameter).data for v in piece}

    def leave(self, stop: Stop) -> None:
        if self.waiting:
            super().leave(stop)
        self.made.clear()
        give_back_freed_memory()


class GradientsFromDisk(FromDisk):
    """Stops from the last layer to the first that has views, with the gradients of a loss.

    The values are those of `WholeModel` with `checkpointing`. In memory are one layer, the hidden states of the text
    behind it (twice: states and gradients), and the activations of one batch; once what is around the layers: the head,
    and an embedding that is tied to it.

    Args:
        on_disk, views, precision: as in `FromDisk`; the views may be read, and changed behind the last stop alone.
        scratch: directory for what goes into every layer: layers x tokens x hidden size x 4 bytes.
    """

    def __init__(
        self, on_disk: OnDisk, views: Sequence[MatrixView], scratch: Path, *, precision: str = "highest"
    ) -> None:
        super().__init__(on_disk, views, precision=precision, changed=False)
        self.scratch = scratch

    def stops(self, text: Calibration | None, sketches: Sequence[Sketch] = ()) -> Iterator[Stop]:
        assert text is not None, "gradients are those of a text"
        first = min((view.layer for view in self.views if view.layer is not None), default=0)
        self.scratch.mkdir(parents=True, exist_ok=True)
        for stop in super().stops(text):
            if stop.layers[0] < first:
                continue
            for number, (_, states) in self._batches():
                torch.save(states.hidden, self._file(stop.layers[0], number))
        self.gradients: dict[int, Tensor] = {}
        for layer in range(len(self.layers) - 1, first - 1, -1):
            yield Stop((layer,), [view for view in self.views if view.layer == layer], final=layer == first)
            for number, _ in self._batches():
                self._file(layer, number).unlink()
            give_back_freed_memory()

    def run(self, stop: Stop, fold: int, observer: Observer | None, loss: Loss | None = None) -> Iterator[int]:
        assert loss is not None, "without gradients text goes up alone"
        (layer,) = stop.layers
        mine = [(number, one) for number, one in self._batches() if one in self.folds[fold]]
        if layer == len(self.layers) - 1:
            self._differentiate(mine, loss)
        with capture(self.module, stop.views, gradients=True) as captured, products(self.precision):
            captured.callback = observer
            for number, (batch, states) in mine:
                if observer is not None:
                    observer.begin(batch)
                states.hidden = torch.load(self._file(layer, number)).requires_grad_()
                output = states.through(layer, self.layers[layer][1])
                output.backward(self.gradients[number])
                assert states.hidden.grad is not None
                self.gradients[number] = states.hidden.grad
                yield batch.tokens.numel()

    def _differentiate(self, batches: Sequence[tuple[int, tuple[WindowBatch, HiddenStates]]], loss: Loss) -> None:
        """Gradients of the loss in what the last layer gave."""
        inside = tuple(f"{path}." for path, _ in self.layers)
        looked_up = {v.parameter for v in matrices(self.module) if v.role == "embedding" and not v.tied}
        around = [name for name in self.on_disk.names if not name.startswith(inside) and name not in looked_up]
        with self.on_disk.loaded(*around), torch.enable_grad(), products(self.precision):
            for number, (batch, states) in batches:
                hidden = states.hidden.detach().requires_grad_()
                with behind_layers(self.module, hidden):
                    loss(self.module, batch).backward()
                assert hidden.grad is not None
                self.gradients[number] = hidden.grad

    def _batches(self) -> list[tuple[int, tuple[WindowBatch, HiddenStates]]]:
        return list(enumerate(one for fold in self.folds for one in fold))

    def _file(self, layer: int, batch: int) -> Path:
        return self.scratch / f"layer{layer:03d}-batch{batch:05d}.pt"


@contextmanager
def with_embeddings(on_disk: OnDisk) -> Iterator[None]:
    """What tokens are looked up in has its weights inside the block."""
    embeddings = [v.parameter for v in matrices(on_disk.module) if v.part == "embedding" and v.layer is None]
    with ExitStack() as stack:
        for name in embeddings:
            stack.enter_context(on_disk.loaded(name))
        yield


def to_be_streamed(model: Model, stream: bool | None, device: str, not_by_layer: str = "") -> OnDisk | None:
    """The model on disk, if text is to go through it a layer at a time; None where the whole network is to be read.

    Args:
        model: as it was opened.
        stream: as the settings say; None where it would fill memory.
        device: of the text.
        not_by_layer: why these settings cannot go by layers, "" where they can.

    Raises:
        SettingsError: `stream` is true but cannot be.
    """
    if stream is False or (stream is None and not too_large(model.plan().num_parameters)):
        return None
    reason, on_disk = not_by_layer, None
    if not reason and device != "cpu":
        reason = f"on {device} text goes through the whole network"
    if not reason and (model.path is None or model.is_loaded):
        reason = "the model is in memory already"
    if not reason and torch.float64 in (model.dtype, model.stored_dtype):
        reason = "a layer at a time is computed in float32, and the weights are float64"
    if not reason:
        on_disk = OnDisk(model)
        know_pieces(on_disk)
        reason = f"{on_disk.absent} is stored under another name or in other pieces" if on_disk.absent else ""
    if reason and stream:
        raise SettingsError(f"stream is true, but {reason}", fix="leave stream out")
    return None if reason else on_disk


def know_pieces(on_disk: OnDisk) -> None:
    """Tells it of what lies on disk one by one and is one tensor in memory: experts; and of parts with other names."""
    by_entry: dict[str, list[tuple[str, tuple[int, ...], Callable[[Tensor], object]]]] = {}
    for view in matrices(on_disk.module):
        by_entry.setdefault(view.parameter, []).append((view.disk, view.shape, view.write_))
    for vector in vectors(on_disk.module):
        write = lambda values, vector=vector: vector.tensor.copy_(values)  # noqa: E731
        by_entry.setdefault(vector.parameter, []).append((vector.name, tuple(vector.tensor.shape), write))
    meta = on_disk.files.meta
    on_disk.pieces = {
        entry: [(name, write) for name, _, write in pieces]
        for entry, pieces in by_entry.items()
        if all(name in meta and tuple(meta[name].shape) == shape for name, shape, _ in pieces)
    }


def pieces_on_disk(views: Sequence[MatrixView]) -> Iterator[list[MatrixView]]:
    """Matrices in order, a few million weights at a time; those that are one tensor on disk stay together."""
    by_parameter: dict[str, list[MatrixView]] = {}
    for view in views:
        by_parameter.setdefault(view.parameter, []).append(view)
    piece: list[MatrixView] = []
    for joined in by_parameter.values():
        if piece and sum(math.prod(view.shape) for view in piece + joined) > PIECE_WEIGHTS:
            yield piece
            piece = []
        piece = piece + joined
    if piece:
        yield piece


def give_back_freed_memory() -> None:
    """Makes glibc return freed memory to the system: large blocks from now on, what is left of small ones at once.

    By itself it raises the size from which it returns a block to that of the largest freed so far, and keeps smaller
    ones in a heap that then grows with every layer.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_threshold = -3
        libc.mallopt(mmap_threshold, 1 << 20)
        libc.malloc_trim(0)
