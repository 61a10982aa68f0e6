"""Which scheme every matrix gets: the stage's own, or that of the first pattern in `overrides` that matches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from burnish.arch import MatrixView
from burnish.core.errors import SettingsError, nearest
from burnish.quantize.formats import FORMATS
from burnish.quantize.scheme import Scheme

if TYPE_CHECKING:
    from burnish.quantize.settings import SchemeSettings
    from burnish.quantize.stage import Quantize


def scheme_of(settings: Quantize | SchemeSettings) -> Scheme:
    return FORMATS[settings.scheme](settings.bits, settings.group_size, settings.symmetric)


def matches(pattern: str, view: MatrixView) -> bool:
    """Whether a name, or re:PATTERN from the name's start, means this matrix.

    Raises:
        SettingsError: not a regular expression.
    """
    module = view.name.removesuffix(".weight")
    if pattern.startswith("re:"):
        try:
            return re.match(pattern.removeprefix("re:"), module) is not None
        except re.error as error:
            raise SettingsError(f"{pattern!r} is not a regular expression ({error})") from None
    return pattern in (module, view.name)


def schemes_of(settings: Quantize, views: Sequence[MatrixView]) -> dict[str, Scheme]:
    """{name of a matrix: its scheme}.

    Raises:
        SettingsError: a pattern that matches nothing, matrices with different schemes that vLLM joins into one or that
            are one on disk, experts with a scheme of their own, or a search of clipping ratios on a float grid.
    """
    own = scheme_of(settings)
    for pattern in settings.overrides:
        if not any(matches(pattern, view) for view in views):
            guess = nearest(pattern, [view.name.removesuffix(".weight") for view in views])
            raise SettingsError(
                f"overrides names {pattern!r}, which matches none of the matrices that are quantized",
                fix=f"did you mean {guess!r}?" if guess else "patterns start with re:",
            )
    schemes = {}
    for view in views:
        found = next((scheme for pattern, scheme in settings.overrides.items() if matches(pattern, view)), None)
        schemes[view.name] = own if found is None else scheme_of(found)
    if settings.scale_search:
        for scheme in set(schemes.values()):
            scheme.check_search()
    _check_joined(views, schemes, own)
    return schemes


def _check_joined(views: Sequence[MatrixView], schemes: Mapping[str, Scheme], own: Scheme) -> None:
    joined: dict[str, MatrixView] = {}
    for view in views:
        if view.expert is not None and schemes[view.name] != own:
            raise SettingsError(
                f"overrides gives {view.name} a scheme of its own, but stock loaders know one scheme for all experts",
                fix="choose the experts' scheme as the stage's own, and override the other matrices",
            )
        for group in (view.fused_group, view.disk):
            other = joined.setdefault(group, view) if group else view
            if schemes[other.name] != schemes[view.name]:
                raise SettingsError(
                    f"overrides gives {view.name} another scheme than {other.name}, which vLLM joins with it",
                    fix="let one pattern match all of "
                    + ", ".join(v.name for v in views if group in (v.fused_group, v.disk)),
                )
