"""Sums of every matrix over every fold of a calibration text, on whatever walk.

Labels of two-sided sums are drawn from the model's own distribution (`labels`). Memory is bounded: of a whole model
layers are taken in groups whose sums fit, one pass over the text for each, and a resumed run skips what is finished.
Under torch.distributed windows go round-robin to ranks and the sums are reduced once per fold.

Products of float32 matrices may take the fast units of the machine and do so on GPUs (TF32), added up in float32: what
that rounds away is far below the noise of drawn labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.arch import MatrixView
from burnish.calibrate.labels import drawn_label_loss
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.sums import Accumulator, Sketch
from burnish.calibrate.walk import Stop, Walk, WholeModel
from burnish.calibrate.windows import BATCH_TOKENS, Calibration, rank, world_size
from burnish.core.errors import DataError
from burnish.core.progress import Progress, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PRECISION = "medium"


def collect(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    text: Calibration,
    directory: Path,
    *,
    key: dict[str, Any],
    sketches: Sequence[Sketch] = (),
    memory_bytes: int = 2_000_000_000,
    batch_tokens: int = BATCH_TOKENS,
    only_folds: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Sums of every view of a model in memory, float32 or float64; arguments as in `WholeModel` and `collected`."""
    walk = WholeModel(module, views, precision=PRECISION, memory_bytes=memory_bytes, batch_tokens=batch_tokens)
    more = {"sketches": sketches, "only_folds": only_folds, "progress": progress}
    ((_, statistics),) = collected(walk, text, directory, key=key, **more)
    assert statistics is not None
    return statistics


def collected(
    walk: Walk,
    text: Calibration | None,
    directory: Path,
    *,
    key: dict[str, Any],
    sketches: Sequence[Sketch] = (),
    only_folds: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Sequence[MatrixView], Statistics | None]]:
    """Matrices whose weights may be changed now, with their statistics: all at once, or layer by layer.

    Args:
        walk: over the model.
        text: None passes the matrices only, without statistics.
        directory: where sums go; those of an interrupted collection with the same key are kept where the walk is
            resumable.
        key: what the sums depend on beside text and labels, for instance the model's identity.
        sketches: "a" and "b", the Kronecker factors; none collects the covariance alone, without a backward pass.
        only_folds: the folds to collect now; others may be collected by other processes into the same directory.
        progress: where to show a bar.

    Raises:
        NumericalError: a weight, an activation or a gradient is not finite; the matrix is named.
        CheckpointError: a matrix was not reached, or the directory holds sums of another model or text.
        DataError: fewer windows than folds.
    """
    if text is None:
        yield from ((stop.views, None) for stop in walk.stops(None))
        return
    _check_length(text)
    full_key = key | {
        "calibration text": text.hash,
        "folds": list(text.bounds),
        "sketches": list(sketches),
        "label seed": text.seed if sketches else None,
        "dtype": str(walk.module.dtype),
    }
    statistics = Statistics(directory, full_key, range(text.num_folds))
    wanted = range(text.num_folds) if only_folds is None else only_folds
    bars = progress or Progress(enabled=False)
    passed: list[MatrixView] = []
    for stop in walk.stops(text, sketches):
        if not walk.resumable and not passed:
            statistics.clear()
        folds = [fold for fold in wanted if not all(statistics.has(number, fold) for number in stop.layers)]
        if folds and stop.views:
            total = sum(len(text.fold(fold)) for fold in folds) * text.tokens.shape[1]
            with bars.task(f"collecting, {stop}", total=total, unit="tokens") as task, walk.at(stop):
                for fold in folds:
                    collect_fold(walk, stop, fold, text.seed, sketches, statistics, task)
        passed += stop.views
        if stop.final:
            yield passed, statistics
            passed = []
    if not walk.resumable:
        statistics.clear()


def _check_length(text: Calibration) -> None:
    """Refuses a text with fewer windows than folds."""
    if len(text.tokens) < text.num_folds:
        raise DataError(
            f"has {len(text.tokens)} windows of {text.tokens.shape[1]} tokens, but at least {text.num_folds} are "
            "needed, one for each fold",
            where="calibration text",
            fix="use a longer text, more --tokens, or a shorter --length",
        )


def collect_fold(
    walk: Walk,
    stop: Stop,
    fold: int,
    seed: int,
    sketches: Sequence[Sketch],
    statistics: Statistics,
    task: Task,
) -> None:
    """The sums of a stop's matrices over one fold; those of the next one then grow in the memory that these had."""
    sums = Accumulator(stop.views, sketches)
    loss = partial(drawn_label_loss, seed=seed) if sketches else None
    for tokens in walk.run(stop, fold, sums, loss):
        task.advance(tokens)
    sums.reduce()
    sums.check()
    if rank() == 0:
        for layer in stop.layers:
            statistics.write(layer, fold, sums.packed(layer))
    if world_size() > 1:
        torch.distributed.barrier()
