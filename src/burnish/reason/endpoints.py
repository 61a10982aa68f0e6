"""Models of a run as a person names them: one in a word, several in a file with their prices.

    NAME=URL,MODEL                     cheap=http://127.0.0.1:8000/v1,qwen-small

    [cheap]                            # models.toml
    url = "http://127.0.0.1:8000/v1"
    model = "qwen-small"
    price_in = 0.10                    # money for a million tokens; without prices a cost is unknown, never 0
    price_out = 0.40

A key is never in the file: `key_variable` names the variable of the environment that holds it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.settings import Settings
from burnish.reason.calls import Endpoint, Price


class Served(Settings):
    """One table of the file.

    Attributes:
        url: up to and with `/v1`.
        model: as the server calls it; the table's name where empty.
        price_in, price_out, price_cached: for a million tokens read, written, and read from the cache.
        concurrency, key_variable, token_field, seeds, timeout: as of an `Endpoint`.
        sampling: fields of every call, over those of the command.
    """

    url: str
    model: str = ""
    price_in: float | None = Field(None, ge=0)
    price_out: float | None = Field(None, ge=0)
    price_cached: float | None = Field(None, ge=0)
    concurrency: int = Field(64, ge=1)
    key_variable: str = "OPENAI_API_KEY"
    token_field: str = "max_tokens"
    seeds: bool = True
    timeout: float = Field(600.0, gt=0)
    sampling: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _both_prices(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out belong together")
        return self

    def endpoint(self, name: str, sampling: Mapping[str, Any]) -> Endpoint:
        return Endpoint(
            self.url,
            self.model or name,
            name,
            key_variable=self.key_variable,
            price=price(self.price_in, self.price_out, self.price_cached),
            concurrency=self.concurrency,
            sampling={**sampling, **self.sampling},
            token_field=self.token_field,
            seeds=self.seeds,
            timeout=self.timeout,
        )


def price(read: float | None, written: float | None, cached: float | None = None) -> Price | None:
    """None where one of both is not known.

    Raises:
        SettingsError: one without the other, or one that is no price.
    """
    if (read is None) != (written is None):
        raise SettingsError("one of two prices is missing", fix="give the price of reading and that of writing")
    for one in (read, written, cached):
        if one is not None and not 0 <= one < math.inf:
            raise SettingsError(f"a price of {one:g} is none", fix="give what a million tokens cost, 0 or more")
    return None if read is None or written is None else Price(read, written, cached)


def named(spec: str, sampling: Mapping[str, Any], **fields: Any) -> Endpoint:
    """The endpoint of NAME=URL,MODEL.

    Raises:
        SettingsError: it is not of that form.
    """
    name, equals, rest = spec.partition("=")
    url, comma, model = rest.rpartition(",")
    if not (name.strip() and equals and comma and url.strip() and model.strip()):
        shown = spec.rpartition("@")[2].partition("?")[0]  # an address may hold credentials
        raise SettingsError(f"{shown!r} names no model", fix="write NAME=URL,MODEL")
    return Endpoint(url.strip(), model.strip(), name.strip(), sampling=dict(sampling), **fields)


def read_endpoints(text: str, sampling: Mapping[str, Any], *, where: str) -> list[Endpoint]:
    """Those of a file, in its order.

    Raises:
        SettingsError: no TOML, no tables, or a setting that cannot be.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"is no TOML ({error})", where=where) from None
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError("must hold one table for each model", where=where, fix='write [NAME] and url = "..." below')
    return [Served.parse(table, where=f"{where}, [{name}]").endpoint(name, sampling) for name, table in tables.items()]


def priced(endpoints: Sequence[Endpoint], prices: Price | None) -> list[Endpoint]:
    """The endpoints, with a price for those that have none."""
    return [one if one.price or not prices else replace(one, price=prices) for one in endpoints]
