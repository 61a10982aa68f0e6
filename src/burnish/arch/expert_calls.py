"""How a module of routed experts computes: what its forward pass is given, and the products of one expert.

transformers notes on such a module how it stores its experts: (in, out), with biases, without a gate. All are called
with (tokens, chosen experts, routing weights), but for Llama 4's, which is called with every token once for each
expert, multiplied by the routing weight, which is 0 where the expert was not chosen.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def is_registered(experts: Any) -> bool:
    """Whether the module asks transformers' registry of experts implementations how to compute."""
    return hasattr(experts, "is_transposed")


def first_attribute(experts: Any) -> str:
    """Name of the parameter that multiplies the inputs."""
    return "gate_up_proj" if hasattr(experts, "gate_up_proj") else "up_proj"


def product(experts: Any, attribute: str, expert: int, inputs: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
    """Inputs times one expert's matrices in a parameter, with their biases where there are any."""
    weight = getattr(experts, attribute)[expert]
    if not is_registered(experts) or experts.is_transposed:
        weight = weight.T
    has_bias = is_registered(experts) and experts.has_bias
    return F.linear(inputs, weight, getattr(experts, f"{attribute}_bias")[expert] if has_bias else None)


def activated(experts: Any, first: Float[Tensor, "rows wide"]) -> Float[Tensor, "rows width"]:
    """The neurons, given the product with the first parameter."""
    if not is_registered(experts):
        gate, up = first.chunk(2, dim=-1)
        return up * experts.act_fn(gate)
    return experts._apply_gate(first) if experts.has_gate else experts.act_fn(first)


def routed(
    experts: Any, args: tuple[Tensor, ...]
) -> tuple[Float[Tensor, "tokens hidden"], Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
    """(inputs, chosen experts, routing weights) from the arguments of a call of the module.

    Of Llama 4 the inputs are those of all experts, one after the other, the only choice of a row is the expert that it
    is meant for, or -1 where that was not chosen, and the weights are in the inputs already.
    """
    if is_registered(experts):
        inputs, index, weights = args
        return inputs, index, weights
    (inputs,) = args
    num_experts = len(experts.down_proj)
    number = torch.arange(num_experts, device=inputs.device).repeat_interleave(len(inputs) // num_experts)
    index = torch.where(inputs.detach().ne(0).any(-1), number, -1)[:, None]
    return inputs, index, torch.ones_like(index, dtype=inputs.dtype)


def token_numbers(experts: Any, rows: Int[Tensor, " rows"], num_rows: int) -> Int[Tensor, " rows"]:
    """Numbers of the tokens that some rows of the inputs belong to."""
    return rows if is_registered(experts) else rows % (num_rows // len(experts.down_proj))
