"""Learned rounding of one decoder layer, from the codes that another rule gave it (`rules.learned` has the formula).

The layer runs with the weights that the present offsets and scales make, a few windows at a time. What was learned is
kept only where the error over all of the text is smaller than at the start. Every finished layer is an entry in the
store, so an interrupted run goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.arch import MatrixView, by_parameter
from burnish.calibrate.blocks import Block
from burnish.calibrate.statistics import Statistics
from burnish.core.store import Store
from burnish.quantize.factors import SplitSums, known_factors
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.grid import IntegerGrid
from burnish.quantize.maths.learning import LearnedWeight, descend
from burnish.quantize.maths.shrinkage import shrink, square_root
from burnish.quantize.method import Quantized, proxies

WEIGHTS, ROWS = "learned.safetensors", "rows.json"
METRIC_DAMPING = 0.1
"""Of H_O, in multiples of its mean diagonal."""
CAREFUL = 0.1
"""Part of the whole way that signs go from codes that fit each other already."""


@dataclass(frozen=True)
class Learning:
    """How layers are learned.

    Attributes:
        iterations, optimizer: see `maths.learning.descend`.
        error: "plain", "relative" to the size of every token's target, or by "sensitivity", which is relative and
            weighed by the factor of the layer's output.
        sketch: that the factor is from.
        scale_dtype: what scales are stored in.
        seed: of the order in which windows come.
    """

    iterations: int
    optimizer: str
    error: str
    sketch: str
    scale_dtype: torch.dtype
    seed: int = 0


@dataclass
class Learner:
    """Learns layer after layer, or reads what an interrupted run has learned.

    Attributes:
        how: the settings.
        directory: of the store.
        key: what the result depends on.
    """

    how: Learning
    directory: Path
    key: Mapping[str, Any]

    def __call__(
        self, block: Block, start: Callable[[], Quantized], statistics: Statistics
    ) -> tuple[Quantized, dict[str, Any]]:
        """Codes, grids and rows of a layer after learning, and a row of what that did.

        Args:
            block: the layer; the weights of its views get the learned values.
            start: rounds its matrices; asked only where nothing is found in the directory.
            statistics: of the block's matrices.
        """
        store, name = Store(self.directory), f"layer{block.number:03d}"
        if store.find(name, self.key) is None:
            tensors, rows = self._learned(block, start(), statistics)
            with store.writing(name, self.key) as path:
                save_file(tensors, path / WEIGHTS)
                (path / ROWS).write_text(json.dumps(rows), encoding="utf-8")
        tensors = load_file(store.directory / name / WEIGHTS)
        rows = json.loads((store.directory / name / ROWS).read_text(encoding="utf-8"))
        result = Quantized({}, {}, rows["matrices"])
        for view in block.views:
            scale, zero = (tensors[f"{view.name}|{part}"].to(view.tensor.device) for part in ("scale", "zero"))
            result.codes[view.name] = tensors[f"{view.name}|codes"]
            result.grids[view.name] = IntegerGrid(**rows["grids"][view.name], scale=scale, zero=zero)
            view.write_(result.grids[view.name].values(result.codes[view.name].to(view.tensor.device)))
        return result, rows["block"]

    def _learned(
        self, block: Block, start: Quantized, statistics: Statistics
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What goes into the store: tensors, and rows."""
        factor = output_factor(block, statistics, self.how.sketch) if self.how.error == "sensitivity" else None
        learned, row = learn(block, start.codes, start.grids, factor, self.how)
        rows: dict[str, Any] = {"block": row, "matrices": [], "grids": {}}
        tensors: dict[str, Tensor] = {}
        before = {row["name"]: row for row in start.rows}
        for view in block.views:
            codes, grid = learned[view.name]
            parts = {"codes": codes, "scale": grid.scale, "zero": grid.zero}
            tensors |= {f"{view.name}|{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
            rows["grids"][view.name] = {part: getattr(grid, part) for part in ("bits", "symmetric", "group_size")}
            known = known_factors(SplitSums(statistics, view, block.views), self.how.sketch)
            errors = proxies(block.weights[view.name], grid.values(codes.to(grid.scale.device)), known)
            kind = f"learned from {before[view.name]['rounding']}"
            rows["matrices"].append(before[view.name] | errors | {"rounding": kind})
        return tensors, rows


def output_factor(block: Block, statistics: Statistics, sketch: str) -> Float[Tensor, "hidden hidden"] | None:
    """H_O of what the layer hands on: that of its last matrix, where its output is added to the stream as it is.

    None for a mixture of experts, and for a layer that normalises what it writes.
    """
    if any("post_feedforward" in name for name, _ in block.layer.named_parameters()):
        return None
    last = [view for view in block.views if view.role == "down" and view.expert is None]
    return SplitSums(statistics, last[0], block.views).factors(sketch)[0] if len(last) == 1 else None


def learn(
    block: Block,
    codes: Mapping[str, Tensor],
    grids: Mapping[str, WeightGrid],
    output_factor: Float[Tensor, "hidden hidden"] | None,
    how: Learning,
) -> tuple[dict[str, tuple[Tensor, IntegerGrid]], dict[str, Any]]:
    """Codes and grids by name, and a row: the relative error before and after, and the share of codes that moved."""
    metric = None
    if output_factor is not None and output_factor.any():
        metric = square_root(shrink(output_factor, damping=METRIC_DAMPING))
    weights: dict[str, LearnedWeight] = {}
    for view in block.views:
        grid = grids[view.name]
        assert isinstance(grid, IntegerGrid), "float grids are refused when planned"
        start = codes[view.name].to(view.tensor.device)
        weights[view.name] = LearnedWeight.of(block.weights[view.name], start, grid, how.scale_dtype)
    run = _LearnedLayer(block, weights, metric, by_token=how.error != "plain")
    with torch.no_grad():
        before = run.error()
    order = batch_order(len(block.inputs), how.iterations, how.seed * 1_000 + block.number)
    careful = how.optimizer == "sign" and not all(weight.coupled for weight in weights.values())
    descend(
        list(weights.values()),
        lambda iteration: run.loss(order[iteration]),
        iterations=how.iterations,
        optimizer=how.optimizer,
        rate=CAREFUL / how.iterations if careful else None,
    )
    with torch.no_grad():
        after = run.error()
    kept = after < before
    learned = {name: weight.result() if kept else (codes[name], weight.grid) for name, weight in weights.items()}
    moved = sum(int((new.cpu() != codes[name].cpu()).sum()) for name, (new, _) in learned.items())
    return learned, {
        "layer": block.number,
        "error_before": before,
        "error_after": min(after, before),
        "codes_moved": moved / sum(new.numel() for new, _ in learned.values()),
    }


def batch_order(num_batches: int, iterations: int, seed: int) -> list[int]:
    """Which windows come in which iteration: all of them, in an order drawn anew, before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < iterations:
        order += torch.randperm(num_batches, generator=generator).tolist()
    return order[:iterations]


class _LearnedLayer:
    """A layer with learned weights in place of its own."""

    def __init__(
        self, block: Block, weights: Mapping[str, LearnedWeight], metric: Tensor | None, *, by_token: bool
    ) -> None:
        self.block, self.weights, self.metric = block, weights, metric
        # By the names of now: a layer that has got factors beside it lies one module deeper than in its views' names.
        names = {id(part): name for name, part in block.layer.named_modules()}
        groups = by_parameter(block.views).values()
        self.parameters = {f"{names[id(views[0].owner)]}.{views[0].attribute}": views for views in groups}
        energies = [target.square().mean(dim=2, keepdim=True) for target in block.targets]
        mean = torch.cat([energy.flatten() for energy in energies]).mean()
        self.energies = energies if by_token else [mean.expand_as(energy) for energy in energies]

    def loss(self, batch: int) -> Tensor:
        """|(output - target) R|² / |target|², a mean over tokens of a few windows."""
        difference = self._output(batch) - self.block.targets[batch]
        moved = difference if self.metric is None else difference @ self.metric
        return (moved.square() / self.energies[batch]).mean()

    def error(self) -> float:
        """The same over all windows."""
        sizes = [target.numel() for target in self.block.targets]
        return sum(float(self.loss(batch)) * size for batch, size in enumerate(sizes)) / sum(sizes)

    def _output(self, batch: int) -> Tensor:
        states, block = self.block.inputs[batch], self.block
        values = {name: self._parameter(views) for name, views in self.parameters.items()}

        def layer(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(block.layer, values, args, kwargs)

        with fast_units(states.hidden):
            return states.through(block.number, layer)

    def _parameter(self, views: Sequence[MatrixView]) -> Tensor:
        """The parameter that holds some views, with their learned values."""
        first = views[0]
        whole = getattr(first.owner, first.attribute)
        if len(views) == 1 and whole.shape == first.shape and not first.transposed:
            return self.weights[first.name].values()
        filled = whole.detach().clone()
        for view in views:
            view.of(filled).copy_(self.weights[view.name].values())
        return filled


def fast_units(hidden: Tensor) -> AbstractContextManager[Any]:
    """Products in bfloat16, added up in float32, where that is faster; those in float64 stay so.

    On CPUs that takes AMX: with AVX512_BF16 alone they were slower than in float32 (`benchmarks/fast_units.py`).
    """
    has_units = hidden.is_cuda or torch.cpu._is_amx_tile_supported()
    if hidden.dtype is torch.float64 or not has_units:
        return nullcontext()
    return torch.autocast(hidden.device.type, torch.bfloat16)
