"""The state of other people's optimizers, taken over: a training that began elsewhere goes on here.

Momentum and moments mean the same everywhere but for their names and one factor, so they can be carried over by the
names of the parameters. Options (rates, betas, the scale of the update) are not carried over: they stay as they are
here. Known are torch's AdamW and Muon, the authors' NorMuon and Keller Jordan's Muon with their auxiliary Adam, and
the AdamW, Muon and NorMuon of microsoft/dion, whose momentum is a sum, M <- mu M + G, where ours is a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from burnish.optim.optimizer import MatrixOptimizer

Entries = Mapping[str, Any]
Convert = Callable[[Entries, Entries], dict[str, Any]]
"""(state of a parameter, options of its group) there -> state here."""


def _of_dion(entries: Entries, group: Entries) -> dict[str, Any]:
    return {"momentum": entries["momentum"] * (1 - float(group["mu"]))}


FORMS: dict[str, dict[frozenset[str], Convert]] = {
    "adamw": {
        frozenset({"exp_avg", "exp_avg_sq", "step"}): lambda e, g: {k: e[k] for k in ("step", "exp_avg", "exp_avg_sq")},
        frozenset({"momentum", "variance"}): lambda e, g: {
            "step": float(g["step"]),
            "exp_avg": e["momentum"],
            "exp_avg_sq": e["variance"],
        },
    },
    "muon": {
        frozenset({"momentum_buffer"}): lambda e, g: {"momentum": e["momentum_buffer"]},
        frozenset({"momentum"}): _of_dion,
    },
    "normuon": {
        frozenset({"momentum_buffer", "second_momentum_buffer"}): lambda e, g: {
            "momentum": e["momentum_buffer"],
            "second_moment": e["second_momentum_buffer"],
        },
        frozenset({"momentum", "variance_neuron"}): lambda e, g: {
            **_of_dion(e, g),
            "second_moment": e["variance_neuron"],
        },
    },
}
"""By our algorithm: the keys that a parameter has elsewhere, and what they become. More keys are another algorithm."""
COUNTERS = {"step_dev"}
"""Keys beside those above that say nothing more."""


def import_state(
    optimizer: MatrixOptimizer, *state_dicts: Mapping[str, Any], names: Sequence[Sequence[str]] | None = None
) -> None:
    """Loads the state of optimizers of other libraries for the same parameters.

        import_state(NorMuon.for_model(model, lr=1e-3), official.state_dict(), names=[["layers.0.q.weight", ...]])

    Args:
        optimizer: takes the state; its algorithms must be those of the saved ones, parameter by parameter.
        state_dicts: of one optimizer or of several that shared the parameters (torch's Muon beside torch's AdamW).
        names: the parameters of each saved optimizer in its order; not needed where it was made of named parameters.
            Where neither side has names, parameters are taken to be in the same order.

    Raises:
        SettingsError: parameters that are missing or unknown, or state of another algorithm or shape; nothing has been
            changed.
    """
    where = type(optimizer).__name__
    found = dict(_named_entries(state_dicts, names))
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        numbers = range(len(state), len(state) + len(group["params"]))
        saved = [n if "param_names" not in group else name for n, name in _names(group, numbers)]
        for number, key in zip(numbers, saved, strict=True):
            if key not in found:
                raise SettingsError(
                    f"the saved state holds nothing of {key if isinstance(key, str) else f'parameter {key}'}",
                    where=where,
                    fix="give all state dictionaries, and names as they are here",
                )
            state[number] = _converted(str(key), group["algorithm"], *found.pop(key), where=where)
        groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": list(numbers)})
    if found:
        raise SettingsError(f"there is no parameter {next(iter(found))} here, of which there is state", where=where)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names(group: Mapping[str, Any], numbers: range) -> Iterator[tuple[int, str]]:
    return zip(numbers, group.get("param_names", [""] * len(numbers)), strict=True)


def _named_entries(
    state_dicts: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]] | None
) -> Iterator[tuple[Any, tuple[Entries, Entries]]]:
    """(name, or number in the order of all) -> (entries, options of the group)."""
    place = 0
    for number, saved in enumerate(state_dicts):
        given = iter(names[number]) if names is not None else None
        for group in saved["param_groups"]:
            own = iter(group.get("param_names", ()))
            for parameter in group["params"]:
                name = next(given, None) if given is not None else next(own, None)
                yield place if name is None else name, (saved["state"].get(parameter, {}), group)
                place += 1


def _converted(name: str, algorithm: str, entries: Entries, group: Entries, *, where: str) -> dict[str, Any]:
    keys = frozenset(entries) - COUNTERS
    convert = FORMS.get(algorithm, {}).get(keys)
    if convert is None:
        raise SettingsError(
            f"the state of {name} has {', '.join(sorted(keys)) or 'nothing'}, which is not known as {algorithm}",
            where=where,
            fix="give every parameter the algorithm that it had",
        )
    return {
        key: value if isinstance(value, Tensor) else torch.tensor(float(value))
        for key, value in convert(entries, group).items()
    }
