"""Who proposes next, and how many tokens: by what was accepted so far, and by what proposing and verifying cost.

For a proposer j let a_i be the share of its i-th tokens that were accepted where those before were. A cycle with g
tokens of it gives 1 + sum_{i<=g} prod_{l<=i} a_l tokens and costs c_j(g) + v(g), with v(g) the price of a pass over
1 + g tokens. The controller takes the pair with the most tokens for its price, and no proposal (g = 0: one token for
v(0)) unless that is beaten by `LEAST_GAIN`. Counts lose half of their weight every `HALF_LIFE` cycles, so a change is
noticed, but never fall below `FLOOR` tokens, so that a proposer who is not asked is still known, and one lucky try is
not all of it. The a_i of a proposer are drawn toward their mean by `DRAWN` tokens.

What a proposer says can be compared with the text that came even where another one's tokens were verified. Those who
cost next to nothing (a trie, an n-gram) are asked every cycle and known for that; who is not is tried now and then,
with as many tokens as would pay were they right, after so many cycles that what a failure costs is at most `BUDGET` of
what is gained.

Source: ours; the published relative is the adaptive speculator of Together's ATLAS (2025), of which no code is known.
Prices are the machine's and the weights': a pass over nine tokens costs 1.1 of one over one in bfloat16 and 2.1 in
packed 4 bits on a CPU, where the same acceptance does not pay (docs/methods/speed.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from burnish.core.errors import SettingsError

HALF_LIFE, FLOOR, DRAWN = 32.0, 6.0, 4.0
BUDGET, HOPED = 0.015, 0.8
"""Of trying, as a share of the tokens; acceptance for which the length of a try is chosen."""
LEAST_GAIN = 1.02
FIRST = 4
"""Cycles in a row that each proposer gets at the beginning."""
PRIOR = 0.5
"""Acceptance of what was never tried, as of one token."""


@dataclass(frozen=True)
class ProposerChoice:
    """Whose tokens, and how many; nobody's and none where no proposal pays."""

    proposer: str | None
    length: int


def tokens_of_a_cycle(acceptance: Sequence[float], length: int) -> float:
    """1 + sum_{i<=length} prod_{l<=i} a_l."""
    total = reached = 1.0
    for share in acceptance[:length]:
        reached *= share
        total += reached
    return total


def best_length(
    acceptance: Sequence[float], proposing: Sequence[float], verifying: Sequence[float]
) -> tuple[float, int]:
    """(tokens for each unit of price, length) of the best length from 1 on; the shortest of equal ones.

    Args:
        acceptance: of the first, second ... token.
        proposing: price of 0, 1, 2 ... tokens of this proposer.
        verifying: price of a pass that verifies 0, 1, 2 ... tokens.
    """
    rates = [
        (tokens_of_a_cycle(acceptance, length) / (proposing[length] + verifying[length]), -length)
        for length in range(1, len(proposing))
    ]
    rate, negative = max(rates)
    return rate, -negative


class SpeculationController:
    """Chooses before every cycle, and learns from it.

    Args:
        proposing: by proposer, the price of 0, 1, 2 ... tokens of it, in any unit.
        verifying: the price, in that unit, of a pass that verifies 0, 1, 2 ... tokens; as long as the longest of those.

    Raises:
        SettingsError: prices that are missing or not positive.
    """

    def __init__(self, proposing: Mapping[str, Sequence[float]], verifying: Sequence[float]) -> None:
        if not proposing:
            raise SettingsError("names nobody", where="proposing")
        for name, prices in proposing.items():
            if not 2 <= len(prices) <= len(verifying):
                what = f"has {len(prices)} prices, and from 2 to the {len(verifying)} of verifying are needed"
                raise SettingsError(what, where=f"proposing.{name}")
            if min(prices) < 0:
                raise SettingsError(f"has the price {min(prices)}", where=f"proposing.{name}")
        if min(verifying) <= 0:
            raise SettingsError(f"has the price {min(verifying)}", where="verifying")
        self.proposing, self.verifying = dict(proposing), list(verifying)
        self._accepted = {name: [0.0] * (len(prices) - 1) for name, prices in proposing.items()}
        self._tried = {name: [0.0] * (len(prices) - 1) for name, prices in proposing.items()}
        self._hoped = {
            name: best_length([HOPED] * (len(prices) - 1), prices, verifying)[1] for name, prices in proposing.items()
        }
        self._silent = dict.fromkeys(proposing, 0)
        self._cycle = 0

    def acceptance(self, name: str) -> list[float]:
        """Of the first, second ... token of a proposer, as far as is known."""
        mean = (sum(self._accepted[name]) + PRIOR) / (sum(self._tried[name]) + 1)
        return [
            (accepted + mean * DRAWN) / (tried + DRAWN)
            for accepted, tried in zip(self._accepted[name], self._tried[name], strict=True)
        ]

    def choose(self) -> ProposerChoice:
        """For the next cycle."""
        names = list(self.proposing)
        if self._cycle < FIRST * len(names):
            name = names[self._cycle // FIRST]
            return ProposerChoice(name, self._hoped[name])
        found = {
            name: best_length(self.acceptance(name), prices, self.verifying) for name, prices in self.proposing.items()
        }
        best = max(names, key=lambda one: found[one][0])
        pays = found[best][0] * self.verifying[0] >= LEAST_GAIN
        name = max(names, key=lambda one: self._silent[one])
        length = self._hoped[name]
        failed = 1 / (self.proposing[name][length] + self.verifying[length])
        if self._silent[name] * BUDGET >= 1 - failed / (found[best][0] if pays else 1 / self.verifying[0]):
            return ProposerChoice(name, length)
        return ProposerChoice(best, found[best][1]) if pays else ProposerChoice(None, 0)

    def learn(self, came: Mapping[str, Sequence[bool]]) -> None:
        """What became of a cycle.

        Args:
            came: for those who were asked, whether their first, second ... token came, up to the first that did not
                and as far as the text is known. Where one had nothing to say, its first token did not come.
        """
        self._cycle += 1
        for name in self.proposing:
            self._silent[name] = 0 if came.get(name) else self._silent[name] + 1
            keep = max(0.5 ** (1 / HALF_LIFE), min(1.0, FLOOR / max(sum(self._tried[name]), 1e-9)))
            for values in (self._accepted[name], self._tried[name]):
                values[:] = [keep * value for value in values]
            for place, right in enumerate(came.get(name, ())):
                self._tried[name][place] += 1
                self._accepted[name][place] += right
