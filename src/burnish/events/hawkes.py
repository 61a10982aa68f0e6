"""A simulator with known truth, as data: exact Hawkes sequences and, for every event, what an ideal forecaster says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import SettingsError
from burnish.events.data import EventDataset
from burnish.events.maths.hawkes import (
    excitation_path,
    gap_compensator,
    gap_quantile,
    log_likelihood,
    simulate_sequence,
)
from burnish.events.sequence import EventSequence


@dataclass(frozen=True)
class HawkesParameters:
    """lam_k(t) = mu_k + sum over earlier events of jumps[k][m_i] exp(-decay (t - t_i)).

    Attributes:
        mu: (K,) base rates, events a unit of time.
        jumps: (K, K) rise of type k after an event of type m.
        decay: rate at which excitation fades.
    """

    mu: tuple[float, ...]
    jumps: tuple[tuple[float, ...], ...]
    decay: float

    def __post_init__(self) -> None:
        jumps = np.array(self.jumps)
        if jumps.shape != (len(self.mu), len(self.mu)):
            raise SettingsError(f"jumps have shape {jumps.shape}, but {len(self.mu)} types need a square of that size")
        if min(self.mu) <= 0 or self.decay <= 0 or jumps.min() < 0:
            raise SettingsError("base rates and decay must be positive and jumps must not be negative")
        radius = float(np.abs(np.linalg.eigvals(jumps / self.decay)).max())
        if radius >= 1:
            raise SettingsError(
                f"the process explodes: every event causes {radius:.2f} others on average", fix="lower the jumps"
            )


PRESETS = {
    "hawkes3": HawkesParameters(
        mu=(0.20, 0.15, 0.10), jumps=((0.45, 0.20, 0.00), (0.30, 0.30, 0.15), (0.05, 0.40, 0.50)), decay=1.5
    ),
    # A second process that nothing was tuned on: two types, faster decay, one type excites mostly the other.
    "hawkes2": HawkesParameters(mu=(0.50, 0.05), jumps=((0.30, 1.20), (2.00, 0.10)), decay=4.0),
}
"""Processes with a name; `hawkes3` is the one that the benchmarks of this package quote."""


def simulate_hawkes(
    parameters: HawkesParameters,
    num_sequences: int,
    *,
    num_events: int | None = None,
    end: float | None = None,
    seed: int = 0,
) -> EventDataset:
    """Exact sequences from time 0, each of `num_events` events or stopped at `end`.

    Sequences are drawn one after the other from one generator, so a longer data set starts with a shorter one.
    Sequences with fewer than two events are drawn again.
    """
    if (num_events is None) == (end is None):
        raise SettingsError("a simulation stops after a number of events or at an end time: give one of the two")
    if num_sequences < 1 or (num_events is not None and num_events < 2) or (end is not None and end <= 0):
        raise SettingsError(
            f"a simulation of {num_sequences} sequences of "
            f"{f'{num_events} events' if end is None else f'length {end:g}'} has no gap in it",
            fix="simulate at least one sequence of two events",
        )
    rng = np.random.default_rng(seed)
    mu, jumps = np.array(parameters.mu), np.array(parameters.jumps)
    sequences: list[EventSequence] = []
    redrawn = 0
    while len(sequences) < num_sequences:
        times, marks = simulate_sequence(mu, jumps, parameters.decay, rng, num_events=num_events, end=end)
        redrawn = 0 if len(times) >= 2 else redrawn + 1
        if redrawn > 1000:
            raise SettingsError(f"hardly any sequence has two events before {end:g}", fix="simulate to a later end")
        if len(times) >= 2:
            sequences.append(EventSequence(times, marks, start=0.0, end=end, name=str(len(sequences))))
    return EventDataset(tuple(sequences), tuple(str(k) for k in range(len(mu))))


@dataclass(frozen=True)
class Truth:
    """What the true process says about every gap of a sequence (n events).

    Attributes:
        excitation: (n, K) right after the previous event.
        log_intensity: (n,) log of the intensity of the type that came, when it came.
        total_intensity: (n,) when it came.
        compensator: (n,) Lam of the gap; exp(1)-distributed.
        pit: (n,) 1 - exp(-Lam); uniform.
        mark_probs: (n, K) given the time.
        loglik: of the whole sequence.
    """

    excitation: NDArray[np.float64]
    log_intensity: NDArray[np.float64]
    total_intensity: NDArray[np.float64]
    compensator: NDArray[np.float64]
    pit: NDArray[np.float64]
    mark_probs: NDArray[np.float64]
    loglik: float


def truth(parameters: HawkesParameters, sequence: EventSequence) -> Truth:
    """The ideal forecaster's answers for a simulated sequence."""
    mu, jumps, decay = np.array(parameters.mu), np.array(parameters.jumps), parameters.decay
    path = excitation_path(sequence.times, sequence.marks, jumps, decay)[:-1]
    gaps = sequence.gaps
    intensity = mu + path * np.exp(-decay * gaps)[:, None]
    compensator = gap_compensator(gaps, mu.sum(), path.sum(1), decay)
    return Truth(
        excitation=path,
        log_intensity=np.log(intensity[np.arange(len(sequence)), sequence.marks]),
        total_intensity=intensity.sum(1),
        compensator=compensator,
        pit=-np.expm1(-compensator),
        mark_probs=intensity / intensity.sum(1, keepdims=True),
        loglik=log_likelihood(sequence.times, sequence.marks, mu, jumps, decay, end=sequence.end),
    )


def true_quantiles(parameters: HawkesParameters, sequence: EventSequence, levels: list[float]) -> NDArray[np.float64]:
    """(n, levels) exact quantiles of every gap."""
    excitation = truth(parameters, sequence).excitation.sum(1)
    return gap_quantile(np.array(levels)[None], sum(parameters.mu), excitation[:, None], parameters.decay)


def truth_table(parameters: HawkesParameters, dataset: EventDataset) -> dict[str, Any]:
    """Columns for a file: sequence_id, time, mark and the truth of every event."""
    columns: dict[str, list[NDArray[Any]]] = {}

    def add(name: str, values: NDArray[Any]) -> None:
        columns.setdefault(name, []).append(values)

    for i, sequence in enumerate(dataset.sequences):
        facts = truth(parameters, sequence)
        add("sequence_id", np.full(len(sequence), i, np.int32))
        add("time", sequence.times)
        add("mark", sequence.marks.astype(np.int16))
        add("true_R_before", facts.excitation.sum(1))
        add("true_lambda_total", facts.total_intensity)
        add("true_lambda_mark", np.exp(facts.log_intensity))
        add("true_compensator", facts.compensator)
        add("true_pit", facts.pit)
        for k in range(dataset.num_marks):
            add(f"true_p{k}", facts.mark_probs[:, k])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def describe(parameters: HawkesParameters) -> dict[str, Any]:
    """The parameters as plain data."""
    return asdict(parameters)
