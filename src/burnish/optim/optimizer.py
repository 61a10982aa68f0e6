"""One optimizer object for a whole model: matrices by their own rule, everything else by AdamW.

Trainers and checkpoint code assume one `torch.optim.Optimizer`. So every parameter group names its `algorithm`
(normuon, muon, cosmos, soap, adamw) and this class steps each group by the rule of that name. What the rules share is
here: options and their checks, state in float32 beside bfloat16 weights, saving and loading.

A step has three parts, so that a sharded version replaces one of them: elementwise work on a parameter (momentum,
decay, the update), the orthogonalisation of whole matrices, and two sums per matrix (its squared norms).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from burnish.core.errors import SettingsError, nearest
from burnish.optim.maths.rounding import stochastic_bfloat16

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

LOW_PRECISION = ("master", "stochastic")


@dataclass
class Item:
    """One parameter in one step.

    Attributes:
        parameter: the live parameter.
        gradient: its gradient, never written to.
        state: its optimizer state.
        group: its group's options.
        index: its number in the optimizer, for the seed of stochastic rounding.
    """

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    index: int
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
                generator = torch.Generator(self.parameter.device).manual_seed(seed)
                self.parameter.copy_(stochastic_bfloat16(self.weight, generator))
        self._weight = None

    def decay_(self, weight: Tensor) -> None:
        """W <- (1 - lr wd) W: the decay uses the plain learning rate, not one scaled by the shape."""
        if self.group["weight_decay"]:
            weight.mul_(1 - self.group["lr"] * self.group["weight_decay"])


class Rule:
    """How the parameters of one algorithm are stepped. Rules hold no state; `Item` carries it."""

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        """Refuses options that do not fit; raises `SettingsError`."""

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """All state of one parameter, made when the optimizer is made, so that every process has the same keys."""
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
        self._make_state(self.param_groups[first], rule)

    def _name(self) -> str:
        return type(self).__name__

    def _common(self) -> dict[str, Any]:
        options = self._options["adamw"]
        return {key: options[key] for key in ("low_precision", "seed", "num_steps")}

    def _check(self, group: dict[str, Any], rule: Rule, *, number: int) -> None:
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
            rule.check(group, parameter, here)

    def _make_state(self, group: dict[str, Any], rule: Rule) -> None:
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
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.is_sparse:
                        raise SettingsError("gradients are sparse", where=self._name(), fix="use dense embeddings")
                    item = Item(parameter, parameter.grad, self.state[parameter], group, index)
                    work.setdefault(group["algorithm"], []).append(item)
                index += 1
        for algorithm, items in work.items():
            RULES[algorithm].update(items)
        for group in self.param_groups:
            group["num_steps"] += 1
        return loss

    # -- saving ------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its dtype: torch would round float32 state of bfloat16 weights to bfloat16."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        live = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, live, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    device = self.state[parameter][key].device
                    self.state[parameter][key] = value.to(device)


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
        SettingsError: float16 or integer weights, FSDP1's flattened parameters, parameters sharded over processes.
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
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor

        if isinstance(parameter, DTensor):
            raise SettingsError(
                "the parameter is sharded over processes, which this optimizer does not support yet",
                where=where,
                fix="replicate it (DDP)",
            )
