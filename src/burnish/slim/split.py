"""A model whose experts are split into pieces, from its configuration alone (`maths.split` says what that is)."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import describe
from burnish.core.errors import SettingsError
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.split import dealt, down_factor
from burnish.slim.target import experts_of, resized, router_groups

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.slim.stage import Slim


MORE = 1.5
"""Of `default_top_k`: with two pieces, of which half stay, the lowest loss (`benchmarks/slim_widths.py`)."""


def check_routing(config: Any) -> None:
    """Refuses routers to which several experts with one row are not the same as one expert.

    Raises:
        SettingsError: such a router, or a configuration that cannot have narrower experts alone.
    """
    experts = experts_of(config)
    reason = ""
    if experts.routing == "sparsemixer":
        reason = "its router takes two experts one after the other, and masks only the first one itself for the second"
    elif experts.shares_width:
        reason = "it has one width for its experts and for the MLPs of its other layers"
    if reason:
        raise SettingsError(
            f"the experts of a {config.model_type} model cannot be split: {reason}",
            where="method",
            fix="use method: narrow, or method: drop",
        )


def in_pieces(config: Any, pieces: int) -> Any:
    """The configuration with every expert as so many pieces, none of which is dropped yet.

    Raises:
        SettingsError: the router or the widths do not allow it.
    """
    check_routing(config)
    facts, experts, new = describe(config), experts_of(config), copy.deepcopy(config)
    if experts.intermediate_size % pieces:
        raise SettingsError(
            f"pieces is {pieces}, which does not divide the width of an expert, {experts.intermediate_size}",
            where="pieces",
        )
    text = new.get_text_config()
    setattr(text, facts.key("num_experts"), pieces * experts.num_experts)
    setattr(text, facts.key("moe_intermediate_size"), experts.intermediate_size // pieces)
    text.num_experts_per_tok = pieces * experts.top_k
    if _deals(config):
        text.n_group, text.topk_group = pieces * text.n_group, pieces * text.topk_group
    if experts.shared_number:
        setattr(text, experts.shared_number, pieces * getattr(text, experts.shared_number))
    if experts_of(new).shared_intermediate_size != experts.shared_intermediate_size:
        raise SettingsError(
            f"the experts of a {config.model_type} model cannot be split: its shared expert is as wide as a routed one",
            where="method",
            fix="use method: narrow, or method: drop",
        )
    return new


def _deals(config: Any) -> bool:
    """Whether groups of experts become several, see `maths.split.dealt`."""
    return experts_of(config).routing == "sigmoid_groups" and router_groups(config) > 1


def kept_pieces(worth: Tensor, count: int, config: Any, pieces: int) -> Tensor:
    """Numbers of the pieces of a layer that stay, in the order in which they stand then.

    Args:
        worth: of all pieces, those of an expert one after the other.
        count: how many stay: of each of the router's groups equally many.
        config: of the model before it is split.
        pieces: of an expert.
    """
    groups = router_groups(config)
    inside = keep_highest(worth.view(groups, -1), count // groups)
    chosen = inside + torch.arange(groups)[:, None] * (len(worth) // groups)
    return dealt(chosen, pieces) if _deals(config) else chosen.flatten()


def of_single_pieces(config: Any, pieces: int) -> Any:
    """As `in_pieces`, but a token is sent to as many pieces as it was sent to experts: the fewest that may be kept."""
    return _with_top_k(in_pieces(config, pieces), experts_of(config).top_k)


def new_config(settings: Slim, before: Plan, *, num_pieces: int | None, width: int | None) -> Any:
    """The configuration of the model in pieces, of which some are dropped or all are narrowed.

    Args:
        settings: of which the number of pieces, attention groups and pieces for a token are read.
        before: the model as it is.
        num_pieces: that are kept in a layer; None for all.
        width: of a piece; None as it comes.
    """
    was = experts_of(before.config)
    whole = of_single_pieces(before.config, settings.pieces)
    new = resized(whole, width=width, num_experts=num_pieces, num_key_value_heads=settings.num_key_value_heads)
    groups, pieces = router_groups(new), experts_of(new).num_experts
    within = pieces * new.get_text_config().topk_group // groups if groups > 1 else pieces
    chosen = settings.num_experts_per_tok
    if chosen is None:
        chosen = min(default_top_k(was.top_k, was.num_experts, settings.pieces, pieces), within)
    if chosen > within:
        where = " in the groups that are chosen" if within < pieces else ""
        raise SettingsError(
            f"num_experts_per_tok is {chosen}, but {within} pieces are kept{where}", where="num_experts_per_tok"
        )
    return _with_top_k(new, chosen)


def check_multiple(settings: Slim, config: Any) -> None:
    """Refuses pieces that fused kernels, or the devices that share them, could not use."""
    width, step = experts_of(config).intermediate_size, settings.multiple * settings.tp
    if settings.width is None and width % settings.pieces == 0 and width // settings.pieces % step:
        possible = [str(pieces) for pieces in range(2, width // step + 1) if width % (pieces * step) == 0]
        ways = [f"--pieces {' or '.join(possible[:4])}"] if possible else []
        if settings.multiple > 8:
            ways.append("a smaller multiple")
        if settings.tp > 1:
            ways.append("fewer devices (tp)")
        raise SettingsError(
            f"a piece of an expert of {width} would be {width // settings.pieces} wide, which {step} does not divide",
            where="pieces",
            fix=f"use {', or '.join(ways or ['method: narrow', 'method: drop'])}",
        )


def default_top_k(top_k: int, num_experts: int, pieces: int, num_pieces: int) -> int:
    """Pieces that a token is sent to: half as much again, of those that are kept, as it was sent to of all experts.

    But no more than all pieces of the experts that it was sent to, and no fewer than those experts.
    """
    return max(top_k, min(math.floor(MORE * top_k * num_pieces / num_experts + 0.5), top_k * pieces))


def factor(before: Any, after: Any) -> float:
    """What down projections are multiplied by, from both configurations."""
    was, now = experts_of(before), experts_of(after)
    return down_factor(was.weights, (was.num_experts, was.top_k), (now.num_experts, now.top_k))


def correction(before: Any, after: Any) -> float:
    """What a correction of the router's choice is multiplied by: it is added to probabilities, which pieces share."""
    was, now = experts_of(before), experts_of(after)
    return was.num_experts / now.num_experts if was.routing in ("softmax", "softmax_groups") else 1.0


def _with_top_k(config: Any, top_k: int) -> Any:
    new = copy.deepcopy(config)
    new.get_text_config().num_experts_per_tok = top_k
    return new
