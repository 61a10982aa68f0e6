"""The watch over one stretch of a phase: looks at held-out rows, and ends it by the rules of `rules.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burnish.curriculum.phase import Phase
from burnish.curriculum.rules import forgotten, gain
from burnish.curriculum.stage import Curriculum
from burnish.train.state import load_optimizer, save_optimizer


def lost_in_words(lost: Mapping[str, float]) -> str:
    """What has been forgotten."""
    return ", ".join(f"{name} is {below:.3g} below its best" for name, below in lost.items())


Measure = Callable[[str, nn.Module], dict[str, float]]
"""(phase, model) -> how it does on the held-out rows of the phase."""


@dataclass
class Values:
    """What was measured so far, larger being better, oldest first.

    Attributes:
        sign: 1 of solve rates, -1 of losses.
        known: {phase: all values of its held-out rows}.
        own: those of the phase that is trained, from its beginning.
    """

    sign: int
    known: dict[str, list[float]]
    own: list[float] = field(default_factory=list)

    def copy(self) -> Values:
        return Values(self.sign, {name: list(values) for name, values in self.known.items()}, list(self.own))

    def add(self, name: str, value: float, *, own: bool) -> None:
        self.known.setdefault(name, []).append(self.sign * value)
        if own:
            self.own.append(self.sign * value)


@dataclass
class Looking:
    """Looks at the own and the earlier held-out rows; at all of them where the stretch ends (a `burnish.train` watch).

    Attributes:
        settings: of the curriculum.
        place: number of the phase.
        steps: of this stretch at most.
        done: steps before it: of the whole curriculum.
        measure: see `Measure`.
        values: what was measured before, which grows.
        mixed: whether rows of earlier phases are mixed in already.
        before, after: files of the optimizer that it goes on from, and of what it has gathered in the end, where
            something goes on from that.
        rows: what was measured, a row for each look and held-out set.
        why: it has ended.
        lost: {earlier phase: how far it is below its best} at the last look.
        guarded: whether the guard has ended it.
        taken: steps that were done.
    """

    settings: Curriculum
    place: int
    steps: int
    done: int
    measure: Measure
    values: Values
    mixed: bool
    before: Path | None
    after: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""
    lost: dict[str, float] = field(default_factory=dict)
    guarded: bool = False
    taken: int = 0

    @property
    def every(self) -> int:
        return self.settings.every

    @property
    def phase(self) -> Phase:
        return self.settings.phases[self.place]

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        if self.before is not None:
            load_optimizer(self.before, optimizer)

    def look(self, step: int, model: nn.Module) -> bool:
        names, self.taken = [phase.name for phase in self.settings.phases], step
        here = self._measured(step, model, names[: self.place + 1])
        self.lost = forgotten({name: self.values.known[name] for name in names[: self.place]}, self.settings.fall)
        self.why = self._ended(step, here[-1])
        if self.why:
            here += self._measured(step, model, names[self.place + 1 :])
        self.rows += [row | {"boundary": bool(self.why)} for row in here]
        return bool(self.why)

    def _measured(self, step: int, model: nn.Module, names: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for name in names:
            measured = self.measure(name, model)
            self.values.add(name, measured["value"], own=name == self.phase.name)
            found.append({"at_step": self.done + step, "phase": self.phase.name, "held_out": name} | measured)
        return found

    def _ended(self, step: int, now: dict[str, Any]) -> str:
        """Why the stretch ends here, or nothing; `now` is what was measured of the phase itself."""
        if self.lost and self.settings.guard == "stop":  # these weights are not kept, whatever else they have reached
            return self._guard()
        mixes = bool(self.lost) and self.settings.guard == "mix" and not self.mixed
        why = self._reached(now)
        if not why and step < self.steps:
            return self._guard() if mixes else ""
        why = why or "its steps were done" + (" before what it was to end by" if self.phase.until.is_set else "")
        return why + (f"; too late for the guard to mix: {lost_in_words(self.lost)}" if mixes else "")

    def _reached(self, now: dict[str, Any]) -> str:
        """What the phase was to end by and has reached, or nothing."""
        until = self.phase.until
        if until.solve_rate is not None and now["value"] >= until.solve_rate:
            return f"solve rate {now['value']:.3f} reached {until.solve_rate:g}"
        if until.loss is not None and now["loss"] <= until.loss:
            return f"loss {now['loss']:.4g} reached {until.loss:g}"
        won = gain(self.values.own, until.looks)
        if until.plateau is not None and won is not None and won < until.plateau:
            return f"gained {won:.3g} over {until.looks} looks, less than {until.plateau:g}"
        return ""

    def _guard(self) -> str:
        self.guarded = True
        return f"the guard: {lost_in_words(self.lost)}"

    def end(self, optimizer: torch.optim.Optimizer) -> None:
        if self.after is not None:
            save_optimizer(self.after, optimizer)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "known": self.values.known, "own": self.values.own}

    def go_on(self, state: dict[str, Any]) -> None:
        self.rows, self.values.known, self.values.own = state["rows"], state["known"], state["own"]
