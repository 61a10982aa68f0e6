"""A network without its weights, for work that takes them from the files a few at a time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from burnish.core.checkpoint.model import Model
from burnish.core.checkpoint.reading import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    if model.path is not None and (model.path / "generation_config.json").is_file():
        skeleton.generation_config = transformers.GenerationConfig.from_pretrained(model.path)
    return skeleton.eval()
