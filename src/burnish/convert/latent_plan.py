"""What a conversion to latent attention will make, from the configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.arch import describe
from burnish.convert.latent_config import (
    as_yarn,
    cached_numbers,
    check_source,
    check_widths,
    latent_config,
    tried_widths,
)
from burnish.core.checkpoint import plan_config
from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan
from burnish.core.memory import too_large

if TYPE_CHECKING:
    from burnish.convert.stage import LatentAttention


def plan(settings: LatentAttention, before: Plan) -> Plan:
    """Sizes of the result; where widths are still to be chosen, those of the middle of what will be tried.

    Raises:
        SettingsError: a model or widths that cannot be converted.
    """
    config = before.config
    check_source(config, settings.engine)
    facts = describe(config)
    widths, notes = settings.widths(config), []
    if widths is None:
        tried = tried_widths(config, settings.total(config), extra=settings.extra)
        widths = tried[len(tried) // 2]
        notes.append(f"rank and rope_dim are chosen from {len(tried)} ways to cache {widths.total} numbers a token")
    check_widths(config, widths, extra=settings.extra, allow_larger=settings.allow_larger)
    if settings.rope_mode == "folded":
        check_folds(facts.head_dim // 2, widths.rope_dim // 2, settings.fold)
    rope = as_yarn(config, config.rope_parameters["rope_theta"])
    made = latent_config(config, widths, rope, engine=settings.engine, biases=settings.norm == "bias")
    after = plan_config(made, kind=before.kind)
    num_bytes = round(before.num_bytes / before.num_parameters * after.num_parameters)
    share = widths.total / cached_numbers(config)
    notes.append(f"{widths.total} numbers are cached for a token and layer, {share:.0%} of the source's")
    if settings.norm == "fold":
        notes.append("norm: fold changes the model a great deal; it is a baseline")
    streams = too_large(before.num_parameters) if settings.stream is None else settings.stream
    if streams:
        notes.append("goes from disk to disk, a layer at a time")
    return before.with_(
        config=made,
        shapes=after.shapes,
        num_bytes=num_bytes,
        peak_memory_bytes=held_bytes(settings, before, after, num_bytes, streams=streams) + 1_000_000_000,
        notes=(*before.notes, *notes),
    )


def held_bytes(settings: LatentAttention, before: Plan, after: Plan, num_bytes: int, *, streams: bool) -> int:
    """Bytes of weights and of the text between two layers that are in memory at once, at most.

    Weights are in float32; what is converted is there as it is stored, and the source's layer no longer.
    """
    config = before.config
    copies = 3 if settings.refit or settings.heal_tokens else 2
    text = 4 * copies * settings.tokens * config.hidden_size
    if not streams:
        return before.num_bytes + 4 * before.num_parameters + max(num_bytes - 4 * before.num_parameters, 0) + text
    embedding = config.vocab_size * config.hidden_size
    around = embedding * (1 if config.tie_word_embeddings else 2)
    layer = (before.num_parameters + after.num_parameters - 2 * around) // config.num_hidden_layers
    return 4 * max(embedding, layer) + text


def check_folds(half: int, num_slots: int, fold: int) -> None:
    """Refuses slots and pools that do not divide the frequencies of a head."""
    collapse = half // num_slots
    if half % num_slots:
        raise SettingsError(
            f"rope_dim is {2 * num_slots}, but the published choices keep every n-th of {half} frequencies",
            fix=f"use a divisor of {2 * half}, or rope: free or grid",
        )
    if half % fold or (fold > collapse and fold % collapse):
        raise SettingsError(
            f"{fold} frequencies in a pool do not divide {half}, or hold no whole number of every {collapse}-th one"
        )
