"""Settings: pydantic classes whose fields are the command's options, the recipe's keys and the documented defaults.

A field of type `CheckpointRef` or `DataRef` names something that the runner resolves (a node of the recipe, a
directory, a file, a hub id) and hashes by content. A field marked `VOLATILE` does not change the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator

from burnish.core.errors import SettingsError, nearest
from burnish.core.outside import shown

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan


class Named(NamedTuple):
    """A reference that is set.

    Attributes:
        place: of the setting; of settings inside a list, such as `phases.0.data`.
        to: "checkpoint" or "data".
        value: what it names.
    """

    place: str
    to: str
    value: str


@dataclass(frozen=True)
class _Reference:
    """Marks a setting that names something by path, hub id or recipe node."""

    to: str


def _named(name: str) -> str:
    if not name.strip() or "\0" in name:
        raise ValueError("an empty name means nothing; leave the setting out")
    return name


CheckpointRef = Annotated[str, AfterValidator(_named), _Reference("checkpoint")]
"""A node of the recipe (`start` is the input), a checkpoint directory or a hub id."""

DataRef = Annotated[str, AfterValidator(_named), _Reference("data")]
"""A data file (text, JSON lines, parquet), a directory of them, or the name of a text that ships with burnish."""

VOLATILE: dict[str, Any] = {"volatile": True}
"""`json_schema_extra` of settings that do not change the result (device, workers); they stay out of the skip key."""


def _known_device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError("known devices are auto, cpu, cuda and cuda:N")
    return device


Device = Annotated[str, AfterValidator(_known_device)]
"""Where tensors are computed."""


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class Settings(BaseModel):
    """Base of everything that a recipe can configure."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _finite_inside(cls, value: Any) -> Any:
        """Numbers inside free-form settings are checked as those of typed ones are."""
        if isinstance(value, dict | list | tuple) and not _is_finite(value):
            raise ValueError("its numbers must be finite")
        return value

    @classmethod
    def parse(cls, settings: dict[str, Any], *, where: str) -> Self:
        """Settings from a recipe or a command line; every mistake becomes one clear sentence."""
        known = list(cls.model_fields)
        for key in settings:
            if key not in known:
                guess = nearest(key, known)
                advice = f"did you mean {guess!r}?" if guess else f"known settings are {', '.join(sorted(known))}"
                raise SettingsError(f"there is no setting {key!r} here", where=where, fix=advice)
        try:
            return cls(**settings)
        except ValidationError as error:
            raise SettingsError(first_mistake(error), where=where) from None

    @classmethod
    @cache
    def references(cls) -> dict[str, str]:
        """Fields that name a checkpoint or data: {field: "checkpoint" | "data"}."""
        found = {}
        for field, hint in get_type_hints(cls, include_extras=True).items():
            parts = (hint, *get_args(hint))  # the type itself, or the members of `CheckpointRef | None`
            marks = [mark for part in parts for mark in getattr(part, "__metadata__", ())]
            for mark in marks:
                if field in cls.model_fields and isinstance(mark, _Reference):
                    found[field] = mark.to
        return found

    def named(self) -> list[Named]:
        """Every reference that is set, those of settings inside lists among them."""
        own = ((name, to, getattr(self, name)) for name, to in self.references().items())
        found = [Named(name, to, value) for name, to, value in own if value is not None]
        for field, number, one in self._inside():
            found += [Named(f"{field}.{number}.{place}", to, value) for place, to, value in one.named()]
        return found

    def _inside(self) -> Iterator[tuple[str, int, Settings]]:
        """(field, number, settings) of every list of settings."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, list | tuple):
                yield from ((field, number, one) for number, one in enumerate(value) if isinstance(one, Settings))

    def preflight(self, start: Model, before: Plan) -> None:
        """Tries what would stop the work, and what can be tried without weights.

        Args:
            start: the input of the recipe; its tokenizer is the one that will be there.
            before: the plan of what will be given.

        Raises:
            BurnishError: as the work itself would.
        """

    def measured_together(self) -> dict[str, Any] | None:
        """What decides a measurement that all checkpoints of a run share; None where there is none.

        Settings of a measurement that have one also have `together`, which makes it.
        """
        return None

    def canonical(self) -> dict[str, Any]:
        """The settings that decide the result: everything but volatile fields and references (hashed by content)."""
        volatile = {
            field
            for field, info in type(self).model_fields.items()
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("volatile")
        }
        found = self.model_dump(mode="json", exclude=volatile | set(self.references()))
        for field, number, one in self._inside():
            if field in found:
                found[field][number] = one.canonical()
        return found


BRANCH = re.compile(r"(constrained-)?(int|float|str|bool)|(literal|list|dict|tuple|nullable)\[.*")
"""How pydantic calls one of several types that a value may have, in the place of a mistake."""


def first_mistake(error: ValidationError) -> str:
    """The first thing that pydantic found, as one clause; of a value of several types, what each asks for."""
    mistakes = error.errors()
    places = [[str(part) for part in one["loc"] if not BRANCH.fullmatch(str(part))] for one in mistakes]
    message = mistakes[0]["msg"].removeprefix("Value error, ")
    if not places[0]:
        return message
    first = message[0].lower() + message[1:]
    others = [one["msg"] for one, place in zip(mistakes[1:], places[1:], strict=True) if place == places[0]]
    message = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    return f"{'.'.join(places[0])} is {shown(mistakes[0]['input'])}, but {message}"
