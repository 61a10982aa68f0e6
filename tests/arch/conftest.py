"""Small random models of the real classes, one for every row of the table."""

import pytest
import torch
from transformers import PreTrainedModel

from small_models import make

SHAPE = {
    "vocab_size": 96,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_OF_24 = {"head_dim": 24}  # not hidden / heads, as in Qwen3 and Gemma
CONFIGS = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", HEADS_OF_24),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {"residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", HEADS_OF_24),
    "gemma": ("gemma", HEADS_OF_24),
    "gemma2": ("gemma2", HEADS_OF_24),
    "gemma3_text": ("gemma3_text", HEADS_OF_24),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "mixtral": ("mixtral", {}),
    "phimoe": ("phimoe", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", HEADS_OF_24),
    "olmoe": ("olmoe", {}),
    "olmoe_clipped": ("olmoe", {"clip_qkv": 0.2}),
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v2_low_rank": ("deepseek_v2", {"q_lora_rank": 24}),
    "deepseek_v3": ("deepseek_v3", {"q_lora_rank": 24}),
}
CORE = {
    "gpt_oss": ("gpt_oss", {}),
    "qwen3_next": ("qwen3_next", {}),
    "nemotron_h": ("nemotron_h", {}),
    "gemma3": ("gemma3", HEADS_OF_24),
}
"""Each needs something that no row above needs: looked at by the slow tests."""

MORE = {
    "cohere_norms": ("cohere", {"use_qk_norm": True}),
    "granitemoehybrid": ("granitemoehybrid", {}),
    "granitemoehybrid_dense": ("granitemoehybrid", {"num_local_experts": 0}),
    "nemotron_h_latent": ("nemotron_h", {"moe_latent_size": 32}),
    **{
        kind: (kind, {})
        for kind in (
            *("ministral", "ministral3", "helium", "seed_oss", "ernie4_5", "hunyuan_v1_dense", "arcee", "starcoder2"),
            *("olmo3", "exaone4", "cohere", "cohere2", "glm", "glm4", "phi", "qwen3_5_text", "falcon_h1", "lfm2"),
            *("minimax", "minimax_m2", "qwen3_5_moe_text", "flex_olmo", "glm4_moe_lite", "glm4_moe", "dots1"),
            *("solar_open", "exaone_moe", "ernie4_5_moe", "afmoe", "hunyuan_v1_moe", "llama4_text", "cohere2_moe"),
            *("granitemoe", "granitemoeshared", "lfm2_moe", "jamba", "cwm", "granite_swa", "hyperclovax"),
            *("vaultgemma", "mellum"),
        )
    },
}
"""Looked at by the long tests."""

EVERY = [
    *CONFIGS,
    *(pytest.param(name, marks=pytest.mark.slow) for name in CORE),
    *(pytest.param(name, marks=pytest.mark.long) for name in MORE),
]


def make_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose every parameter and buffer differs from its initial value."""
    kind, changes = (CONFIGS | CORE | MORE)[name]
    return make(kind, dtype=dtype, disturbed=True, **SHAPE | changes)


@pytest.fixture(params=EVERY)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


@pytest.fixture(params=EVERY)
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
    return {kind for kind, _ in (CONFIGS | CORE | MORE).values()}
