"""Training: one loop, and the loss functions over it.

fit(model, rows, causal_lm_loss, NorMuon.for_model(model, lr=1e-3), ctx, Loop(steps=1000, batch_size=32))
"""

from burnish.train.loop import Fit, Loop, evaluate, fit
from burnish.train.losses import Loss, LossFn, balanced_loss, causal_lm_loss, model_inputs, next_token_loss
from burnish.train.maths.schedule import Schedule

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
