"""`Quantize.run`: calibration text, statistics, rounding, packing; the same over every walk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import MatrixView, known_model_types
from burnish.calibrate.blocks import Block
from burnish.calibrate.blocks import blocks as walk_blocks
from burnish.calibrate.collect import PRECISION, collected
from burnish.calibrate.from_disk import FromDisk, GradientsFromDisk
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.vocabulary import VocabularyStatistics, collect_vocabulary
from burnish.calibrate.walk import LayerByLayer, Walk, WholeModel
from burnish.calibrate.windows import Calibration, world_size
from burnish.core.checkpoint import DeferredModel, Model, cast, working_copy
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.errors import DataError, SettingsError
from burnish.core.memory import too_large
from burnish.core.progress import Task
from burnish.core.stage import Context
from burnish.core.store import Store
from burnish.quantize import outliers
from burnish.quantize.budget import ByteBudget, budget_of
from burnish.quantize.learning import Learner, Learning
from burnish.quantize.low_rank import LowRank, low_rank
from burnish.quantize.method import Quantized, Rounding, quantize_matrices
from burnish.quantize.mixed import Mixing, foretelling, frontier_line
from burnish.quantize.outside import Outside, asked_for, embedding_of_target, outside_of, saved_bytes
from burnish.quantize.packing import check_loadable, ignored_modules, pack_all, packed_shapes, quantization_config
from burnish.quantize.plan import check_combinations, matrices_of, roundings_of, select, sketches_of
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.schemes import scheme_of, schemes_of
from burnish.quantize.tuning import RESERVE, WINDOWS, Original, choose_rounding, curve
from burnish.quantize.vocabulary import TOKENS, VocabularyRounding

if TYPE_CHECKING:
    from burnish.quantize.stage import Quantize

CURVE_FOLDS = 8
"""Parts of the text with a curve: its smallest point, a quarter, then still has one to fit on and one held out."""


def run(settings: Quantize, model: Model, ctx: Context) -> Model:
    """The quantized model: its module holds the rounded weights, `packed` what is written in their place. One that is
    taken from disk layer by layer is made when it is saved."""
    check_combinations(settings)
    on_disk = to_be_streamed(settings, model)
    module = on_disk.module if on_disk else working_copy(model, working_dtype(model), ctx.device)
    every = matrices_of(module, settings)
    views = select(every, settings.ignore)
    schemes = schemes_of(settings, views)
    check_loadable(views, schemes)
    rounding = Rounding(
        settings.rounds_by,
        scheme_of(settings),
        model.stored_dtype,
        HELD_OUT if settings.damping is None else Strength(settings.damping, settings.damping),
        (*sketches_of(settings), "a")[0],
        scale_search=settings.scale_search,
        refit=settings.num_refits,
        overrides=schemes,
    )
    text, unseen, reserve = calibration_windows(settings, model, ctx, views) if settings.reads else (None, None, None)
    if settings.outliers and text is not None:
        if world_size() > 1:
            raise SettingsError("outliers is true, which one process tells", where="outliers", fix="launch one process")
        report_outliers(settings, WholeModel(module, views, precision=PRECISION), text, ctx)
    beside = low_rank(settings, module, views, text, rounding.scale_dtype)
    if not settings.needs:
        text = unseen = reserve = None
    walk = walk_of(settings, module, views, on_disk)
    outside, budget = outside_of(settings, module, every) if asked_for(settings) else [], None
    if settings.target is not None:
        before, embedding = model.plan(), embedding_of_target(settings, module, every)
        saved = saved_bytes(outside, before)
        budget = budget_of(settings, rounding.scheme, views, before, embedding=embedding, saved=saved)
    if budget:  # roundings are compared at what most matrices are going to have
        rounding = budget.applied([budget.nearest_width] * len(budget.groups), rounding)
    work = _Work(settings, model, walk, rounding, text, unseen, reserve, ctx, budget, outside)
    if not on_disk:
        return in_memory(work, model, module, beside, ctx)
    config = work.quantization_config()
    layout, rest = layout_of(on_disk, views, rounding)
    return DeferredModel(
        model,
        module,
        layout,
        lambda scratch: chain(
            (entry for _, tensors in work.packed(scratch) for entry in tensors.items()),
            ((name, on_disk.files.read(name).to(torch.float32)) for name in rest),
        ),
        stored_dtype=rounding.scale_dtype,
        quantization_config=config,
    )


def walk_of(settings: Quantize, module: Any, views: Sequence[MatrixView], on_disk: OnDisk | None) -> Walk:
    """How text goes through the network, and where its matrices wait to be rounded."""
    if on_disk:
        return FromDisk(on_disk, views, precision=PRECISION, changed=settings.propagate)
    if settings.propagate:
        return LayerByLayer(module, views, precision=PRECISION, changed=True)
    return WholeModel(module, views, precision=PRECISION, memory_bytes=settings.statistics_bytes)


def in_memory(work: _Work, model: Model, module: Any, beside: LowRank | None, ctx: Context) -> Model:
    """The rounded model, with what lies beside its weights."""
    packed = dict(work.packed(ctx.work_dir))
    adapter = None if beside is None else beside.taken_from(module)
    config = work.quantization_config()
    cast(module, work.rounding.scale_dtype)
    if adapter is not None:
        adapter.put_into(module, where="adapter")
    return model.derive(module=module, packed=packed, quantization_config=config, adapter=adapter)


@dataclass
class _Work:
    """Rounding all matrices of a walk; `rounding` is what has been decided so far."""

    settings: Quantize
    model: Model
    walk: Walk
    rounding: Rounding
    text: Calibration | None
    unseen: Tensor | None
    reserve: Tensor | None
    ctx: Context
    budget: ByteBudget | None = None
    outside: Sequence[Outside] = ()
    of_vocabulary: VocabularyStatistics | None = None

    def quantization_config(self) -> dict[str, Any]:
        """The section of config.json; where widths are chosen it is known when everything is packed."""
        views, rounding = [*self.walk.views], self.rounding
        schemes = dict(rounding.overrides)
        for view, scheme in self.outside:
            views.append(view)
            schemes[view.name] = scheme
        dense = ignored_modules(self.walk.module, views)
        return quantization_config(rounding.scheme, views, schemes, dense)

    def packed(self, directory: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(name on disk of a weight, what is written in its place), in order; statistics go into the directory."""
        views, rows, blocks = self.walk.views, [], []
        key: dict[str, Any] = {"matrices": [view.name for view in views]}
        if self.text is not None and self.walk.resumable:  # reading a whole model for its hash takes a while
            key["model"] = self.model.identity
        self.of_vocabulary = self.vocabulary_statistics(directory)
        sums = self.with_statistics(directory, key)
        with ExitStack() as stack:
            task: Task | None = None
            for some, statistics in sums:
                if statistics is not None and self.unseen is not None:
                    self.decide(some, statistics, self.unseen, directory)
                rounding = self.rounding
                if task is None:
                    total = sum(math.prod(view.shape) for view in views)
                    task = stack.enter_context(self.ctx.progress.task("rounding", total=total, unit="weights"))
                for piece, block in self.pieces(some):
                    start = partial(quantize_matrices, piece, rounding, statistics, advance=task.advance)
                    if rounding.rule.by_library:
                        quantized = self.handed_over(piece, rounding, statistics)
                    elif block is None:
                        quantized = start()
                    else:
                        assert statistics is not None, "blocks are what text goes through"
                        quantized, row = self.learner(directory, rounding)(block, start, statistics)
                        blocks.append(row)
                    rows += quantized.rows
                    tensors = pack_all(
                        quantized.codes, quantized.grids, piece, rounding.overrides, scale_dtype=rounding.scale_dtype
                    )
                    del quantized
                    yield from tensors.items()
        for view, scheme in self.outside:
            quantized = quantize_matrices([view], self.vocabulary.under(scheme), self.of_vocabulary)
            rows += quantized.rows
            tensors = pack_all(
                quantized.codes, quantized.grids, [view], {view.name: scheme}, scale_dtype=self.rounding.scale_dtype
            )
            yield from tensors.items()
        self.ctx.ledger.table("layers", rows)
        if blocks:
            self.ctx.ledger.table("blocks", blocks)

    @property
    def vocabulary(self) -> VocabularyRounding:
        """How what lies outside of the decoder layers is rounded."""
        return VocabularyRounding.of(self.settings, self.rounding, self.of_vocabulary)

    def vocabulary_statistics(self, directory: Path) -> VocabularyStatistics | None:
        """What a part of the text says of it, before anything is changed; None where nothing or no text asks."""
        views = [view for view, _ in self.outside]
        if self.budget is not None:
            views += [view for group in self.budget.groups if not group.is_inside for view in group.views]
        if self.text is None or not views:
            return None
        module, text = self.walk.module, self.text.thinned(TOKENS)
        how: dict[str, Any] = {"key": {"model": self.model.identity}, "precision": PRECISION}
        return collect_vocabulary(module, views, text, directory / "vocabulary", **how, progress=self.ctx.progress)

    def with_statistics(
        self, directory: Path, key: dict[str, Any]
    ) -> Iterator[tuple[Sequence[MatrixView], Statistics | None]]:
        """Matrices that may be rounded now, with what the text says of them, see `collected`.

        From disk, gradients come down through all layers before the first one is rounded.
        """
        on_disk, sketches, sums = self.on_disk, sketches_of(self.settings), directory / "statistics"
        how: dict[str, Any] = {"key": key, "sketches": sketches, "progress": self.ctx.progress}
        if not (on_disk and sketches):
            yield from collected(self.walk, self.text, sums, **how)
            return
        down = GradientsFromDisk(on_disk, self.walk.views, directory / "hidden", precision=PRECISION)
        for _, statistics in collected(down, self.text, sums, **how):
            if RULES[self.settings.method].by_block:
                yield self.walk.views, statistics
            else:
                yield from ((stop.views, statistics) for stop in self.walk.stops(None))

    @property
    def on_disk(self) -> OnDisk | None:
        """Where the weights are, if not in memory."""
        return self.walk.on_disk if isinstance(self.walk, FromDisk) else None

    def pieces(self, views: Sequence[MatrixView]) -> Iterator[tuple[Sequence[MatrixView], Block | None]]:
        """Matrices that are rounded together; where layers are learned, each with its text."""
        if RULES[self.settings.method].by_library:
            yield views, None
            return
        if not RULES[self.settings.method].by_block:
            yield from ((piece, None) for piece in self.walk.pieces(views))
            return
        assert self.text is not None, "what is learned is learned from text"
        along = walk_blocks(self.walk.module, views, self.text, on_disk=self.on_disk)
        yield from ((block.views, block) for block in along)

    def handed_over(self, views: Sequence[MatrixView], rounding: Rounding, statistics: Statistics | None) -> Quantized:
        """All matrices rounded by a library."""
        from burnish.quantize.autoround import handed_over

        assert self.text is not None and statistics is not None, "its rule asks for text"
        how = {"iterations": self.settings.num_iterations, "seed": self.settings.seed}
        return handed_over(views, rounding, statistics, self.walk.module, self.model.tokenizer, self.text, **how)

    def learner(self, directory: Path, rounding: Rounding) -> Learner:
        """What learns layers that this rounding begins with, or finds them in the directory."""
        settings = self.settings
        assert self.text is not None
        how = Learning(
            settings.num_iterations,
            settings.optimizer,
            settings.error,
            rounding.sketch,
            rounding.scale_dtype,
            settings.seed,
        )
        key = settings.canonical() | {"model": self.model.identity, "calibration text": self.text.hash}
        if self.on_disk and self.ctx.work_dir.is_dir():  # the other directory does not survive a kill
            directory = self.ctx.work_dir
        return Learner(how, directory / "learned", key)

    def decide(self, views: Sequence[MatrixView], statistics: Statistics, unseen: Tensor, directory: Path) -> None:
        """The rounding and the widths that unseen windows ask for, and the tables of what was measured on them."""
        settings, progress = self.settings, self.ctx.progress
        compared = roundings_of(settings, self.rounding)
        decides, reports = bool(compared or self.budget), bool(settings.curve or self.budget)
        if not (decides or reports):
            return
        if not len(unseen):
            progress.log("the calibration text has no window left to measure on: nothing is chosen by measurement")
        deciding, reporting = unseen, unseen
        if decides and reports:  # what is reported is measured on windows that have chosen nothing
            deciding, reporting = unseen[::2], unseen[1::2]
            if len(unseen) == 1:
                progress.log("the calibration text has one window left: it chooses, and it is reported on")
                reporting = unseen
        if compared and len(unseen):
            self.choose(views, compared, statistics, Original(self.walk.module, deciding))
        if self.budget:
            self.mix(self.budget, statistics, deciding, reporting, directory)
        if settings.curve and len(unseen):
            self.draw_curve(views, statistics, Original(self.walk.module, reporting))

    def choose(
        self,
        views: Sequence[MatrixView],
        compared: Mapping[str, Rounding],
        statistics: Statistics,
        original: Original,
    ) -> None:
        """The best of the roundings, all with scales refitted once at most.

        Every further refit is one more rounding of all weights, and took alike from one-sided and two-sided rounding:
        4 to 10 % at 3 bits (`benchmarks/low_bits.py`).
        """
        progress = self.ctx.progress
        refit = self.rounding.refit
        once = {name: replace(one, refit=min(one.refit, 1)) for name, one in compared.items()}
        chosen, rows = choose_rounding(views, once, statistics, original, reserve=self.reserve, progress=progress)
        self.rounding = replace(chosen, refit=refit)
        self.ctx.ledger.table("shrinkage", rows)
        if self.rounding.strength.is_one_sided:
            assert self.text is not None, "there are statistics of it"
            tokens = self.text.tokens.numel()
            progress.log(f"at {tokens:,} tokens one-sided rounding preserves the model better")

    def mix(
        self, budget: ByteBudget, statistics: Statistics, deciding: Tensor, reporting: Tensor, directory: Path
    ) -> None:
        """The widths of all groups."""
        assert self.text is not None, "a target asks for text"
        apart = ("target", "quantize_embedding")  # everything is rounded alike, whatever they are
        same = {name: value for name, value in self.settings.canonical().items() if name not in apart}
        key = same | {"model": self.model.identity, "calibration text": self.text.hash}
        rounding = foretelling(self.rounding, RULES[self.settings.method])
        store, vocabulary = Store(directory / "widths"), self.vocabulary
        outside = [(view, vocabulary.values(view, scheme)) for view, scheme in self.outside]
        mixing = Mixing(budget, rounding, statistics, store, key, self.ctx.progress, vocabulary, outside)
        ledger, costs = self.ctx.ledger, mixing.forecast()
        if len(deciding):
            on = Original(self.walk.module, deciding)
            costs = mixing.comparable(costs, on)
            choices, trials = mixing.corrected(costs, on)
            ledger.table("widths tried", trials)
            frontier = mixing.frontier(choices, costs, Original(self.walk.module, reporting))
            ledger.table("frontier", frontier)
            for row in frontier:
                self.ctx.progress.log(frontier_line(row))
        else:
            choices = mixing.solve(costs)
        ledger.table("widths", mixing.rows(choices, costs))
        self.rounding, self.outside = budget.applied(choices, self.rounding), [*self.outside, *budget.outside(choices)]

    def draw_curve(self, views: Sequence[MatrixView], statistics: Statistics, original: Original) -> None:
        """The rounding, and the baseline of its rule, against tokens."""
        assert self.text is not None, "a curve is of text"
        rule = self.rounding.rule
        roundings = {self.settings.method: self.rounding}
        if rule.baseline:
            roundings[rule.baseline] = replace(self.rounding, rule=RULES[rule.baseline], strength=HELD_OUT)
        length, folds = self.text.tokens.shape[1], range(self.text.num_folds)
        tokens_of_fold = [length * len(self.text.fold(number)) for number in folds]
        rows = curve(views, roundings, statistics, original, tokens_of_fold=tokens_of_fold)
        self.ctx.ledger.table("calibration", rows)


def report_outliers(settings: Quantize, walk: Walk, text: Calibration, ctx: Context) -> None:
    """The table of what stands out in the model as it is, and a sentence on the greatest."""
    found = outliers.rows(walk.views, outliers.seen(walk, text, ctx.progress), settings.group_size)
    ctx.ledger.table(outliers.TABLE, found)
    ctx.progress.log(outliers.sentence(found[0]))


def to_be_streamed(settings: Quantize, model: Model) -> OnDisk | None:
    """The model on disk, if it is to be quantized layer by layer: as the settings say, or where it would fill memory.

    Raises:
        SettingsError: `stream` is true but cannot be.
    """
    if settings.stream is False or settings.curve or settings.outliers or settings.low_rank:
        return None
    if settings.target is not None or asked_for(settings):
        return None
    if settings.stream is None and not too_large(model.plan().num_parameters):
        return None
    reason, on_disk = RULES[settings.method].not_by_layer(settings), None
    if not reason and model.config.model_type not in known_model_types():
        reason = f"model_type {model.config.model_type!r} has no row that says where its layers are"
    if not reason and (model.path is None or model.is_loaded):
        reason = "the model is in memory already"
    if not reason:
        on_disk = OnDisk(model)
        reason = f"{on_disk.absent} is stored under another name or in parts" if on_disk.absent else ""
    if reason and settings.stream:
        raise SettingsError(f"stream is true, but {reason}", fix="leave stream out")
    return None if reason else on_disk


def layout_of(on_disk: OnDisk, views: Sequence[MatrixView], rounding: Rounding) -> tuple[dict[str, Tensor], list[str]]:
    """{name: shape and dtype} of what will be written, as tensors on the meta device; and what of it is not rounded."""
    rounded, meta = {view.disk: view for view in views}, on_disk.files.meta
    rest = [name for name in on_disk.names if name not in rounded]
    layout = {name: meta[name].to(rounding.scale_dtype) for name in rest}
    for name, view in rounded.items():
        layout |= packed_shapes(name, meta[name].shape, rounding.scheme_of(view), rounding.scale_dtype)
    return layout, rest


def working_dtype(model: Model) -> torch.dtype:
    """Of the network that is rounded, float64 where that is given.

    Statistics and rounding are computed in float32: bfloat16 gradients lose the small ones, and CPUs without bfloat16
    instructions are many times slower in it.
    """
    return torch.float64 if model.is_loaded and model.module.dtype is torch.float64 else torch.float32


def calibration_windows(
    settings: Quantize, model: Model, ctx: Context, views: Sequence[MatrixView]
) -> tuple[Calibration, Tensor, Tensor]:
    """Windows of the calibration text, drawn with the stage's seed: to collect from, a few others to measure on, and
    more such where roundings are compared, for those that the few cannot tell apart.

    Raises:
        DataError: the text is too short for a fold each, or for the widest layer: with fewer tokens than inputs its
            statistics say nothing about most directions.
    """
    from burnish.data import calibration

    data = ctx.inputs.get("calibration", settings.calibration)
    length = min(settings.length, getattr(model.config, "max_position_embeddings", None) or settings.length)
    wanted = max(settings.num_tokens // length, 1)
    mixes = settings.target is not None
    extra = WINDOWS * length * ((bool(settings.rounds_by.compared) or mixes) + (settings.curve or mixes))
    draw = partial(calibration, model.tokenizer, data, length=length)
    again = torch.Generator().set_state(ctx.generator.get_state())
    drawn = draw(max_tokens=settings.num_tokens + extra, generator=ctx.generator)
    # Spread over the text; of a text that is too short for both a sixteenth.
    num_kept_back = max(len(drawn) - wanted, len(drawn) // WINDOWS) if extra else 0
    kept_back = torch.linspace(0, len(drawn) - 1, num_kept_back + 2)[1:-1].round().long()
    unseen = drawn[kept_back]
    remaining = torch.ones(len(drawn), dtype=torch.bool)
    remaining[kept_back] = False
    windows = drawn[remaining]
    num_folds = max(settings.folds, CURVE_FOLDS) if settings.curve else settings.folds
    if len(windows) < num_folds:
        raise DataError(
            f"gives {len(windows)} windows of {length} tokens, but at least {num_folds} are needed",
            where=data if isinstance(data, str) else "calibration text",
            fix=f"use a longer text, --tokens {num_folds * length} or more, or a shorter --length",
        )
    widest = max(view.shape[1] for view in views if view.expert is None)
    if windows.numel() < widest:
        raise DataError(
            f"gives {windows.numel():,} tokens, but the widest layer has {widest:,} inputs",
            where=data if isinstance(data, str) else "calibration text",
            fix=f"use a longer text and --tokens {4 * widest} or more, or method rtn, which needs none",
        )
    if windows.numel() < settings.num_tokens - length:
        ctx.progress.log(
            f"the calibration text has only {windows.numel():,} of the {settings.num_tokens:,} tokens asked for"
        )
    reserve = drawn[:0]
    if settings.compares:  # the same draw goes on; a window of the same words as one above is none that was not seen
        known = set(map(tuple, drawn.tolist()))
        more = draw(max_tokens=settings.num_tokens + extra + RESERVE * length, generator=again)
        reserve = more[[tuple(window) not in known for window in more.tolist()]]
    return Calibration(windows, seed=settings.seed, num_folds=num_folds), unseen, reserve
