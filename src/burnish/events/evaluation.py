"""Scores of a fitted model on events it has not seen, with bootstrap errors, and the baselines beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from burnish.core.errors import DataError, SettingsError
from burnish.core.progress import Progress
from burnish.events import metrics
from burnish.events.baselines import Baselines
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvents
from burnish.events.model import EventModel, Histories, row_chunks, select

ROWS = 512
"""Histories tabulated at once; bounds memory at about a hundred megabytes."""

WIDTH_LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass
class ForecastEvaluation:
    """Per-event values and their summary.

    Attributes:
        events: arrays with one entry a scored event: sequence, index, gap, mark, previous, loglik_time, loglik_mark,
            pit (drawn from its range for a tie), crps, median, mean, correct, correct_given_time and central interval
            widths; loglik_tie is the part of loglik_time that says whether the event is tied, where ties have a
            probability.
        scores: {metric: value}; times in the data's unit, log-likelihoods in nats an event of that unit.
        errors: {metric: bootstrap standard error over sequences}.
        baselines: {baseline: {metric: value}}.
        notes: how long sequences and ties were treated.
    """

    events: dict[str, NDArray[Any]]
    scores: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def evaluate(
    model: EventModel,
    test: EventDataset,
    *,
    renormalise: bool = False,
    baselines: Baselines | None = None,
    bootstrap: int = 200,
    progress: Progress | None = None,
) -> ForecastEvaluation:
    """Scores events 2..N of every sequence: the usual convention, without first and censored gaps."""
    packed = model.pack(test, score_first=False)
    if bootstrap < 0:
        raise SettingsError(f"bootstrap is {bootstrap}, but must be at least 0")
    if packed.num_scored == 0:
        raise DataError("the test part has no gap to score", fix="give it sequences of two events or more")
    parts: list[dict[str, NDArray[Any]]] = []
    model.eval()
    progress = progress or Progress(enabled=False)
    with torch.no_grad(), progress.task("evaluating", total=packed.num_scored, unit="events") as task:
        for batch in packed.batches(64):
            histories = model.histories(batch)
            where = batch.scored.nonzero()
            sequence = batch.origin[where[:, 0], 0].numpy()
            index = (batch.origin[where[:, 0], 1] + where[:, 1]).numpy()
            previous = batch.marks[where[:, 0], (where[:, 1] - 1).clamp_min(0)].numpy()
            before = _log_before(model, histories)
            for rows in row_chunks(histories.condition, ROWS):
                part = _score(model, histories, rows, renormalise, before[rows])
                parts.append({"sequence": sequence[rows], "index": index[rows], "previous": previous[rows]} | part)
                task.advance(len(part["gap"]))
    events = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((events["index"], events["sequence"]))
    events = {name: values[order] for name, values in events.items()}
    tied = (events["gap"] <= 0) & (events["prob_tie"] > 0)
    # The PIT of an atom is anywhere in its range with equal chance: then it is uniform for the true law.
    events["pit"] = np.where(tied, np.random.default_rng(0).random(len(tied)) * events["prob_tie"], events["pit"])
    everything = np.arange(len(order))
    scores = summary(events, everything)
    errors = {}
    one_sequence = len(np.unique(events["sequence"])) == 1
    if bootstrap and not one_sequence:
        for name in ("loglik", "loglik_time", "loglik_mark", "crps", "accuracy", "calibration_score_19", "mae"):
            if not math.isfinite(scores[name]):
                continue  # nothing is plus or minus around an infinite value
            errors[name] = metrics.bootstrap_error(
                lambda rows, name=name: _STATISTICS[name](events, rows), events["sequence"], num_draws=bootstrap
            )
    beside = {} if baselines is None else baselines.score(events["gap"], events["mark"], events["previous"])
    notes = []
    if one_sequence:
        notes.append("the test part is one sequence, so that scores have no errors: those are taken over sequences")
    if packed.num_cut:
        notes.append(
            f"{packed.num_cut} sequences are longer than {model.window} events: their history is windowed, "
            f"each event sees between {model.context} and {model.window} events before it"
        )
    return ForecastEvaluation(events, scores, errors, beside, tuple(notes))


def _log_before(model: EventModel, histories: Histories) -> torch.Tensor:
    """log P(no event in the pieces of its gap before the last one) of every event, in float64."""
    total = torch.zeros(len(histories.gap), dtype=torch.float64)
    if histories.pieces is not None and histories.piece_row is not None:
        own = histories.piece_row >= 0
        value = model.log_no_event(*histories.pieces).double()
        total.index_add_(0, histories.piece_row[own], value[own])
    return total


def _score(
    model: EventModel, histories: Histories, rows: slice, renormalise: bool, before: torch.Tensor
) -> dict[str, NDArray[Any]]:
    """Scores of some events: of what was forecast when their gaps began, and their likelihood with all that was known.

    Args:
        before: of each, log of the probability that it had not come before what was known last.
    """
    condition = select(histories.condition, rows)
    gap, mark = histories.gap[rows], histories.mark[rows]
    waited = torch.zeros_like(gap) if histories.waited is None else histories.waited[rows]
    now = law = NextEvents(model, condition, renormalise=renormalise)
    if histories.begun is not None:
        law = NextEvents(model, select(histories.begun, rows))
    unit = law.unit
    levels = [0.5]
    for level in WIDTH_LEVELS:
        levels += [(1 - level) / 2, (1 + level) / 2]
    quantiles = law.quantile(levels).double().numpy()
    given = now.model.mark_log_probs(condition, gap.unsqueeze(-1)).squeeze(-2)
    forecast = law.mark_probs()
    head = law.head_mark_probs()
    since = now.cdf((gap - waited).double().unsqueeze(-1) * unit, waited.double() * unit).squeeze(-1).double()
    result = {
        "gap": gap.double().numpy() * unit,
        "mark": mark.numpy(),
        "loglik_time": now.log_density(gap.double() * unit).double().numpy()
        - _log_survival(now, waited)
        + before.numpy(),
        "loglik_mark": torch.gather(given, -1, mark.unsqueeze(-1)).squeeze(-1).double().numpy(),
        "loglik_tie": _log_tie(law, gap),
        "prob_tie": law.prob_tie.double().numpy(),
        "pit": (since * before.exp() - torch.expm1(before)).numpy(),
        "crps": law.crps(gap.double() * unit).double().numpy(),
        "median": quantiles[:, 0],
        "mean": law.mean().double().numpy(),
        "prob_no_event": law.prob_no_event.double().numpy(),
        "correct": (forecast.argmax(-1) == mark).double().numpy(),
        "correct_given_time": (given.argmax(-1) == mark).double().numpy(),
        "confidence": forecast.max(-1).values.double().numpy(),
    }
    if head is not None:
        result["correct_head"] = (head.argmax(-1) == mark).double().numpy()
        result["mean_head"] = law.condition["mean_gap"].double().numpy() * unit
    for i, level in enumerate(WIDTH_LEVELS):
        low, high = quantiles[:, 1 + 2 * i], quantiles[:, 2 + 2 * i]
        endless = np.full_like(high, math.inf)  # an interval without an end is, wherever it begins
        result[f"width_{round(100 * level)}"] = np.subtract(high, low, out=endless, where=np.isfinite(high))
        result[f"upper_{round(100 * level)}"] = high
    return result


def _log_tie(law: NextEvents, gap: torch.Tensor) -> NDArray[np.float64]:
    """log P(tie or not, as it came); zero where ties have no probability."""
    tie = law.prob_tie.double()
    return (
        torch.where(gap <= 0, tie.log(), torch.log1p(-tie)).numpy()
        if "tie_logit" in law.condition
        else np.zeros(len(gap))
    )


def _log_survival(law: NextEvents, waited: torch.Tensor) -> NDArray[np.float64]:
    """log P(no event within what had passed already), one a history; zero where nothing had."""
    return law.survival((waited.double() * law.unit).unsqueeze(-1)).squeeze(-1).double().log().numpy()


def summary(events: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> dict[str, float]:
    """All scores over some events."""
    scores = {name: statistic(events, rows) for name, statistic in _STATISTICS.items()}
    if "correct_head" in events:
        scores["accuracy_head"] = float(events["correct_head"][rows].mean())
        error = events["mean_head"][rows] - events["gap"][rows]
        scores["rmse_head"] = float(np.sqrt(np.square(error).mean()))
    for level in WIDTH_LEVELS:
        name = round(100 * level)
        scores[f"width_{name}"] = float(events[f"width_{name}"][rows].mean())
        scores[f"central_coverage_{name}"] = metrics.central_coverage(events["pit"][rows], level)
    if events["prob_tie"][rows].any():
        scores["share_tied"] = float((events["gap"][rows] <= 0).mean())
        scores["prob_tie"] = float(events["prob_tie"][rows].mean())
        scores["loglik_tie"] = float(events["loglik_tie"][rows].mean())
        scores["loglik_untied"] = scores["loglik_time"] - scores["loglik_tie"]
    scores["calibration_score_19_by_chance"] = metrics.chance_score(len(rows))[0]
    scores["share_infinite_mean"] = float(np.isinf(events["mean"][rows]).mean())
    scores["num_events"] = len(rows)
    return scores


def _mean(name: str) -> Any:
    return lambda events, rows: float(events[name][rows].mean())


def _rmse(events: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> float:
    return float(np.sqrt(np.square(events["mean"][rows] - events["gap"][rows]).mean()))


def _ece(events: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> float:
    confidence, hit = events["confidence"][rows], events["correct"][rows]
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs((confidence[bins == b] - hit[bins == b]).sum()) for b in range(10)]
    return float(sum(gaps) / len(rows))


_STATISTICS: dict[str, Any] = {
    "loglik": lambda events, rows: float((events["loglik_time"][rows] + events["loglik_mark"][rows]).mean()),
    "loglik_time": _mean("loglik_time"),
    "loglik_mark": _mean("loglik_mark"),
    "crps": _mean("crps"),
    "calibration_score_19": lambda events, rows: metrics.calibration_score(events["pit"][rows]),
    "calibration_score_upper": lambda events, rows: metrics.calibration_score(
        events["pit"][rows], metrics.LEVELS_UPPER
    ),
    "pit_ks": lambda events, rows: metrics.pit_ks(events["pit"][rows]),
    "coverage_50": lambda events, rows: float((events["pit"][rows] < 0.5).mean()),
    "coverage_90": lambda events, rows: float((events["pit"][rows] < 0.9).mean()),
    "mae": lambda events, rows: float(np.abs(events["median"][rows] - events["gap"][rows]).mean()),
    "rmse": _rmse,
    "accuracy": _mean("correct"),
    "accuracy_given_time": _mean("correct_given_time"),
    "ece": _ece,
}
