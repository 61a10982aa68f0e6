"""Calibration: probes and directions of every head, from one pass over right traces.

Three of four traces are read for sums (`burnish.steer.maths.probe`), the fourth to say how well the probes tell steps
of traces that they have not seen. Whole traces are held out, because steps of one trace resemble each other. What is
kept is a matrix of a head's width for every head, and at the end one layer's covariance; activations are never kept.

Heads count as telling where they beat what the best head reaches on labels that are shifted round the steps. Where none
does there is nothing to steer, and `calibrate` refuses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from burnish.arch import MatrixView, capture, describe
from burnish.core.errors import DataError, NumericalError
from burnish.core.progress import Progress, Task
from burnish.core.statistics import Interval, interval
from burnish.steer.marks import Marks
from burnish.steer.maths import probe as maths
from burnish.steer.traces import ReasoningTrace
from burnish.steer.vectors import ProbedHead, Vectors, output_projections

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HOLD_OUT = 4
"""Every so many-th trace, after shuffling, is held out."""
LEAST = 8
"""Traces that can be told apart into those to fit on and those held out."""
RANK = 1000
"""Of the subspace of directions, as the authors' files are named; the width of the model where that is less."""
PERMUTATIONS = 99


@dataclass(frozen=True)
class _Labelled:
    """Traces with the labels of their steps under every labelling, (labels, steps), in their order."""

    traces: Sequence[ReasoningTrace]
    labels: Tensor

    def each(self) -> Iterator[tuple[ReasoningTrace, Tensor]]:
        start = 0
        for trace in self.traces:
            stop = start + len(trace.ends)
            yield trace, self.labels[:, start:stop]
            start = stop

    def counts(self) -> tuple[int, int]:
        """Linear and checking steps."""
        checking = int((self.labels[0] < 0).sum())
        return self.labels.shape[1] - checking, checking


def calibrate(
    module: PreTrainedModel,
    traces: Sequence[ReasoningTrace],
    marks: Marks,
    *,
    model: str = "",
    rank: int | None = None,
    permutations: int = PERMUTATIONS,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Vectors:
    """Vectors of every head.

    Args:
        module: the model, dense, in the dtype to compute in.
        traces: right answers, see `burnish.steer.traces`.
        marks: that cut them.
        model: its identity.
        rank: of the subspace of directions; None for `RANK`, or the width of the model where that is less.
        permutations: of the labels, for what chance reaches.
        force: give vectors even where no head beats chance.
        seed: of the shuffle and the permutations.
        progress: where to show it.

    Raises:
        DataError: too few traces, labels of one kind, fewer steps than the rank, or no head that beats chance.
        NumericalError: activations that are not finite.
    """
    projections = output_projections(module)
    hidden = next(iter(projections.values())).shape[0]
    fitted, held_out = _parts(traces, permutations, seed)
    rank = min(rank or RANK, hidden)
    if rank < hidden and fitted.labels.shape[1] <= rank:
        raise DataError(
            f"{fitted.labels.shape[1]} steps to fit on span no subspace of rank {rank}",
            where="traces",
            fix="give more traces, or a lower --rank",
        )
    with (progress or Progress(enabled=False)).task("reading traces", total=len(traces), unit="traces") as bar:
        found = _fit(module, projections, fitted, rank, bar)
        right = _tried(module, projections, held_out, found, bar)
    steps = torch.tensor([len(trace.ends) for trace in held_out.traces])
    by_chance = torch.cat([correct[:, 1:].sum(0) for correct in right.values()], 1) / steps.sum()
    level = maths.chance_level(by_chance) if permutations else float("nan")
    rows = sorted(_told(found, right, steps), key=lambda row: -row[0].accuracy)
    telling = sum(head.accuracy > level for head, *_ in rows)
    made_of = _made_of(fitted, held_out) | {"chance": level, "telling": telling}
    if not rows or (permutations and not telling and not force):
        best = rows[0][0].accuracy if rows else 0.0
        raise DataError(
            f"no head tells checking from linear steps: the best probe calls {best:.1%} of {int(steps.sum())} held-out "
            f"steps right, and with shifted labels {level:.1%} happen by chance",
            where="traces",
            fix="give more traces, or other cues; --force writes the vectors all the same",
        )
    probes, directions = torch.stack([w for _, w, _ in rows]), torch.stack([v for _, _, v in rows])
    num_heads, heads = len(projections) * describe(module.config).num_attention_heads, tuple(head for head, *_ in rows)
    means = {layer: one.mean.float().cpu() for layer, one in found.items()}
    return Vectors(model, heads, probes, maths.unit(directions), num_heads, marks, rank, made_of, means)


def _parts(traces: Sequence[ReasoningTrace], permutations: int, seed: int) -> tuple[_Labelled, _Labelled]:
    """Traces to fit on and traces held out, each with true and shifted labels."""
    linear = sum(label > 0 for trace in traces for label in trace.labels)
    checking = sum(label < 0 for trace in traces for label in trace.labels)
    if len(traces) < LEAST:
        raise DataError(f"{len(traces)} right traces with steps are too few; {LEAST} are needed", where="traces")
    if not linear or not checking:
        only = "linear" if linear else "checking"
        raise DataError(
            f"all {linear + checking:,} steps of {len(traces)} right traces are {only}, so there is nothing to tell",
            where="traces",
            fix="give cues that some steps hold and others do not (--cue)",
        )
    random_ = random.Random(f"steer {seed}")
    shuffled = random_.sample(list(traces), len(traces))
    parts = []
    for some in ([t for n, t in enumerate(shuffled) if n % HOLD_OUT], shuffled[::HOLD_OUT]):
        labels = torch.tensor([label for trace in some for label in trace.labels], dtype=torch.float64)
        if len(labels.unique()) < 2:
            raise DataError(
                f"one part of the traces has steps of one kind alone ({linear:,} linear, {checking:,} checking in all)",
                where="traces",
                fix="give more traces",
            )
        shifts = torch.tensor([random_.randrange(1, len(labels)) for _ in range(permutations)], dtype=torch.long)
        parts.append(_Labelled(some, maths.shifted(labels, shifts)))
    return parts[0], parts[1]


@torch.inference_mode()
def _passes(
    module: PreTrainedModel, projections: dict[int, MatrixView], part: _Labelled, bar: Task
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(layer, what its heads put before the projection at the ends of steps, labels), trace by trace."""
    met: list[tuple[int, Tensor]] = []
    with capture(module, list(projections.values())) as captured:
        for trace, labels in part.each():
            ends = torch.tensor(trace.ends, device=module.device)

            def keep(view: MatrixView, inputs: Tensor, _: Tensor | None, index: Tensor, ends: Tensor = ends) -> None:
                assert view.layer is not None
                met.append((view.layer, inputs[ends].clone()))

            captured.callback = keep
            module.base_model(input_ids=torch.tensor([trace.tokens], device=module.device), use_cache=False)
            for layer, outputs in met:
                if not outputs.isfinite().all():
                    raise NumericalError("is given activations that are not finite", where=projections[layer].name)
                yield layer, outputs, labels.to(module.device)
            met.clear()
            bar.advance()


class _Fitted(NamedTuple):
    """Of a layer: weights of its heads, probes for every labelling, directions, and the mean over linear steps."""

    weights: Tensor
    probes: Tensor
    directions: Tensor
    mean: Tensor


_Found = dict[int, _Fitted]


def _fit(module: PreTrainedModel, projections: dict[int, MatrixView], part: _Labelled, rank: int, bar: Task) -> _Found:
    """Sums over the traces to fit on, and what follows from them, layer by layer."""
    num_heads, labels = describe(module.config).num_attention_heads, len(part.labels)
    sums = {
        layer: maths.HeadSums.empty(num_heads, view.shape[1] // num_heads, labels, module.device)
        for layer, view in projections.items()
    }
    for layer, outputs, every in _passes(module, projections, part, bar):
        sums[layer].add(outputs.unflatten(1, (num_heads, -1)), every)
    found = {}
    for layer, view in projections.items():
        weights = maths.by_head(view.tensor, num_heads)
        basis = maths.subspace(sums[layer], weights, rank) if rank < view.shape[0] else None
        found[layer] = _Fitted(
            weights,
            maths.probes(sums[layer], weights),
            maths.directions(sums[layer], weights, basis),
            maths.linear_mean(sums[layer], weights, bias if isinstance(bias := view.owner.bias, Tensor) else None),
        )
    return found


def _tried(
    module: PreTrainedModel, projections: dict[int, MatrixView], part: _Labelled, found: _Found, bar: Task
) -> dict[int, Tensor]:
    """{layer: steps that the probes call right, (traces, labels, heads)} of traces held out."""
    inner = {layer: torch.einsum("hcd,khc->khd", one.weights.double(), one.probes) for layer, one in found.items()}
    right: dict[int, list[Tensor]] = {layer: [] for layer in projections}
    for layer, outputs, labels in _passes(module, projections, part, bar):
        by_head = outputs.unflatten(1, (inner[layer].shape[1], -1))
        right[layer].append(maths.right(by_head, labels, inner[layer]).cpu())
    return {layer: torch.stack(counts) for layer, counts in right.items()}


def _told(found: _Found, right: dict[int, Tensor], steps: Tensor) -> Iterator[tuple[ProbedHead, Tensor, Tensor]]:
    """Every head that makes a difference between the two kinds, with its probe and direction."""
    for layer, fitted in found.items():
        for head, direction in enumerate(fitted.directions):
            if float(direction.norm()) > 0:
                share = _share(right[layer][:, 0, head], steps)
                row = ProbedHead(layer, head, share.value, share.low, share.high)
                yield row, fitted.probes[0, head].float().cpu(), direction.float().cpu()


def _share(correct: Tensor, steps: Tensor) -> Interval:
    return interval(correct.double().numpy(), steps.double().numpy(), scale="logit")


def _made_of(fitted: _Labelled, held_out: _Labelled) -> dict[str, Any]:
    linear, checking = held_out.counts()
    first, second = fitted.counts()
    return {
        "traces": len(fitted.traces),
        "linear_steps": first,
        "checking_steps": second,
        "held_out_traces": len(held_out.traces),
        "held_out_steps": linear + checking,
        "larger_class": max(linear, checking) / (linear + checking),
    }
