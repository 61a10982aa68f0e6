"""Widths for a size: every group of matrices gets the bits that do the model the least harm within so many bytes.

A first answer comes from the knapsack over sensitivities (`maths.allocation`), a second-order forecast: every matrix is
rounded by the stage's own rule to every width near the target, and the error that this leaves is weighed. Rounded
values are kept, so that whole models are put together from them. The answer is then corrected by what it stands for:
the groups of one kind, and those of one third of the layers, are made to count twice and half as much, and another
answer replaces the present one where the whole model's divergence on windows that no factor has seen is smaller, by the
paired interval over windows. The same measurement at sizes around the target, on windows that have decided nothing, is
the frontier; there the forecast stands uncorrected, since what helps at one size may do harm at another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.statistics import Statistics
from burnish.core.errors import EngineError, SettingsError
from burnish.core.progress import Progress, byte_count
from burnish.core.statistics import interval
from burnish.core.store import Store
from burnish.core.target import parse_target
from burnish.quantize.factors import SplitSums
from burnish.quantize.maths.allocation import allocate, sensitivity
from burnish.quantize.method import Rounding, batches_of_one_shape, rounded_batch
from burnish.quantize.rule import RoundingRule, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.scheme import Scheme
from burnish.quantize.tuning import NOISE, Original, filled

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.quantize.stage import Quantize

WIDTHS = range(2, 9)
AROUND = (-0.5, -0.25, 0.25, 0.5)
"""Bits per weight from the target at which the frontier is measured too."""
FARTHEST = 2.0
"""Bits per weight from the target to the widths that are considered; everything has to be rounded to each. One more bit
divides the squared error by four: at 3.0 and 3.5 bits, with 2 to 5 to choose from, no group was given a width more than
1.5 away from the mean (`benchmarks/mixed_widths.py`), and the frontier goes half a bit farther."""
LEARNED_AS: dict[str, Any] = {"rule": RULES["yaqa"], "strength": Strength(0.1, 0.1), "refit": 1}
"""The rounding that foretells for layers that are learned: the nearest to it that does not take minutes a layer."""
FACTORS = (2.0, 0.5)
"""By which groups of one kind are made to count more and less."""
NO_PACKED_EMBEDDING = (
    "no stock loader reads a packed embedding (transformers 5.17 stops, 5.24 takes another width for its)"
)
NUM_MEASURED = 15
"""Whole models that are measured, about: the present answer, its rivals, and the frontier."""
HEADER_ENTRY = 150
"""Bytes, beside its name, that a tensor takes in the header of a file, at most."""


@dataclass(frozen=True)
class Group:
    """Matrices that stock loaders want in one width: those that an engine joins, or all experts.

    Attributes:
        views: its matrices.
        schemes: what they may become, from the narrowest.
        sizes: bytes on disk under each.
    """

    views: tuple[MatrixView, ...]
    schemes: tuple[Scheme, ...]
    sizes: tuple[int, ...]

    @property
    def num_weights(self) -> int:
        return sum(prod(view.shape) for view in self.views)

    @property
    def name(self) -> str:
        return group_name(self.views[0])

    @property
    def roles(self) -> str:
        return ", ".join(dict.fromkeys(view.role for view in self.views))


def group_name(view: MatrixView) -> str:
    """Of what has one width: stock loaders know one scheme for the experts of all layers."""
    return "experts" if view.expert is not None else view.format_group.removesuffix(".weight")


@dataclass(frozen=True)
class ByteBudget:
    """How large a model can be made, and how large it may be.

    Attributes:
        groups: whose widths are chosen; all have the same ones.
        dense: bytes of everything else in the files.
        allowed: bytes for the groups.
    """

    groups: tuple[Group, ...]
    dense: int
    allowed: int = 0

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        return self.groups[0].schemes

    @property
    def widths(self) -> list[int]:
        return [scheme.bits for scheme in self.schemes]

    def at(self, bits: float) -> int:
        """Bytes of the groups at so many bits per weight: what all take at that width, or between two."""
        return round(float(np.interp(bits, self.widths, self._totals)))

    @property
    def mean_width(self) -> float:
        """Bits per weight, without scales, that the allowed bytes are enough for."""
        return float(np.interp(self.allowed, self._totals, self.widths))

    @property
    def nearest_width(self) -> int:
        """The place of the width that is nearest to the mean."""
        return min(range(len(self.widths)), key=lambda place: abs(self.widths[place] - self.mean_width))

    @property
    def _totals(self) -> list[int]:
        """Bytes of the groups where all have one width."""
        return [sum(sizes) for sizes in zip(*(group.sizes for group in self.groups), strict=True)]

    def bits(self, choices: Sequence[int]) -> float:
        """Mean width of the weights, without scales."""
        weights = [group.num_weights for group in self.groups]
        return float(np.average([self.widths[choice] for choice in choices], weights=weights))

    def bits_with_scales(self, choices: Sequence[int]) -> float:
        return 8 * (self.size(choices) - self.dense) / sum(group.num_weights for group in self.groups)

    def size(self, choices: Sequence[int]) -> int:
        """Bytes of the files."""
        return self.dense + sum(group.sizes[choice] for group, choice in zip(self.groups, choices, strict=True))

    def near(self) -> ByteBudget:
        """With the widths that a solution may take: those near the mean, and on both sides what the frontier needs."""
        mean, widths = self.mean_width, self.widths
        below = max((bits for bits in widths if bits <= mean + min(AROUND)), default=widths[0])
        above = min((bits for bits in widths if bits >= mean + max(AROUND)), default=widths[-1])
        low, high = min(below, mean - FARTHEST), max(above, mean + FARTHEST)
        places = [place for place, bits in enumerate(widths) if low <= bits <= high]
        groups = [
            replace(
                group,
                schemes=tuple(group.schemes[place] for place in places),
                sizes=tuple(group.sizes[place] for place in places),
            )
            for group in self.groups
        ]
        return replace(self, groups=tuple(groups))

    def applied(self, choices: Sequence[int], rounding: Rounding) -> Rounding:
        """The rounding with these widths; experts, or else most matrices, have the scheme that needs no names."""
        pairs = list(zip(self.groups, choices, strict=True))
        schemes = {view.name: group.schemes[choice] for group, choice in pairs for view in group.views}
        experts = [group.schemes[choice] for group, choice in pairs if group.name == "experts"]
        names = [scheme for group, choice in pairs for scheme in [group.schemes[choice]] * len(group.views)]
        return replace(rounding, scheme=(experts or [max(names, key=names.count)])[0], overrides=schemes)


def budget_of(
    settings: Quantize, scheme: Scheme, views: Sequence[MatrixView], before: Plan, *, saved: int = 0
) -> ByteBudget:
    """What the settings' target leaves for the matrices.

    Args:
        settings: with a target in "%" of the weights' files, in bytes of them, or in bits per rounded weight.
        scheme: whose width is going to be replaced.
        views: the matrices that are rounded.
        before: the model as it is.
        saved: bytes by which what else is rounded makes the files smaller.

    Raises:
        SettingsError: no choice of widths has that size; the message says which sizes there are.
        EngineError: there is no width that the engine has kernels for.
    """
    assert settings.target is not None, "only a target asks for a budget"
    target = parse_target(settings.target, takes=("%", "bytes", "bits"), whole="the weights' files")
    per_weight = before.num_bytes / before.num_parameters
    groups = groups_of(views, scheme, settings.engine, max(round(per_weight), 2))
    headers = sum(3 * (HEADER_ENTRY + len(view.disk)) for view in views)
    dense = round(before.num_bytes - per_weight * sum(group.num_weights for group in groups)) + headers - saved
    whole = ByteBudget(tuple(groups), dense)
    smallest, largest = dense + whole.at(min(whole.widths)), dense + whole.at(max(whole.widths))
    if target.unit == "bits":
        wanted = dense + whole.at(target.amount)
        possible = min(whole.widths) <= target.amount <= max(whole.widths)
    else:
        wanted = target.share(before.num_bytes) if target.unit == "%" else int(target.amount)
        possible = smallest <= wanted <= largest
    if not possible:
        kernels = f" that {settings.engine} has kernels for" if settings.engine else ""
        dense_part, is_embedding = _largest_dense(before, views, per_weight, dense)
        if saved:
            dense_part, is_embedding = f"{byte_count(dense)} of that lie outside of the layers", False
        below = target.unit != "bits" and wanted < smallest
        unless = ", or take quantize_embedding: 8" if is_embedding and below else ""
        raise SettingsError(
            f"target is {settings.target}, but the widths{kernels} give {byte_count(smallest)} "
            f"({min(whole.widths)} bits) to {byte_count(largest)} ({max(whole.widths)} bits); {dense_part}",
            where="target",
            fix=f"choose a target between {byte_count(smallest)} and {byte_count(largest)}{unless}",
        )
    return replace(whole, allowed=wanted - dense).near()


def _largest_dense(before: Plan, views: Sequence[MatrixView], per_weight: float, dense: int) -> tuple[str, bool]:
    """What cannot be made smaller, and most of what it was; whether that is the embedding."""
    rounded = {view.disk for view in views} | {view.parameter for view in views}
    name, shape = max(((n, s) for n, s in before.shapes.items() if n not in rounded), key=lambda item: prod(item[1]))
    size, is_embedding = byte_count(per_weight * prod(shape)), "embed" in name or "wte" in name
    why = f", and {NO_PACKED_EMBEDDING}" if is_embedding else ""
    what = f"{byte_count(dense)} of that stay dense, of which {name.removesuffix('.weight')} alone takes {size}{why}"
    return what, is_embedding


def groups_of(views: Sequence[MatrixView], scheme: Scheme, engine: str | None, scale_bytes: int) -> list[Group]:
    """Groups in the order of the network, each with the widths that all of them can have.

    Raises:
        EngineError: there is none.
    """
    schemes = [replace(scheme, bits=bits) for bits in WIDTHS]
    if engine is not None:
        schemes = [option for option in schemes if _has_kernels(option, views, engine)]
        if not schemes:
            for view in views:
                replace(scheme, bits=4).check_kernel(view, engine)
    together: dict[str, list[MatrixView]] = {}
    for view in views:
        together.setdefault(group_name(view), []).append(view)
    return [
        Group(
            tuple(some),
            tuple(schemes),
            tuple(sum(option.num_bytes(*view.shape, scale_bytes) for view in some) for option in schemes),
        )
        for some in together.values()
    ]


def _has_kernels(scheme: Scheme, views: Sequence[MatrixView], engine: str) -> bool:
    try:
        for view in views:
            scheme.check_kernel(view, engine)
    except EngineError:
        return False
    return True


def foretelling(rounding: Rounding, rule: RoundingRule) -> Rounding:
    """Whose error the forecast is made of: the stage's own rounding, but where layers are learned `LEARNED_AS`."""
    return replace(rounding, **LEARNED_AS) if rule.by_block else rounding


@dataclass
class Mixing:
    """The search for widths in one model, whose weights stay as they are.

    Attributes:
        budget: groups and bytes.
        rounding: how matrices are rounded, but for their widths, see `foretelling`.
        statistics: of their inputs and gradients.
        store: where rounded matrices are kept, under `key`.
        progress: where to show bars.
    """

    budget: ByteBudget
    rounding: Rounding
    statistics: Statistics
    store: Store
    key: Mapping[str, Any]
    progress: Progress = field(default_factory=lambda: Progress(enabled=False))

    @property
    def views(self) -> list[MatrixView]:
        return [view for group in self.budget.groups for view in group.views]

    @property
    def batches(self) -> list[list[MatrixView]]:
        """Matrices that are rounded, and kept, together."""
        return list(batches_of_one_shape(self.views))

    def solve(self, costs: Sequence[Sequence[float]], allowed: int | None = None) -> list[int]:
        """The place of every group's width by the knapsack."""
        return allocate(costs, [group.sizes for group in self.budget.groups], allowed or self.budget.allowed)

    def forecast(self) -> list[list[float]]:
        """Ω of every group at every width, in nats per token, of what the rounding leaves; its values are kept."""
        place_of = {view.name: place for place, group in enumerate(self.budget.groups) for view in group.views}
        costs = [[0.0] * len(self.budget.widths) for _ in self.budget.groups]
        total = len(self.budget.widths) * sum(prod(view.shape) for view in self.views)
        with self.progress.task("rounding to every width", total=total, unit="weights") as task:
            for batch in self.batches:
                sums: list[SplitSums] = []
                for width, scheme in enumerate(self.budget.schemes):
                    if self.store.find(_entry_name(batch, scheme), self.key) is None:
                        sums = sums or [SplitSums(self.statistics, view, self.views) for view in batch]
                        self._round(batch, scheme, sums)
                    for name, cost in load_file(self._entry(batch, scheme) / "costs.safetensors").items():
                        costs[place_of[name]][width] += float(cost)
                    task.advance(sum(prod(view.shape) for view in batch))
        return costs

    def _round(self, batch: Sequence[MatrixView], scheme: Scheme, sums: Sequence[SplitSums]) -> None:
        """Keeps the values of matrices of one shape at one width, and what they cost."""
        rounded = rounded_batch(batch, replace(self.rounding, scheme=scheme, overrides={}), sums)
        values: dict[str, Tensor] = {}
        costs: dict[str, Tensor] = {}
        for view, of_view, (codes, grid, _) in zip(batch, sums, rounded, strict=True):
            as_stored = grid.values(codes).to(self.rounding.scale_dtype)
            error = view.tensor.to(grid.scale.dtype) - as_stored.to(grid.scale.dtype)
            cost = sensitivity(error, *of_view.factors(self.rounding.sketch), of_view.all.num_tokens)
            values[view.name], costs[view.name] = as_stored.cpu(), torch.tensor(cost, dtype=torch.float64)
        with self.store.writing(_entry_name(batch, scheme), self.key) as path:
            save_file(values, path / "values.safetensors")
            save_file(costs, path / "costs.safetensors")

    def _entry(self, batch: Sequence[MatrixView], scheme: Scheme) -> Path:
        return self.store.directory / _entry_name(batch, scheme)

    def values(self, choices: Sequence[int]) -> dict[str, Tensor]:
        """{name: values under these widths}, as the forecast has kept them."""
        pairs = zip(self.budget.groups, choices, strict=True)
        schemes = {view.name: group.schemes[choice] for group, choice in pairs for view in group.views}
        found: dict[str, Tensor] = {}
        for batch in self.batches:
            for scheme in dict.fromkeys(schemes[view.name] for view in batch):
                with safe_open(self._entry(batch, scheme) / "values.safetensors", framework="pt") as file:
                    found |= {v.name: file.get_tensor(v.name) for v in batch if schemes[v.name] == scheme}
        return found

    def divergence(self, choices: Sequence[int], original: Original) -> list[float]:
        """Of the whole model under these widths, per window."""
        with filled(self.views, self.values(choices)):
            return original.divergence()

    def corrected(self, costs: Sequence[Sequence[float]], original: Original) -> tuple[list[int], list[dict[str, Any]]]:
        """Widths after measuring the whole model; rows of what was tried."""
        groups = self.budget.groups
        choices = self.solve(costs)
        present = self.divergence(choices, original)
        rows = [_swap("forecast", self.budget.bits(choices), present, None, accepted=True)]
        tried = {tuple(choices)}
        kinds = kinds_of(groups)
        with self.progress.task("correcting widths", total=len(kinds) * len(FACTORS), unit="trials") as task:
            for kind, members in kinds.items():
                for factor in FACTORS:
                    task.advance()
                    changed = [
                        [factor * cost for cost in some] if place in members else some
                        for place, some in enumerate(costs)
                    ]
                    other = self.solve(changed)
                    if tuple(other) in tried:
                        continue
                    tried.add(tuple(other))
                    measured = self.divergence(other, original)
                    row = _swap(f"{kind} counts {factor:g} times", self.budget.bits(other), measured, present)
                    rows.append(row)
                    if row["accepted"]:
                        choices, costs, present = other, changed, measured
        return choices, rows

    def frontier(
        self, choices: Sequence[int], costs: Sequence[Sequence[float]], original: Original
    ) -> list[dict[str, Any]]:
        """Rows {bits, bits_with_scales, bytes, kl, low, high, chosen}, the smallest first: the chosen widths, and those
        that the knapsack over `costs`, as they were foretold, gives at sizes around theirs."""
        bits, widths = self.budget.bits(choices), self.budget.widths
        wanted = {tuple(choices)}
        for step in AROUND:
            if widths[0] <= bits + step <= widths[-1]:
                wanted.add(tuple(self.solve(costs, self.budget.at(bits + step))))
        rows = []
        for some in sorted(wanted, key=self.budget.size):
            kl = interval(np.array(self.divergence(some, original)), scale="log")
            ends = {"low": kl.low, "high": kl.high} if kl.low == kl.low else {}  # one window has no interval
            bits = {"bits": self.budget.bits(some), "bits_with_scales": self.budget.bits_with_scales(some)}
            row = bits | {"bytes": self.budget.size(some), "kl": kl.value}
            rows.append(row | ends | {"chosen": some == tuple(choices)})
        return rows

    def rows(self, choices: Sequence[int], costs: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """What every group gets, for the ledger."""
        return [
            {
                "group": group.name,
                "roles": group.roles,
                "bits": self.budget.widths[choice],
                "bytes": group.sizes[choice],
                "sensitivity": of_group[choice],
            }
            for group, choice, of_group in zip(self.budget.groups, choices, costs, strict=True)
        ]


def width_notes(budget: ByteBudget, bytes_per_value: int) -> list[str]:
    """Sentences for the plan."""
    among = ", ".join(map(str, budget.widths))
    total = byte_count(budget.dense + budget.allowed)
    kept = bytes_per_value * len(budget.widths) * sum(group.num_weights for group in budget.groups)
    notes = [
        f"widths of {len(budget.groups)} groups are chosen among {among} bits for {total}, "
        f"of which {byte_count(budget.dense)} stay dense",
        f"every matrix is rounded to each of them: {byte_count(kept)} on disk while it runs",
    ]
    if without := [str(bits) for bits in budget.widths if bits not in (4, 8)]:
        notes.append(f"vLLM has no built-in kernel for {', '.join(without)} bits; engine: vllm leaves them out")
    return notes


def frontier_line(row: Mapping[str, Any]) -> str:
    """A size of the frontier, for people."""
    between = f" ({row['low']:.4f} to {row['high']:.4f})" if "low" in row else ""
    chosen = ", the target" if row["chosen"] else ""
    bits = bits_per_weight(row["bits"], row["bits_with_scales"])
    return f"{byte_count(row['bytes'])}, {bits}: KL {row['kl']:.4f}{between} nats per token{chosen}"


def bits_per_weight(codes: float, with_scales: float) -> str:
    """A target in bits means the former, the bytes on disk come from the latter; wherever one is told, both are."""
    return f"{codes:.2f} bits per weight, {with_scales:.2f} with scales"


def kinds_of(groups: Sequence[Group]) -> dict[str, list[int]]:
    """{a kind: places of its groups}: by roles, and by thirds of the layers; a kind of all groups is none."""
    layers = 1 + max(view.layer or 0 for group in groups for view in group.views)
    kinds: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        third = ("first", "middle", "last")[3 * (group.views[0].layer or 0) // layers]
        for kind in (group.roles, f"the {third} third"):
            kinds.setdefault(kind, []).append(place)
    return {kind: members for kind, members in kinds.items() if len(members) < len(groups)}


def _entry_name(batch: Sequence[MatrixView], scheme: Scheme) -> str:
    """What is rounded together depends on the device too; with the first, their number says which they are."""
    return f"{batch[0].name}-{len(batch)}-{scheme.bits}bits"


def _swap(
    name: str, bits: float, measured: Sequence[float], present: Sequence[float] | None, *, accepted: bool = False
) -> dict[str, Any]:
    """A row: other widths are accepted where the paired interval of the ratio of divergences lies below 1."""
    row: dict[str, Any] = {"trial": name, "bits": bits, "kl": float(np.mean(measured))}
    if present is not None:
        against = interval(np.add(measured, NOISE), np.add(present, NOISE), scale="log")
        row |= {"ratio": against.value}
        if against.high == against.high:  # one window has no interval, and decides nothing
            row |= {"low": against.low, "high": against.high}
        accepted = against.high < 1
    return row | {"accepted": accepted}
