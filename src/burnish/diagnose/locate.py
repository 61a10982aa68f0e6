"""Where a wrong solution goes wrong: the first step after which the original, going on from there, is seldom right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from burnish.diagnose.steps import cut, sums

EXECUTION, METHOD, UNREAD = "execution", "method", "unread"
"""What is wrong with a step: a sum in it; not its sums, but the original does not get to the answer; it has no sum."""


@dataclass(frozen=True)
class Ending:
    """How the original goes on from a part of a solution.

    Attributes:
        text: what it writes.
        tokens: how many.
        right: whether the whole then is.
    """

    text: str
    tokens: int
    right: bool


@dataclass(frozen=True)
class Fault:
    """Where a solution goes wrong.

    Attributes:
        step: number of the first faulty step, from 1; 0 where the original is too seldom right before it.
        steps: of the solution.
        before: the text before that step.
        kind: of the fault.
        rates: the original's share of right ends before step 1, 2 and so on; by arithmetic, before the fault alone.
        continuations: how the original goes on from `before`.
    """

    step: int
    steps: int
    before: str
    kind: str
    rates: tuple[float, ...]
    continuations: tuple[Ending, ...]


Endings = Callable[[Sequence[tuple[int, str]]], Sequence[Sequence[Ending]]]
"""Of (number of a solution, its text so far): how the original goes on, several times each."""


def by_rollouts(
    solutions: Sequence[str], rollouts: Endings, *, least: float = 0.5, moduli: Sequence[int | None] | None = None
) -> list[Fault]:
    """The first faulty step is that behind which the share of right ends falls below `least`, or else the last.

    Solutions are asked about together, a step at a time, and each for no step behind its fault.

    Args:
        solutions: texts whose answer is wrong.
        rollouts: the original's continuations.
        least: share of right ends from which the original counts as able to go on.
        moduli: of the sums of each solution; None for ordinary ones.
    """
    pieces = [cut(text) or [""] for text in solutions]
    modulus = moduli or [None] * len(solutions)
    found: dict[int, Fault] = {}
    rates: list[tuple[float, ...]] = [()] * len(solutions)
    last: dict[int, Sequence[Ending]] = {}
    place = 0
    while asked := [number for number in range(len(solutions)) if number not in found]:
        told = rollouts([(number, "".join(pieces[number][:place])) for number in asked])
        for number, after in zip(asked, told, strict=True):
            steps, rate = pieces[number], _rate(after)
            rates[number] += (rate,)
            if rate < least:
                found[number] = _fault(steps, place, last.get(number, ()), rates[number], modulus[number])
            elif place + 1 == len(steps):
                found[number] = _fault(steps, place + 1, after, rates[number], modulus[number])
            last[number] = after
        place += 1
    return [found[number] for number in range(len(solutions))]


def by_arithmetic(
    solutions: Sequence[str], rollouts: Endings, *, least: float = 0.5, moduli: Sequence[int | None] | None = None
) -> list[Fault]:
    """The first faulty step is the first with a false sum, or else the last; see `by_rollouts`, which costs more."""
    pieces = [cut(text) or [""] for text in solutions]
    modulus = moduli or [None] * len(solutions)
    places = [_falsified(steps, one) for steps, one in zip(pieces, modulus, strict=True)]
    told = rollouts([(number, "".join(pieces[number][: place - 1])) for number, place in enumerate(places)])
    return [
        _fault(pieces[number], place if _rate(after) >= least else 0, after, (_rate(after),), modulus[number])
        for number, (place, after) in enumerate(zip(places, told, strict=True))
    ]


JUDGES: dict[str, Callable[..., list[Fault]]] = {"rollouts": by_rollouts, "arithmetic": by_arithmetic}


def _rate(after: Sequence[Ending]) -> float:
    return sum(one.right for one in after) / max(1, len(after))


def _fault(
    steps: Sequence[str], step: int, after: Sequence[Ending], rates: tuple[float, ...], modulus: int | None
) -> Fault:
    kind, before = (kind_of(steps[step - 1], modulus), "".join(steps[: step - 1])) if step else (UNREAD, "")
    return Fault(step, len(steps), before, kind, rates, tuple(after) if step else ())


def kind_of(step: str, modulus: int | None) -> str:
    """What is wrong with the step, as far as its sums tell."""
    told = [true for _, true in sums(step, modulus)]
    return UNREAD if not told else METHOD if all(told) else EXECUTION


def _falsified(steps: Sequence[str], modulus: int | None) -> int:
    """Number of the first step with a false sum, or of the last step, from 1."""
    false = (number for number, step in enumerate(steps, start=1) if kind_of(step, modulus) == EXECUTION)
    return next(false, len(steps))
