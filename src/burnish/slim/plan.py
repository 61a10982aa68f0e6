"""What a cut would make and cost, from the configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.arch import describe
from burnish.core.checkpoint import plan_config
from burnish.core.cost import seconds_for
from burnish.core.errors import SettingsError
from burnish.core.stage import Plan
from burnish.slim.target import experts_of, fit, parse_target, resized

if TYPE_CHECKING:
    from burnish.slim.stage import Slim


def new_config(settings: Slim, before: Plan) -> Any:
    """The configuration of the smaller model; raises `SettingsError` on an impossible target."""
    experts_of(before.config)
    groups = settings.num_key_value_heads
    by = "width" if settings.method == "narrow" else "num_experts"
    size = settings.width if by == "width" else settings.num_experts
    if by == "width" and size is not None and size % settings.multiple:
        nearest = max(settings.multiple * round(size / settings.multiple), settings.multiple)
        raise SettingsError(
            f"width is {size}, which {settings.multiple} does not divide, and fused expert kernels work on such tiles",
            where="width",
            fix=f"use {nearest}, or a smaller multiple",
        )
    if settings.target is not None:
        allowed = parse_target(settings.target, before)
        size = fit(before.config, allowed, by=by, multiple=settings.multiple, num_key_value_heads=groups)
    return resized(before.config, num_key_value_heads=groups, **{by: size})


def plan(settings: Slim, before: Plan) -> Plan:
    config = new_config(settings, before)
    after = plan_config(config, kind=before.kind)
    per_parameter = before.num_bytes / before.num_parameters
    was, now = experts_of(before.config), experts_of(config)
    notes = [
        f"{now.num_experts} of {was.num_experts} experts per layer, {now.intermediate_size} of "
        f"{was.intermediate_size} wide; {after.num_parameters / before.num_parameters:.1%} of the parameters"
    ]
    heads = describe(config).num_key_value_heads
    if heads != describe(before.config).num_key_value_heads:
        notes.append(f"{heads} of {describe(before.config).num_key_value_heads} attention groups")
    if now.intermediate_size % 64:
        notes.append(f"{now.intermediate_size} is no multiple of 64, the tile of fused expert kernels")
    gradients = settings.method == "narrow" and settings.score_name in ("fisher", "taylor", "taylor_total")
    flops = (4 if gradients else 2) * before.num_active_parameters * settings.tokens
    if settings.score_name in ("random", "magnitude"):
        flops = 0
    refit_bytes = 0
    if settings.refit:
        gram = 8 * was.intermediate_size**2
        num_grams = was.num_experts * len(was.sparse_layers)
        passes = -(-num_grams // max(settings.memory // gram, 1))
        flops += 2 * before.num_active_parameters * settings.tokens * passes
        refit_bytes = max(min(settings.memory, num_grams * gram), gram)
        notes.append(f"{passes} pass{'es' if passes > 1 else ''} over the text to refit")
    return before.with_(
        config=config,
        num_parameters=after.num_parameters,
        num_active_parameters=after.num_active_parameters,
        num_bytes=round(per_parameter * after.num_parameters),
        peak_memory_bytes=4 * (before.num_parameters + after.num_parameters) + refit_bytes + 1_000_000_000,
        seconds=seconds_for(flops),
        notes=(*before.notes, *notes),
    )
