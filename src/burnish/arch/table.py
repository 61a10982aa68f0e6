"""The table of architectures: one row per `model_type`. `docs/add-an-architecture.md` says how to add one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from burnish.arch.row import ArchitectureRow, ExpertsPart, MatrixPart, MoeRow, NormPart, VectorPart

# -- blocks that many model types share --------------------------------------------------------------------------------

ATTENTION = (
    MatrixPart("self_attn.q_proj", ("q",), "attention_input", "attention", fused="qkv_proj"),
    MatrixPart("self_attn.k_proj", ("k",), "attention_input", "attention", fused="qkv_proj"),
    MatrixPart("self_attn.v_proj", ("v",), "attention_input", "attention", fused="qkv_proj"),
    MatrixPart("self_attn.o_proj", ("o",), "attention_heads", "attention"),
)

QK_NORM = (NormPart("self_attn.q_norm"), NormPart("self_attn.k_norm"))

LATENT_ATTENTION = (
    MatrixPart("self_attn.q_proj", ("q",), "attention_input", "attention"),
    MatrixPart("self_attn.q_a_proj", ("q_a",), "attention_input", "attention", fused="fused_qkv_a_proj"),
    NormPart("self_attn.q_a_layernorm", feeds="query_latent"),
    MatrixPart("self_attn.q_b_proj", ("q_b",), "query_latent", "attention"),
    MatrixPart("self_attn.kv_a_proj_with_mqa", ("kv_a",), "attention_input", "attention", fused="fused_qkv_a_proj"),
    NormPart("self_attn.kv_a_layernorm", feeds="key_value_latent"),
    MatrixPart("self_attn.kv_b_proj", ("kv_b",), "key_value_latent", "attention"),
    MatrixPart("self_attn.o_proj", ("o",), "attention_heads", "attention"),
)

MLP = (
    MatrixPart("mlp.gate_proj", ("gate",), "mlp_input", "mlp", fused="gate_up_proj"),
    MatrixPart("mlp.up_proj", ("up",), "mlp_input", "mlp", fused="gate_up_proj"),
    MatrixPart("mlp.down_proj", ("down",), "mlp_hidden", "mlp"),
)

NORMS = (
    NormPart("input_layernorm", feeds="attention_input"),
    NormPart("post_attention_layernorm", feeds="mlp_input"),
)

# Gemma 2 and 3 normalise what a block reads and also what it writes.
SANDWICH_NORMS = (
    NormPart("input_layernorm", feeds="attention_input"),
    NormPart("post_attention_layernorm"),
    NormPart("pre_feedforward_layernorm", feeds="mlp_input"),
    NormPart("post_feedforward_layernorm"),
)

# OLMo 2 normalises only what a block writes.
OUTPUT_NORMS = (NormPart("post_attention_layernorm"), NormPart("post_feedforward_layernorm"))

QWEN_EXPERTS = ExpertsPart(
    "mlp.experts",
    gate="mlp.experts.{expert}.gate_proj.weight",
    up="mlp.experts.{expert}.up_proj.weight",
    down="mlp.experts.{expert}.down_proj.weight",
)

MIXTRAL_EXPERTS = ExpertsPart(
    "mlp.experts",
    gate="block_sparse_moe.experts.{expert}.w1.weight",
    up="block_sparse_moe.experts.{expert}.w3.weight",
    down="block_sparse_moe.experts.{expert}.w2.weight",
)

ROUTER = MatrixPart("mlp.gate", ("router",), "mlp_input", "router")


def shared_expert(path: str) -> tuple[MatrixPart, ...]:
    return (
        MatrixPart(f"{path}.gate_proj", ("gate",), "mlp_input", "shared_expert", fused="gate_up_proj"),
        MatrixPart(f"{path}.up_proj", ("up",), "mlp_input", "shared_expert", fused="gate_up_proj"),
        MatrixPart(f"{path}.down_proj", ("down",), "shared_expert_hidden", "shared_expert"),
    )


# -- which layers have experts -----------------------------------------------------------------------------------------


def every_layer(config: Any, layer: int) -> bool:
    return True


def qwen_layers(config: Any, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


def deepseek_layers(config: Any, layer: int) -> bool:
    return layer >= config.first_k_dense_replace


def deepseek_shared_width(config: Any) -> int:
    return config.moe_intermediate_size * config.n_shared_experts


# -- the rows ----------------------------------------------------------------------------------------------------------

LLAMA = ArchitectureRow(parts=(*ATTENTION, *MLP, *NORMS))
GEMMA = replace(LLAMA, norm="rms_plus_one")

QWEN3_MOE = ArchitectureRow(
    parts=(*ATTENTION, *QK_NORM, *MLP, ROUTER, QWEN_EXPERTS, *NORMS),
    qk_norm="head",
    moe=MoeRow("num_experts", "moe_intermediate_size", "mlp.gate", "softmax", qwen_layers),
)

DEEPSEEK_EXPERTS = MoeRow(
    "n_routed_experts",
    "moe_intermediate_size",
    "mlp.gate",
    "sigmoid_groups",
    deepseek_layers,
    shared="mlp.shared_experts",
    shared_intermediate_size=deepseek_shared_width,
)

DEEPSEEK_V3 = ArchitectureRow(
    parts=(
        *LATENT_ATTENTION,
        *MLP,
        ROUTER,
        VectorPart("mlp.gate.e_score_correction_bias", "router_correction"),
        QWEN_EXPERTS,
        *shared_expert("mlp.shared_experts"),
        *NORMS,
    ),
    attention="mla",
    moe=DEEPSEEK_EXPERTS,
)

TABLE: dict[str, ArchitectureRow] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "smollm3": LLAMA,
    "granite": LLAMA,
    "qwen2": LLAMA,
    "qwen3": replace(LLAMA, parts=(*ATTENTION, *QK_NORM, *MLP, *NORMS), qk_norm="head"),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, parts=(*ATTENTION, *MLP, *SANDWICH_NORMS)),
    "gemma3_text": replace(GEMMA, parts=(*ATTENTION, *QK_NORM, *MLP, *SANDWICH_NORMS), qk_norm="head"),
    "olmo2": replace(LLAMA, parts=(*ATTENTION, *QK_NORM, *MLP, *OUTPUT_NORMS), qk_norm="all_heads"),
    "phi3": replace(
        LLAMA,
        parts=(
            MatrixPart("self_attn.qkv_proj", ("q", "k", "v"), "attention_input", "attention", fused="qkv_proj"),
            MatrixPart("self_attn.o_proj", ("o",), "attention_heads", "attention"),
            MatrixPart("mlp.gate_up_proj", ("gate", "up"), "mlp_input", "mlp", fused="gate_up_proj"),
            MatrixPart("mlp.down_proj", ("down",), "mlp_hidden", "mlp"),
            *NORMS,
        ),
    ),
    "gpt2": ArchitectureRow(
        parts=(
            MatrixPart("attn.c_attn", ("q", "k", "v"), "attention_input", "attention", "c_attn", transposed=True),
            MatrixPart("attn.c_proj", ("o",), "attention_heads", "attention", transposed=True),
            MatrixPart("mlp.c_fc", ("up",), "mlp_input", "mlp", transposed=True),
            MatrixPart("mlp.c_proj", ("down",), "mlp_hidden", "mlp", transposed=True),
            NormPart("ln_1", feeds="attention_input"),
            NormPart("ln_2", feeds="mlp_input"),
        ),
        layers="transformer.h",
        embedding="transformer.wte",
        position_embedding="transformer.wpe",
        final_norm="transformer.ln_f",
        norm="layer",
        keys={
            "hidden_size": "n_embd",
            "intermediate_size": "n_inner",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "num_key_value_heads": "n_head",
        },
    ),
    "mixtral": ArchitectureRow(
        parts=(*ATTENTION, replace(ROUTER, on_disk="block_sparse_moe.gate"), MIXTRAL_EXPERTS, *NORMS),
        moe=MoeRow("num_local_experts", "intermediate_size", "mlp.gate", "softmax", every_layer),
    ),
    "phimoe": ArchitectureRow(
        parts=(
            *ATTENTION,
            replace(ROUTER, module="mlp.router", on_disk="block_sparse_moe.gate"),
            MIXTRAL_EXPERTS,
            *NORMS,
        ),
        norm="layer",
        moe=MoeRow("num_local_experts", "intermediate_size", "mlp.router", "sparsemixer", every_layer),
    ),
    "qwen2_moe": ArchitectureRow(
        parts=(
            *ATTENTION,
            *MLP,
            ROUTER,
            QWEN_EXPERTS,
            *shared_expert("mlp.shared_expert"),
            MatrixPart("mlp.shared_expert_gate", ("shared_expert_gate",), "mlp_input", "router"),
            *NORMS,
        ),
        moe=MoeRow(
            "num_experts",
            "moe_intermediate_size",
            "mlp.gate",
            "softmax",
            qwen_layers,
            shared="mlp.shared_expert",
            shared_intermediate_size=lambda config: config.shared_expert_intermediate_size,
        ),
    ),
    "qwen3_moe": QWEN3_MOE,
    "olmoe": ArchitectureRow(
        parts=(*ATTENTION, *QK_NORM, ROUTER, QWEN_EXPERTS, *NORMS),
        qk_norm="all_heads",
        moe=MoeRow("num_experts", "intermediate_size", "mlp.gate", "softmax", every_layer),
    ),
    "deepseek_v2": replace(
        DEEPSEEK_V3,
        parts=tuple(part for part in DEEPSEEK_V3.parts if not isinstance(part, VectorPart)),
        moe=replace(DEEPSEEK_EXPERTS, routing="softmax_groups"),
    ),
    "deepseek_v3": DEEPSEEK_V3,
}
