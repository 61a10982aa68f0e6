"""Which equal answers does a grader accept, and which others, when the same value is written in two ways?

Pairs of LaTeX are drawn by rules that make them equal (a fraction expanded or as a decimal, a root pulled apart, a sum
in another order, a number with separators, a pair in other brackets), and so that they differ by one digit, sign or
place. Which is which follows from the rule; no program decides it. Nothing is tuned.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from experiment import SMOKE, Command, cell, digest, record, table

from burnish.core.statistics import exact_share
from burnish.verify import verifier

PAIRS = 3 if SMOKE else 60
GRADERS = ("exact", "number", "math")

Forms = tuple[str, str, str]
"""An answer, the same in another way, and one that is another."""


def fraction(draw: random.Random) -> Forms:
    below, times = draw.choice([3, 6, 7, 9, 11]), draw.randint(2, 9)
    above = draw.randrange(1, 50) * below + 1
    return rf"\frac{{{above}}}{{{below}}}", f"{times * above}/{times * below}", f"{times * above + 1}/{times * below}"


def decimal(draw: random.Random) -> Forms:
    above = draw.randrange(1, 400, 2)
    return rf"\frac{{{above}}}{{8}}", f"{above / 8}", f"{(above + 2) / 8}"


def root(draw: random.Random) -> Forms:
    outside, inside = draw.randint(2, 9), draw.choice([2, 3, 5, 7])
    whole = outside**2 * inside
    return rf"{outside}\sqrt{{{inside}}}", rf"\sqrt{{{whole}}}", rf"\sqrt{{{whole + 1}}}"


def total(draw: random.Random) -> Forms:
    one, other = draw.randint(2, 20), draw.randint(2, 20)
    return f"{one}x+{other}y", f"{other}y + {one}x", f"{other}y - {one}x"


def separators(draw: random.Random) -> Forms:
    number = draw.randrange(10_000, 10_000_000)
    return str(number), f"{number:,}", f"{number + 1:,}"


def pair(draw: random.Random) -> Forms:
    first, second = draw.sample(range(-20, 20), 2)
    return f"({first}, {second})", rf"\left({first},{second}\right)", rf"\left({second},{first}\right)"


KINDS: dict[str, Callable[[random.Random], Forms]] = {
    "a fraction, expanded": fraction,
    "a fraction, as a decimal": decimal,
    "a root, pulled apart": root,
    "a sum, in another order": total,
    "a number, with separators": separators,
    "a pair, in other brackets": pair,
}


def main() -> None:
    arguments = Command(__file__, __doc__).read()
    draw = random.Random(0)
    drawn = {kind: [make(draw) for _ in range(PAIRS)] for kind, make in KINDS.items()}
    found: dict[str, Any] = {}
    for name in GRADERS:
        with verifier(name) as grader:
            found[name] = {
                kind: [[grader.grade(forms[which], {"answer": forms[0]}) for forms in many] for which in (1, 2)]
                for kind, many in drawn.items()
            }
    slices = {"tuning": [], "reporting": [digest(str(drawn))]}
    record(
        arguments.out,
        __doc__,
        {"slices": slices, "accepted": found},
        note="nothing is timed",
        libraries=["math-verify"],
    )


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown: kinds of rewriting by grader, and all of them together."""
    accepted = results["accepted"]
    kinds = [
        [kind, *(f"{sum(accepted[name][kind][0]) / len(accepted[name][kind][0]):.0%}" for name in accepted)]
        for kind in next(iter(accepted.values()))
    ]
    for title, which in (("all of them", 0), ("answers that are others", 1)):
        every = [[one for kind in accepted[name].values() for one in kind[which]] for name in accepted]
        kinds.append([f"{title} (95 %)", *(cell(exact_share(sum(values), len(values)), ".1%") for values in every)])
    return {"accepted": table(["accepted, of equal answers", *(f"`{name}`" for name in accepted)], kinds)}


if __name__ == "__main__":
    main()
