"""Small random models of the real classes, one for every row of the table."""

import pytest
import torch
import transformers
from transformers import PreTrainedModel

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS_OF_24 = {"head_dim": 24}  # not hidden / heads, as in Qwen3 and Gemma
LATENT = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,  # latent attention expands to as many keys as queries
}

CONFIGS = {
    "llama": ("LlamaConfig", SHAPE),
    "llama_tied": ("LlamaConfig", SHAPE | {"tie_word_embeddings": True}),
    "llama_biased": ("LlamaConfig", SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", SHAPE | HEADS_OF_24),
    "smollm3": ("SmolLM3Config", SHAPE),
    "granite": ("GraniteConfig", SHAPE | {"residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen3": ("Qwen3Config", SHAPE | HEADS_OF_24),
    "gemma": ("GemmaConfig", SHAPE | HEADS_OF_24),
    "gemma2": ("Gemma2Config", SHAPE | HEADS_OF_24),
    "gemma3_text": ("Gemma3TextConfig", SHAPE | HEADS_OF_24),
    "olmo2": ("Olmo2Config", SHAPE),
    "phi3": ("Phi3Config", SHAPE),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
        | {"eos_token_id": 2},
    ),
    "mixtral": ("MixtralConfig", SHAPE | {"num_local_experts": 4}),
    "phimoe": ("PhimoeConfig", SHAPE | {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        SHAPE
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        | {"shared_expert_intermediate_size": 32, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        SHAPE | HEADS_OF_24 | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "olmoe": ("OlmoeConfig", SHAPE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "olmoe_clipped": ("OlmoeConfig", SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.2}),
    "deepseek_v2": ("DeepseekV2Config", SHAPE | LATENT | DEEPSEEK | {"q_lora_rank": None}),
    "deepseek_v2_low_rank": ("DeepseekV2Config", SHAPE | LATENT | DEEPSEEK | {"q_lora_rank": 24}),
    "deepseek_v3": ("DeepseekV3Config", SHAPE | LATENT | DEEPSEEK | {"q_lora_rank": 24}),
}


def make_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose every parameter and buffer differs from its initial value (norms of 1, biases of 0)."""
    class_name, settings = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**settings)
    module = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    module.set_experts_implementation("eager")
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype))
    return module


@pytest.fixture(params=CONFIGS)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(params=CONFIGS)
def any_model64(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param, torch.float64)


@pytest.fixture
def model_of():
    return make_model


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tested_model_types() -> set[str]:
    return {getattr(transformers, class_name).model_type for class_name, _ in CONFIGS.values()}
