"""One optimizer object for a whole model: matrices by their own rule, everything else by AdamW.

Trainers and checkpoint code assume one `torch.optim.Optimizer`. So every parameter group names its `algorithm`
(normuon, cosmos, adamw ...) and this class steps each group by the rule of that name. What the rules share is here:
options and their checks, state in float32 beside bfloat16 weights, saving and loading.

A step has three parts: elementwise work on a parameter (momentum, decay, the update), the orthogonalisation of whole
matrices, and two sums per matrix (its squared norms). Where FSDP2 has sharded the parameters over processes, the first
is done on the local shards by the very same code; `burnish.optim.exchange` and the modules over it do the other two.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, cast

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.adamw import AdamWRule
from burnish.optim.gradients import LARGEST_NORM, refuse_gradients, without_norm
from burnish.optim.loading import check_saved, fitted
from burnish.optim.masters import Mark, has_master, refresh, with_master
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
        self._agreed = False
        self._marks: dict[int, Mark] = {}
        super().__init__(params, {"lr": options["lr"]})

    @classmethod
    def for_model(cls, model: nn.Module, lr: float, *, split: bool = False, lora: bool = False, **options: Any) -> Self:
        """The optimizer of a model, with every parameter routed to the rule that fits it.

        Args:
            model: a transformers model (or any module), also compiled or in DDP; parameters that need no gradient are
                left out.
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

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, to which groups can be added as to the original."""
        return {**super().__getstate__(), "_common": self._common, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._agreed = False
        self._marks = {}

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
        try:
            refuse_mixture(self._named_parameters(), self._name())
        except SettingsError:
            self.param_groups.pop()
            raise
        self._agreed = False
        self._make_state(self.param_groups[first], kind.rule)

    def stored_as(self, algorithm: str) -> list[str]:
        """Options of a group of this algorithm that say what its state means, and cannot change with a loaded state."""
        return list(self._kind(algorithm).rule.group_options)

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
        if not 0 < group["lr"] < math.inf:
            raise SettingsError(f"lr is {group['lr']}, but must be positive and finite", where=where)
        if not group["weight_decay"] >= 0:
            raise SettingsError(f"weight_decay is {group['weight_decay']}, but must not be negative", where=where)
        for beta, may_be_one in zip(group["betas"], (False, rule.beta2_may_be_one), strict=False):
            if not (0 <= beta < 1 or (may_be_one and beta == 1)):
                raise SettingsError(f"betas are {tuple(group['betas'])}, but must lie in [0, 1)", where=where)
        if group["low_precision"] not in LOW_PRECISION:
            raise SettingsError(f"low_precision is {group['low_precision']!r}, not master or stochastic", where=where)
        seen = {id(parameter) for other in self.param_groups for parameter in other["params"]}
        for position, entry in enumerate(group["params"]):
            name, parameter = entry if isinstance(entry, tuple) else (f"parameter {position}", entry)
            here = f"{where}, {name} {tuple(parameter.shape)}"
            refuse_unsupported(parameter, here)
            if id(parameter) in seen:
                raise SettingsError("this parameter was given twice", where=here, fix="list it in one group only")
            seen.add(id(parameter))
            sharding = sharding_of(parameter)
            # A tensor without storage has the shape of the whole, which is what options must fit.
            rule.check(group, parameter if sharding is None else torch.empty(sharding.shape, device="meta"), here)
            if sharding is not None:
                rule.check_sharding(group, parameter, sharding, here)

    def _make_state(self, group: dict[str, Any], rule: UpdateRule) -> None:
        for parameter in group["params"]:
            dtype = torch.float32 if parameter.dtype is torch.bfloat16 else parameter.dtype
            state = rule.new_state(parameter.detach(), group, dtype)
            self.state[parameter] = with_master(state, parameter, group)

    # -- stepping ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, gradient_norm: float | None = None) -> Any:
        """One step. Parameters without a gradient are left alone, decay included.

        Args:
            closure: evaluates the model again and returns the loss, as in every torch optimizer.
            gradient_norm: the norm of the gradients as they are now, or anything larger, of who knows it because it
                has clipped them: a finite one saves the step reading them once more to see that they are finite.

        Returns:
            What the closure returned.

        Raises:
            NumericalError: a gradient is not finite, or its squares are not; nothing has been changed.
        """
        loss = None
        if closure is not None:
            if gradient_norm is not None:
                raise SettingsError("gradient_norm is not that of the gradients of a closure", where=self._name())
            with torch.enable_grad():
                loss = closure()
        unread = gradient_norm is None or not 0 <= gradient_norm <= LARGEST_NORM
        on_mesh = is_dtensor(self.param_groups[0]["params"][0])
        items = list(self._items_on_mesh(read=unread)) if on_mesh else self._items(read=unread)
        masters = [item for item in items if has_master(item.parameter, item.group)]
        refresh({item.index: (item.parameter, item.state["master"]) for item in masters}, self._marks)
        work: dict[str, list[Item]] = {}
        for item in items:
            work.setdefault(item.group["algorithm"], []).append(item)
        for algorithm, some in work.items():
            self._kind(algorithm).rule.update(some)
        self._marks |= {item.index: Mark.of(item.parameter) for item in masters}
        for group in self.param_groups:
            group["num_steps"] += 1
        return loss

    def _items(self, *, read: bool) -> list[Item]:
        items = []
        for index, (group, parameter) in enumerate(_in_groups(self.param_groups)):
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    raise SettingsError("gradients are sparse", where=self._name(), fix="use dense embeddings")
                items.append(Item(parameter, parameter.grad, self.state[parameter], group, index))
        if read and (large := without_norm([item.gradient for item in items])):
            refuse_gradients([self._named_parameters()[items[number].index] for number in large], self._name())
        return items

    def _items_on_mesh(self, *, read: bool) -> Iterator[Item]:
        """The shards of this process, of all parameters that have a gradient in any process."""
        named = self._named_parameters()
        self._check_processes_agree(named)
        stepped, large = taking_part([parameter for _, parameter in named], read=read)
        if large:
            refuse_gradients([named[number] for number in large], self._name())
        for index, (group, parameter) in enumerate(_in_groups(self.param_groups)):
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

    def _check_processes_agree(self, named: list[tuple[str, Tensor]]) -> None:
        if self._agreed:
            return
        facts = {name: describe(parameter) for name, parameter in named}
        for number, group in enumerate(self.param_groups):
            options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            facts[f"the options of group {number}"] = str(sorted(options.items()))
        check_processes_agree(cast("Any", named[0][1]).device_mesh, facts, self._name())
        self._agreed = True

    # -- saving ------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its dtype, and what is not of these parameters and algorithms is refused.

        torch would round float32 state of bfloat16 weights to bfloat16, and take any state that has as many groups and
        parameters. Options of the groups are those of the saved state, as in torch, but for those that say how a
        parameter is stored: these must be equal.

        Raises:
            SettingsError: the state is of another algorithm, of other parameters or shapes, or was sharded in another
                way; nothing has been changed.
            ValueError: as torch, another number of groups or of parameters in a group.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        saved = check_saved(self, state_dict)
        own = ("params", "param_names")
        groups = [
            {**here, **copy.deepcopy({key: value for key, value in there.items() if key not in own})}
            for here, there in zip(self.param_groups, state_dict["param_groups"], strict=True)
        ]
        state = dict(state_dict["state"])
        for number in saved:
            del state[number]
        state |= {
            parameter: with_master(fitted(saved[number], self.state[parameter]), parameter, group)
            for number, group, parameter in zip(saved, *zip(*_in_groups(groups), strict=True), strict=True)
        }
        self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)


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


def _in_groups(groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """(group, parameter), in order."""
    return ((group, parameter) for group in groups for parameter in group["params"])


def _check_types(group: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """Options are of the kind that their defaults are: a number, true or false, a word, or several numbers.

    Raises:
        SettingsError: one is not, or is not finite, or is an eps below 0.
    """
    for key, default in defaults.items():
        value, right, kind = group[key], True, ""
        if isinstance(default, bool):
            right, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            right, kind = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        elif isinstance(default, float):
            right, kind = _is_number(value), "a number"
        elif isinstance(default, tuple):
            right = isinstance(value, tuple | list) and len(value) == len(default)
            right = right and all(isinstance(part, int | float) for part in value)
            kind = f"{len(default)} number{'s' if len(default) > 1 else ''}"
        if not right:
            raise SettingsError(f"{key} is {value!r}, but must be {kind}", where=where)
        if key.endswith("eps") and value is not None and not _is_at_least_zero(value):
            raise SettingsError(f"{key} is {value!r}, but must be a number from 0 on", where=where)
        if key != "lr" and isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{key} is {value}, but must be finite", where=where)


def _is_at_least_zero(value: Any) -> bool:
    return _is_number(value) and 0 <= float(value) < math.inf


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def refuse_unsupported(parameter: Tensor, where: str) -> None:
    """Parameters that no rule can step.

    Raises:
        SettingsError: float16 or integer weights, sparse parameters, FSDP1's flattened ones, or a mesh with tensor
            parallelism.
    """
    if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise SettingsError(
            f"weights are {str(parameter.dtype).removeprefix('torch.')}", where=where, fix="use float32 or bfloat16"
        )
    if parameter.layout is not torch.strided:
        raise SettingsError("the parameter is sparse", where=where, fix="use a dense one")
    if hasattr(parameter, "_is_flat_param"):
        raise SettingsError(
            "FSDP1 has flattened the matrices away",
            where=where,
            fix="use FSDP2 (torch.distributed.fsdp.fully_shard)",
        )
    if is_dtensor(parameter):
        refuse_placements(parameter, where)
