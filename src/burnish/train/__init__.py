"""Training: one loop, and the loss functions over it.

    fit(model, rows, causal_lm_loss, NorMuon.for_model(model, lr=1e-3), ctx, Loop(steps=1000, batch_size=32))

Names are resolved when first used, so that reading the stage's settings imports no torch.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.train.loop import Fit, Loop, evaluate, fit
    from burnish.train.losses import Loss, LossFn, balanced_loss, causal_lm_loss, model_inputs, next_token_loss
    from burnish.train.maths.schedule import Schedule

_PUBLIC = {
    "Fit": ".loop",
    "Loop": ".loop",
    "Loss": ".losses",
    "LossFn": ".losses",
    "Schedule": ".maths.schedule",
    "balanced_loss": ".losses",
    "causal_lm_loss": ".losses",
    "evaluate": ".loop",
    "fit": ".loop",
    "model_inputs": ".losses",
    "next_token_loss": ".losses",
}

__all__ = [
    "Fit",
    "Loop",
    "Loss",
    "LossFn",
    "Schedule",
    "balanced_loss",
    "causal_lm_loss",
    "evaluate",
    "fit",
    "model_inputs",
    "next_token_loss",
]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
