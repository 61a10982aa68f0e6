"""Which parameter of a model gets the matrix update, which AdamW, and why.

An optimizer sees tensors only and cannot tell an embedding from a hidden matrix; a wrong choice runs without error and
trains badly. So the choice is made here, once, from what the model says about itself:

| parameter | rule |
|---|---|
| weights of hidden layers, also stacks of experts and full convolution filters | matrix |
| embeddings and output heads, tied or not | AdamW: their rows are looked up or predicted one by one |
| routers of experts | AdamW: a row is one expert, and few rows get a gradient in a step |
| matrices with one row or one column; depthwise filters | AdamW: nothing to orthogonalise |
| norms, biases, scalars | AdamW without decay |
| what no rule knows | AdamW, and the table says so |
| LoRA's A and B | AdamW, or matrix when asked for |

Known architectures are read from `burnish.arch`; for others, and for modules that somebody added to a known one, the
types of the modules decide, and what is not recognised goes to AdamW. A head is found by its shape, for modules that do
not say what theirs is. A model may be compiled or in a wrapper, whole or in parts: names and choices are the same.
`explain` shows the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from burnish import arch
from burnish.arch import plain_name, unwrapped
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from burnish.arch import MatrixView

FROZEN = "frozen"
_HEAD_NAMES = ("lm_head", "score", "classifier")
_OUTERMOST_HEAD_NAMES = ("head", "out", "output", "logits", "to_logits", "unembed", "fc_out", "decoder")
"""Where nothing but a name tells: of a linear layer that is a direct child of the model."""


@dataclass(frozen=True)
class Route:
    """Where one parameter goes.

    Attributes:
        name: as in `model.named_parameters()` of the model without wrappers.
        shape: of the parameter.
        algorithm: of its group, or "frozen" for a parameter that needs no gradient.
        reason: why, in words.
        decays: whether weight decay applies.
        layout: options of `burnish.optim.layout` that are not the default.
    """

    name: str
    shape: tuple[int, ...]
    algorithm: str
    reason: str
    decays: bool = True
    layout: dict[str, Any] = field(default_factory=dict)


def route(model: nn.Module, *, split: bool = False, lora: bool = False, algorithm: str = "normuon") -> list[Route]:
    """Every parameter of a model exactly once, in the order of `named_parameters()`.

    Args:
        model: a transformers model, a PEFT model or any module, also compiled or in DDP.
        split: step the parts of fused matrices (q, k, v; gate, up) on their own.
        lora: give LoRA's A and B the matrix update.
        algorithm: name of the matrix update.
    """
    model = unwrapped(model)
    known = _by_architecture(model, split=split)
    plain = _Plain(model)
    routes = []
    for name, parameter, owner in _parameters(model):
        if not parameter.requires_grad:
            decision = _Decision(FROZEN, "needs no gradient")
        elif _is_vector(parameter) or name.endswith("bias"):
            decision = _Decision("adamw", "norm, bias or scalar: no decay", decays=False)
        elif ".lora_" in name and ".lora_embedding_" not in name:
            decision = _Decision("matrix" if lora else "adamw", "LoRA factor")
        elif name in known:
            decision = known[name]
        else:
            decision = plain.decision(name, parameter, owner)
            if known:
                decision = replace(decision, reason=f"{decision.reason}, unknown to the table of {model_type(model)}")
        if decision.algorithm == "matrix" and _is_degenerate(parameter, decision):
            decision = _Decision("adamw", f"{decision.reason}, but with one row or one column only")
        chosen = algorithm if decision.algorithm == "matrix" else decision.algorithm
        routes.append(
            Route(name, tuple(parameter.shape), chosen, decision.reason, decision.decays, dict(decision.layout))
        )
    return routes


def param_groups(model: nn.Module, routes: list[Route]) -> list[dict[str, Any]]:
    """Groups for `torch.optim`: parameters of one algorithm, layout and decay together, with their names.

    Raises:
        SettingsError: no parameter needs a gradient.
    """
    parameters = {plain_name(name): parameter for name, parameter in unwrapped(model).named_parameters()}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in routes:
        if one.algorithm == FROZEN:
            continue
        key = (one.algorithm, one.decays, tuple(sorted(one.layout.items())))
        if key not in groups:
            decay = {} if one.decays else {"weight_decay": 0.0}
            groups[key] = {"params": [], "algorithm": one.algorithm, **decay, **one.layout}
        groups[key]["params"].append((one.name, parameters[one.name]))
    if not groups:
        raise SettingsError("no parameter of the model needs a gradient", fix="unfreeze some, or add LoRA")
    return list(groups.values())


def explain(
    model: nn.Module, *, split: bool = False, lora: bool = False, algorithm: str = "normuon"
) -> list[dict[str, Any]]:
    """The routing as rows {parameters, shape, count, algorithm, decay, layout, reason}.

    Rows that differ in the number of the layer only are one row; `count` says how many parameters it stands for.
    """
    merged: dict[tuple[Any, ...], list[str]] = {}
    for one in route(model, split=split, lora=lora, algorithm=algorithm):
        layout = ", ".join(f"{key} {value}" for key, value in one.layout.items())
        pattern = re.sub(r"\.\d+\.", ".*.", one.name)
        key = (pattern, one.shape, one.algorithm, "yes" if one.decays else "no", layout, one.reason)
        merged.setdefault(key, []).append(one.name)
    return [
        {
            "parameters": names[0] if len(names) == 1 else pattern,
            "shape": " x ".join(map(str, shape)) or "scalar",
            "count": len(names),
            "algorithm": chosen,
            "decay": decays if chosen != FROZEN else "no",
            "layout": layout,
            "reason": reason,
        }
        for (pattern, shape, chosen, decays, layout, reason), names in merged.items()
    ]


@dataclass(frozen=True)
class _Decision:
    algorithm: str
    reason: str
    decays: bool = True
    layout: dict[str, Any] = field(default_factory=dict)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """(name, parameter, the module that holds it); a tied parameter comes once, under its first name."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        yield plain_name(name), parameter, modules[name.rpartition(".")[0]]


def _is_vector(parameter: Tensor) -> bool:
    """One axis, or more of which all but one are of length one; a matrix with one row is a matrix."""
    return parameter.ndim != 2 and max(parameter.shape, default=1) == parameter.numel()


def _is_degenerate(parameter: Tensor, decision: _Decision) -> bool:
    shape = parameter.shape
    if decision.layout.get("flatten") or parameter.ndim > 3:
        return shape[0] == 1 or shape[1:].numel() == 1
    return 1 in shape[-2:]


# -- known architectures -----------------------------------------------------------------------------------------------


def _by_architecture(model: nn.Module, *, split: bool) -> dict[str, _Decision]:
    """Decisions from the architecture table; none for a model that it does not know, or one without its head."""
    if hasattr(model, "peft_config") or model_type(model) not in arch.known_model_types():
        return {}
    path = arch.describe(cast("Any", model)).row.layers
    if path not in {plain_name(name) for name, _ in model.named_modules()}:
        return {}
    views = arch.by_parameter(arch.matrices(cast("Any", model), complete=False))
    return {name: _of_views(same, split=split) for name, same in views.items()}


def model_type(model: nn.Module) -> str:
    """Of a transformers model; "" for any other module, whatever it calls its `config`."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def _of_views(views: list[MatrixView], *, split: bool) -> _Decision:
    """The decision for one parameter from the matrices that it holds."""
    first = views[0]
    roles = list(dict.fromkeys(view.role for view in views))
    if first.part == "embedding":
        return _Decision("adamw", "embedding, tied to the output head" if first.tied else "embedding")
    if first.part == "head":
        return _Decision("adamw", "output head")
    if first.part == "router" or first.role in ("router", "shared_expert_gate"):
        return _Decision("adamw", "router of experts")
    layout: dict[str, Any] = {}
    reason = f"{' and '.join(roles)} of {first.part.replace('_', ' ')}"
    if first.transposed:
        layout["neuron_dim"] = -1
        reason += ", stored transposed"
    if first.expert is not None:
        reason += f", {len({view.expert for view in views})} in a stack"
    if len(roles) > 1:
        split = split and first.step == 1  # rows that alternate are no blocks
        if split:
            blocks = sorted({view.rows for view in views})
            layout["split_sizes"] = tuple(end - start for start, end in blocks)
        reason += ", fused, stepped apart" if split else ", fused, stepped as one matrix"
    return _Decision("matrix", reason, layout=layout)


# -- everything else ---------------------------------------------------------------------------------------------------


class _Plain:
    """Decisions from the types of modules; from shapes and names only where nothing else tells."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        self.looked_up = {id(embedding.weight) for embedding in self.embeddings}
        self.heads = {id(parameter) for parameter in self._heads_by_shape()}

    def decision(self, name: str, parameter: Tensor, owner: nn.Module) -> _Decision:
        linear = isinstance(owner, nn.Linear)
        if id(parameter) in self.looked_up and linear:
            return _Decision("adamw", "embedding, tied to the output head")
        if id(parameter) in self.looked_up or _is_weight_of(parameter, self.model, "get_input_embeddings"):
            return _Decision("adamw", "embedding")
        if _is_weight_of(parameter, self.model, "get_output_embeddings"):
            return _Decision("adamw", "output head")
        parts = name.split(".")
        if any(part in _HEAD_NAMES for part in parts):
            return _Decision("adamw", "output head, by its name")
        if id(parameter) in self.heads:
            return _Decision("adamw", "output head: as many rows as the embedding")
        if linear and len(parts) == 2 and parts[0] in _OUTERMOST_HEAD_NAMES:
            return _Decision("adamw", "output head, by its name")
        if parameter.ndim == 2 and parameter.shape[0] == _num_experts(self.model):
            return _Decision("adamw", "router of experts: as many rows as experts")
        return _of_type(parameter, owner)

    def _heads_by_shape(self) -> list[Tensor]:
        """Weights with a row for every entry of the largest embedding, outside of repeated layers."""
        if not self.embeddings:
            return []
        rows = max(embedding.num_embeddings for embedding in self.embeddings)
        found: list[tuple[int, Tensor]] = []
        repeating: dict[str, nn.Module] = {}
        inside: set[str] = set()  # of repeated layers, where a matrix may have as many rows by chance
        for name, module in self.model.named_modules():
            parent = name.rpartition(".")[0]
            is_layer = any(True for _ in module.children()) or isinstance(repeating.get(parent), nn.ModuleList)
            if name and (parent in inside or (parent in repeating and is_layer)):
                inside.add(name)
            elif isinstance(module, nn.Linear) and module.weight.shape[0] == rows:
                found.append((name.count("."), module.weight))
            if _repeats(module):
                repeating[name] = module
        return [weight for depth, weight in found if depth == min(found, key=lambda one: one[0])[0]]


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a row of layers, rather than of steps."""
    layers = [type(child) for child in module.children() if any(True for _ in child.children())]
    return isinstance(module, nn.ModuleList) or len(layers) > len(set(layers))


def _of_type(parameter: Tensor, owner: nn.Module) -> _Decision:
    kind = type(owner).__name__
    if isinstance(owner, nn.Linear):
        return _Decision("matrix", "weight of a hidden linear layer")
    if kind == "Conv1D" and hasattr(owner, "nf"):  # transformers' linear layer with (in, out) storage
        return _Decision("matrix", "weight of a hidden linear layer, stored transposed", layout={"neuron_dim": -1})
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if owner.groups > 1 and parameter.shape[1] == 1:
            return _Decision("adamw", "depthwise filters")
        return _Decision("matrix", "convolution filters", layout={"flatten": True})
    if parameter.ndim == 3 and hasattr(owner, "is_transposed"):  # transformers' interface of stacked experts
        layout = {"neuron_dim": -1} if owner.is_transposed else {}
        reason = f"{parameter.shape[0]} experts in a stack{', stored transposed' if layout else ''}"
        return _Decision("matrix", reason, layout=layout)
    return _Decision("adamw", f"a parameter of {kind}, which is no known kind of layer")


def _is_weight_of(parameter: Tensor, model: nn.Module, getter: str) -> bool:
    """Whether a transformers model names this very tensor as its embedding or head."""
    if not hasattr(model, getter):
        return False
    module = getattr(model, getter)()
    return module is not None and any(parameter is weight for weight in module.parameters(recurse=False))


def _num_experts(model: nn.Module) -> int | None:
    """Experts of a layer of a transformers model; any other module has none that could be known."""
    config: Any = getattr(model, "config", None)
    return arch.num_experts(config) if hasattr(config, "get_text_config") else None
