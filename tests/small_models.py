"""Real classes of models and tokenizers, made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from burnish.core.checkpoint import Model
from burnish.train.scratch import initialise

PROSE = Path(__file__).resolve().parent.parent / "LICENSE"
"""Some 11 kB of English that every clone has."""
EXAMPLES = PROSE.parent / "examples"


SMALL_TRAINER: dict[str, Any] = {
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
"""Settings of TRL's trainers: on this processor, quietly, with nothing kept and every step logged."""


def untaught_reasoner() -> Model:
    """A model for chains with random weights, a token for every byte, and a chat template."""
    return initialise(
        EXAMPLES / "reasoner_small.json",
        tokenizer="bpe:257",
        texts=["none is needed for single bytes"],
        chat_template=(EXAMPLES / "reasoner.jinja").read_text(),
        seed=0,
    )


def small_tokenizer(vocab_size: int = 384, special: tuple[str, ...] = ("<|endoftext|>",)) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the licence text; the first of its special tokens begins, ends and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE.read_text()], trainer)
    end = special[0]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end)


SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LATENT = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16, "q_lora_rank": None}
OWN_WIDTH = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
DEEPSEEK = LATENT | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,  # latent attention expands to as many keys as queries
}
GRANITE = {"num_local_experts": 4, "num_experts_per_tok": 2}
GATED_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
GROUPED = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "head_dim": 16,
}
TEXT = SHAPE | {"head_dim": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "minimax": {"num_local_experts": 4, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "rotary_dim": 8},
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE | {"shared_intermediate_size": 32},
    "granitemoehybrid": GRANITE
    | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"], "mamba_n_heads": 8}
    | {"mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2},
    "qwen3_5_text": GATED_DELTA,
    "qwen3_5_moe_text": OWN_WIDTH | GATED_DELTA | {"shared_expert_intermediate_size": 32},
    "qwen3_next": OWN_WIDTH | GATED_DELTA | {"shared_expert_intermediate_size": 32},
    "glm4_moe": GROUPED | {"n_shared_experts": 2, "n_routed_experts": 4, "use_qk_norm": True},
    "glm4_moe_lite": LATENT
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_key_value_heads": 4}
    | {"q_lora_rank": 24},
    "dots1": GROUPED | {"n_shared_experts": 2, "n_routed_experts": 4},
    "solar_open": GROUPED | {"n_shared_experts": 2, "n_routed_experts": 4},
    "exaone_moe": GROUPED | {"num_experts": 4, "num_shared_experts": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 2}
    | {"moe_layer_start_index": 1, "moe_layer_end_index": 1},
    "afmoe": OWN_WIDTH | {"num_shared_experts": 2, "num_dense_layers": 1, "head_dim": 16},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "helium": {"head_dim": 16},
    "ministral": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16, "moe_layers": [1]}
    | {"intermediate_size_mlp": 112, "attention_chunk_size": 64},
    "cohere2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "prefix_dense_intermediate_size": 112}
    | {"mlp_layer_types": ["dense", "sparse"], "num_shared_experts": 2},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": OWN_WIDTH | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "jamba": {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    | {"head_dim": 16},
    "nemotron_h": GROUPED
    | {"n_routed_experts": 4, "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 32, "num_hidden_layers": 4}
    | {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 16}
    | {"ssm_state_size": 8, "n_groups": 1, "expand": 2},
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    "qwen2_moe": OWN_WIDTH | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [0]},
    "qwen3_moe": OWN_WIDTH,
    "mellum": OWN_WIDTH | {"head_dim": 16, "mlp_layer_types": ["dense", "sparse"]},
    "cwm": {"head_dim": 16},
    "vaultgemma": {"head_dim": 16},
    "granite_swa": {"head_dim": 16},
    "hyperclovax": {"use_post_norm": True},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}
"""What a kind of model needs beside the shape."""


def small_config(kind: str = "llama", **changes: Any) -> PretrainedConfig:
    """The configuration of a small model of a `model_type`; of its language model where it has a part for that."""
    own = KINDS.get(kind, {})
    if "text_config" in own:
        return AutoConfig.for_model(kind, **own | {"text_config": own["text_config"] | changes})
    return AutoConfig.for_model(kind, **SHAPE | own | changes)


def make(
    kind: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    disturbed: bool = False,
    **changes: Any,
) -> PreTrainedModel:
    """A small model with random weights, in evaluation mode; experts one by one, as fast kernels know no float64.

    Args:
        kind: its `model_type`.
        seed: of the weights.
        dtype: of the weights.
        disturbed: whether norms and biases are moved away from ones and zeros as well.
        **changes: of the configuration.
    """
    torch.manual_seed(seed)
    module = AutoModelForCausalLM.from_config(small_config(kind, **changes), dtype=dtype).eval()
    if dtype is torch.float64:
        for parameter in module.parameters():  # some routers are float32 whatever they are asked for
            parameter.data = parameter.data.to(dtype)
    if hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")
    if disturbed:
        with torch.no_grad():
            for tensor in module.state_dict().values():
                tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype))
    return module


def small_llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Two layers, hidden 64, grouped-query attention, tied embeddings."""
    return make("llama", seed=seed, **{"intermediate_size": 128, "tie_word_embeddings": True} | changes)
