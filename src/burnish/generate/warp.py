"""From logits to a token: temperature, top-k, top-p, and one uniform number a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.core.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens until they hold this share.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SettingsError(f"is {self.temperature}, but 0 or more is needed", where="temperature")
        if self.top_k < 0:
            raise SettingsError(f"is {self.top_k}, but 0 (all) or more is needed", where="top_k")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"is {self.top_p}, but a share above 0 and up to 1 is needed", where="top_p")


def warped(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities (rows, vocabulary) that tokens are drawn from; -inf for those cut off."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        order = logits.sort(-1, descending=True)
        share = order.values.softmax(-1)
        beyond = share.cumsum(-1) - share >= sampling.top_p  # what the likelier ones hold already
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order.indices, beyond), -torch.inf)
    return logits.log_softmax(-1)


def drawn(logprobs: Tensor, uniform: list[float], sampling: Sampling) -> Tensor:
    """A token a row: the likeliest at temperature 0, else where the cumulative probability passes the number."""
    if sampling.temperature == 0:
        return logprobs.argmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    number = torch.tensor(uniform, dtype=torch.float64, device=logprobs.device)[:, None]
    found = torch.searchsorted(cumulative, number * total, right=True)
    last = (cumulative >= total).int().argmax(-1, keepdim=True)  # the last token with any probability
    return torch.minimum(found, last)[:, 0]
