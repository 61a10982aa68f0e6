"""A balancer for devices that differ: the variant of a model and the device by which a query ends soonest, at the tail.

Device p has variants v with an accuracy for each difficulty of a query and a law of latency. A query goes to

    argmin over (p, v) of F_p + q95(latency of v on p),     accuracy of v at its difficulty at least `target`,

with F_p the time at which p is expected to have ended all that it was given: now where it idles, and moved to what
really was whenever something ends. Of equal ones the first is taken. A query stays with the device of the one before it
unless another one is earlier by more than `hysteresis` seconds. Where no variant is accurate enough, the most accurate
ones are all that is looked at. On equal devices with one variant this is join the shortest queue.

Source: Yuan et al., load-balanced heterogeneous models on devices, IEEE TMC 2025, from its title; the form is ours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from burnish.core.errors import SettingsError


class TailBalancer:
    """Chooses a device and a variant for each query.

    Args:
        tails: seconds, the 95th percentile of each variant's latency on each device; infinite where it is not there.
        means: seconds, the mean, by which the expected end of a device moves; the tails where nothing is said.
        accuracy: of each variant for queries of each bin of difficulty.
        target: accuracy that is asked for.
        hysteresis: seconds.
    """

    def __init__(
        self,
        tails: Float[np.ndarray, "devices variants"],
        accuracy: Float[np.ndarray, "bins variants"],
        target: float,
        *,
        means: Float[np.ndarray, "devices variants"] | None = None,
        hysteresis: float = 0.0,
    ) -> None:
        self.tails = np.asarray(tails, dtype=float)
        self.means = self.tails if means is None else np.asarray(means, dtype=float)
        accuracy = np.asarray(accuracy, dtype=float)
        if self.tails.ndim != 2 or accuracy.ndim != 2 or self.tails.shape[1] != accuracy.shape[1]:
            what = f"{self.tails.shape} latencies and {accuracy.shape} accuracies"
            raise SettingsError(what, fix="give (devices, variants) and (bins, variants)")
        if not (self.tails > 0).all() or not np.isfinite(self.tails).any(1).all():
            raise SettingsError("a device without a variant, or a latency of 0 or less", where="tails")
        enough = accuracy >= target
        best = accuracy == accuracy.max(1, keepdims=True)
        self._allowed = np.where(enough.any(1, keepdims=True), enough, best)
        self._hysteresis = hysteresis
        self._queues: list[list[float]] = [[] for _ in self.tails]
        self._ends = np.zeros(len(self.tails))
        self._last = 0

    def choose(self, now: float, difficulty: int = 0) -> tuple[int, int]:
        """Device and variant of a query; it is counted as given to that device."""
        begins = np.maximum(self._ends, now)
        ends = np.where(self._allowed[difficulty], begins[:, None] + self.tails, np.inf)
        device = int(ends.min(1).argmin())
        if self._hysteresis and ends[self._last].min() <= ends[device].min() + self._hysteresis:
            device = self._last
        variant = int(ends[device].argmin())
        self._last = device
        taken = float(self.means[device, variant])
        self._queues[device].append(taken)
        self._ends[device] = begins[device] + taken
        return device, variant

    def ended(self, device: int, now: float) -> None:
        """The first query of a device has ended; what is still there begins now."""
        self._queues[device].pop(0)
        self._ends[device] = now + sum(self._queues[device])
