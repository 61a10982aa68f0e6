"""Networks without weights: of a checkpoint whose files are read a few at a time, and of one that is to be made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

from burnish.core.checkpoint.generation import read_generation_config
from burnish.core.checkpoint.model import Model
from burnish.core.checkpoint.reading import quiet_transformers
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Network = TypeVar("Network", bound="PreTrainedModel")


def without_weights(model: Model) -> PreTrainedModel:
    """The network with its parameters on the meta device and its buffers computed."""
    import torch
    import transformers

    with torch.device("meta"), quiet_transformers():
        config = copy.deepcopy(model.config)  # into which transformers writes the dtype
        skeleton = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for path, part in skeleton.named_modules():
        for name, buffer in list(part.named_buffers(path, recurse=False)):
            part._buffers[name.rpartition(".")[2]] = torch.empty_like(buffer, device="cpu")
        if part._buffers:
            skeleton._init_weights(part)  # rotary frequencies
    if model.path is not None and (settings := read_generation_config(model.path)) is not None:
        skeleton.generation_config = settings
    return skeleton.eval()


def hollow(network_class: type[Network], config: Any, like: PreTrainedModel) -> Network:
    """A network with its parameters and buffers on the meta device, and the generation settings of another one."""
    import torch

    with torch.device("meta"), quiet_transformers():
        new = network_class(config)
    if like.can_generate():
        new.generation_config = like.generation_config
    return new.eval()


def allocate(part: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
    """Gives parameters on the meta device memory, which is not filled; their inverse is `part.to("meta")`."""
    import torch
    from torch import nn

    for module in part.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                empty = torch.empty(parameter.shape, dtype=dtype, device=device)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)


def unfilled(network_class: type[Network], config: Any, like: PreTrainedModel) -> Network:
    """A network with its parameters allocated and not filled, for weights that come from another one.

    Args:
        network_class, config: of the new network.
        like: the other one, whose dtypes, device, rotary frequencies and generation settings it takes.

    Raises:
        CheckpointError: the class keeps something outside its state.
    """
    import torch

    new = hollow(network_class, config, like)
    given = like.state_dict()
    state = {
        name: torch.empty(t.shape, dtype=given[name].dtype if name in given else like.dtype, device=like.device)
        for name, t in new.state_dict().items()
    }
    new.load_state_dict(state, assign=True)
    new.tie_weights()
    for name, buffer in like.named_buffers():
        if name not in given:  # rotary frequencies, which depend on no width that changes
            path, _, attribute = name.rpartition(".")
            new.get_submodule(path).register_buffer(attribute, buffer.clone(), persistent=False)
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(f"{network_class.__name__} keeps {name} outside its state, so it cannot be made so")
    return new
