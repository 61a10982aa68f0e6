"""Ladder residuals: sub-blocks read the stream of one sub-block earlier, so that all-reduces run under computation.

Number the sub-blocks of a decoder h_1 (attention of the first layer), h_2 (its MLP), h_3, ...; each has its norm in
front, and its output is summed over the ranks of tensor parallelism (AR). With x_0 the embedding,

    standard:  x_i = x_(i-1) + AR(h_i(x_(i-1)))
    ladder:    x_i = x_(i-1) + AR(h_i(x_(i-2))),    x_(-1) = x_0

The layers in `ladder_layers` do the second: h_i needs nothing of h_(i-1), whose sum over ranks may arrive while h_i is
computed. Layers hand on a pair instead of the stream: the stream without the last MLP's output, and that output.

    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)
    split(model, torch.distributed.group.WORLD)      # for tensor parallelism, the same on every rank

Source: Ladder-Residual (2025, arXiv:2501.06589). This file needs torch, transformers and
`derived_classes.py` beside it, and lies beside the weights of every checkpoint that has such layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives

from .derived_classes import ClassFamily, in_front, standard_of

State = Tensor | tuple[Tensor, Tensor]
"""What goes from layer to layer."""

# -- the residual stream -----------------------------------------------------------------------------------------------


class LadderBlock(nn.Module):
    """A decoder layer with a norm in front of its attention and of its MLP, in or next to a ladder.

    Attributes:
        reads_late: whether it is in a ladder: its attention and its MLP read the stream of one sub-block earlier.
        gives_late: whether the next layer is, so that the output of this one's MLP is handed on beside the stream.
    """

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module
    reads_late: bool
    gives_late: bool

    def forward(
        self, hidden_states: Tensor | tuple[Tensor, Tensor], **arguments: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        # Sums over ranks that are under way are waited for where they are first used, in the additions.
        stream, late = hidden_states if isinstance(hidden_states, tuple) else (hidden_states, None)
        if self.reads_late:
            attended = self._attention(stream, arguments)
            stream = stream if late is None else stream + late
            fed = self.mlp(self.post_attention_layernorm(stream))
            stream = stream + attended
        else:
            stream = stream if late is None else stream + late
            stream = stream + self._attention(stream, arguments)
            fed = self.mlp(self.post_attention_layernorm(stream))
        return (stream, fed) if self.gives_late else stream + fed

    def _attention(self, stream: Tensor, arguments: dict[str, Any]) -> Tensor:
        return self.self_attn(hidden_states=self.input_layernorm(stream), **arguments)[0]


class Ladder:
    """Beside a class of transformers: the layers that the configuration names are in a ladder."""

    config: Any
    base_model: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.set_ladder(config.ladder_layers or [])

    def set_ladder(self, numbers: list[int]) -> None:
        """Puts these layers into ladders, and no others; weights stay as they are.

        Raises:
            ValueError: a number that is no layer's, or one twice.
        """
        layers = self.base_model.layers
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(len(layers))):
            raise ValueError(f"ladder_layers is {numbers}, but names layers from 0 to {len(layers) - 1}, each once")
        for number, layer in enumerate(layers):
            standard = standard_of(layer)
            layer.reads_late, layer.gives_late = number in numbers, number + 1 in numbers
            # One class for layers that have nothing to do with a ladder: the one that they always had.
            layer.__class__ = in_front(LadderBlock, standard) if layer.reads_late or layer.gives_late else standard
        self.config.ladder_layers = sorted(numbers)


FAMILY = ClassFamily(__name__, "Ladder", ("ladder_layers", list[int]), {"Model": Ladder, "ForCausalLM": Ladder})
__getattr__ = FAMILY.find

# -- tensor parallelism ------------------------------------------------------------------------------------------------

BY_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
"""Projections of which every rank has some output channels: whole heads, and some channels of the MLP; not all MLPs
have a gate."""
BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")
"""Projections of which every rank has the input channels that it computes itself, so that outputs are summed."""


class SummedLinear(nn.Module):
    """A rank's columns of a linear layer; gives the sum over ranks, which is waited for where it is first used.

    Args:
        whole: the layer; its bias is counted once.
        group: of the ranks.
    """

    def __init__(self, whole: nn.Linear, group: dist.ProcessGroup) -> None:
        super().__init__()
        rank, size = group.rank(), group.size()
        self.group = group
        self.weight = nn.Parameter(whole.weight.detach().chunk(size, dim=1)[rank].clone(), requires_grad=False)
        self.bias = whole.bias if rank == 0 else None

    def forward(self, inputs: Tensor) -> Tensor:
        return collectives.all_reduce(nn.functional.linear(inputs, self.weight, self.bias), "sum", self.group)


@torch.no_grad()
def split(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Leaves a rank its part of every decoder layer, in place, for inference; embeddings and head stay whole.

    Args:
        model: a causal language model of one of the classes above, or of the standard one; equal on all ranks.
        group: of the ranks.

    Raises:
        ValueError: the ranks cannot have equally many heads and channels of the MLP.
    """
    any_model: Any = model
    config, rank, size = any_model.config, group.rank(), group.size()
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, key) % size:
            raise ValueError(f"{key} is {getattr(config, key)}, which {size} ranks cannot share equally")
    for layer in any_model.model.layers:
        present = {name for name, _ in layer.named_modules()}
        for name in (name for name in BY_ROWS if name in present):
            linear = layer.get_submodule(name)
            linear.weight = nn.Parameter(linear.weight.chunk(size)[rank].clone(), requires_grad=False)
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias.chunk(size)[rank].clone(), requires_grad=False)
        for name in BY_COLUMNS:
            layer.set_submodule(name, SummedLinear(layer.get_submodule(name), group))
