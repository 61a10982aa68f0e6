"""What is said of one phase of a curriculum."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from burnish.core.settings import DataRef, Settings

FIELD = r"\{(\w+)\}"
"""A field of a row in a phase's `prompt`."""


class Until(Settings):
    """What ends a phase before its last step; the first rule that holds does."""

    solve_rate: float | None = Field(default=None, gt=0, le=1, description="solve rate of its held-out problems")
    loss: float | None = Field(default=None, gt=0, description="loss on its held-out rows, nats a token")
    plateau: float | None = Field(
        default=None, gt=0, description="smallest gain of the smoothed value over `looks` that is worth going on"
    )
    looks: int = Field(default=3, ge=1, description="looks over which a plateau is measured")

    @property
    def is_set(self) -> bool:
        return any(rule is not None for rule in (self.solve_rate, self.loss, self.plateau))


class Phase(Settings):
    """One phase."""

    name: str = Field(description="of the phase, and of its held-out rows in tables and pictures")
    data: DataRef | None = Field(
        default=None, description="texts or chats to train on; or an environment must be given"
    )
    held_out: DataRef | None = Field(default=None, description="rows to measure on; must be given with data")
    env: str | None = Field(
        default=None, description="in place of both, what GRPO asks, rewards and is measured on: chain, table, ..."
    )
    steps: int = Field(default=100, ge=1, description="optimizer steps, at most where `until` may end the phase")
    until: Until = Field(default=Until(), description="solve_rate, loss or plateau that ends it sooner")
    prompt: str | None = Field(
        default=None, description="the question as the phase shows it, of fields of its rows: '{question} {hint}'"
    )
    train: dict[str, Any] = Field(default={}, description="settings of `train` that differ in this phase")
    grpo: dict[str, Any] = Field(
        default={}, description="with env, settings of `align grpo` that differ: lr, kind, format_share"
    )

    @field_validator("name")
    @classmethod
    def _is_word(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError("a name is made of letters, digits, - and _")
        return name

    @field_validator("prompt")
    @classmethod
    def _has_fields(cls, prompt: str | None) -> str | None:
        if prompt is not None and re.search(FIELD, prompt) is None:
            raise ValueError(f"{prompt!r} asks the same of every row; name fields of it, such as '{{question}}'")
        return prompt
