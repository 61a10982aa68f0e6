"""Small random mixtures of the real classes, with routers spread enough that every expert sees tokens."""

from pathlib import Path

import pytest
import torch
import transformers

from burnish.core.checkpoint import Model, load

TEXT = (Path(__file__).resolve().parents[2] / "LICENSE").read_text()

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
OWN_WIDTH = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
DEEPSEEK = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": None,
}
CONFIGS = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "mixtral_tied": ("MixtralConfig", {"num_local_experts": 4, "tie_word_embeddings": True}),
    "phimoe": ("PhimoeConfig", {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "qwen2_moe": ("Qwen2MoeConfig", OWN_WIDTH | {"shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}),
    "qwen3_moe": ("Qwen3MoeConfig", OWN_WIDTH | {"head_dim": 12}),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("DeepseekV2Config", DEEPSEEK),
    "deepseek_v3": ("DeepseekV3Config", DEEPSEEK),
}


def make_module(name: str, dtype: torch.dtype = torch.float32):
    class_name, settings = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**SHAPE | settings)
    module = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    module.set_experts_implementation("eager")
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, dtype=tensor.dtype))
    return module


@pytest.fixture
def module_of():
    return make_module


@pytest.fixture
def token_ids():
    return torch.randint(3, 384, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model_of(tiny_llama):
    """A model in memory with the small tokenizer."""
    tokenizer = load(tiny_llama).tokenizer
    return lambda name: Model(module=make_module(name), tokenizer=tokenizer)


@pytest.fixture(scope="session")
def texts():
    return [TEXT]
