"""Settings of a measurement on RULER; importing them costs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from burnish.core.errors import SettingsError, nearest
from burnish.core.settings import Settings
from burnish.evaluate.sparse.spec import parts_of

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe", "kv_json", "letters")
"""Official names, and two tasks that RULER does not have."""
SHORT = {"niah_single": "niah_single_1", "niah_multikey": "niah_multikey_2"}
"""What stands for a task of the official list: the one of its kind that needs no essays."""
PREFIX = "ruler:"


class RulerMeasurement(Settings):
    """How a model is measured on tasks of RULER."""

    lengths: str = Field(default="1k,2k", description="ruler: tokens of prompt and answer together; 1k is 1,024")
    samples: int = Field(default=5, ge=1, description="ruler: prompts of a task; of needles each at every depth")
    depths: int = Field(default=10, ge=2, le=100, description="ruler: places that a needle is put at, evenly spread")
    template: Literal["auto", "none", "chat"] = Field(
        default="auto", description="ruler: chat: by the tokenizer's chat template, which auto takes where there is one"
    )
    slip: Literal["template", "bos", "prefix"] | None = Field(
        default=None,
        description="ruler: get one thing wrong on purpose, to see what it costs: template (written twice), bos (the "
        "beginning token twice), prefix (no answer prefix)",
    )
    seed: int = Field(default=0, ge=0, description="ruler: of the prompts")
    attention: str | None = Field(
        default=None, description="ruler: sparse attention to answer with, such as sink:64+local:256+quest:0.1,page=16"
    )
    attention_protocol: Literal["A", "B"] = Field(
        default="B",
        description="ruler: what sparse attention does: A the answer alone, B the question as well; the context is "
        "always read densely",
    )
    dense_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="ruler: layers that keep all keys, from 0"
    )

    @field_validator("lengths")
    @classmethod
    def _are_lengths(cls, text: str) -> str:
        lengths_of(text)
        return text

    @field_validator("attention")
    @classmethod
    def _are_mechanisms(cls, text: str | None) -> str | None:
        if text is not None:
            parts_of(text)
        return text

    @model_validator(mode="after")
    def _has_mechanisms(self) -> RulerMeasurement:
        if self.attention is None:
            given = [name for name in ("attention_protocol", "dense_layers") if name in self.model_fields_set]
            changed = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(f"{changed[0]} counts for nothing without attention: give attention: quest:0.1")
        elif self.slip is not None:
            raise ValueError("slip and attention are two questions, and one score answers neither: leave one out")
        return self


def lengths_of(text: str) -> list[int]:
    """Numbers of tokens out of `1k,2k,3000`."""
    found = []
    for part in (piece.strip().lower() for piece in text.split(",")):
        digits, factor = (part[:-1], 1024) if part.endswith("k") else (part, 1)
        if not digits.isdecimal() or not int(digits):
            raise ValueError(f"{part!r} is no number of tokens; write 1k,2k or 3000")
        found.append(int(digits) * factor)
    if len(set(found)) < len(found):
        raise ValueError("a length stands there twice")
    return found


def tasks_of(text: str) -> list[str]:
    """Official names out of `ruler:niah_multikey,vt`.

    Raises:
        SettingsError: no such task, or one twice.
    """
    if not text.startswith(PREFIX):
        raise SettingsError(f"{text!r} is no task here", where="task", fix="write ruler:niah_multikey,vt")
    found = []
    for part in (piece.strip() for piece in text.removeprefix(PREFIX).split(",")):
        name = SHORT.get(part, part)
        if name not in TASKS:
            guess = nearest(part, [*TASKS, *SHORT])
            fix = f"did you mean {guess!r}?" if guess else f"tasks are {', '.join(TASKS)}"
            raise SettingsError(f"there is no RULER task {part!r} here", where="task", fix=fix)
        if name in found:
            raise SettingsError(f"{name} stands there twice", where="task", fix="leave one out")
        found.append(name)
    return found
