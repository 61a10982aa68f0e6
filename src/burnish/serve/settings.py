"""The two files of a simulation: a policy, which a live server reads as well, and an engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from burnish.core.errors import SettingsError
from burnish.core.outside import read_bytes
from burnish.core.settings import Settings
from burnish.core.yaml12 import Loader

if TYPE_CHECKING:
    from burnish.serve.costs import CostModel
    from burnish.serve.engine import EngineShape
    from burnish.serve.policies.fleet import Fleet
    from burnish.serve.policies.pauses import PauseLaws
    from burnish.serve.policies.protocol import Order, Retention

OrderName = Literal["fcfs", "vtc", "shares", "dlpm", "programs", "least-service"]
MAX_DEPTH = 8


_ONLY_WITH = {
    "hold_seconds": ("hold", "fixed"),
    "longest_hold": ("hold", "learned"),
    "pauses": ("hold", "learned"),
    "charge": ("hold", "learned"),
    "quantum": ("order", "dlpm"),
    "spare": ("order", "shares"),
    "take_places": ("order", "shares"),
    "exchange_seconds": ("order", "shares"),
}
"""Settings of a policy that do nothing without another one."""


class PolicySettings(Settings):
    """A policy: who is served next, and what is kept for those who pause."""

    name: str = Field(default="", description="for reports; the order's where nothing is said")
    order: OrderName = Field(default="fcfs", description="who is admitted next")
    weights: dict[str, float] = Field(default={}, description="of organisation/team/tenant; 1 where nothing is said")
    prompt_price: int = Field(default=1, ge=0, le=1_000_000, description="of an uncached token of a prompt")
    output_price: int = Field(default=2, ge=0, le=1_000_000, description="of an output token")
    credit: int = Field(default=0, ge=0, description="tokens by which one that begins to wait may be ahead")
    lift_when_idle: bool = Field(default=True, description="lift who begins to wait also where nobody else does")
    by_program: bool = Field(default=False, description="the workflows of a tenant share among themselves as well")
    within: Literal["fcfs", "programs"] = Field(default="fcfs", description="order of the requests of one tenant")
    spare: int = Field(
        default=0, ge=0, description="places left to tenants who run less than their share of the others"
    )
    take_places: bool = Field(
        default=False, description="a tenant below its share of those who run takes a place where none is free"
    )
    exchange_seconds: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="several engines tell each other so often what they served, and share one tree; 0 is never",
    )
    quantum: int = Field(default=4096, ge=1, description="of dlpm, in price of tokens")
    growth: float = Field(
        default=1.0, ge=0, description="turns of growth that newcomers leave room for, of those who live"
    )
    hold: Literal["none", "fixed", "learned"] = Field(
        default="none", description="for how long a paused context is kept"
    )
    hold_seconds: float = Field(default=2.0, gt=0, le=1e9, description="of hold: fixed")
    longest_hold: float = Field(default=600.0, gt=0, le=1e9, description="of hold: learned, seconds")
    charge: Literal["expected", "longest"] = Field(
        default="expected", description="what a learned hold costs: the time it is expected to last, or its longest"
    )
    pauses: str = Field(
        default="", description="directory of a trained model of pauses, for hold: learned; else what was seen"
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, weights: Any) -> Any:
        """A tree is written as paths, or as nested groups whose own weight is `weight`."""
        return _flat(weights) if isinstance(weights, dict) else weights

    @model_validator(mode="after")
    def _fit(self) -> PolicySettings:
        for path, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"the weight of {path!r} is {weight:g}, but a weight is above 0")
            if not 1e-9 <= weight <= 1e9:
                raise ValueError(f"the weight of {path!r} is {weight:g}; write weights between 1e-9 and 1e9")
            if not path or "" in path.split("/"):
                raise ValueError(f"{path!r} is no path of tenants; write organisation/team/tenant")
        if self.weights and self.order != "shares":
            raise ValueError(f"weights need order: shares, and {self.order} has none")
        if not (self.prompt_price or self.output_price):
            raise ValueError("prompt_price and output_price are both 0, so that nothing costs anything")
        if 0 < self.exchange_seconds < 0.01:
            raise ValueError(f"exchange_seconds is {self.exchange_seconds:g}; give 0, or 0.01 and more")
        for field, (setting, value) in _ONLY_WITH.items():
            if field in self.model_fields_set and getattr(self, setting) != value:
                raise ValueError(f"{field} needs {setting}: {value}, but {setting} is {getattr(self, setting)}")
        return self

    def weight(self, tenant: str) -> float:
        """Of a tenant: the product of the weights along its path."""
        names = tenant.split("/")
        return math.prod(self.weights.get("/".join(names[:depth]), 1.0) for depth in range(1, len(names) + 1))

    @property
    def called(self) -> str:
        held = {"none": "", "fixed": f" + {self.hold_seconds:g} s", "learned": " + learned hold"}[self.hold]
        return self.name or f"{self.order}{held}"

    @property
    def warning(self) -> str:
        """What is known to go wrong with it; empty where nothing is."""
        if self.hold == "none" or self.order in ("programs", "least-service"):
            return ""
        if self.order == "shares" and self.within == "programs":
            return ""
        return (
            f"{self.called}: holds gain less where the order does not put returning workflows first (simulated at 1.3 "
            "times the load that a cache bears, workflows end 1.1 to 1.6 times sooner than with plain caching, with "
            "order: programs 1.1 to 5.0 times); use order: programs"
        )

    def check_places(self, places: int) -> None:
        """
        Raises:
            SettingsError: it leaves nobody a place of an engine on which so many requests run at a time.
        """
        if self.spare >= places:
            what = f"spare is {self.spare}, but {places} requests run at a time"
            raise SettingsError(what, where=self.called, fix=f"give a spare below {places}, or the engine more places")

    def check_exchange(self, directory: str, *, where: str) -> None:
        """
        Raises:
            SettingsError: a directory is named for an exchange that the policy does not have.
        """
        if directory and not self.exchange_seconds:
            fix = "write order: shares and exchange_seconds: 1 into the policy, or name no directory"
            raise SettingsError(f"{self.called} exchanges nothing with other engines", where=where, fix=fix)

    def objects(self, costs: CostModel) -> tuple[Order, Retention]:
        """A policy of an engine; `costs` says what computing a context again takes."""
        from burnish.serve.costs import step
        from burnish.serve.policies.retention import SECOND, FixedHold, LearnedHold, NoRetention

        if self.hold == "none":
            return self._order(), NoRetention()
        if self.hold == "fixed":
            return self._order(), FixedHold(self.hold_seconds)
        return self._order(), LearnedHold(
            lambda tokens: step(costs, [(tokens, 0)], 0, 0) / SECOND, self.longest_hold, self.pause_laws(), self.charge
        )

    def fleet(self, engines: int) -> Fleet | None:
        """What one of so many engines knows of the others; None where each has a tree of its own."""
        from burnish.serve.policies.fleet import Fleet

        if not self.exchange_seconds or engines == 1:
            return None
        return Fleet(
            lambda path: self.weights.get("/".join(path), 1.0),
            self.exchange_seconds,
            lift_when_idle=self.lift_when_idle,
        )

    def pause_laws(self) -> PauseLaws | None:
        """Of the trained model; None where there is none, and pauses are learned from what is seen.

        Raises:
            CheckpointError, SettingsError: it is no model of pauses.
        """
        from burnish.serve.policies.pauses import read_pauses

        return read_pauses(Path(self.pauses)) if self.pauses else None

    def _order(self) -> Order:
        from burnish.serve.policies import queues, shares

        def programs() -> Order:
            return queues.ProgramFirst(queues.Growth(self.growth))

        def tree() -> Order:
            return shares.FairShares(
                self.weights,
                prompt_price=self.prompt_price,
                output_price=self.output_price,
                credit=self.credit,
                lift_when_idle=self.lift_when_idle,
                by_program=self.by_program,
                within=programs if self.within == "programs" else queues.FirstComeFirstServed,
                spare=self.spare,
                takes=self.take_places,
            )

        made: dict[str, Callable[[], Order]] = {
            "fcfs": queues.FirstComeFirstServed,
            "vtc": lambda: shares.VirtualTokenCounter(
                prompt_price=self.prompt_price, output_price=self.output_price, lift_when_idle=self.lift_when_idle
            ),
            "shares": tree,
            "dlpm": lambda: shares.DeficitLongestPrefix(self.quantum, self.prompt_price, self.output_price),
            "programs": programs,
            "least-service": lambda: queues.LeastAttainedService(queues.Growth(self.growth)),
        }
        return made[self.order]()


def _flat(weights: dict[Any, Any], above: str = "", depth: int = 1) -> dict[str, Any]:
    """{"a": {"weight": 2, "b": 1}} as {"a": 2, "a/b": 1}."""
    if depth > MAX_DEPTH:
        raise ValueError(f"groups are nested deeper than {MAX_DEPTH} levels")
    found: dict[str, Any] = {}
    for name, value in weights.items():
        path = f"{above}{name}"
        if isinstance(value, dict):
            if "weight" in value:
                found[path] = value["weight"]
            found |= _flat({key: one for key, one in value.items() if key != "weight"}, f"{path}/", depth + 1)
        else:
            found[path] = value
    return found


class LinearCost(Settings):
    """Nanoseconds of a step: its own, of a prompt token, of a token that a decoding request holds, and of each."""

    step: float = Field(default=5e6, ge=0)
    prefill: float = Field(default=40e3, ge=0)
    context: float = Field(default=40.0, ge=0)
    decode: float = Field(default=20e3, ge=0)


class RooflineCost(Settings):
    """A device and a model: the larger of the times to compute and to read."""

    parameters: float = Field(default=8.03e9, gt=0)
    layers: int = Field(default=32, gt=0)
    width: int = Field(default=4096, gt=0)
    kv_bytes: float = Field(default=131072.0, gt=0, description="of one token, over all layers")
    weight_bytes: float = Field(default=2.0, gt=0, description="of one parameter")
    flops: float = Field(default=989e12, gt=0, description="of the device in a second, dense")
    bandwidth: float = Field(default=3.35e12, gt=0, description="bytes that the device reads in a second")
    efficiency: float = Field(default=0.6, gt=0, le=1)


class TableCost(Settings):
    """Measured steps: [tokens, ns] of prompts, [requests, ns] of decoding."""

    prefill: list[tuple[int, float]] = Field(min_length=1)
    decode: list[tuple[int, float]] = Field(min_length=1)
    context: float = Field(default=0.0, ge=0)

    @field_validator("prefill", "decode")
    @classmethod
    def _rising(cls, points: list[tuple[int, float]]) -> list[tuple[int, float]]:
        if any(b[0] <= a[0] for a, b in pairwise(points)):
            raise ValueError("its first numbers must rise")
        if any(time < 0 for _, time in points):
            raise ValueError("a time is below 0")
        return points


class EngineSettings(Settings):
    """An engine of the simulator. Limits have the names that vLLM gives them."""

    num_blocks: int = Field(default=800, ge=1, description="KV blocks of the pool")
    block_size: int = Field(default=512, ge=1, description="tokens of a block")
    max_num_batched_tokens: int = Field(default=8192, ge=1)
    max_num_seqs: int = Field(default=256, ge=1)
    reserve_full: bool = Field(default=True, description="admit a request only where its whole prompt fits")
    watermark: float = Field(default=0.0, ge=0, lt=1)
    budget: float = Field(default=0.5, ge=0, le=1, description="share of the pool that may be held for those who pause")
    prefix_caching: bool = True
    chunked_prefill: bool = Field(default=True, description="a prompt may be computed in several steps")
    long_prefill_token_threshold: int = Field(
        default=0, ge=0, description="tokens of one prompt in a step at most; 0 is no limit"
    )
    cost: Literal["linear", "roofline", "table", "dynosim"] = "linear"
    linear: LinearCost = LinearCost()
    roofline: RooflineCost = RooflineCost()
    table: TableCost | None = None

    @model_validator(mode="after")
    def _has_table(self) -> EngineSettings:
        if self.long_prefill_token_threshold and not self.chunked_prefill:
            raise ValueError("long_prefill_token_threshold cuts prompts, and chunked_prefill: false forbids that")
        if self.cost == "table" and self.table is None:
            raise ValueError("cost: table needs the table itself, `table: {prefill: [...], decode: [...]}`")
        for cost in ("linear", "roofline", "table"):
            if cost in self.model_fields_set and cost != self.cost:
                raise ValueError(f"{cost} needs cost: {cost}, but cost is {self.cost}")
        return self

    def shape(self) -> EngineShape:
        from burnish.serve.engine import EngineShape

        return EngineShape(
            self.num_blocks,
            self.block_size,
            self.max_num_batched_tokens,
            self.max_num_seqs,
            self.reserve_full,
            self.watermark,
            self.budget,
            self.prefix_caching,
            self.chunked_prefill,
            self.long_prefill_token_threshold,
        )

    def costs(self) -> CostModel:
        from burnish.serve import costs

        if self.cost == "linear":
            return costs.Linear(**self.linear.model_dump())
        if self.cost == "roofline":
            return costs.Roofline(**self.roofline.model_dump())
        if self.cost == "dynosim":
            return costs.DynoSim(self.num_blocks * self.block_size)
        assert self.table is not None
        return costs.Measured(self.table.prefill, self.table.decode, self.table.context)


def read_policy(name: str | Path) -> PolicySettings:
    """A policy file, or the policy that has the plain name of an order.

    Raises:
        SettingsError: neither, or a file with a mistake, which it names.
    """
    orders = OrderName.__args__
    if str(name) in orders:
        return PolicySettings(order=str(name))  # pyright: ignore[reportArgumentType]
    if not Path(name).is_file():
        fix = f"give a YAML file or one of {', '.join(orders)}"
        raise SettingsError("is no policy file", where=str(name), fix=fix)
    found = PolicySettings.parse(_read(Path(name)), where=str(name))
    if not found.pauses:
        return found
    place = Path(name).resolve().parent / found.pauses  # a server is started in another directory
    if not (place / "config.json").is_file():
        fix = "make one with burnish events fit"
        raise SettingsError(f"{found.pauses!r} holds no model of pauses", where=f"{name}, pauses", fix=fix)
    return found.model_copy(update={"pauses": str(place)})


def read_engine(path: Path) -> EngineSettings:
    """An engine file.

    Raises:
        SettingsError: not one; the message names the mistake.
    """
    return EngineSettings.parse(_read(path), where=str(path))


def _read(path: Path) -> dict[str, Any]:
    text = read_bytes(path, error=SettingsError).decode("utf-8", "replace")
    try:
        found = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError) as error:
        what = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else "is nested too deep"
        raise SettingsError(f"is not YAML ({what})", where=str(path)) from None
    if not isinstance(found, dict):
        raise SettingsError("holds no settings", where=str(path), fix="write lines such as `order: vtc`")
    return {str(key): value for key, value in found.items()}
