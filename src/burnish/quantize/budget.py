"""How large a model becomes under which widths, and how large it may be.

Groups of matrices that stock loaders want in one width, what each would take on disk, and the bytes that a target
leaves for them. Which widths they get is the matter of `mixed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from burnish.arch import MatrixView
from burnish.core.errors import EngineError, SettingsError
from burnish.core.progress import byte_count
from burnish.core.target import parse_target
from burnish.quantize.method import Rounding
from burnish.quantize.scheme import Scheme

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
NO_PACKED_EMBEDDING = (
    "no stock loader reads a packed embedding (transformers 5.17 stops, 5.24 takes another width for its)"
)
HEADER_ENTRY = 150
"""Bytes, beside its name, that a tensor takes in the header of a file, at most."""


@dataclass(frozen=True)
class Group:
    """Matrices that stock loaders want in one width: those that an engine joins, all experts, or the embedding.

    Attributes:
        views: its matrices.
        schemes: what they may become, from the narrowest; None leaves the embedding as it is.
        sizes: bytes on disk under each.
    """

    views: tuple[MatrixView, ...]
    schemes: tuple[Scheme | None, ...]
    sizes: tuple[int, ...]

    @property
    def is_inside(self) -> bool:
        """Whether it belongs to decoder layers."""
        return self.views[0].layer is not None

    def width(self, choice: int) -> int:
        """Bits per weight, without scales."""
        scheme = self.schemes[choice]
        return round(8 * self.sizes[choice] / self.num_weights) if scheme is None else scheme.bits

    def size_at(self, bits: int) -> int:
        return next(
            size for scheme, size in zip(self.schemes, self.sizes, strict=True) if scheme and scheme.bits == bits
        )

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
        groups: whose widths are chosen; those inside of decoder layers come first, and all have the same ones.
        dense: bytes of everything else in the files.
        allowed: bytes for the groups.
    """

    groups: tuple[Group, ...]
    dense: int
    allowed: int = 0

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """Of groups inside of decoder layers."""
        return tuple(scheme for scheme in self.groups[0].schemes if scheme is not None)

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
        return [sum(group.size_at(bits) for group in self.groups) for bits in self.widths]

    def bits(self, choices: Sequence[int]) -> float:
        """Mean width of the weights, without scales."""
        weights = [group.num_weights for group in self.groups]
        widths = [group.width(choice) for group, choice in zip(self.groups, choices, strict=True)]
        return float(np.average(widths, weights=weights))

    def bits_with_scales(self, choices: Sequence[int]) -> float:
        return 8 * (self.size(choices) - self.dense) / sum(group.num_weights for group in self.groups)

    def size(self, choices: Sequence[int]) -> int:
        """Bytes of the files."""
        return self.dense + sum(group.sizes[choice] for group, choice in zip(self.groups, choices, strict=True))

    def with_kernels(self, engine: str) -> list[list[int]]:
        """Places of the widths that an engine has kernels for, of every group; it reads no packed embedding."""
        return [
            [
                place
                for place, scheme in enumerate(group.schemes)
                if scheme is None or (group.is_inside and has_kernels(scheme, group.views, engine))
            ]
            for group in self.groups
        ]

    def least(self, places: Sequence[Sequence[int]]) -> float:
        """Bytes that the groups take at least, if these are their choices; infinite where one has none."""
        pairs = zip(self.groups, places, strict=True)
        return sum(min((group.sizes[place] for place in some), default=float("inf")) for group, some in pairs)

    def near(self) -> ByteBudget:
        """With the widths that a solution may take: those near the mean, and on both sides what the frontier needs.

        The embedding keeps all of its own: what it costs differs from what the layers cost, and it is rounded quickly.
        """
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
            if group.is_inside
            else group
            for group in self.groups
        ]
        return replace(self, groups=tuple(groups))

    def applied(self, choices: Sequence[int], rounding: Rounding) -> Rounding:
        """The rounding with these widths; experts, or else most matrices, have the scheme that needs no names."""
        pairs = [(g, scheme) for g, scheme in self.chosen(choices) if g.is_inside]
        schemes = {view.name: scheme for group, scheme in pairs for view in group.views}
        experts = [scheme for group, scheme in pairs if group.name == "experts"]
        names = [scheme for group, scheme in pairs for _ in group.views]
        return replace(rounding, scheme=(experts or [max(names, key=names.count)])[0], overrides=schemes)

    def chosen(self, choices: Sequence[int]) -> list[tuple[Group, Scheme]]:
        """Groups with their schemes, but for an embedding that stays as it is."""
        pairs = ((group, group.schemes[choice]) for group, choice in zip(self.groups, choices, strict=True))
        return [(group, scheme) for group, scheme in pairs if scheme is not None]

    def outside(self, choices: Sequence[int]) -> list[tuple[MatrixView, Scheme]]:
        """The embedding, where these widths round it."""
        return [(view, scheme) for group, scheme in self.chosen(choices) if not group.is_inside for view in group.views]


def budget_of(
    settings: Quantize,
    scheme: Scheme,
    views: Sequence[MatrixView],
    before: Plan,
    *,
    embedding: MatrixView | None = None,
    saved: int = 0,
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
    if embedding is not None:
        groups += groups_of([embedding], scheme, None, max(round(per_weight), 2), dense_bytes=round(per_weight))
        views = [*views, embedding]
    headers = sum(3 * (HEADER_ENTRY + len(view.disk)) for view in views)
    dense = round(before.num_bytes - per_weight * sum(group.num_weights for group in groups)) + headers - saved
    whole = ByteBudget(tuple(groups), dense)
    smallest, largest = dense + whole.at(min(whole.widths)), dense + sum(max(group.sizes) for group in groups)
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
        unless = ", or take quantize_embedding: auto" if is_embedding and below else ""
        itself = f" of {byte_count(before.num_bytes)}, which is {byte_count(wanted)}" if target.unit == "%" else ""
        raise SettingsError(
            f"target is {settings.target}{itself}, but the widths{kernels} give {byte_count(smallest)} "
            f"({min(whole.widths)} bits) to {byte_count(largest)} ({max(whole.widths)} bits"
            f"{', the embedding as it is' if embedding else ''}); {dense_part}",
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


def groups_of(
    views: Sequence[MatrixView], scheme: Scheme, engine: str | None, scale_bytes: int, *, dense_bytes: int = 0
) -> list[Group]:
    """Groups in the order of the network, each with the widths that all of them can have.

    Args:
        views: their matrices.
        scheme: but for its width.
        engine: whose kernels count; None for none.
        scale_bytes: that a scale takes.
        dense_bytes: that a weight takes as it is, where that is a choice too.

    Raises:
        EngineError: there is none.
    """
    schemes = [replace(scheme, bits=bits) for bits in WIDTHS]
    if engine is not None:
        schemes = [option for option in schemes if has_kernels(option, views, engine)]
        if not schemes:
            for view in views:
                replace(scheme, bits=4).check_kernel(view, engine)
    together: dict[str, list[MatrixView]] = {}
    for view in views:
        together.setdefault(group_name(view), []).append(view)
    return [
        Group(
            tuple(some),
            (*schemes, *([None] if dense_bytes else [])),
            (
                *(sum(option.num_bytes(*view.shape, scale_bytes) for view in some) for option in schemes),
                *([dense_bytes * sum(prod(view.shape) for view in some)] if dense_bytes else []),
            ),
        )
        for some in together.values()
    ]


def has_kernels(scheme: Scheme, views: Sequence[MatrixView], engine: str) -> bool:
    try:
        for view in views:
            scheme.check_kernel(view, engine)
    except EngineError:
        return False
    return True


def width_notes(budget: ByteBudget, bytes_per_value: int) -> list[str]:
    """Sentences for the plan."""
    among = ", ".join(map(str, budget.widths))
    total = byte_count(budget.dense + budget.allowed)
    kept = bytes_per_value * sum(len(group.schemes) * group.num_weights for group in budget.groups)
    inside = [group for group in budget.groups if group.is_inside]
    beside = "" if len(inside) == len(budget.groups) else ", that of the embedding among 2 to 8 or as it is,"
    notes = [
        f"widths of {len(inside)} groups are chosen among {among} bits{beside} for {total}, "
        f"of which {byte_count(budget.dense)} stay dense",
        f"every matrix is rounded to each of them: {byte_count(kept)} on disk while it runs",
    ]
    if without := [str(bits) for bits in budget.widths if bits not in (4, 8)]:
        notes.append(f"vLLM has no built-in kernel for {', '.join(without)} bits; engine: vllm leaves them out")
    return notes


def bits_per_weight(codes: float, with_scales: float) -> str:
    """A target in bits means the former, the bytes on disk come from the latter; wherever one is told, both are."""
    return f"{codes:.2f} bits per weight, {with_scales:.2f} with scales"
