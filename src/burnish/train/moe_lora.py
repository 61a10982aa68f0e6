"""Adapters on the routed experts of a mixture, whose matrices transformers keep in one tensor for all experts.

    W_e + (alpha / r) B_e A_e     each expert with its own, by peft (`target_parameters`)
    W_e + (alpha / r) B_e A       shared: gate and up read the same inputs, so that A is one for all experts,
    W_e + (alpha / r) B A_e       and down writes into the same stream, so that B is

The shared form has about half the parameters where there are many experts. It is peft's own with tied weights: a
parametrization writes the one matrix out for every expert, so that merging and the file of an adapter are peft's, and a
stock peft loads it. An expert that no token was sent to has a gradient of zero.

Source: the experts' adapters of togethercomputer/xorl, whose design this follows, not its code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from burnish.arch import matrices
from burnish.core.errors import SettingsError


def expert_parameters(module: Any) -> dict[str, bool]:
    """{name of a tensor of all experts: whether B, and not A, is what they share}.

    A reads what a layer reads and B writes, so that it is A for gate and up and B for down. Where a class stores (in,
    out) and does not say so, peft takes one for the other; then it is B for gate and up.

    Args:
        module: the model; its weights are not looked at.

    Raises:
        CheckpointError: a model type that is not known.
        SettingsError: it has no routed experts.
    """
    views = [view for view in matrices(module, complete=False) if view.part == "experts" and view.expert is not None]
    if not views:
        what = "the model has no routed experts that adapters could be added to"
        raise SettingsError(what, where="lora_experts", fix="leave lora_experts out")
    return {
        view.parameter: (view.role == "down") != (view.transposed != getattr(view.owner, "is_transposed", False))
        for view in views
    }


class ForAllExperts(nn.Module):
    """One matrix, written out for every expert as peft lays the factors of adapters on experts out.

    Args:
        num_experts: how many there are.
        second: whether it is B, whose columns alternate between experts; the rows of A are a block for each.
    """

    def __init__(self, num_experts: int, *, second: bool) -> None:
        super().__init__()
        self.num_experts, self.second = num_experts, second

    def forward(self, shared: Tensor) -> Tensor:
        """(rank, in) to (experts * rank, in), or (out, rank) to (out, rank * experts)."""
        if self.second:
            return shared.repeat_interleave(self.num_experts, dim=1)
        return shared.repeat(self.num_experts, 1)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """The first expert's."""
        return whole[:, :: self.num_experts] if self.second else whole[: len(whole) // self.num_experts]


def share(module: nn.Module, parameters: dict[str, bool]) -> None:
    """Ties what the experts share, in a model with peft's adapters on their tensors.

    Args:
        module: from peft.
        parameters: from `expert_parameters`.
    """
    seconds = {name.rpartition(".")[2]: second for name, second in parameters.items()}
    for wrapper in _wrappers(module):
        second = seconds[wrapper.parameter_name]
        for factor in (wrapper.lora_B if second else wrapper.lora_A).values():
            tied = ForAllExperts(wrapper.num_experts, second=second)
            parametrize.register_parametrization(factor, "weight", tied)


def write_out(module: nn.Module) -> None:
    """Unties what `share` has tied: every expert has its own copy, as peft writes and merges them."""
    for wrapper in _wrappers(module):
        for factor in (*wrapper.lora_A.values(), *wrapper.lora_B.values()):
            if parametrize.is_parametrized(factor, "weight"):
                parametrize.remove_parametrizations(factor, "weight", leave_parametrized=True)


def _wrappers(module: nn.Module) -> list[Any]:
    from peft.tuners.lora.layer import ParamWrapper

    return [part for part in module.modules() if isinstance(part, ParamWrapper)]
