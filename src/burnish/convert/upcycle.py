"""Sparse upcycling: a dense Llama-type model as a Mixtral whose experts all start as copies of its MLP.

Mixtral's routing weights sum to 1 over the chosen experts, so copies compute exactly what the MLP computed, whatever
the router says: training starts from the dense model's loss. Until it has trained, every expert is the same and no
comparison of experts means anything; noise on the copies breaks that symmetry sooner, at the price of exactness.

Source: Sparse Upcycling (2022, arXiv:2212.05055). There only some layers become sparse; Mixtral has no dense layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from burnish.arch import describe, matrices, vectors
from burnish.core.checkpoint import unfilled
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

SOURCES = ("llama", "mistral")
"""Model types whose layers are Mixtral's but for the MLP."""


def mixtral_config(config: Any, *, num_experts: int, top_k: int, router_aux_loss_coef: float) -> MixtralConfig:
    """The configuration of the mixture.

    Args:
        config: of the dense model.
        num_experts, top_k: experts per layer, and chosen for each token.
        router_aux_loss_coef: of the load-balancing loss, for training.

    Raises:
        SettingsError: Mixtral cannot express the dense model.
    """
    from transformers import MixtralConfig

    describe(config)
    if config.model_type not in SOURCES:
        raise SettingsError(
            f"upcycling makes a Mixtral of a {' or '.join(SOURCES)} model, but this one is a {config.model_type}",
            fix="its attention, norms or scaling have no counterpart in Mixtral",
        )
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            raise SettingsError(f"{key} is set, but Mixtral has no such biases, so the model cannot be upcycled")
    if top_k > num_experts:
        raise SettingsError(f"top_k is {top_k}, but there are only {num_experts} experts")
    facts = describe(config)
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *("max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id"),
        *("eos_token_id", "tie_word_embeddings", "attention_dropout", "rope_parameters", "dtype"),
    )
    return MixtralConfig(
        **{key: getattr(config, key) for key in same},
        num_key_value_heads=facts.num_key_value_heads,
        head_dim=facts.head_dim,
        sliding_window=getattr(config, "sliding_window", None),
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
        router_aux_loss_coef=router_aux_loss_coef,
    )


def upcycle(
    module: PreTrainedModel, config: MixtralConfig, *, noise: float, generator: torch.Generator
) -> MixtralForCausalLM:
    """The mixture, in evaluation mode, sharing no memory with the dense module.

    Args:
        module: the dense model.
        config: from `mixtral_config`.
        noise: standard deviation of what is added to each expert's weights, relative to that of the matrix.
        generator: on the CPU; draws routers (standard deviation `initializer_range`) and noise.
    """
    from transformers import MixtralForCausalLM

    new = unfilled(MixtralForCausalLM, config, module)
    old = {(view.layer, view.role): view for view in matrices(module)}
    for view in matrices(new):
        if view.role == "router":
            drawn = torch.randn(view.shape, generator=generator) * config.initializer_range
        else:
            drawn = old[view.layer, view.role].tensor
            if view.expert is not None and noise:
                drawn = drawn + noise * drawn.std() * torch.randn(view.shape, generator=generator).to(drawn)
        view.write_(drawn)
    norms = {vector.parameter: vector.tensor for vector in vectors(module)}
    for vector in vectors(new):
        vector.tensor.copy_(norms[vector.parameter])
    return new
