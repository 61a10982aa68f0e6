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


def make_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose every parameter and buffer differs from its initial value."""
    kind, changes = CONFIGS[name]
    return make(kind, dtype=dtype, disturbed=True, **SHAPE | changes)


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
    return {kind for kind, _ in CONFIGS.values()}
