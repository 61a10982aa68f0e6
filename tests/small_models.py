"""Real classes of models and tokenizers, made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

PROSE = Path(__file__).resolve().parent.parent / "LICENSE"
"""Some 11 kB of English that every clone has."""


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
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "qwen2_moe": OWN_WIDTH | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [0]},
    "qwen3_moe": OWN_WIDTH,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}
"""What a kind of model needs beside the shape."""


def small_config(kind: str = "llama", **changes: Any) -> PretrainedConfig:
    """The configuration of a small model of a `model_type`."""
    return AutoConfig.for_model(kind, **SHAPE | KINDS.get(kind, {}) | changes)


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
