"""What a server is started with (BURNISH_STEER), and what a request asks for: without an import of vLLM."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from burnish.core.checkpoint import tensors_digest
from burnish.core.errors import SettingsError, nearest
from burnish.core.settings import Settings
from burnish.steer.maths.intervene import Mode
from burnish.steer.vectors import Vectors, read_vectors

FIELD = "steer"
"""Of `vllm_xargs`."""
_NAME = re.compile(r"[\w.-]+")


class VectorSetSettings(Settings):
    """One entry of BURNISH_STEER.

    Attributes:
        vectors: directory from `burnish steer calibrate`.
        top: share of the heads, or how many (above 1).
        mode: which gate, see `burnish.steer.maths.intervene`.
    """

    vectors: str
    top: float = 0.38
    mode: Mode = "threshold"


@dataclass(frozen=True)
class VectorSet:
    """A set that a server has loaded.

    Attributes:
        name: by which requests ask for it.
        vectors: of the chosen heads.
        mode: which gate.
    """

    name: str
    vectors: Vectors
    mode: Mode

    @property
    def digest(self) -> str:
        """Of everything that decides what steering with it does, but for the coefficient."""
        means = [(f"m{layer}", mean) for layer, mean in sorted(self.vectors.means.items())]
        tensors = tensors_digest([("v", self.vectors.directions), ("w", self.vectors.probes), *means])
        heads = [[head.layer, head.head] for head in self.vectors.heads]
        marks = self.vectors.marks
        tokens = [marks.separator_ids, marks.blank_ids, marks.think_end_ids]
        return f"{tensors} {json.dumps([heads, tokens, self.mode])}"


@dataclass(frozen=True)
class SteeringRequest:
    """What one request asks for.

    Attributes:
        name: of a set.
        coef: see `burnish.steer.maths.intervene`.
    """

    name: str
    coef: float


def read_sets(text: str) -> tuple[VectorSet, ...]:
    """The sets of BURNISH_STEER: `NAME=DIRECTORY,...`, or a JSON object of `VectorSetSettings` by name.

    Raises:
        SettingsError: a mistake in it.
        CheckpointError: a directory that holds no vectors.
    """
    where = "BURNISH_STEER"
    if text.lstrip().startswith("{"):
        try:
            given = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"is no JSON ({error})", where=where) from None
    else:
        parts = [part.partition("=") for part in text.split(",")]
        given = {name.strip(): {"vectors": place.strip()} for name, _, place in parts}
        if len(given) < len(parts):
            raise SettingsError("names a set twice", where=where)
    found = []
    for name, one in given.items():
        if not _NAME.fullmatch(name) or not isinstance(one, Mapping) or not one.get("vectors"):
            fix = 'write NAME=DIRECTORY, or {"NAME": {"vectors": "DIRECTORY", "top": 0.38}}'
            raise SettingsError(f"has an entry {name!r} that names no directory", where=where, fix=fix)
        settings = VectorSetSettings.parse(dict(one), where=f"{where}.{name}")
        vectors = read_vectors(settings.vectors).best(settings.top)
        vectors.check_mode(settings.mode)
        found.append(VectorSet(name, vectors, settings.mode))
    return tuple(found)


def asked(arguments: Mapping[str, Any] | None, names: Collection[str]) -> SteeringRequest | None:
    """What the `vllm_xargs` of a request ask for; None where they do not speak of steering.

    Args:
        arguments: as above; `steer` is `NAME:COEF`, or `NAME` for -1.
        names: of the sets that there are.

    Raises:
        SettingsError: no such set, or a coefficient that is no finite number.
    """
    value = (arguments or {}).get(FIELD)
    if value is None:
        return None
    where = f"vllm_xargs.{FIELD}"
    if not isinstance(value, str):
        raise SettingsError(f"is {value!r}, which is no text", where=where, fix="write NAME:COEF")
    name, colon, number = value.partition(":")
    if name not in names:
        guess = nearest(name, list(names))
        fix = f"did you mean {guess!r}?" if guess else f"there are {', '.join(sorted(names))}"
        raise SettingsError(f"names the vectors {name!r}, which this server has not loaded", where=where, fix=fix)
    try:
        coef = float(number) if colon else -1.0
    except ValueError:
        coef = math.nan
    if not math.isfinite(coef):
        raise SettingsError(f"has the coefficient {number!r}, which is no finite number", where=where)
    return SteeringRequest(name, coef)
