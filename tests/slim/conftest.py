"""Small random mixtures of the real classes, with routers spread enough that every expert sees tokens."""

from pathlib import Path

import pytest
import torch

from burnish.core.checkpoint import Model, load
from small_models import make

TEXT = (Path(__file__).resolve().parents[2] / "LICENSE").read_text()

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
DEEPSEEK = {"n_routed_experts": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8}
CONFIGS = {
    "mixtral": ("mixtral", {}),
    "mixtral_tied": ("mixtral", {"tie_word_embeddings": True}),
    "phimoe": ("phimoe", {}),
    "qwen2_moe": ("qwen2_moe", {"shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 12}),
    "olmoe": ("olmoe", {}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK),
}


def make_module(name: str, dtype: torch.dtype = torch.float32):
    kind, changes = CONFIGS[name]
    return make(kind, dtype=dtype, disturbed=True, **SHAPE | changes)


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
