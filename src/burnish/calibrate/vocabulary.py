"""What calibration text says of the matrices whose rows are tokens: the embedding, and the head that makes logits.

Both see the text in their own way, and a tied embedding in both. With an error Δ of the rows the model's own divergence
is, to second order and taking the two ways and all tokens for independent,

    Ω = 1/2 Σ_v [ n_v/T · Δ_v G Δ_v^T  +  a_v/Σa · Δ_v H Δ_v^T ] / T

    looked up    n_v how often the text has token v,    G = Σ_t g_t^T g_t,        g_t gradient at what token t looks up
    multiplied   a_v = Σ_t r_tv²,                       H = Σ_t |r_t|² h_t^T h_t, r_t gradient at the logits, h_t inputs

with gradients of labels drawn from the model (`labels`): there E r_tv² is p(1 - p), how uncertain the prediction of v
is. Of the logits' Fisher matrix the diagonal is kept; otherwise both ways are sketch A (`maths.kronecker`). How much a
row counts is a factor of all of its columns, so that it decides nothing inside the row: rows are rounded with G + H
alone, and n and a say what a width would cost.

Source: the project's own, with the factors of Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.arch import MatrixView, capture
from burnish.calibrate.labels import drawn_label_loss
from burnish.calibrate.maths.kronecker import covariance_sum, pack_triangle, unpack_triangle
from burnish.calibrate.statistics import FILE, MatrixSums, Statistics
from burnish.calibrate.walk import products
from burnish.calibrate.windows import Calibration, WindowBatch, rank, world_size
from burnish.core.errors import NumericalError
from burnish.core.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOKED_UP, MULTIPLIED = "looked up", "multiplied"
BATCH_TOKENS = 512
"""Of a pass; every token has a gradient for every row."""


@dataclass(frozen=True)
class Use:
    """One way in which rows are used, summed over text.

    Attributes:
        rows: n or a, how much every row counts.
        columns: G or H.
    """

    rows: Float[Tensor, " vocabulary"]
    columns: Float[Tensor, "width width"]


class VocabularyStatistics(Statistics):
    """The sums of these matrices, an entry for every fold; read like those of any matrix."""

    def name_of(self, fold: int) -> str:
        return f"vocabulary-fold{fold}"

    def uses(self, view: MatrixView, folds: Sequence[int]) -> list[Use]:
        """Every way in which this matrix is used."""
        tensors = self._summed(folds)
        ways = [LOOKED_UP] if view.role == "embedding" else []
        ways += [MULTIPLIED] if view.multiplies else []
        return [Use(tensors[f"{way}|rows"], unpack_triangle(tensors[f"{way}|columns"])) for way in ways]

    def num_tokens(self, folds: Sequence[int]) -> int:
        return int(self._summed(folds)["num_tokens"])

    def read(self, view: MatrixView, folds: Sequence[int]) -> MatrixSums:
        """With the columns of all uses as its covariance."""
        columns = torch.stack([use.columns for use in self.uses(view, folds)]).sum(dim=0)
        return MatrixSums(columns, {}, self.num_tokens(folds))

    def _summed(self, folds: Sequence[int]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for fold in folds:
            for name, tensor in load_file(self.store.directory / self.name_of(fold) / FILE).items():
                total[name] = total[name].add_(tensor) if name in total else tensor
        return total


def collect_vocabulary(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    text: Calibration,
    directory: Path,
    *,
    key: dict[str, Any],
    precision: str = "highest",
    progress: Progress | None = None,
) -> VocabularyStatistics:
    """The sums of an embedding, a head, or both.

    Args:
        module: the original, in float32 or float64.
        views: of its embedding and its head, those that are asked for.
        text: whose windows go through it once, forward and backward.
        directory, key, progress: as in `collected`.
        precision: as in `Walk`.

    Raises:
        NumericalError: an activation or a gradient is not finite.
        CheckpointError: the directory holds sums of another model or text.
    """
    full_key = key | {
        "calibration text": text.hash,
        "folds": list(text.bounds),
        "label seed": text.seed,
        "matrices": [view.name for view in views],
        "dtype": str(module.dtype),
    }
    found = VocabularyStatistics(directory, full_key, range(text.num_folds))
    folds = [fold for fold in found.folds if found.store.find(found.name_of(fold), full_key) is None]
    bars = progress or Progress(enabled=False)
    total = sum(len(text.fold(fold)) for fold in folds) * text.tokens.shape[1]
    with bars.task("collecting, vocabulary", total=total, unit="tokens") as task:
        for fold in folds:
            sums = _Sums(module, views)
            with capture(module, sums.heads, gradients=True) as captured, products(precision):
                captured.callback = sums.multiplied
                for batch in text.batches(fold, module.device, BATCH_TOKENS):
                    sums.run(batch, text.seed)
                    task.advance(batch.tokens.numel())
            sums.reduce()
            if rank() == 0:
                with found.store.writing(found.name_of(fold), full_key) as path:
                    save_file(sums.packed(), path / FILE)
            if world_size() > 1:
                torch.distributed.barrier()
    return found


@dataclass
class _Sums:
    """Running sums of one fold."""

    module: PreTrainedModel
    views: Sequence[MatrixView]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heads = [view for view in self.views if view.multiplies]
        self.embeddings = [view for view in self.views if view.role == "embedding"]
        like = self.views[0].tensor
        rows, width = self.views[0].shape
        self.tensors = {"num_tokens": torch.zeros((), dtype=torch.int64, device=like.device)}
        for way, used in ((LOOKED_UP, self.embeddings), (MULTIPLIED, self.heads)):
            if used:
                self.tensors[f"{way}|rows"] = like.new_zeros(rows)
                self.tensors[f"{way}|columns"] = like.new_zeros(width, width)

    def run(self, batch: WindowBatch, seed: int) -> None:
        """The text of a batch, forward and backward."""
        looked_up: list[Tensor] = []

        def start(_module: object, _inputs: object, output: Tensor) -> Tensor:
            looked_up.append(output.detach().requires_grad_())
            return looked_up[-1]

        hooks = [view.owner.register_forward_hook(start) for view in self.embeddings]
        try:
            drawn_label_loss(self.module, batch, seed).backward()
        finally:
            for hook in hooks:
                hook.remove()
        kept = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.mask is None else batch.mask.bool()
        self.tensors["num_tokens"] += kept.sum()
        for view, output in zip(self.embeddings, looked_up, strict=True):
            assert output.grad is not None, "differentiation starts at it"
            ids, rows = batch.tokens[kept], view.tensor
            values = rows[ids]
            # Some modules multiply what they look up by a number.
            factor = (output.detach()[kept] * values).sum() / values.square().sum().clamp(
                min=torch.finfo(values.dtype).tiny
            )
            self.tensors[f"{LOOKED_UP}|rows"] += torch.bincount(ids, minlength=len(rows))
            covariance_sum(factor * output.grad[kept], self.tensors[f"{LOOKED_UP}|columns"])

    def multiplied(self, _view: MatrixView, inputs: Tensor, gradients: Tensor | None, _index: Tensor) -> None:
        """Callback of `capture`; at padding gradients are zero."""
        assert gradients is not None, "they were asked for"
        squared = gradients.square()
        self.tensors[f"{MULTIPLIED}|rows"] += squared.sum(dim=0)
        covariance_sum(squared.sum(dim=1, keepdim=True).sqrt() * inputs, self.tensors[f"{MULTIPLIED}|columns"])

    def reduce(self) -> None:
        """Adds up over processes.

        Raises:
            NumericalError: a sum is not finite.
        """
        for name, tensor in self.tensors.items():
            if world_size() > 1:
                torch.distributed.all_reduce(tensor)
            if not torch.isfinite(tensor).all():
                raise NumericalError(
                    f"the gradients where it is {name.partition('|')[0]} are not finite on the calibration text",
                    where=self.views[0].name,
                    fix="check the checkpoint, or load it in float32",
                )

    def packed(self) -> dict[str, Tensor]:
        """What goes to disk."""
        return {
            name: (pack_triangle(tensor) if name.endswith("columns") else tensor).cpu()
            for name, tensor in self.tensors.items()
        }
