"""One optimizer object for a whole model: matrices by their own rule, everything else by AdamW.

Trainers and checkpoint code assume one `torch.optim.Optimizer`. So every parameter group names its `algorithm`
(normuon, muon, cosmos, soap, adamw) and this class steps each group by the rule of that name. What the rules share is
here: options and their checks, state in float32 beside bfloat16 weights, saving and loading.

A step has three parts: elementwise work on a parameter (momentum, decay, the update), the orthogonalisation of whole
matrices, and two sums per matrix (its squared norms). Where FSDP2 has sharded the parameters over processes, the first
is done on the local shards by the very same code; `burnish.optim.sharded` does the other two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from burnish.core.errors import SettingsError, nearest
from burnish.optim.maths.rounding import stochastic_bfloat16
from burnish.optim.sharding import (
    Sharding,
    check_processes_agree,
    describe,
    is_dtensor,
    local,
    refuse_mixture,
    refuse_placements,
    sharding_of,
    taking_part,
)

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

LOW_PRECISION = ("master", "stochastic")


@dataclass
class Item:
    """One parameter in one step; of a sharded one the tensors are what lies in this process.

    Attributes:
        parameter: the live parameter.
        gradient: its gradient, never written to.
        state: its optimizer state.
        group: its group's options.
        index: its number in the optimizer, for the seed of stochastic rounding.
        sharding: how the parameter lies over processes; None where it is whole.
    """

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    index: int
    sharding: Sharding | None = None
    _weight: Tensor | None = field(default=None, repr=False)

    @property
    def weight(self) -> Tensor:
        """What to update: the parameter, its float32 master copy, or a float32 copy to be rounded by `commit`."""
        if self._weight is None:
            if self.parameter.dtype is not torch.bfloat16:
                self._weight = self.parameter
            elif self.group["low_precision"] == "master":
                self._weight = self.state["master"]
            else:
                self._weight = self.parameter.float()
        return self._weight

    def commit(self) -> None:
        """Brings the updated weight back into a bfloat16 parameter."""
        if self.parameter.dtype is torch.bfloat16:
            if self.group["low_precision"] == "master":
                self.parameter.copy_(self.weight)
            else:
                # A generator keyed by step and parameter, so that a resumed run draws the same numbers.
                seed = (self.group["seed"] * 1_000_003 + self.group["num_steps"]) * 65_537 + self.index
                if self.sharding is not None:  # copies of a shard round alike, different shards differently
                    seed += self.sharding.rank * 15_485_863
                generator = torch.Generator(self.parameter.device).manual_seed(seed)
                self.parameter.copy_(stochastic_bfloat16(self.weight, generator))
        self._weight = None

    def decay_(self, weight: Tensor) -> None:
        """W <- (1 - lr wd) W: the decay uses the plain learning rate, not one scaled by the shape."""
        if self.group["weight_decay"]:
            weight.mul_(1 - self.group["lr"] * self.group["weight_decay"])


class UpdateRule:
    """How the parameters of one algorithm are stepped. Rules hold no state; `Item` carries it."""

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        """Refuses options that do not fit; raises `SettingsError`."""

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        """Refuses a parameter that this algorithm cannot step where it is sharded; raises `SettingsError`."""
        raise SettingsError(
            f"the parameter is sharded over {sharding.size} processes, which {self.name} does not support",
            where=where,
            fix="use normuon, muon, cosmos or adamw, or replicate it (DDP)",
        )

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """All state of one parameter, made when the optimizer is made, so that every process has the same keys.

        State of a sharded parameter is sharded too, as DTensors, so that distributed checkpoints can cut it anew.
        """
        raise NotImplementedError

    def update(self, items: list[Item]) -> None:
        """One step of all parameters of this algorithm."""
        raise NotImplementedError


class MatrixOptimizer(torch.optim.Optimizer):
    """Base of NorMuon, Muon, COSMOS, SOAP and AdamW.

    Args:
        params: parameters, (name, parameter) pairs, or groups. A group may set `algorithm` and any option of it.
        matrix: options of groups without `algorithm`.
        adamw: options of groups with algorithm "adamw".

    Raises:
        SettingsError: an option out of range, a parameter twice, a parameter that the algorithm cannot step.
    """

    algorithm: ClassVar[str]

    def __init__(
        self, params: Iterable[Any], *, matrix: dict[str, Any], adamw: dict[str, Any], common: dict[str, Any]
    ) -> None:
        self._options = {self.algorithm: matrix | common, "adamw": adamw | common}
        self._seen: set[int] = set()
        self._on_mesh = self._agreed = False
        super().__init__(params, {"lr": matrix["lr"]})

    @classmethod
    def for_model(cls, model: nn.Module, lr: float, *, split: bool = False, lora: bool = False, **options: Any) -> Self:
        """The optimizer of a model, with every parameter routed to the rule that fits it.

        Args:
            model: a transformers model (or any module); parameters that need no gradient are left out.
            lr: learning rate.
            split: orthogonalise the parts of fused q, k, v and gate, up matrices on their own.
            lora: give LoRA's A and B the matrix update too; AdamW by default.
            **options: of the class, such as `weight_decay`, `scale`, `adamw_lr`.
        """
        from burnish.optim.routing import param_groups, route

        routes = route(model, split=split, lora=lora, algorithm=cls.algorithm)
        make = cast("Callable[..., Self]", cls)  # subclasses take the options of their algorithm
        return make(param_groups(model, routes), lr=lr, **options)

    @classmethod
    def option_names(cls) -> list[str]:
        """The options that the class takes beside parameters and learning rate."""
        return [name for name in inspect.signature(cls).parameters if name not in ("params", "lr")]

    # -- groups ------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its algorithm's options filled in and checked, and makes its state."""
        from burnish.optim.algorithms import RULES  # the table names every rule, and every rule needs this module

        group = dict(param_group)
        algorithm = group.setdefault("algorithm", self.algorithm)
        if algorithm not in RULES:
            guess = nearest(str(algorithm), list(RULES))
            advice = f"did you mean {guess!r}?" if guess else f"algorithms are {', '.join(RULES)}"
            raise SettingsError(f"there is no algorithm {algorithm!r}", where=self._name(), fix=advice)
        rule = RULES[algorithm]
        given = self._options.get(algorithm, rule.defaults | self._common())
        for key, value in given.items():
            group.setdefault(key, value)
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        group["params"] = list(group["params"])
        first = len(self.param_groups)
        self._check(group, rule, number=first)
        super().add_param_group(group)
        named = self._named_parameters()
        refuse_mixture(named, self._name())
        self._on_mesh, self._agreed = is_dtensor(named[0][1]), False
        self._make_state(self.param_groups[first], rule)

    def _name(self) -> str:
        return type(self).__name__

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        """All parameters in order, with their names where those are known."""
        named: list[tuple[str, Tensor]] = []
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [
                f"parameter {place} of group {number}" for place in range(len(group["params"]))
            ]
            named += zip(names, group["params"], strict=True)
        return named

    def _common(self) -> dict[str, Any]:
        options = self._options["adamw"]
        return {key: options[key] for key in ("low_precision", "seed", "num_steps")}

    def _check(self, group: dict[str, Any], rule: UpdateRule, *, number: int) -> None:
        where = f"{self._name()}, group {number} ({rule.name})"
        if not group["params"]:
            raise SettingsError("has no parameters", where=where)
        _check_types(group, rule.defaults, where)
        if not group["lr"] > 0:
            raise SettingsError(f"lr is {group['lr']}, but must be positive", where=where)
        if not group["weight_decay"] >= 0:
            raise SettingsError(f"weight_decay is {group['weight_decay']}, but must not be negative", where=where)
        for beta, closed in zip(group["betas"], (False, rule.name == "normuon"), strict=False):
            if not (0 <= beta < 1 or (closed and beta == 1)):
                raise SettingsError(f"betas are {tuple(group['betas'])}, but must lie in [0, 1)", where=where)
        if group["low_precision"] not in LOW_PRECISION:
            raise SettingsError(f"low_precision is {group['low_precision']!r}, not master or stochastic", where=where)
        for position, entry in enumerate(group["params"]):
            name, parameter = entry if isinstance(entry, tuple) else (f"parameter {position}", entry)
            here = f"{where}, {name} {tuple(parameter.shape)}"
            refuse_unsupported(parameter, here)
            if id(parameter) in self._seen:
                raise SettingsError("this parameter was given twice", where=here, fix="list it in one group only")
            self._seen.add(id(parameter))
            sharding = sharding_of(parameter)
            # A tensor without storage has the shape of the whole, which is what options must fit.
            rule.check(group, parameter if sharding is None else torch.empty(sharding.shape, device="meta"), here)
            if sharding is not None:
                rule.check_sharding(group, parameter, sharding, here)

    def _make_state(self, group: dict[str, Any], rule: UpdateRule) -> None:
        for parameter in group["params"]:
            low = parameter.dtype is torch.bfloat16
            dtype = torch.float32 if low else parameter.dtype
            state = rule.new_state(parameter.detach(), group, dtype)
            if low and group["low_precision"] == "master":
                state["master"] = parameter.detach().float()
            self.state[parameter] = state

    # -- stepping ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Parameters without a gradient are left alone, decay included.

        Args:
            closure: evaluates the model again and returns the loss, as in every torch optimizer.

        Returns:
            What the closure returned.
        """
        from burnish.optim.algorithms import RULES

        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work: dict[str, list[Item]] = {}
        for item in self._items_on_mesh() if self._on_mesh else self._items():
            work.setdefault(item.group["algorithm"], []).append(item)
        for algorithm, items in work.items():
            RULES[algorithm].update(items)
        for group in self.param_groups:
            group["num_steps"] += 1
        return loss

    def _items(self) -> Iterator[Item]:
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.is_sparse:
                        raise SettingsError("gradients are sparse", where=self._name(), fix="use dense embeddings")
                    yield Item(parameter, parameter.grad, self.state[parameter], group, index)
                index += 1

    def _items_on_mesh(self) -> Iterator[Item]:
        """The shards of this process, of all parameters that have a gradient in any process."""
        named = self._named_parameters()
        if not self._agreed:
            facts = {name: describe(parameter) for name, parameter in named}
            for number, group in enumerate(self.param_groups):
                options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
                facts[f"the options of group {number}"] = str(sorted(options.items()))
            check_processes_agree(cast("Any", named[0][1]).device_mesh, facts, self._name())
            self._agreed = True
        stepped = taking_part([parameter for _, parameter in named])
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if stepped[index]:
                    shard = local(parameter)
                    if parameter.grad is not None and parameter.grad.placements != parameter.placements:
                        raise SettingsError(
                            f"the gradient of {named[index][0]} is {describe(parameter.grad)}, but the parameter "
                            f"{describe(parameter)}",
                            where=self._name(),
                            fix="give the gradient the placements of its parameter, as FSDP2 does",
                        )
                    gradient = torch.zeros_like(shard) if parameter.grad is None else local(parameter.grad)
                    state = {key: local(value) for key, value in self.state[parameter].items()}
                    yield Item(shard, gradient, state, group, index, sharding_of(parameter))
                index += 1

    # -- saving ------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its dtype: torch would round float32 state of bfloat16 weights to bfloat16.

        Raises:
            SettingsError: the state was sharded in another way, or not at all.
        """
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        live = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, live, strict=False):  # torch itself refuses lists of different lengths
            for key, value in state_dict["state"].get(number, {}).items():
                here = self.state[parameter].get(key)
                if isinstance(here, Tensor) and isinstance(value, Tensor) and describe(here) != describe(value):
                    self._refuse_state(key, value, here)
        super().load_state_dict(state_dict)
        for number, parameter in zip(saved, live, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    device = self.state[parameter][key].device
                    self.state[parameter][key] = value.to(device)

    def _refuse_state(self, key: str, saved: Tensor, here: Tensor) -> None:
        """Tells state that is of other processes from state that is of other parameters; the latter torch refuses."""
        if is_dtensor(saved) or is_dtensor(here):
            raise SettingsError(
                f"the saved {key} is {describe(saved)}, but here it is {describe(here)}",
                where=self._name(),
                fix="save and load with torch.distributed.checkpoint, which cuts state for any number of processes",
            )


def _check_types(group: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """Options are of the kind that their defaults are: a number, true or false, a word, or several numbers.

    Raises:
        SettingsError: one is not.
    """
    for key, default in defaults.items():
        value, right, kind = group[key], True, ""
        if isinstance(default, bool):
            right, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int | float):
            right, kind = isinstance(value, int | float | Tensor) and not isinstance(value, bool), "a number"
        elif isinstance(default, tuple):
            right = isinstance(value, tuple | list) and len(value) == len(default)
            right = right and all(isinstance(part, int | float) for part in value)
            kind = f"{len(default)} number{'s' if len(default) > 1 else ''}"
        if not right:
            raise SettingsError(f"{key} is {value!r}, but must be {kind}", where=where)


def refuse_unsupported(parameter: Tensor, where: str) -> None:
    """Parameters that no rule can step.

    Raises:
        SettingsError: float16 or integer weights, FSDP1's flattened parameters, or a mesh with tensor parallelism.
    """
    if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise SettingsError(
            f"weights are {str(parameter.dtype).removeprefix('torch.')}", where=where, fix="use float32 or bfloat16"
        )
    if hasattr(parameter, "_is_flat_param"):
        raise SettingsError(
            "FSDP1 has flattened the matrices away",
            where=where,
            fix="use FSDP2 (torch.distributed.fsdp.fully_shard)",
        )
    if is_dtensor(parameter):
        refuse_placements(parameter, where)
