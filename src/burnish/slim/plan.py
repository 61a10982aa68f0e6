"""What a cut would make and cost, from the configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.arch import describe, num_active_parameters
from burnish.core.checkpoint import plan_config
from burnish.core.cost import seconds_for
from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan
from burnish.core.memory import too_large
from burnish.core.progress import byte_count
from burnish.slim import depth
from burnish.slim.sizes import fitted, new_config
from burnish.slim.target import CLOSE, allowed_parameters, experts_of

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.slim.stage import Slim


def preflight(settings: Slim, start: Model, before: Plan) -> None:
    """Refuses calibration text that is too short, or that the tokenizer cannot read."""
    from burnish.data.attempt import try_window

    if settings.reads_text:
        length = min(settings.length, before.config.get_text_config().max_position_embeddings)
        if settings.tokens < length:
            raise SettingsError(
                f"tokens is {settings.tokens:,}, which does not fill one window of {length}",
                where="tokens",
                fix=f"use --tokens {length} or more",
            )
        try_window(start.tokenizer, settings.calibration, length, before.config)


def plan(settings: Slim, before: Plan) -> Plan:
    from burnish.data.attempt import check_length

    check_length(settings.length, type(settings).model_fields["length"].default, before.config)
    if settings.method == "best":
        return _plan_best(settings, before)
    config = new_config(settings, before)
    if settings.method == "depth":
        return _plan_depth(settings, before, config)
    after = plan_config(config, kind=before.kind)
    per_parameter = before.num_bytes / before.num_parameters
    was, now = experts_of(before.config), experts_of(config)
    of = f"{was.num_experts} experts per layer, {now.intermediate_size} of {was.intermediate_size} wide"
    if settings.method == "split":
        of = f"{settings.pieces * was.num_experts} pieces of {of}, {now.top_k} for a token ({was.top_k} experts before)"
    notes = [f"{now.num_experts} of {of}; {after.num_parameters / before.num_parameters:.1%} of the parameters"]
    heads = describe(config).num_key_value_heads
    if heads != describe(before.config).num_key_value_heads:
        notes.append(f"{heads} of {describe(before.config).num_key_value_heads} attention groups")
    if settings.target is not None:
        sizes, allowed = fitted(settings, before), allowed_parameters(settings.target, before)
        if sizes.num_parameters < CLOSE * allowed:
            notes.append(
                f"the sizes nearest to the target of {allowed:,} parameters are {sizes.num_parameters:,}, which it "
                f"makes, and {sizes.next_larger:,}"
            )
    if now.intermediate_size % 64:
        notes.append(f"{now.intermediate_size} is no multiple of 64, the tile of fused expert kernels")
    flops, memory, more = _cost(settings, before, after)
    return before.with_(
        config=config,
        shapes=after.shapes,
        num_bytes=round(per_parameter * after.num_parameters),
        peak_memory_bytes=memory + 1_000_000_000,
        seconds=seconds_for(flops),
        notes=(*before.notes, *notes, *more),
    )


def _cost(settings: Slim, before: Plan, after: Plan) -> tuple[float, int, list[str]]:
    """Operations, bytes in memory beside the libraries, and notes on both."""
    if not settings.reads_text:
        return 0, 0, []
    text = before.config.get_text_config()
    states = 8 * settings.tokens * text.hidden_size
    flops = (6 if settings.by_gradients else 2) * num_active_parameters(before) * settings.tokens
    memory, notes = 4 * before.num_parameters, []  # the whole network, in float32
    streams = settings.stream
    if streams is None:
        streams = too_large(before.num_parameters) and not settings.not_by_layer
    if streams:
        num_layers = describe(before.config).num_layers
        around = 2 * text.vocab_size * text.hidden_size
        memory = 4 * (2 * before.num_parameters // num_layers + around) + states
        notes.append("text goes through a layer at a time, from disk")
        if settings.by_gradients:
            flops += 2 * num_active_parameters(before) * settings.tokens
            disk = byte_count(num_layers * states // 2)
            notes.append(f"what goes into every layer lies on disk meanwhile ({disk}); scores of activations need none")
    if settings.refit_name != "none":
        # Hidden states before and after a layer; a Gram matrix; and refitted matrices.
        flops += 3 * num_active_parameters(before) * settings.tokens
        memory += 8 * experts_of(before.config).intermediate_size ** 2 + states + after.num_bytes // 3
    if settings.refit_name == "behind":  # the smaller network too, and its hidden states
        flops += 3 * num_active_parameters(after) * settings.tokens
        memory += 4 * after.num_parameters + 2 * states
    return flops, memory, notes


def _plan_best(settings: Slim, before: Plan) -> Plan:
    """That of the first form; which is chosen is known once they have been measured."""
    from burnish.slim.best import forms

    plans = {name: plan(one, before) for name, one, _ in forms(settings, before)}
    first, seconds = next(iter(plans.values())), [one.seconds or 0 for one in plans.values()]
    sizes = [one.num_parameters for one in plans.values()]
    return first.with_(
        peak_memory_bytes=max(one.peak_memory_bytes for one in plans.values()),
        seconds=sum(seconds) or None,
        notes=(
            *before.notes,
            f"the nearest of {len(plans)} forms, which are all made: {', '.join(plans)} "
            f"({min(sizes):,} to {max(sizes):,} parameters); planned as if it were the first",
        ),
    )


def _plan_depth(settings: Slim, before: Plan, config: Any) -> Plan:
    after = plan_config(config, kind=before.kind)
    was, now = (describe(one).num_layers for one in (before.config, config))
    notes = [f"{now} of {was} layers; {after.num_parameters / before.num_parameters:.1%} of the parameters"]
    if settings.target is not None:
        allowed = allowed_parameters(settings.target, before)
        if after.num_parameters < CLOSE * allowed:
            larger = depth.size_of_next(before.config, now)
            notes.append(
                f"the sizes nearest to the target of {allowed:,} parameters are {after.num_parameters:,}, which it "
                f"makes, and {larger:,}"
            )
    passes = depth.num_passes(settings.score_name, was, now)
    return before.with_(
        config=config,
        shapes=after.shapes,
        num_bytes=round(before.num_bytes / before.num_parameters * after.num_parameters),
        peak_memory_bytes=(4 * before.num_parameters if passes else 0) + 1_000_000_000,
        seconds=seconds_for(2 * passes * num_active_parameters(before) * settings.tokens),
        notes=(*before.notes, *notes),
    )
