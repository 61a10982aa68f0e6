"""Groups of earlier updates that are learned from again, in the place of groups that have nothing to teach.

A group whose answers all earned the same has advantage 0 and moves nothing. Its place in the batch goes to a group that
was drawn at most `max_staleness` updates ago, the one with the largest

    mean |A| * discount^age

first, each at most `reuse` times. Its tokens keep the log-probabilities that they were drawn with, so the ratio of the
loss is to the weights that drew them. What is reported of rewards is of the fresh answers alone: replay changes what is
learned from, never what is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.core.errors import SettingsError

DISCOUNT = 0.8
"""Of a group's priority, for every update since it was drawn."""

ROUNDING = 1e-6
"""What the mean of equal rewards may leave of an advantage in float32."""

Row = dict[str, Tensor]
"""Columns of one answer; `advantages` is one number, or one a token."""


@dataclass
class KeptGroup:
    """Rows of one prompt without padding.

    Attributes:
        step: updates before the one that drew it: the version of the weights.
        rows: columns of each row; those of the prompt begin with `prompt`.
        used: how often it has been learned from again.
    """

    step: int
    rows: list[Row]
    used: int = 0

    @property
    def pull(self) -> float:
        """mean |A| of its rows; 0 where they earned the same but for rounding."""
        found = sum(float(row["advantages"].abs().mean()) for row in self.rows) / len(self.rows)
        return found if found > ROUNDING else 0.0

    def to(self, device: str | torch.device) -> KeptGroup:
        """The same group with its tensors there."""
        rows = [{name: value.to(device) for name, value in row.items()} for row in self.rows]
        return KeptGroup(self.step, rows, self.used)


@dataclass
class ReplayQueue:
    """Groups that may be learned from again.

    Attributes:
        limit: most groups that are kept.
        max_staleness: most updates since a group was drawn; 0 replays nothing.
        reuse: how often a group may be replayed.
        groups: that are kept.
    """

    limit: int
    max_staleness: int
    reuse: int = 1
    groups: list[KeptGroup] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("max_staleness", 0), ("reuse", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"is {getattr(self, name)}, but {least} is the least", where=f"replay {name}")

    def exchanged(self, fresh: Sequence[KeptGroup], step: int) -> list[KeptGroup]:
        """The groups to learn from in this update, in the places of the fresh ones, which are kept for later.

        Args:
            fresh: groups of this update.
            step: updates before this one.
        """
        self.groups = [one for one in self.groups if step - one.step <= self.max_staleness and one.used < self.reuse]
        waiting = self._by_priority(step)
        chosen = []
        for one in fresh:
            replayed = waiting.pop(0) if not one.pull and waiting else None
            if replayed is not None:
                replayed.used += 1
            chosen.append(replayed or one)
        self.groups += [one for one in fresh if one.pull]
        self.groups = self._by_priority(step)[: self.limit]
        return chosen

    def _by_priority(self, step: int) -> list[KeptGroup]:
        return sorted(self.groups, key=lambda one: -one.pull * DISCOUNT ** (step - one.step))

    # -- a state to go on from -----------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the groups to a safetensors file."""
        flat = {
            f"{number} {place} {name}": value.clone()
            for number, group in enumerate(self.groups)
            for place, row in enumerate(group.rows)
            for name, value in row.items()
        }
        save_file(flat, path, metadata={"groups": json.dumps([[one.step, one.used] for one in self.groups])})

    def load(self, path: Path, device: str) -> None:
        """Takes the groups of a file in place of its own."""
        with safe_open(path, framework="pt", device=device) as file:
            self.groups = [KeptGroup(step, [], used) for step, used in json.loads(file.metadata()["groups"])]
            for key in sorted(file.keys(), key=lambda key: [int(one) for one in key.split(" ")[:2]]):
                number, place, name = key.split(" ", 2)
                rows = self.groups[int(number)].rows
                if int(place) == len(rows):
                    rows.append({})
                rows[int(place)][name] = file.get_tensor(key)


# -- rows with and without padding -------------------------------------------------------------------------------------


def groups_of(batch: Mapping[str, Tensor], several: int, step: int) -> list[KeptGroup]:
    """The groups of a batch, rows without padding: prompts end at the right, answers begin at the left."""
    count = len(batch["prompt_ids"])
    prompts = batch["prompt_mask"].sum(1).tolist()
    answers = batch["completion_mask"].sum(1).clamp(min=1).tolist()  # one that was cut off has mask 0 everywhere
    columns = [name for name, value in batch.items() if value.dim() > 0 and len(value) == count]

    def cut(name: str, row: int) -> Tensor:
        value = batch[name][row]
        if value.dim() == 0:
            return value.clone()
        return (value[-prompts[row] :] if name.startswith("prompt") else value[: answers[row]]).clone()

    rows = [{name: cut(name, row) for name in columns} for row in range(count)]
    return [KeptGroup(step, rows[start : start + several]) for start in range(0, count, several)]


def batch_of(groups: Sequence[KeptGroup], pad: int) -> dict[str, Tensor]:
    """The inverse: rows one below the other, padded to the longest.

    Args:
        groups: in their order.
        pad: the padding token; masks, log-probabilities and advantages are padded with 0.
    """
    rows = [row for group in groups for row in group.rows]
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if values[0].dim() == 0:
            found[name] = torch.stack(values)
            continue
        width = max(len(value) for value in values)
        fill = pad if name.endswith("_ids") else 0
        padded = values[0].new_full((len(values), width), fill)
        for row, value in enumerate(values):
            here = slice(width - len(value), width) if name.startswith("prompt") else slice(0, len(value))
            padded[row, here] = value
        found[name] = padded
    return found
