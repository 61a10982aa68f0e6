"""Mechanisms of sparse attention as a text: `sink:64+local:256+quest:0.1,page=16`.

Parts are joined by +, in the order in which they choose: each among the keys that no part before it has. Behind a
part's colon stands its amount, then its own settings. An amount of keys is a number of them, or up to 1 a share of
those that a query sees.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from burnish.core.errors import SettingsError, nearest
from burnish.core.settings import Settings

WHERE = "attention"
MOST_KEYS, MOST_HELD, MOST_TABLES = 10**9, 2**16, 10**4
"""Keys that an amount may ask for, keys of a page, a window or a pool, which are held at once, and tables."""


class Mechanism(Settings):
    """One mechanism; its field `amount` is what stands behind the colon."""

    kind: ClassVar[Literal["fixed", "selects", "draws", "evicts"]] = "selects"


class Sink(Mechanism):
    """The first tokens."""

    kind = "fixed"
    amount: int = Field(ge=1, le=MOST_KEYS, description="tokens")


class LocalWindow(Mechanism):
    """A query's own token and those before it."""

    kind = "fixed"
    amount: int = Field(ge=1, le=MOST_KEYS, description="tokens")


class _Budget(Mechanism):
    """Chooses an amount of keys."""

    amount: float = Field(gt=0, le=MOST_KEYS, description="keys, or a share of those that are seen")

    @field_validator("amount")
    @classmethod
    def _is_share_or_number(cls, amount: float) -> float:
        if amount > 1 and not amount.is_integer():
            raise ValueError(f"{amount:g} is no share of the keys (up to 1.0) and no number of them")
        return amount


class TopK(_Budget):
    """The largest scores: an upper bound, which needs all scores."""


class TopP(Mechanism):
    """The fewest keys that hold a share of the attention: an upper bound as well."""

    amount: float = Field(gt=0, le=1, description="share of the attention on what is still free")


class Quest(_Budget):
    """Pages by a bound of their scores."""

    page: int = Field(default=16, ge=1, le=MOST_HELD, description="keys of a page")


class DoubleSparsity(_Budget):
    """The largest scores over a few channels."""

    channels: int = Field(default=16, ge=1, description="of a key")
    bits: int = Field(default=4, ge=1, le=16, description="of a channel")


class SnapKV(_Budget):
    """Keys kept once, when the context ends."""

    kind = "evicts"
    window: int = Field(
        default=32, ge=1, le=MOST_HELD, description="last queries of the context, which decide and are kept"
    )
    pool: int = Field(default=7, ge=1, le=MOST_HELD, description="keys over which attention is averaged")

    @field_validator("pool")
    @classmethod
    def _is_odd(cls, pool: int) -> int:
        if pool % 2 == 0:
            raise ValueError(f"{pool} keys have none in their middle: use an odd number")
        return pool


class MagicPig(Mechanism):
    """Keys that share a table of signs with the query; the amount is that of tables."""

    kind = "draws"
    amount: int = Field(ge=1, le=MOST_TABLES, description="tables")
    bits: int = Field(default=8, ge=1, le=62, description="signs of a table")
    shared: Annotated[int, Field(ge=1, le=2)] = Field(default=1, description="tables that must agree")

    @model_validator(mode="after")
    def _has_so_many(self) -> MagicPig:
        if self.shared > self.amount:
            raise ValueError(f"{self.shared} tables cannot agree of {self.amount}")
        return self


class Adaptive(Mechanism):
    """As many keys as keep the denominator's relative error below the amount."""

    kind = "draws"
    amount: float = Field(gt=0, description="relative error")
    delta: float = Field(default=0.1, gt=0, lt=0.5, description="how often it may be larger")
    base: float = Field(default=0.05, gt=0, le=1, description="share of the free keys that is looked at first")


class Random(Mechanism):
    """Every key with one probability."""

    kind = "draws"
    amount: float = Field(gt=0, le=1, description="probability")


PARTS: dict[str, type[Mechanism]] = {
    "sink": Sink,
    "local": LocalWindow,
    "topk": TopK,
    "topp": TopP,
    "quest": Quest,
    "doublesparsity": DoubleSparsity,
    "snapkv": SnapKV,
    "magicpig": MagicPig,
    "adaptive": Adaptive,
    "random": Random,
}


def parts_of(text: str) -> dict[str, Mechanism]:
    """The mechanisms of a text by name, in their order.

    Raises:
        SettingsError: no such mechanism or setting, an amount that it cannot have, or parts that do not compose.
    """
    found: dict[str, Mechanism] = {}
    for written in text.split("+"):
        name, _, settings = (piece.strip() for piece in written.partition(":"))
        if name not in PARTS:
            guess = nearest(name, list(PARTS))
            fix = f"did you mean {guess!r}?" if guess else f"mechanisms are {', '.join(PARTS)}"
            raise SettingsError(f"there is no mechanism {name!r}", where=WHERE, fix=fix)
        if name in found:
            raise SettingsError(f"{name} stands there twice", where=WHERE, fix="leave one out")
        found[name] = _part(name, settings)
    _check_together(found)
    return found


def _part(name: str, text: str) -> Mechanism:
    first, *others = (piece.strip() for piece in text.split(","))
    if not first or "=" in first:
        fix = "write sink:64+local:256+quest:0.1,page=16"
        raise SettingsError(f"{name} has no amount", where=WHERE, fix=fix)
    given: dict[str, Any] = {"amount": first}
    for piece in others:
        key, equals, value = (one.strip() for one in piece.partition("="))
        if not equals or not key or not value:
            raise SettingsError(f"{piece!r} of {name} is no setting", where=WHERE, fix="write quest:0.1,page=16")
        if key in given:
            raise SettingsError(f"{key} of {name} stands there twice", where=WHERE, fix="leave one out")
        given[key] = value
    return PARTS[name].parse(given, where=f"{WHERE}: {name}")


def _check_together(parts: dict[str, Mechanism]) -> None:
    """What draws fills the rest, and so stands last; what is evicted can be chosen by nobody."""
    names = list(parts)
    drawing = [name for name in names if parts[name].kind == "draws"]
    if drawing and drawing[0] != names[-1]:
        after = names[names.index(drawing[0]) + 1]
        raise SettingsError(
            f"{after} cannot follow {drawing[0]}, which draws from all that is left",
            where=WHERE,
            fix=f"put {drawing[0]} last, and no other that draws beside it",
        )
    others = [name for name in names if name not in ("sink", "snapkv")]
    if "snapkv" in parts and others:
        raise SettingsError(
            f"{others[0]} does not compose with snapkv, whose evicted keys nothing can choose any more",
            where=WHERE,
            fix="write snapkv:0.1 or sink:4+snapkv:0.1",
        )
