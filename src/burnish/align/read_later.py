"""What was drawn in a few updates of a run, kept with its rewards so that a person can page through it afterwards.

One group of an update is kept: the first whose answers differ in what they earned, since there something was learned.
Rows have the form that `burnish.data.trajectories.pages` shows; the weight of a token is its advantage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from burnish.data.trajectories.kinds import TokenKind

UPDATES = 8
"""Of a run, of those that draw answers: evenly apart, the first and the last among them."""


@dataclass(frozen=True)
class Judged:
    """What was drawn, on one process, and what it earned.

    Attributes:
        completions: token ids of each row.
        rewards: (rows, functions) as the reward functions gave them.
        shaped: the same after a rule of length.
    """

    completions: list[list[int]]
    rewards: Tensor
    shaped: Tensor


@dataclass
class ReadLater:
    """Collects rows.

    Attributes:
        updates: that the run has.
        iterations: updates on the same answers, of which the first draws them.
        kept: rows so far, as JSON can hold them; part of a run's state.
    """

    updates: int
    iterations: int = 1
    kept: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> set[int]:
        """Numbers of the updates, from 0."""
        drawing = range(0, self.updates, self.iterations)
        chosen = torch.linspace(0, len(drawing) - 1, min(UPDATES, len(drawing))).round().long().tolist()
        return {drawing[place] for place in chosen}

    def note(
        self, step: int, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Tensor], judged: Judged, several: int
    ) -> None:
        """Keeps a group of an update that is wanted.

        Args:
            step: updates before this one.
            inputs: rows of the data set.
            output: what the trainer learns from: prompts, and advantages by row or by token.
            judged: what was drawn.
            several: answers to a prompt.
        """
        if step not in self.steps or any(row["step"] == step + 1 for row in self.kept):
            return
        advantages = output["advantages"]
        by_row = advantages if advantages.dim() == 1 else advantages.abs().amax(1)
        groups = by_row.view(-1, several)
        chosen = int((groups != 0).any(1).int().argmax()) * several  # the first where none differs
        for place in range(chosen, chosen + several):
            prompt = output["prompt_ids"][place][output["prompt_mask"][place].bool()].tolist()
            completion = judged.completions[place]
            given = advantages[place].expand(len(completion)) if advantages.dim() == 1 else advantages[place]
            written = [True] * len(completion)
            if "tool_mask" in output:
                written = (output["tool_mask"][place][: len(completion)] > 0).tolist()
            turns = turns_of(written)
            self.kept.append(
                {
                    "step": step + 1,
                    "problem": int(inputs[place].get("row", chosen // several)),
                    "answer": place - chosen + 1,
                    "reward": _known(judged.rewards[place, 0]),
                    "shaped": _known(judged.shaped[place, 0]),
                    "input_ids": prompt + completion,
                    "turn": [-1] * len(prompt) + turns,
                    "weights": [0.0] * len(prompt) + given[: len(completion)].tolist(),
                }
            )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For pages: which kind of text a turn is, is told by whether another turn follows."""
        return [_shown(row) for row in self.kept]


def _known(reward: Tensor) -> float | None:
    return None if bool(reward.isnan()) else float(reward)


def turns_of(written: Sequence[bool]) -> list[int]:
    """The number of the turn that each token is of, from 0; -1 where the policy did not write it."""
    found, turn = list[int](), -1
    for place, mine in enumerate(written):
        turn += mine and (place == 0 or not written[place - 1])
        found.append(turn if mine else -1)
    return found


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    last = max(row["turn"])
    kinds = [
        TokenKind.NONE if turn < 0 else TokenKind.FINAL if turn == last else TokenKind.ACTION for turn in row["turn"]
    ]
    shaped = "" if row["shaped"] == row["reward"] else f", {row['shaped']:.3g} by its length"
    return {
        "id": f"update {row['step']}, answer {row['answer']}",
        "task": f"{row['problem'] + 1}{shaped}",
        "reward": row["reward"],
        "turns": last + 1,
        "input_ids": row["input_ids"],
        "turn": row["turn"],
        "kind": [int(kind) for kind in kinds],
        "weights": row["weights"],
    }
