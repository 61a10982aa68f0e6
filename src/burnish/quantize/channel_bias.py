"""Biases of channels folded into a model whose norms have a bias: the same function, in the same stock class.

    biases = {"transformer.h.0.mlp_input": b}      # by the name of the tensor that matrices read
    fold(module, biases)                           # the norm gives x - b, and every reader adds b Wᵀ

What the bias is for stands in `maths.channel_bias`. Models with RMS norms (Llama, Qwen, Mistral) have no such place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import matrices, vectors
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def foldable(module: PreTrainedModel) -> list[str]:
    """Names of the tensors inside decoder layers whose channels can be given a bias."""
    norms = [vector for vector in vectors(module) if vector.role == "norm_bias" and vector.layer is not None]
    views = matrices(module)
    return [
        norm.feeds
        for norm in norms
        if norm.feeds
        and all(
            view.expert is None and getattr(view.owner, "bias", None) is not None
            for view in views
            if view.reads == norm.feeds
        )
    ]


@torch.no_grad()
def fold(module: PreTrainedModel, biases: Mapping[str, Float[Tensor, " channels"]]) -> None:
    """Takes biases off the norms and adds what they were to everything that reads these, in place.

    Args:
        module: the network.
        biases: b by the name of the tensor that is read (`MatrixView.reads`).

    Raises:
        SettingsError: a tensor that no norm with a bias gives, or one that a layer without a bias reads.
    """
    known = set(foldable(module))
    for name in biases:
        if name not in known:
            raise SettingsError(
                f"{name} is no output of a norm with a bias that only layers with a bias read, so that the class has "
                "no place for a bias of its channels",
                where="biases",
                fix=f"there are {', '.join(sorted(known)[:3])} ..." if known else "leave it out",
            )
    for norm in vectors(module):
        if norm.role == "norm_bias" and norm.feeds in biases:
            norm.tensor.sub_(biases[norm.feeds].to(norm.tensor))
    for view in matrices(module):
        if view.reads in biases:
            owner: Any = view.owner
            owner.bias[view.block] += view.tensor @ biases[view.reads].to(view.tensor)
