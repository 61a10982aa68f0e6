"""`Distill.run`: the teacher loaded and checked against the student, then the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from burnish.arch import AllLogits, Head, describe, head_of
from burnish.calibrate.windows import world_size
from burnish.core.checkpoint import Model, common_vocabulary, compute_dtype, load, move
from burnish.core.checkpoint.own_classes import splits_the_stream
from burnish.core.errors import SettingsError
from burnish.core.stage import Context
from burnish.distill.across import AcrossTokenizers, Comparison, check_tokenizers, shared_tokens
from burnish.distill.losses import Distillation, Divergence, Matched, projections
from burnish.distill.offline import TaughtRows, capture_top_k
from burnish.distill.on_policy import OnPolicy
from burnish.distill.speculator.run import run_speculator as run_speculator
from burnish.train.losses import LossFn
from burnish.train.run import balance_of
from burnish.train.run import run as train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.data.packing import PackedRows
    from burnish.distill.stage import Distill


def run(
    settings: Distill,
    model: Model,
    ctx: Context,
    *,
    around: Callable[[LossFn, Any], LossFn] = lambda loss, module: loss,
) -> Model:
    """The trained student.

    Args:
        settings: how to train.
        model: the student.
        ctx: of the stage.
        around: (loss, the model to train) -> what is minimised in its place.

    Raises:
        SettingsError: no teacher, or shapes that a hidden-state or router loss cannot match.
        CheckpointError: the teacher has another tokenizer.
    """
    given = ctx.inputs.get("teacher")
    if given is None:
        raise SettingsError("no teacher is named", where="teacher", fix="give teacher: CHECKPOINT, or --teacher")
    source = given if isinstance(given, Model) else load(given, dtype=compute_dtype(ctx.device))
    wanted = source.config
    matched = check_match(settings, model.config, wanted)
    other = "" if settings.offline else ", or set divergence to alm, which compares texts"
    vocabulary = None if settings.across else common_vocabulary(model, source, role="teacher", otherwise=other)
    teacher = source.identity
    balance = balance_of(settings, model.module)
    teacher_module = None if settings.offline else move(source.module, ctx.device).eval()
    teacher_head = (teacher_module and head_of(teacher_module)) or AllLogits()
    if settings.across:
        loss = across(settings, model, source, teacher_module, balance, teacher_head)
    else:
        loss = replace(comparison(settings, teacher_module, balance, teacher_head, vocabulary), matched=matched)

    def loss_of(module: Any) -> LossFn:
        made = replace(loss, head=(None if settings.compile else head_of(module)) or AllLogits())
        sampled = on_policy(settings, made, module, model.tokenizer, vocabulary) if settings.on_policy else made
        return around(sampled, module)

    if settings.offline:

        def prepare(rows: PackedRows, name: str) -> TaughtRows:
            return _from_disk(settings, given, teacher, vocabulary, rows, name, ctx)

        del source  # it is loaded where it is needed, and not beside the student
        return train(
            settings, model, ctx, loss_of=loss_of, weighted=settings.weighted, prepare=prepare, key={"teacher": teacher}
        )
    ours, theirs = (config.get_text_config().hidden_size for config in (model.config, wanted))
    differ = settings.hidden > 0 and ours != theirs
    beside = projections(ours, theirs, len(matched.pairs), ctx.generator) if differ else None
    return train(
        settings, model, ctx, loss_of=loss_of, weighted=settings.weighted, beside=beside, key={"teacher": teacher}
    )


def _from_disk(
    settings: Distill,
    given: Model | str,
    teacher: str,
    vocabulary: int | None,
    rows: PackedRows,
    name: str,
    ctx: Context,
) -> TaughtRows:
    """The rows with what the teacher predicts, which is computed now unless an interrupted run has done so."""
    source = given if isinstance(given, Model) else load(given, dtype=compute_dtype(ctx.device))
    directory = ctx.work_dir / f"teacher-{name}"
    started = time.monotonic()
    taught = capture_top_k(
        move(source.module, ctx.device).eval(),
        rows,
        directory,
        identity=teacher,
        vocabulary=vocabulary,
        k=settings.top_k,
        temperature=settings.temperature,
        batch_size=settings.micro_batch or settings.batch,
        progress=ctx.progress,
    )
    positions = len(rows) * rows.length
    size = taught.num_bytes
    row = {"rows": name, "positions": positions, "top_k": settings.top_k, "bytes": size}
    row |= {"bytes per position": size / positions, "seconds": time.monotonic() - started}
    ctx.ledger.table("teacher_logits", [row])
    ctx.progress.log(f"{size:,} bytes of the teacher's logits for {positions:,} positions")
    return taught


def comparison(
    settings: Distill, teacher: Any, balance: float, teacher_head: Head | AllLogits, vocabulary: int | None
) -> Distillation:
    """The loss of a teacher with the student's tokens, as settings say."""
    return Distillation(
        teacher,
        divergence=cast(Divergence, settings.divergence),
        temperature=settings.temperature,
        top_k=settings.top_k,
        beta=settings.beta,
        alpha=settings.alpha,
        weighting=settings.weighting,
        gamma=settings.gamma,
        hidden=settings.hidden,
        router=settings.router,
        balance=balance,
        teacher_head=teacher_head,
        vocabulary=vocabulary,
    )


def across(
    settings: Distill, student: Model, teacher: Model, module: Any, balance: float, teacher_head: Head | AllLogits
) -> AcrossTokenizers:
    """The loss of a teacher whose tokens may be others, as settings say.

    Raises:
        SettingsError: there are no texts to go between, or no shared tokens for `gold`.
    """
    check_tokenizers(student, teacher, settings.divergence)
    return AcrossTokenizers(
        module,
        student.tokenizer,
        teacher.tokenizer,
        comparison=cast(Comparison, settings.divergence),
        shared=shared_tokens(student, teacher) if settings.divergence == "gold" else None,
        temperature=settings.temperature,
        beta=settings.beta,
        alpha=settings.alpha,
        balance=balance,
        teacher_head=teacher_head,
    )


def on_policy(
    settings: Distill, loss: LossFn, module: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> OnPolicy:
    """The loss on what the model itself writes.

    Raises:
        SettingsError: several processes, whose forward passes wait for each other while texts end at different times.
    """
    if world_size() > 1:
        what = "a student that samples is trained by one process only"
        raise SettingsError(what, where="on_policy", fix="leave `launch` out of this node")
    share, prompt_tokens = settings.on_policy, settings.prompt_tokens
    return OnPolicy(loss, module, tokenizer, share, prompt_tokens, settings.sampling_temperature, vocabulary)


def check_match(settings: Distill, student: Any, teacher: Any) -> Matched:
    """Refuses what the losses cannot compare; the layers that they compare."""
    if settings.router:
        experts = [facts.num_experts if (facts := describe(config).experts) else 0 for config in (student, teacher)]
        if 0 in experts or experts[0] != experts[1]:
            raise SettingsError(
                f"the student has {experts[0]} experts and the teacher {experts[1]}, but router compares them in pairs",
                where="router",
                fix="leave router out",
            )
    if settings.hidden and splits_the_stream(teacher.model_type):  # of the student the plan has said so
        raise SettingsError(
            f"hidden compares what comes between layers, and those of the teacher, a {teacher.model_type}, hand on a "
            "part of it later",
            where="hidden",
            fix="leave hidden out",
        )
    ours, theirs = (config.get_text_config().num_hidden_layers for config in (student, teacher))
    if settings.router and ours != theirs:
        raise SettingsError(
            f"the student has {ours} layers and the teacher {theirs}, but router compares them in pairs",
            where="router",
            fix="leave router out",
        )
    return Matched.of(ours, theirs, sorted(number - 1 for number in settings.hidden_layers))
