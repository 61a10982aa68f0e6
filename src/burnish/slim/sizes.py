"""The sizes of the smaller model, from settings and the configuration of the model as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.core.errors import SettingsError
from burnish.slim import depth, split
from burnish.slim.target import FittedSizes, allowed_parameters, experts_of, fit, resized

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.slim.stage import Slim


def new_config(settings: Slim, before: Plan) -> Any:
    """The configuration of the smaller model.

    Raises:
        SettingsError: an impossible target, or sizes that the architecture cannot have.
    """
    if settings.method != "depth":
        experts_of(before.config)
    if carried := before.carried:
        raise SettingsError(
            f"the checkpoint holds {len(carried)} tensors that stock loading passes over ({carried[0]}, ...), and with "
            "other sizes the configuration would describe them wrongly",
            fix="set num_nextn_predict_layers to 0 in its config.json to leave such layers behind",
        )
    if settings.method == "depth":
        return depth.shallower(before.config, num_layers(settings, before))
    if settings.method == "split":
        split.check_routing(before.config)
    groups, width, number = settings.num_key_value_heads, settings.width, settings.num_experts
    step = settings.multiple * settings.tp
    if width is not None and width % step:
        shares = f" ({settings.multiple} for each of {settings.tp} devices)" if settings.tp > 1 else ""
        raise SettingsError(
            f"width is {width}, which {step}{shares} does not divide, and fused expert kernels work on such tiles",
            where="width",
            fix=f"use {max(step * round(width / step), step)}, or a smaller multiple",
        )
    if groups is not None and groups % settings.tp:
        raise SettingsError(
            f"num_key_value_heads is {groups}, which {settings.tp} devices cannot share equally",
            where="num_key_value_heads",
            fix=f"use a multiple of {settings.tp}",
        )
    if settings.method == "split":
        split.check_multiple(settings, before.config)
    if settings.target is not None:
        sizes = fitted(settings, before)
        width, number = sizes.width, sizes.num_experts
    if settings.method == "split":
        return split.new_config(settings, before, num_pieces=number, width=width)
    return resized(before.config, width=width, num_experts=number, num_key_value_heads=groups)


def num_layers(settings: Slim, before: Plan) -> int:
    """Layers that method depth leaves."""
    if settings.num_layers is not None:
        return settings.num_layers
    assert settings.target is not None, "the settings have one of them"
    return depth.fitting(before.config, allowed_parameters(settings.target, before))


def fitted(settings: Slim, before: Plan) -> FittedSizes:
    """The sizes that the target becomes."""
    assert settings.target is not None, "asked for only where there is a target"
    return fit(
        split.of_single_pieces(before.config, settings.pieces) if settings.method == "split" else before.config,
        allowed_parameters(settings.target, before),
        by="width" if settings.method == "narrow" else "num_experts",
        multiple=settings.multiple * settings.tp,
        num_key_value_heads=settings.num_key_value_heads,
    )
