"""One optimizer object for a whole model: matrices by their own rule, everything else by AdamW.

Trainers and checkpoint code assume one `torch.optim.Optimizer`. So every parameter group names its `algorithm`
(normuon, cosmos, adamw ...) and this class steps each group by the rule of that name. What the rules share is here:
options and their checks, state in float32 beside bfloat16 weights, saving and loading.

A step has three parts: elementwise work on a parameter (momentum, decay, the update), the orthogonalisation of whole
matrices, and two sums per matrix (its squared norms). Where FSDP2 has sharded the parameters over processes, the first
is done on the local shards by the very same code; `burnish.optim.exchange` and the modules over it do the other two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.adamw import AdamWRule
from burnish.optim.registry import optimizer_class
from burnish.optim.routing import param_groups, route
from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharding import (
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


class SharedOptions(TypedDict, total=False):
    """What every matrix optimizer takes beside options of its own; what is not given is as in `AdamW`.

    adamw_lr, adamw_betas, adamw_eps: of groups with algorithm "adamw"; the rate is that of the matrices if not given.
    low_precision, seed: how bfloat16 weights are kept.
    """

    adamw_lr: float | None
    adamw_betas: tuple[float, float]
    adamw_eps: float
    low_precision: str
    seed: int


class MatrixOptimizer(torch.optim.Optimizer):
    """Base of NorMuon, Muon, COSMOS, SOAP and AdamW.

    Args:
        params: parameters, (name, parameter) pairs, or groups. A group may set `algorithm` and any option of it.
        options: of groups without `algorithm`.
        shared: see `SharedOptions`.
        adamw: of groups with algorithm "adamw", where they are not AdamW's own defaults.

    Raises:
        SettingsError: an option out of range, a parameter twice, a parameter that the algorithm cannot step.
        TypeError: an option that does not exist.

    Attributes:
        rule: how its matrices are stepped.
        bytes_per_parameter: float32 weight, gradient and state, roughly: embeddings have AdamW's two moments always.
    """

    rule: ClassVar[UpdateRule]
    bytes_per_parameter: ClassVar[int]

    def __init__(
        self,
        params: Iterable[Any],
        options: Mapping[str, Any],
        shared: SharedOptions,
        *,
        adamw: Mapping[str, Any] | None = None,
    ) -> None:
        for name in shared:
            if name not in SharedOptions.__annotations__:
                raise TypeError(f"{self._name()}() got an unexpected keyword argument {name!r}")
        theirs = {"lr": options["lr"], "weight_decay": options["weight_decay"], **(adamw or {})}
        theirs |= {name.removeprefix("adamw_"): value for name, value in shared.items() if value is not None}
        theirs = AdamW.defaults() | theirs
        self._common = {"low_precision": theirs["low_precision"], "seed": theirs["seed"], "num_steps": 0}
        self._options = {"adamw": theirs, self.rule.name: {**self.rule.group_options, **options}}
        self._seen: set[int] = set()
        self._on_mesh = self._agreed = False
        super().__init__(params, {"lr": options["lr"]})

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
        routes = route(model, split=split, lora=lora, algorithm=cls.rule.name)
        make = cast("Callable[..., Self]", cls)  # subclasses take the options of their algorithm
        return make(param_groups(model, routes), lr=lr, **options)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What a group of this algorithm has where nothing is said: the defaults of the constructor, and the layout."""
        parameters = inspect.signature(cls).parameters.values()
        return {**cls.rule.group_options, **{p.name: p.default for p in parameters if p.default is not p.empty}}

    @classmethod
    def option_names(cls) -> list[str]:
        """The options that the class takes beside parameters and learning rate."""
        names = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr")]
        return [*names[:-1], *SharedOptions.__annotations__] if names[-1] == "shared" else names

    # -- groups ------------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with its algorithm's options filled in and checked, and makes its state."""
        group = dict(param_group)
        algorithm = group.setdefault("algorithm", self.rule.name)
        kind = self._kind(algorithm)
        for key, value in (self._options.get(algorithm, kind.defaults()) | self._common).items():
            group.setdefault(key, value)
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        group["params"] = list(group["params"])
        first = len(self.param_groups)
        self._check(group, kind, number=first)
        super().add_param_group(group)
        named = self._named_parameters()
        refuse_mixture(named, self._name())
        self._on_mesh, self._agreed = is_dtensor(named[0][1]), False
        self._make_state(self.param_groups[first], kind.rule)

    def _name(self) -> str:
        return type(self).__name__

    def _kind(self, algorithm: str) -> type[MatrixOptimizer]:
        """The class behind the algorithm of a group."""
        if algorithm == self.rule.name:
            return type(self)
        return AdamW if algorithm == AdamW.rule.name else optimizer_class(algorithm, where=self._name())

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        """All parameters in order, with their names where those are known."""
        named: list[tuple[str, Tensor]] = []
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [
                f"parameter {place} of group {number}" for place in range(len(group["params"]))
            ]
            named += zip(names, group["params"], strict=True)
        return named

    def _check(self, group: dict[str, Any], kind: type[MatrixOptimizer], *, number: int) -> None:
        rule = kind.rule
        where = f"{self._name()}, group {number} ({rule.name})"
        if not group["params"]:
            raise SettingsError("has no parameters", where=where)
        _check_types(group, kind.defaults(), where)
        if not group["lr"] > 0:
            raise SettingsError(f"lr is {group['lr']}, but must be positive", where=where)
        if not group["weight_decay"] >= 0:
            raise SettingsError(f"weight_decay is {group['weight_decay']}, but must not be negative", where=where)
        for beta, may_be_one in zip(group["betas"], (False, rule.beta2_may_be_one), strict=False):
            if not (0 <= beta < 1 or (may_be_one and beta == 1)):
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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work: dict[str, list[Item]] = {}
        for item in self._items_on_mesh() if self._on_mesh else self._items():
            work.setdefault(item.group["algorithm"], []).append(item)
        for algorithm, items in work.items():
            self._kind(algorithm).rule.update(items)
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


class AdamW(MatrixOptimizer):
    """AdamW on every parameter, behind the same interface as the matrix optimizers.

    Args:
        params: parameters or groups.
        lr: learning rate.
        weight_decay: decoupled decay.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        low_precision: how bfloat16 weights are kept: "master" (a float32 copy in the state) or "stochastic" (rounding
            at random, no copy).
        seed: of stochastic rounding.
    """

    rule = AdamWRule()
    bytes_per_parameter = 16

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        *,
        eps: float = 1e-8,
        low_precision: str = "master",
        seed: int = 0,
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(params, options, {"low_precision": low_precision, "seed": seed})


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
