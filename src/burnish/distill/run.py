"""`Distill.run`: the teacher loaded and checked against the student, then the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import Model, compute_dtype, load, move
from burnish.core.errors import SettingsError
from burnish.core.stage import Context
from burnish.distill.losses import Distillation
from burnish.train.train import train

if TYPE_CHECKING:
    from burnish.distill.stage import Distill


def run(settings: Distill, model: Model, ctx: Context) -> Model:
    """The trained student.

    Raises:
        SettingsError: no teacher, another vocabulary, or shapes that a hidden-state or router loss cannot match.
    """
    given = ctx.inputs.get("teacher")
    if given is None:
        raise SettingsError("no teacher is named", where="teacher", fix="give teacher: CHECKPOINT, or --teacher")
    source = given if isinstance(given, Model) else load(given, dtype=compute_dtype(ctx.device))
    check_match(settings, model.module.config, source.module.config)
    teacher = move(source.module, ctx.device).eval()
    own = getattr(model.config, "router_aux_loss_coef", None)
    if own is None and settings.balance:
        raise SettingsError("the student has no load-balancing loss", where="balance", fix="leave balance out")
    loss = Distillation(
        teacher,
        divergence=settings.divergence,
        temperature=settings.temperature,
        top_k=settings.top_k,
        beta=settings.beta,
        alpha=settings.alpha,
        weighting=settings.weighting,
        gamma=settings.gamma,
        hidden=settings.hidden,
        router=settings.router,
        balance=(own if settings.balance is None else settings.balance) or 0.0,
    )
    return train(settings, model, ctx, loss_fn=loss)


def check_match(settings: Distill, student: Any, teacher: Any) -> None:
    """Refuses what the losses cannot compare."""
    keys = {"vocab_size": True, "num_hidden_layers": settings.hidden or settings.router, "hidden_size": settings.hidden}
    for key, needed in keys.items():
        ours, theirs = getattr(student, key), getattr(teacher, key)
        if needed and ours != theirs:
            raise SettingsError(
                f"the student's {key} is {ours:,} and the teacher's {theirs:,}, but the losses compare them one to one",
                where="teacher",
                fix="use a teacher of the same vocabulary" if key == "vocab_size" else "leave hidden and router out",
            )
