"""What a quantization would cost and make, from the configuration alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from burnish.arch import MatrixView, is_registered, known_model_types
from burnish.core.cost import seconds_for
from burnish.core.errors import SettingsError, nearest
from burnish.core.memory import too_large
from burnish.core.progress import byte_count
from burnish.quantize.budget import bits_per_weight, budget_of, width_notes
from burnish.quantize.low_rank import check as check_low_rank
from burnish.quantize.low_rank import factors_of
from burnish.quantize.mixed import LEARNED_AS, NUM_MEASURED
from burnish.quantize.outside import (
    asked_for,
    check_outside,
    embedding_of_target,
    notes_on,
    outside_of,
    saved_bytes,
    working_bytes,
)
from burnish.quantize.packing import check_loadable, ignored_modules
from burnish.quantize.rules import RULES
from burnish.quantize.schemes import matches, scheme_of, schemes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.calibrate.sums import Sketch
    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan
    from burnish.quantize.budget import ByteBudget
    from burnish.quantize.method import Rounding
    from burnish.quantize.scheme import Scheme
    from burnish.quantize.stage import Quantize

QUANTIZED_PARTS = ("attention", "mlp", "experts", "shared_expert")
SMALL_ROLES = ("router", "shared_expert_gate")
"""A router decides which experts run; its few weights stay as they are."""


def select(views: Sequence[MatrixView], ignore: Sequence[str]) -> list[MatrixView]:
    """The matrices of decoder layers that are quantized.

    Raises:
        SettingsError: a pattern that matches nothing, or some but not all of a group that vLLM fuses.
    """
    inside = [v for v in views if v.layer is not None and v.part in QUANTIZED_PARTS and v.role not in SMALL_ROLES]
    # Packed formats know linear layers, not tensors of all experts.
    candidates = [view for view in inside if not view.stacked]
    for pattern in ignore:
        if not any(matches(pattern, view) for view in views):
            guess = nearest(pattern, [view.name.removesuffix(".weight") for view in candidates])
            raise SettingsError(
                f"ignore names {pattern!r}, which matches no matrix",
                fix=f"did you mean {guess!r}?" if guess else "patterns start with re:",
            )
    chosen = [view for view in candidates if not any(matches(pattern, view) for pattern in ignore)]
    if not chosen:
        raise SettingsError("there is nothing left to quantize", fix="shorten ignore")
    names = {view.name for view in chosen}
    for view in candidates:
        siblings = [other for other in candidates if other.fused_group and other.fused_group == view.fused_group]
        if view.name in names and any(other.name not in names for other in siblings):
            left_out = next(other.name for other in siblings if other.name not in names)
            raise SettingsError(
                f"ignore leaves out {left_out} but not {view.name}, which vLLM joins into one matrix",
                fix="ignore all of " + ", ".join(other.name for other in siblings),
            )
    return chosen


def matrices_of(module: PreTrainedModel, settings: Quantize) -> list[MatrixView]:
    """The matrices of a model; of a type that the table of architectures lacks those that names and shapes give and
    that groups divide, which is enough where nothing is collected."""
    from burnish.arch import matrices, plain_matrices

    known = module.config.model_type in known_model_types()
    if known or settings.reads:
        return matrices(module)
    return [view for view in plain_matrices(module) if view.shape[1] % (settings.group_size or 1) == 0]


def check_loader(module: PreTrainedModel, views: Sequence[MatrixView]) -> None:
    """Refuses types whose class touches weights that a packed checkpoint does not have.

    Raises:
        SettingsError: transformers could not load what would be written.
    """
    packed = copy.deepcopy(module)  # on the meta device
    for view in views:
        del packed.get_submodule(view.parameter.removesuffix(".weight")).weight
    for part in packed.modules():
        try:
            packed._init_weights(part)
        except AttributeError:
            raise SettingsError(
                f"transformers cannot load a packed {module.config.model_type}: its class initialises weights that a "
                "packed checkpoint lacks",
                fix="quantize a model of another type",
            ) from None


def check_for_library(settings: Quantize, views: Sequence[MatrixView]) -> None:
    """Refuses what a rule `by_library` cannot hand over: all but the weights of linear layers of their own.

    Raises:
        SettingsError: a matrix is an expert's, or of another module.
    """
    for view in views if RULES[settings.method].by_library else ():
        if view.expert is not None or not isinstance(view.owner, nn.Linear):
            raise SettingsError(
                f"is no linear layer by itself, and {settings.method} is handed such alone",
                where=view.name,
                fix="use another method, or name it in ignore",
            )


def check_experts(views: Sequence[MatrixView]) -> None:
    """Refuses experts that lie in one tensor, but that a packed checkpoint would have to hold one by one.

    Raises:
        SettingsError: transformers puts linear layers in their place when it reads a packed checkpoint.
    """
    for view in views:
        if view.stacked and not is_registered(view.owner):
            raise SettingsError(
                f"transformers reads a packed checkpoint with other modules in place of {type(view.owner).__name__}, "
                "and their weights have other names than those of the dense one",
                where=view.disk,
                fix="quantize a model of another type",
            )


STORED_DTYPE = (
    "transformers runs packed experts in the dtype that is stored (dtype: auto): it does not cast them, and in another "
    "one eager experts stop, Mixtral's always"
)


def plan(settings: Quantize, before: Plan) -> Plan:
    """Shapes, bytes and time; raises `SettingsError` on impossible settings."""
    from burnish.core.checkpoint import without_memory
    from burnish.data.attempt import check_length

    module = without_memory(before.config)
    inside = matrices_of(module, settings)
    views = select(inside, settings.ignore)
    check_experts(inside)
    check_for_library(settings, views)
    schemes = schemes_of(settings, views)
    check_length(settings.length, type(settings).model_fields["length"].default, before.config)
    check_combinations(settings)
    if settings.engine is not None and settings.target is None:
        for view in views:
            schemes[view.name].check_kernel(view, settings.engine)
    check_loadable(views, schemes)
    num_weights = sum(view.shape[0] * view.shape[1] for view in views)
    per_parameter = before.num_bytes / before.num_parameters
    scale_bytes = max(round(per_parameter), 2)
    packed, width = packed_size(views, schemes, scale_bytes)
    outside = outside_of(settings, module, inside)
    saved, notes = saved_bytes(outside, before), notes_on(settings, outside)
    num_bytes = round(before.num_bytes - per_parameter * num_weights + packed) - saved
    budget, num_chosen = None, len(views)
    if settings.target is not None:
        embedding = embedding_of_target(settings, module, inside)
        budget = budget_of(settings, scheme_of(settings), views, before, embedding=embedding, saved=saved)
        packed, num_bytes, width = budget.allowed, budget.dense + budget.allowed, budget.mean_width
        num_chosen = sum(len(group.views) for group in budget.groups)
        num_weights = sum(group.num_weights for group in budget.groups)
        notes += width_notes(budget, scale_bytes)
    factors, said = factors_of(settings, module, views, scale_bytes)
    num_bytes, notes = num_bytes + factors, notes + said
    notes.append(f"{num_chosen} matrices at {bits_per_weight(width, 8 * packed / num_weights)}")
    if stacked := {view.parameter for view in inside if view.stacked}:
        notes.append(f"{len(stacked)} tensors of routed experts stay dense: packed formats know linear layers only")
    unknown = module.config.model_type not in known_model_types()
    if unknown:
        check_loader(module, views)
        kind, dense = module.config.model_type, ", ".join(ignored_modules(module, views)) or "no linear layer"
        notes.append(f"model_type {kind!r} has no row: linear layers are found by their names; dense stays {dense}")
    flops, statistics_bytes = 0.0, 0
    streams = _streams(settings, before, unknown=unknown)
    if streams:
        notes.append("goes from disk to disk, a layer at a time")
    if settings.needs:
        flops, statistics_bytes, note = text_cost(settings, before, views, streams=streams, budget=budget)
        notes.append(note)
    flops += outliers_flops(settings, before)
    if any(view.expert is not None for view in views):
        notes.append(STORED_DTYPE)
    loads = settings.target is None and settings.quantize_embedding is None  # else it has been said what does not
    by_bits = sorted(set(schemes.values()), key=lambda scheme: scheme.bits) if loads else []
    notes += dict.fromkeys(note for scheme in by_bits for note in scheme.notes())
    working = 4 * held_numbers(settings, before, views, streams=streams) + statistics_bytes + 1_000_000_000
    working += working_bytes(settings, inside)
    return before.with_(
        num_bytes=num_bytes, peak_memory_bytes=working, seconds=seconds_for(flops), notes=(*before.notes, *notes)
    )


def outliers_flops(settings: Quantize, before: Plan) -> float:
    """Of the pass over the calibration text that the table of outliers takes."""
    from burnish.arch import num_active_parameters

    return 2.0 * num_active_parameters(before) * settings.num_tokens if settings.outliers else 0.0


def _streams(settings: Quantize, before: Plan, *, unknown: bool) -> bool:
    """Whether one layer at a time is going to be in memory."""
    if settings.stream is not None:
        return settings.stream
    at_once = settings.curve or settings.outliers or settings.target is not None or asked_for(settings) is not None
    whole = RULES[settings.method].not_by_layer(settings) or at_once or unknown
    return too_large(before.num_parameters) and not whole


def packed_size(views: Sequence[MatrixView], schemes: Mapping[str, Scheme], scale_bytes: int) -> tuple[int, float]:
    """Bytes on disk with scales, and bits per weight without them."""
    sizes = [math.prod(view.shape) for view in views]
    bits = sum(schemes[view.name].bits * size for view, size in zip(views, sizes, strict=True))
    return sum(schemes[view.name].num_bytes(*view.shape, scale_bytes) for view in views), bits / sum(sizes)


def held_numbers(settings: Quantize, before: Plan, views: Sequence[MatrixView], *, streams: bool) -> int:
    """Numbers in memory at once beside the sums."""
    sizes = dict.fromkeys((view.layer for view in views), 0)
    for view in views:
        sizes[view.layer] += math.prod(view.shape)
    states = settings.num_tokens * before.config.get_text_config().hidden_size
    # Of a layer that is learned weights, offsets, values, gradients and what the way back needs (counted as it ran);
    # hidden states of two networks, and targets.
    by_block = RULES[settings.method].by_block
    learned = 10 * max(sizes.values()) + 3 * states
    if not streams:
        return before.num_parameters + learned if by_block else before.num_parameters
    around = before.num_parameters - sum(sizes.values())  # embeddings, and the head that gradients come from
    if by_block:
        return around + learned
    text = (2 if sketches_of(settings) else 1) * states if settings.needs else 0  # what comes down is as large
    return around + 2 * max(sizes.values()) + text  # a layer and its rounded copy


def text_cost(
    settings: Quantize, before: Plan, views: Sequence[MatrixView], *, streams: bool, budget: ByteBudget | None
) -> tuple[float, int, str]:
    """Operations from calibration text to rounded matrices, bytes of the sums held at once, and a note on both."""
    from burnish.arch import num_active_parameters
    from burnish.calibrate.sums import layer_groups, sums_bytes
    from burnish.quantize.tuning import RESERVE, WINDOWS
    from burnish.quantize.vocabulary import TOKENS as VOCABULARY_TOKENS

    rule, sketches = RULES[settings.method], sketches_of(settings)
    groups = layer_groups(views, sketches=sketches, memory_bytes=0 if streams else settings.statistics_bytes)
    held = max(sums_bytes(group, sketches) for group in groups)
    num_passes = 1 if streams else len(groups)
    passes = f"{num_passes} pass{'es' if num_passes > 1 else ''}"
    down = streams and bool(sketches)  # gradients come down to the first layer before anything is rounded
    disk = settings.folds * (sums_bytes(views, sketches) if down or not streams else held) / 2
    if down:  # what goes into every layer, to run it again
        text = before.config.get_text_config()
        disk += 4 * settings.num_tokens * text.num_hidden_layers * text.hidden_size
    active = num_active_parameters(before)
    model_flops = (6 if down else 4 if sketches or settings.propagate else 2) * active * num_passes
    # Half of every symmetric product is computed: n² multiply-adds instead of 2 n² per token.
    products = sums_bytes(views, sketches) / 4
    flops = settings.num_tokens * (model_flops + 1.3 * products)
    rounding_flops = sum(settings.rounds_by.flops(*view.shape) for view in views)
    flops += rounding_flops
    if settings.num_refits:
        flops += sum(2 * out_features * in_features**2 for out_features, in_features in (v.shape for v in views))
    flops += rule.learning_flops(settings, active)
    if settings.compares:
        num_candidates = len(settings.rounds_by.compared) * max(len(sketches), 1)
        flops += num_candidates * (WINDOWS * settings.length * 3 * active + rounding_flops)
        flops += 2 * (RESERVE * settings.length * 3 * active + rounding_flops)  # the last two, where they tie
    if asked_for(settings) is not None:  # gradients at both ends of the network
        flops += 4 * active * min(VOCABULARY_TOKENS, settings.num_tokens)
    if budget is not None:  # everything at every width, then divergences of whole models
        num_widths = len(budget.widths)
        flops += num_widths * sum(_forecast_flops(settings, *view.shape) for view in views)
        flops += NUM_MEASURED * WINDOWS * settings.length * 3 * active
    return (
        flops,
        held,
        f"{passes} over {settings.num_tokens:,} tokens, {byte_count(disk)} of statistics on disk while it runs",
    )


def _forecast_flops(settings: Quantize, out_features: int, in_features: int) -> float:
    """Of rounding a matrix to one width, and of weighing the error by both sides in float64."""
    by_block = RULES[settings.method].by_block
    rule, refit = (LEARNED_AS["rule"], LEARNED_AS["refit"]) if by_block else (settings.rounds_by, settings.num_refits)
    products = out_features * in_features * (out_features + in_features)
    fitting = 2 * out_features * in_features**2 if refit else 0
    return rule.flops(out_features, in_features) + fitting + 2 * 2 * products


def sketches_of(settings: Quantize) -> tuple[Sketch, ...]:
    """The sketches that are collected: those that the rule chooses among, or one to foretell by."""
    if "sketch" not in settings.needs:
        return ()
    if settings.sketch is None and settings.rounds_by.compared:
        return ("a", "b")
    return (settings.sketch or "a",)


def roundings_of(settings: Quantize, rounding: Rounding) -> dict[str, Rounding]:
    """What is compared on windows that are kept back, by name; nothing where settings leave no choice."""
    from burnish.quantize.rule import Strength
    from burnish.quantize.tuning import candidates

    if not settings.compares:
        return {}
    fixed = settings.damping
    strengths = settings.rounds_by.compared if fixed is None else (Strength(fixed, fixed),)
    return candidates(rounding, strengths, sketches_of(settings))


def preflight(settings: Quantize, start: Model, before: Plan) -> None:
    """Refuses calibration text that is too short, or that the tokenizer cannot read."""
    from burnish.arch import matrices
    from burnish.core.checkpoint import without_memory
    from burnish.data.attempt import try_window

    if not settings.reads:
        return
    longest = getattr(before.config, "max_position_embeddings", None) or settings.length
    length = min(settings.length, longest)
    views = select(matrices(without_memory(before.config)), settings.ignore)
    widest = max((view.shape[1] for view in views if view.expert is None), default=1)
    num_windows = max(settings.folds, math.ceil(widest / length))
    needed = num_windows * length
    if settings.num_tokens < needed:
        raise SettingsError(
            f"tokens is {settings.num_tokens:,}, but {settings.folds} folds of {length} tokens and a layer of "
            f"{widest:,} inputs need {needed:,}",
            where="tokens",
            fix=f"use --tokens {4 * needed} or more, or method rtn, which needs none",
        )
    try_window(start.tokenizer, settings.calibration, length, before.config, num_windows=num_windows)


def check_combinations(settings: Quantize) -> None:
    """Raises `SettingsError` for settings that contradict each other."""
    name, rule = settings.method, RULES[settings.method]
    if settings.curve and not rule.needs:
        raise SettingsError(f"curve is true, but {name} uses no calibration text", fix="leave curve out")
    if settings.curve and (settings.propagate or settings.stream):
        raise SettingsError("curve is true, but it needs the whole model at once", fix="leave propagate and stream out")
    if settings.outliers and settings.stream:
        raise SettingsError("outliers is true, but it needs the whole model at once", fix="leave stream out")
    if settings.propagate and not rule.propagates:
        can = " or ".join(other for other in RULES if RULES[other].propagates)
        raise SettingsError(
            f"propagate is for {can}; {name} looks at the original model alone",
            fix=f"leave propagate out, or use method: {can}, or learned, which always works behind rounded layers",
        )
    if settings.stream and (reason := rule.not_by_layer(settings)):
        raise SettingsError(f"stream is true, but {reason}", fix="leave stream out")
    if settings.target is not None:
        check_target(settings)
    check_outside(settings)
    check_low_rank(settings)
    rule.check(settings)


def check_target(settings: Quantize) -> None:
    """Raises `SettingsError` for settings that a target leaves no room for."""
    if settings.scheme != "int":
        raise SettingsError(
            f"a target chooses among widths, but {settings.scheme} has one alone", where="target", fix="use scheme: int"
        )
    if settings.overrides:
        raise SettingsError("a target chooses the widths that overrides names", where="target", fix="use one of them")
    if settings.bits != type(settings).model_fields["bits"].default:
        what = f"bits is {settings.bits}, but a target chooses the widths"
        raise SettingsError(what, where="bits", fix="leave out one of them")
    if settings.propagate or settings.stream:
        raise SettingsError(
            "a target needs gradients through the whole original network",
            where="target",
            fix="leave propagate and stream out",
        )
