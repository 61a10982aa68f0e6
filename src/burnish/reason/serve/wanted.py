"""Which strategy a request wants: by the model's name, a header or a field, in one way only.

model="rsa(n=8,k=4,loops=3)@qwen"       X-Burnish-Strategy: gsa:4       extra_body={"burnish": {"strategy": "gsa:4"}}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import SettingsError
from burnish.reason.serve.shapes import Refusal
from burnish.reason.strategies import STRATEGIES, strategy
from burnish.reason.strategies.base import Strategy

HEADER = "X-Burnish-Strategy"
MOST = 4096
"""Calls of one request's strategy, so that no client keeps the others waiting for a slip of its finger."""
_IN_BRACKETS = r"\s*\([^()]*\)"
_KNOWN = rf"(?:{'|'.join(STRATEGIES)})(?:\s*:\s*[\w.-]+|{_IN_BRACKETS})?"
_UNKNOWN = rf"[\w-]+(?:\s*:\s*\d+|{_IN_BRACKETS})"
_NAMED = re.compile(rf"\s*(?:{_KNOWN}|{_UNKNOWN})\s*@(.+)", re.DOTALL)


@dataclass(frozen=True)
class Wanted:
    """
    Attributes:
        strategy: None where the request is to pass as it is.
        model: as the server behind calls it.
    """

    strategy: Strategy | None
    model: str


def wanted(body: Mapping[str, Any], headers: Mapping[str, str]) -> Wanted:
    """
    Raises:
        Refusal: no such strategy or setting, one inside another, or two at a time.
    """
    in_name, model = parted(str(body["model"]))
    given = {spec for spec in (in_name, headers.get(HEADER, ""), _of_field(body)) if spec}
    if len(given) > 1:
        raise Refusal(f"names several strategies: {', '.join(sorted(given))}", param="model", code="invalid_strategy")
    if not given:
        return Wanted(None, model)
    if parted(model)[0]:
        raise Refusal("a strategy cannot stand inside a strategy", param="model", code="invalid_strategy")
    try:
        made = strategy(given.pop())
    except SettingsError as error:
        raise Refusal(str(error), param="model", code="invalid_strategy") from None
    size = math.prod(getattr(made, name, None) or 1 for name in ("n", "loops"))
    if size > MOST:
        what = f"asks for {size:,} answers, but one request may have {MOST:,}"
        raise Refusal(what, param="model", code="invalid_strategy")
    if made.reads_files:
        what = f"{made.name} reads files of the server's machine, which no client may name; use burnish reason run"
        raise Refusal(what, param="model", code="invalid_strategy")
    return Wanted(made, model)


def without_strategy(body: Mapping[str, Any], found: Wanted) -> bytes:
    """A request whose strategy is left out: a call of tools is a turn of the client's own."""
    plain = {name: value for name, value in body.items() if name != "burnish"} | {"model": found.model}
    return json.dumps(plain, ensure_ascii=False).encode()


def parted(model: str) -> tuple[str, str]:
    """Strategy and model of a name; a name with an @ that names no strategy is a model's."""
    if found := _NAMED.fullmatch(model):
        return model[: found.start(1) - 1].strip(), found[1].strip()
    return "", model


def _of_field(body: Mapping[str, Any]) -> str:
    given = body.get("burnish")
    if given is None:
        return ""
    spec = given.get("strategy") if isinstance(given, dict) and given.keys() == {"strategy"} else given
    if not isinstance(spec, str) or not spec:
        raise Refusal('burnish must be {"strategy": "gsa:4"} or the like', param="burnish", code="invalid_strategy")
    return spec
