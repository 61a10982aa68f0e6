"""The rules of a population: trails, who takes which task, what is inherited. Numbers and chance, no calls.

    trail       tau <- clip((1 - rho) tau + sum of deposit (reward - mean reward of the kind), tau_min, tau_max)
    choice      P(skill) ~ tau(kind, skill)^alpha eta^beta,   eta = likeness of the task and the skill's trigger
    labour      P(member takes kind) = s^2 / (s^2 + theta^2);  success lowers theta by xi, idleness raises it by phi
    evidence    lower end of the Wilson interval of a skill's successes

Ant colony optimisation: Dorigo, Maniezzo, Colorni, 1996; bounds after Stuetzle and Hoos, 2000. Response thresholds:
Bonabeau, Theraulaz, Deneubourg, 1996, and Theraulaz, Bonabeau, Deneubourg, 1998. `kind` is a type of task.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Threshold = dict[str, float]
"""Of one member, by kind."""


@dataclass(frozen=True)
class Bounds:
    """A step and the range in which it stays."""

    low: float
    high: float

    def clip(self, value: float) -> float:
        return min(self.high, max(self.low, value))


def trail(tau: float, deposits: float, *, rho: float, bounds: Bounds) -> float:
    """A trail one generation later. Without deposits half of it is left after ln 2 / -ln(1 - rho) generations."""
    return bounds.clip((1 - rho) * tau + deposits)


def likeness(one: str, other: str, *, floor: float = 0.05) -> float:
    """Cosine of the counts of words, moved to [floor / (1 + floor), 1], so that nothing is impossible."""
    first, second = words(one), words(other)
    return (cosine(first, second) + floor) / (1 + floor)


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[^\W\d_]+", text.casefold()))


def cosine(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    lengths = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return sum(count * other.get(word, 0) for word, count in one.items()) / lengths if lengths else 0.0


def drawn(draw: random.Random, weights: Mapping[str, float], number: int) -> list[str]:
    """Names without replacement, each with chance by its weight among those that are left."""
    left, taken = dict(weights), []
    while left and len(taken) < number:
        name = draw.choices(list(left), list(left.values()))[0]
        taken.append(name)
        del left[name]
    return taken


def takes(stimulus: float, threshold: float) -> float:
    """Chance to take a task; 1/2 where the stimulus is the threshold."""
    return stimulus**2 / (stimulus**2 + threshold**2)


@dataclass(frozen=True)
class Labour:
    """How thresholds move.

    Attributes:
        xi: down with a success; a reward of 1/2 is half a success.
        phi: up for each round in which tasks of a kind waited and the member did none of them.
        bounds: of thresholds.
    """

    xi: float
    phi: float
    bounds: Bounds

    def divide(
        self,
        thresholds: Mapping[str, Threshold],
        tasks: Mapping[str, Sequence[str]],
        reward: Callable[[str, str], float],
        draw: random.Random,
    ) -> tuple[dict[str, Threshold], list[tuple[str, str, str]]]:
        """Members take the waiting tasks of each kind, round after round, until none waits.

        The stimulus of a kind begins at 0, rises by 1 / members in every round in which tasks of it wait, and falls by
        as much with each that is taken. A member does at most one task a round.

        Returns:
            Thresholds afterwards, and who did what: (member, kind, task).
        """
        after = {member: dict(mine) for member, mine in thresholds.items()}
        queues = {kind: list(waiting) for kind, waiting in tasks.items()}
        stimulus = dict.fromkeys(queues, 0.0)
        done: list[tuple[str, str, str]] = []
        while waiting := [kind for kind, queue in queues.items() if queue]:
            for kind in waiting:
                stimulus[kind] += 1 / len(after)
            for member in draw.sample(list(after), len(after)):
                took = self._take(after[member], stimulus, queues, draw)
                if took is not None:
                    kind, task = took
                    done.append((member, kind, task))
                    stimulus[kind] = max(0.0, stimulus[kind] - 1 / len(after))
                    after[member][kind] = self.bounds.clip(after[member][kind] - self.xi * reward(member, task))
                for kind in waiting:
                    if took is None or took[0] != kind:
                        after[member][kind] = self.bounds.clip(after[member][kind] + self.phi)
        return after, done

    def _take(
        self, mine: Threshold, stimulus: Mapping[str, float], queues: dict[str, list[str]], draw: random.Random
    ) -> tuple[str, str] | None:
        for kind in draw.sample(list(queues), len(queues)):
            if queues[kind] and draw.random() < takes(stimulus[kind], mine[kind]):
                return kind, queues[kind].pop(0)
        return None


def bits(pairs: Sequence[tuple[str, str]]) -> float:
    """Mutual information of member and kind, less what chance alone gives to so few pairs (Miller and Madow).

    The correction is (members - 1) (kinds - 1) / (2 pairs ln 2).
    """
    if not pairs:
        return 0.0
    total, both = len(pairs), Counter(pairs)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    found = sum(n / total * math.log2(n * total / (first[one] * second[other])) for (one, other), n in both.items())
    return found - (len(first) - 1) * (len(second) - 1) / (2 * total * math.log(2))


def wilson(successes: float, uses: int, *, z: float = 1.0) -> float:
    """Lower end of the interval of a share; 0 for what was never used."""
    if uses == 0:
        return 0.0
    share, spread = successes / uses, z * z / uses
    middle = share + spread / 2
    return (middle - math.sqrt(spread * (share * (1 - share) + spread / 4))) / (1 + spread)


def survivors(
    fitness: Mapping[str, float], niches: Sequence[str], number: int, draw: random.Random, *, tournament: int
) -> list[str]:
    """Who lives on: the best, then the best of each niche, then winners of tournaments."""
    best = max(fitness, key=lambda name: fitness[name])
    kept = list(dict.fromkeys([best, *niches]))[:number]
    while len(kept) < min(number, len(fitness)):
        left = [name for name in fitness if name not in kept]
        kept.append(winner(left, fitness, draw, tournament))
    return kept


def winner(names: Sequence[str], fitness: Mapping[str, float], draw: random.Random, size: int) -> str:
    """The fittest of some drawn ones, the first of equals."""
    return max(draw.sample(names, min(size, len(names))), key=lambda name: fitness[name])
