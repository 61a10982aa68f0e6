"""What a causal language model does between its last hidden states and its logits.

Mostly one matrix; some models multiply the logits by a number of their configuration (Cohere, Granite) or bend them,
cap tanh(z / cap) (Gemma). Whoever knows all of it can make a loss without ever holding all logits. Nothing is believed
of a model: it is run once on a few tokens, and where its logits are not what this page says, there is no `Head`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PROBE_TOKENS = 5
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest difference of two ways to the logits, against the largest logit, by dtype; elsewhere 0.02."""


@dataclass(frozen=True)
class Head:
    """logits = bend(scale * (W h + b)), with bend(z) = cap tanh(z / cap), or z where there is no cap.

    Attributes:
        body: the module that ends with the hidden states.
        linear: W and b.
        scale, cap: of the logits.
    """

    body: nn.Module
    linear: nn.Linear
    scale: float = 1.0
    cap: float | None = None

    def last_hidden(self, model: nn.Module, **inputs: Any) -> tuple[Any, Tensor]:
        """Runs the whole model, so that wrappers around it see what they expect, but for all logits save the last.

        Args:
            model: which `body` is a part of.
            inputs: of its forward pass.

        Returns:
            The model's output, and the hidden states (batch, length, hidden) that the head takes.
        """
        output, (hidden,) = _watched(self.body, model, **inputs, logits_to_keep=1)
        return output, hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Of some hidden states."""
        values = self.linear(hidden) * self.scale
        return values if self.cap is None else self.cap * torch.tanh(values / self.cap)


class AllLogits:
    """In the place of a head that nobody knows: the model itself hands over its logits, all of them."""

    def last_hidden(self, model: nn.Module, **inputs: Any) -> tuple[Any, Tensor]:
        """The model's output and its logits, as what `logits` takes."""
        output = model(**inputs)
        return output, output.logits

    def logits(self, hidden: Tensor) -> Tensor:
        """As they are."""
        return hidden


@torch.no_grad()
def head_of(model: Any) -> Head | None:
    """The head of a causal language model, None where it is not of the form of `Head`, or cannot leave logits out.

    Args:
        model: a transformers model in one process, not compiled; it is run on a few tokens.
    """
    linear, body = model.get_output_embeddings(), model.base_model
    if type(linear) is not nn.Linear or body is model:
        return None
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    ids = torch.arange(PROBE_TOKENS, device=linear.weight.device)[None] % linear.out_features
    was_training = model.training
    model.eval()
    output, seen = _watched(body, model, input_ids=ids, use_cache=False)
    kept, seen_again = _watched(body, model, input_ids=ids, use_cache=False, logits_to_keep=1)
    model.train(was_training)
    whole = [(*ids.shape, linear.in_features)]
    if any([tuple(hidden.shape) for hidden in one] != whole for one in (seen, seen_again)) or kept.logits.shape[1] != 1:
        return None
    (hidden,), logits = seen, output.logits
    for scale, cap in _forms(model.config.get_text_config()):
        found = Head(body, linear, scale, cap)
        ours = found.logits(hidden)
        if (ours - logits).abs().max() <= CLOSE.get(logits.dtype, 0.02) * logits.abs().max():
            return found
    return None


def _watched(body: nn.Module, model: nn.Module, **inputs: Any) -> tuple[Any, list[Tensor]]:
    """The output of a model, and what its body gave on the way, once for every time that it was called."""
    seen: list[Tensor] = []
    handle = body.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        return model(**inputs), seen
    finally:
        handle.remove()


def _forms(config: Any) -> list[tuple[float, float | None]]:
    """(scale, cap) as a configuration may name them."""
    divisor = getattr(config, "logits_scaling", None)
    named = [getattr(config, "logit_scale", None), getattr(config, "lm_head_multiplier", None)]
    scales = [1.0, *(float(scale) for scale in [*named, 1 / divisor if divisor else None] if scale)]
    cap = getattr(config, "final_logit_softcapping", None)
    return [(scale, c) for c in ([None, float(cap)] if cap else [None]) for scale in scales]
