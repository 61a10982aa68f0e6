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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import MatrixView, capture, describe
from burnish.core.errors import DataError, NumericalError
from burnish.core.progress import Progress
from burnish.core.statistics import Interval, interval
from burnish.steer.marks import Marks
from burnish.steer.maths import probe as maths
from burnish.steer.traces import Trace
from burnish.steer.vectors import Head, Vectors, output_projections

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
class _Part:
    """Traces with the labels of their steps under every labelling, (labels, steps), in their order."""

    traces: Sequence[Trace]
    labels: Tensor

    def each(self) -> Iterator[tuple[Trace, Tensor]]:
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
    traces: Sequence[Trace],
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
    num_heads = describe(module.config).num_attention_heads
    task = (progress or Progress(enabled=False)).task("reading traces", total=len(traces), unit="traces")
    with task as bar:
        sums = {
            layer: maths.LayerSums.empty(num_heads, view.shape[1] // num_heads, permutations + 1, module.device)
            for layer, view in projections.items()
        }
        for layer, outputs, labels in _passes(module, projections, fitted, bar):
            sums[layer].add(outputs.unflatten(1, (num_heads, -1)), labels)
        found = {layer: _vectors(sums[layer], view, num_heads, rank) for layer, view in projections.items()}
        inner = {
            layer: torch.einsum("hcd,khc->khd", _weights(view, num_heads).double(), found[layer][0])
            for layer, view in projections.items()
        }
        right: dict[int, list[Tensor]] = {layer: [] for layer in projections}
        for layer, outputs, labels in _passes(module, projections, held_out, bar):
            right[layer].append(maths.right(outputs.unflatten(1, (num_heads, -1)), labels, inner[layer]).cpu())
    steps = torch.tensor([len(trace.ends) for trace in held_out.traces])
    heads, probes, directions, by_chance = [], [], [], []
    for layer in projections:
        correct = torch.stack(right[layer])  # (traces, labels, heads)
        by_chance.append(correct[:, 1:].sum(0) / steps.sum())
        for head in range(num_heads):
            if float(found[layer][1][head].norm()) == 0:
                continue  # it makes no difference between the two kinds
            share = _share(correct[:, 0, head], steps)
            heads.append(Head(layer, head, share.value, share.low, share.high))
            probes.append(found[layer][0][0, head].float().cpu())
            directions.append(found[layer][1][head].float().cpu())
    level = maths.chance_level(torch.cat(by_chance, 1)) if permutations else float("nan")
    telling = sum(head.accuracy > level for head in heads)
    made_of = _made_of(fitted, held_out) | {
        "chance": level,
        "telling": telling,
        "permutations": permutations,
        "seed": seed,
    }
    if not heads or (permutations and not telling and not force):
        best = max((head.accuracy for head in heads), default=0.0)
        raise DataError(
            f"no head tells checking from linear steps: the best probe calls {best:.1%} of {made_of['held_out_steps']} "
            f"held-out steps right, and with shifted labels {level:.1%} happen by chance",
            where="traces",
            fix="give more traces, or other cues; --force writes the vectors all the same",
        )
    order = sorted(range(len(heads)), key=lambda place: -heads[place].accuracy)
    every = Vectors(
        model,
        tuple(heads),
        torch.stack(probes),
        maths.unit(torch.stack(directions)),
        len(projections) * num_heads,
        marks,
        rank,
        made_of,
    )
    return every.chosen(order)


def _parts(traces: Sequence[Trace], permutations: int, seed: int) -> tuple[_Part, _Part]:
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
        parts.append(_Part(some, maths.shifted(labels, shifts)))
    return parts[0], parts[1]


@torch.inference_mode()
def _passes(
    module: PreTrainedModel, projections: dict[int, MatrixView], part: _Part, bar: Any
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


def _weights(view: MatrixView, num_heads: int) -> Tensor:
    return maths.by_head(view.tensor, num_heads)


def _vectors(sums: maths.LayerSums, view: MatrixView, num_heads: int, rank: int) -> tuple[Tensor, Tensor]:
    """Probes (labels, heads, hidden) and directions (heads, hidden) of a layer."""
    weights = _weights(view, num_heads)
    basis = maths.subspace(sums, weights, rank) if rank < view.shape[0] else None
    return maths.probes(sums, weights), maths.directions(sums, weights, basis)


def _share(correct: Tensor, steps: Tensor) -> Interval:
    return interval(correct.double().numpy(), steps.double().numpy(), scale="logit")


def _made_of(fitted: _Part, held_out: _Part) -> dict[str, Any]:
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
