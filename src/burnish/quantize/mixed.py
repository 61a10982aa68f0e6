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
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.statistics import Statistics
from burnish.core.progress import Progress, byte_count
from burnish.core.statistics import interval
from burnish.core.store import Store
from burnish.quantize.budget import AROUND, ByteBudget, Group, bits_per_weight
from burnish.quantize.factors import SplitSums
from burnish.quantize.maths.allocation import allocate, sensitivity
from burnish.quantize.method import Rounding, batches_of_one_shape, rounded_batch
from burnish.quantize.rule import RoundingRule, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.scheme import Scheme
from burnish.quantize.tuning import NOISE, Original, filled
from burnish.quantize.vocabulary import VocabularyRounding

LEARNED_AS: dict[str, Any] = {"rule": RULES["yaqa"], "strength": Strength(0.1, 0.1), "refit": 1}
"""The rounding that foretells for layers that are learned: the nearest to it that does not take minutes a layer."""
FACTORS = (2.0, 0.5)
"""By which groups of one kind are made to count more and less."""
NUM_MEASURED = 15
"""Whole models that are measured, about: the present answer, its rivals, and the frontier."""


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
        vocabulary: how the embedding is rounded, where its width is chosen too.
        outside: (matrix, values) of what else is rounded outside of the decoder layers, whatever the widths.
    """

    budget: ByteBudget
    rounding: Rounding
    statistics: Statistics
    store: Store
    key: Mapping[str, Any]
    progress: Progress = field(default_factory=lambda: Progress(enabled=False))
    vocabulary: VocabularyRounding | None = None
    outside: Sequence[tuple[MatrixView, Tensor]] = ()

    @property
    def views(self) -> list[MatrixView]:
        """Of the decoder layers."""
        return [view for group in self.budget.groups if group.is_inside for view in group.views]

    @property
    def batches(self) -> list[list[MatrixView]]:
        """Matrices that are rounded, and kept, together."""
        others = [[view] for group in self.budget.groups if not group.is_inside for view in group.views]
        return [*batches_of_one_shape(self.views), *others]

    def solve(
        self,
        costs: Sequence[Sequence[float]],
        allowed: int | None = None,
        among: Sequence[Sequence[int]] | None = None,
    ) -> list[int]:
        """The place of every group's width by the knapsack, among all of its widths or some."""
        sizes = [group.sizes for group in self.budget.groups]
        places = among or [range(len(some)) for some in sizes]
        found = allocate(
            [[some[place] for place in kept] for some, kept in zip(costs, places, strict=True)],
            [[some[place] for place in kept] for some, kept in zip(sizes, places, strict=True)],
            allowed or self.budget.allowed,
        )
        return [kept[place] for place, kept in zip(found, places, strict=True)]

    def forecast(self) -> list[list[float]]:
        """Ω of every group at every width, in nats per token, of what the rounding leaves; its values are kept."""
        groups = self.budget.groups
        place_of = {view.name: place for place, group in enumerate(groups) for view in group.views}
        costs = [[0.0] * len(group.schemes) for group in groups]
        total = sum(len(group.schemes) * group.num_weights for group in groups)
        with self.progress.task("rounding to every width", total=total, unit="weights") as task:
            for batch in self.batches:
                sums: list[SplitSums] = []
                for width, scheme in enumerate(groups[place_of[batch[0].name]].schemes):
                    if scheme is None:
                        continue
                    if self.store.find(_entry_name(batch, scheme), self.key) is None:
                        if batch[0].layer is not None:
                            sums = sums or [SplitSums(self.statistics, view, self.views) for view in batch]
                        self._round(batch, scheme, sums)
                    for name, cost in load_file(self._entry(batch, scheme) / "costs.safetensors").items():
                        costs[place_of[name]][width] += float(cost)
                    task.advance(sum(prod(view.shape) for view in batch))
        return costs

    def _round(self, batch: Sequence[MatrixView], scheme: Scheme, sums: Sequence[SplitSums]) -> None:
        """Keeps the values of matrices of one shape at one width, and what they cost."""
        values: dict[str, Tensor] = {}
        costs: dict[str, Tensor] = {}
        if batch[0].layer is None:
            assert self.vocabulary is not None, "the embedding's width is chosen"
            (view,) = batch
            as_stored = self.vocabulary.values(view, scheme)
            values[view.name] = as_stored.cpu()
            costs[view.name] = torch.tensor(self.vocabulary.cost(view, as_stored), dtype=torch.float64)
        else:
            rounded = rounded_batch(batch, replace(self.rounding, scheme=scheme, overrides={}), sums)
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
        schemes = {view.name: scheme for group, scheme in self.budget.chosen(choices) for view in group.views}
        found: dict[str, Tensor] = {}
        for batch in self.batches:
            for scheme in dict.fromkeys(schemes[view.name] for view in batch if view.name in schemes):
                with safe_open(self._entry(batch, scheme) / "values.safetensors", framework="pt") as file:
                    found |= {v.name: file.get_tensor(v.name) for v in batch if schemes[v.name] == scheme}
        return found

    def divergence(self, choices: Sequence[int], original: Original) -> list[float]:
        """Of the whole model under these widths, per window."""
        values = self.values(choices) | {view.name: tensor for view, tensor in self.outside}
        outside = [view for view, _ in self.outside] + [view for view, _ in self.budget.outside(choices)]
        with filled(self.views, values):
            return original.divergence(outside, values)

    def comparable(self, costs: Sequence[Sequence[float]], original: Original) -> list[list[float]]:
        """Costs with those of the embedding on the scale of the layers'.

        The forecast tells of an embedding about what is measured, and of layers, whose errors grow on their way
        through the others, a half to a fifth. So both are measured apart, at the width nearest to the mean.
        """
        *layers, embedding = self.budget.groups
        if embedding.is_inside:
            return [list(some) for some in costs]
        near, (view,) = self.budget.nearest_width, embedding.views
        alike = next(
            place for place in range(len(embedding.schemes)) if embedding.width(place) == self.budget.widths[near]
        )
        values = self.values([near] * len(layers) + [alike])
        with filled(self.views, values):
            of_layers = float(np.mean(original.divergence()))
        of_embedding = float(np.mean(original.divergence([view], values)))
        foretold = sum(some[near] for some in costs[:-1]) / max(costs[-1][alike], NOISE)
        factor = foretold * of_embedding / max(of_layers, NOISE)
        self.progress.log(
            f"measured apart, an error of the embedding counts {factor:.2f} times beside those of the layers"
        )
        return [*(list(some) for some in costs[:-1]), [factor * cost for cost in costs[-1]]]

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
        """Rows {bits, bits_with_scales, bytes, kl, low, high, vllm, chosen}, the smallest first: the chosen widths, and
        those that the knapsack over `costs`, as they were foretold, gives at sizes around theirs: among all widths, and
        where they suffice among those that vLLM has kernels for on a GPU."""
        bits, widths = self.budget.bits(choices), self.budget.widths
        run = self.budget.with_kernels("vllm")
        wanted = {tuple(choices)}
        for step in (0.0, *AROUND):
            if not widths[0] <= bits + step <= widths[-1]:
                continue
            allowed = self.budget.at(bits + step)
            if step:
                wanted.add(tuple(self.solve(costs, allowed)))
            if self.budget.least(run) <= allowed:
                wanted.add(tuple(self.solve(costs, allowed, run)))
        rows = []
        for some in sorted(wanted, key=self.budget.size):
            kl = interval(np.array(self.divergence(some, original)), scale="log")
            ends = {"low": kl.low, "high": kl.high} if kl.low == kl.low else {}  # one window has no interval
            bits = {"bits": self.budget.bits(some), "bits_with_scales": self.budget.bits_with_scales(some)}
            row = bits | {"bytes": self.budget.size(some), "kl": kl.value}
            runs = all(choice in places for choice, places in zip(some, run, strict=True))
            rows.append(row | ends | {"vllm": runs, "chosen": some == tuple(choices)})
        return rows

    def rows(self, choices: Sequence[int], costs: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """What every group gets, for the ledger."""
        return [
            {
                "group": group.name,
                "roles": group.roles,
                "bits": group.width(choice),
                "bytes": group.sizes[choice],
                "sensitivity": of_group[choice],
            }
            for group, choice, of_group in zip(self.budget.groups, choices, costs, strict=True)
        ]


def frontier_line(row: Mapping[str, Any]) -> str:
    """A size of the frontier, for people."""
    between = f" ({row['low']:.4f} to {row['high']:.4f})" if "low" in row else ""
    chosen = ", the target" if row["chosen"] else ", with kernels in vLLM" if row["vllm"] else ""
    bits = bits_per_weight(row["bits"], row["bits_with_scales"])
    return f"{byte_count(row['bytes'])}, {bits}: KL {row['kl']:.4f}{between} nats per token{chosen}"


def kinds_of(groups: Sequence[Group]) -> dict[str, list[int]]:
    """{a kind: places of its groups}: by roles, and by thirds of the layers; a kind of all groups is none."""
    layers = 1 + max(view.layer or 0 for group in groups for view in group.views)
    kinds: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        of_group = [group.roles]
        if group.views[0].layer is not None:
            of_group.append(f"the {('first', 'middle', 'last')[3 * group.views[0].layer // layers]} third")
        for kind in of_group:
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
