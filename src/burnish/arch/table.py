"""The table of architectures: one row per `model_type`. `docs/add-an-architecture.md` says how to add one."""

from __future__ import annotations

from dataclasses import replace

from burnish.arch.blocks import (
    ATTENTION,
    GATED_DELTA,
    LATENT_ATTENTION,
    MAMBA,
    MIXTRAL_EXPERTS,
    MLP,
    NORMS,
    ONE_NORM,
    OUTPUT_NORMS,
    QK_NORM,
    QWEN_EXPERTS,
    ROUTER,
    SANDWICH_NORMS,
    SHARED_EXPERT_GATE,
    SINKS,
    after_dense_layers,
    attention,
    block_of,
    correction,
    deepseek_layers,
    ernie_layers,
    every_layer,
    experts,
    experts_in_one,
    key,
    mlp,
    mlp_in_one,
    named_layers,
    normalised_or,
    over_all,
    over_chosen,
    qk_norms,
    qwen_layers,
    shared_expert,
)
from burnish.arch.row import ArchitectureRow, AsMany, MatrixPart, MoeRow, NormPart, OpaquePart, VectorPart

# -- dense models ------------------------------------------------------------------------------------------------------

LLAMA = ArchitectureRow(parts=(*ATTENTION, *MLP, *NORMS))
GEMMA = replace(LLAMA, norm="rms_plus_one")
GEMMA3 = replace(GEMMA, parts=(*ATTENTION, *QK_NORM, *MLP, *SANDWICH_NORMS), qk_norm="head")
OLMO2 = replace(LLAMA, parts=(*ATTENTION, *QK_NORM, *MLP, *OUTPUT_NORMS), qk_norm="all_heads")
COHERE = replace(
    LLAMA,
    parts=(
        *ATTENTION,
        *(VectorPart(f"self_attn.{name}.weight", "opaque") for name in ("q_norm", "k_norm")),  # other weights per head
        *mlp(reads="attention_input"),
        *ONE_NORM,
    ),
    norm="layer",
)


def with_vision(row: ArchitectureRow) -> ArchitectureRow:
    """The row of a language model beside a vision tower, with names on disk as LLaVA has them."""
    return replace(
        row,
        layers="model.language_model.layers",
        embedding="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        beside=("model.vision_tower", "model.multi_modal_projector"),
        on_disk={"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""},
    )


DENSE: dict[str, ArchitectureRow] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "ministral3": LLAMA,
    "smollm3": LLAMA,
    "granite": LLAMA,
    "helium": LLAMA,
    "seed_oss": LLAMA,
    "cwm": LLAMA,
    "granite_swa": replace(LLAMA, parts=(*LLAMA.parts, SINKS)),
    "hyperclovax": replace(LLAMA, parts=(*LLAMA.parts, NormPart("post_norm1"), NormPart("post_norm2"))),
    "ernie4_5": LLAMA,
    "qwen2": LLAMA,
    "qwen3": replace(LLAMA, parts=(*ATTENTION, *QK_NORM, *MLP, *NORMS), qk_norm="head"),
    "hunyuan_v1_dense": replace(
        LLAMA, parts=(*ATTENTION, *qk_norms("query_layernorm", "key_layernorm"), *MLP, *NORMS), qk_norm="head"
    ),
    "arcee": replace(LLAMA, parts=(*ATTENTION, *mlp(gate=""), *NORMS)),
    "starcoder2": replace(LLAMA, parts=(*ATTENTION, *mlp(gate="", up="c_fc", down="c_proj"), *NORMS), norm="layer"),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, parts=(*ATTENTION, *MLP, *SANDWICH_NORMS)),
    "vaultgemma": replace(
        GEMMA,
        parts=(
            *ATTENTION,
            *MLP,
            NormPart("input_layernorm", feeds="attention_input"),
            NormPart("pre_feedforward_layernorm", feeds="mlp_input"),
        ),
    ),
    "gemma3_text": GEMMA3,
    "gemma3": with_vision(GEMMA3),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "exaone4": replace(OLMO2, qk_norm="head"),
    "cohere": COHERE,
    "cohere2": COHERE,
    "glm": replace(LLAMA, parts=(*ATTENTION, *mlp_in_one(), *NORMS)),
    "glm4": replace(
        LLAMA,
        parts=(
            *ATTENTION,
            *mlp_in_one(),
            *NORMS,
            NormPart("post_self_attn_layernorm"),
            NormPart("post_mlp_layernorm"),
        ),
    ),
    "phi3": replace(
        LLAMA,
        parts=(
            MatrixPart("self_attn.qkv_proj", ("q", "k", "v"), "attention_input", "attention", fused="qkv_proj"),
            MatrixPart("self_attn.o_proj", ("o",), "attention_heads", "attention"),
            *mlp_in_one(),
            *NORMS,
        ),
    ),
    "phi": replace(
        LLAMA,
        parts=(
            *attention(out="dense"),
            *mlp(gate="", up="fc1", down="fc2", reads="attention_input"),
            *ONE_NORM,
        ),
        final_norm="model.final_layernorm",
        norm="layer",
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
    # Layers of state-space or linear attention beside layers of attention, or in one layer with it.
    "qwen3_5_text": replace(
        GEMMA, parts=(*ATTENTION, *QK_NORM, GATED_DELTA, *MLP, *NORMS), qk_norm="head", query_gate=True
    ),
    "falcon_h1": replace(
        LLAMA,
        # What the first norm feeds goes into the state-space mixer too.
        parts=(
            *ATTENTION,
            MAMBA,
            *mlp("feed_forward"),
            NormPart("input_layernorm"),
            NormPart("pre_ff_layernorm", feeds="mlp_input"),
        ),
        final_norm="model.final_layernorm",
    ),
    "lfm2": replace(
        LLAMA,
        parts=(
            *attention(out="out_proj"),
            *qk_norms("q_layernorm", "k_layernorm"),
            OpaquePart("conv"),
            *mlp("feed_forward", gate="w1", up="w3", down="w2", fused="w13"),
            NormPart("operator_norm", feeds="attention_input"),
            NormPart("ffn_norm", feeds="mlp_input"),
        ),
        qk_norm="head",
        final_norm="model.embedding_norm",
    ),
}

# -- mixtures of experts -----------------------------------------------------------------------------------------------

SHARED_EXPERTS = shared_expert("mlp.shared_experts")

MIXTRAL = ArchitectureRow(
    parts=(*ATTENTION, replace(ROUTER, on_disk="block_sparse_moe.gate"), MIXTRAL_EXPERTS, *NORMS),
    moe=MoeRow("num_local_experts", "intermediate_size", "mlp.gate", "softmax", every_layer),
)

QWEN2_EXPERTS = MoeRow(
    "num_experts",
    "moe_intermediate_size",
    "mlp.gate",
    "softmax",
    qwen_layers,
    shared="mlp.shared_expert",
    shared_intermediate_size=key("shared_expert_intermediate_size"),
    weights=normalised_or("all"),
)

QWEN2_MOE = ArchitectureRow(
    parts=(
        *ATTENTION,
        *MLP,
        ROUTER,
        QWEN_EXPERTS,
        *shared_expert("mlp.shared_expert"),
        SHARED_EXPERT_GATE,
        *NORMS,
    ),
    moe=QWEN2_EXPERTS,
)

QWEN3_EXPERTS = MoeRow(
    "num_experts", "moe_intermediate_size", "mlp.gate", "softmax", qwen_layers, weights=normalised_or("all")
)

QWEN3_MOE = ArchitectureRow(
    parts=(*ATTENTION, *QK_NORM, *MLP, ROUTER, QWEN_EXPERTS, *NORMS), qk_norm="head", moe=QWEN3_EXPERTS
)

QWEN3_NEXT = replace(
    QWEN2_MOE, parts=(*QWEN2_MOE.parts, *QK_NORM, GATED_DELTA), norm="rms_plus_one", qk_norm="head", query_gate=True
)

OLMOE = replace(
    QWEN3_MOE,
    parts=(*ATTENTION, *QK_NORM, ROUTER, QWEN_EXPERTS, *NORMS),
    qk_norm="all_heads",
    moe=MoeRow("num_experts", "intermediate_size", "mlp.gate", "softmax", every_layer, weights=normalised_or("all")),
)

DEEPSEEK_EXPERTS = MoeRow(
    "n_routed_experts",
    "moe_intermediate_size",
    "mlp.gate",
    "sigmoid_groups",
    deepseek_layers,
    shared="mlp.shared_experts",
    shared_intermediate_size=AsMany("n_shared_experts"),
    weights=normalised_or("each"),
)

DEEPSEEK_V3 = ArchitectureRow(
    parts=(*LATENT_ATTENTION, *MLP, ROUTER, correction(), QWEN_EXPERTS, *SHARED_EXPERTS, *NORMS),
    attention="mla",
    moe=DEEPSEEK_EXPERTS,
)

# DeepSeek's experts after attention with grouped queries.
GLM4_MOE = replace(
    DEEPSEEK_V3,
    parts=(*ATTENTION, *QK_NORM, *MLP, ROUTER, correction(), QWEN_EXPERTS, *SHARED_EXPERTS, *NORMS),
    attention="gqa",
    qk_norm="head",
)

GRANITE_MOE = ArchitectureRow(
    parts=(
        *ATTENTION,
        MatrixPart(
            "block_sparse_moe.router",
            ("router",),
            "mlp_input",
            "router",
            on_disk="block_sparse_moe.router.layer",
            output=2,
        ),
        experts_in_one(
            "block_sparse_moe.experts", "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
        ),
        *mlp_in_one("shared_mlp", first="input_linear", down="output_linear", part="shared_expert"),
        MAMBA,
        *NORMS,
    ),
    moe=MoeRow("num_local_experts", "intermediate_size", "block_sparse_moe.router", "softmax", every_layer),
)

GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    moe=MoeRow(
        "num_local_experts",
        "intermediate_size",
        "block_sparse_moe.router",
        "softmax",
        every_layer,
        shared="shared_mlp",
        shared_intermediate_size=key("shared_intermediate_size"),
    ),
)

MIXTURES: dict[str, ArchitectureRow] = {
    "mixtral": MIXTRAL,
    "phimoe": replace(
        MIXTRAL,
        parts=(
            *ATTENTION,
            replace(ROUTER, module="mlp.router", on_disk="block_sparse_moe.gate"),
            MIXTRAL_EXPERTS,
            *NORMS,
        ),
        norm="layer",
        moe=MoeRow("num_local_experts", "intermediate_size", "mlp.router", "sparsemixer", every_layer),
    ),
    "minimax": replace(
        MIXTRAL,
        # What a norm gives goes into the residual stream too.
        parts=(
            *(replace(part, feeds="") if isinstance(part, NormPart) else part for part in MIXTRAL.parts),
            *(OpaquePart(f"self_attn.{name}") for name in ("qkv_proj", "out_proj", "output_gate", "norm")),
            *(
                VectorPart(f"self_attn.{name}", "opaque")
                for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
            ),
        ),
        same_heads="its layers of linear attention",
    ),
    "minimax_m2": replace(
        MIXTRAL,
        parts=(
            *MIXTRAL.parts,
            *QK_NORM,
            correction("mlp.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"),
        ),
        qk_norm="all_heads",
        moe=MoeRow("num_local_experts", "intermediate_size", "mlp.gate", "sigmoid", every_layer),
    ),
    "gpt_oss": ArchitectureRow(
        parts=(
            *ATTENTION,
            SINKS,
            replace(ROUTER, module="mlp.router"),
            experts_in_one("mlp.experts", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
            *NORMS,
        ),
        moe=MoeRow("num_local_experts", "intermediate_size", "mlp.router", "softmax", every_layer),
    ),
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "mellum": replace(QWEN3_MOE, moe=replace(QWEN3_EXPERTS, is_sparse=named_layers)),
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5_moe_text": replace(QWEN3_NEXT, moe=replace(QWEN2_EXPERTS, is_sparse=every_layer, weights=over_chosen)),
    "olmoe": OLMOE,
    "flex_olmo": replace(OLMOE, parts=(*ATTENTION, *QK_NORM, ROUTER, QWEN_EXPERTS, *OUTPUT_NORMS)),
    "deepseek_v2": replace(
        DEEPSEEK_V3,
        parts=tuple(part for part in DEEPSEEK_V3.parts if not isinstance(part, VectorPart)),
        moe=replace(DEEPSEEK_EXPERTS, routing="softmax_groups", weights=over_all),
    ),
    "deepseek_v3": DEEPSEEK_V3,
    "glm4_moe_lite": replace(DEEPSEEK_V3, moe=replace(DEEPSEEK_EXPERTS, is_sparse=named_layers)),
    "glm4_moe": GLM4_MOE,
    "dots1": GLM4_MOE,
    "solar_open": replace(GLM4_MOE, qk_norm="none", moe=replace(DEEPSEEK_EXPERTS, is_sparse=every_layer)),
    "exaone_moe": replace(
        GLM4_MOE,
        parts=(
            *ATTENTION,
            *QK_NORM,
            *MLP,
            ROUTER,
            correction(on_disk="mlp.e_score_correction_bias"),
            QWEN_EXPERTS,
            *SHARED_EXPERTS,
            *NORMS,
        ),
        moe=MoeRow(
            "num_experts",
            "moe_intermediate_size",
            "mlp.gate",
            "sigmoid_groups",
            named_layers,
            shared="mlp.shared_experts",
            shared_intermediate_size=AsMany("num_shared_experts"),
            weights=normalised_or("each"),
        ),
    ),
    "ernie4_5_moe": ArchitectureRow(
        parts=(
            *ATTENTION,
            *MLP,
            ROUTER,
            correction("mlp.gate.moe_statics.e_score_correction_bias", "mlp.moe_statics.e_score_correction_bias"),
            QWEN_EXPERTS,
            *SHARED_EXPERTS,
            *NORMS,
        ),
        moe=MoeRow(
            "moe_num_experts",
            "moe_intermediate_size",
            "mlp.gate",
            "softmax",
            ernie_layers,
            shared="mlp.shared_experts",
            shared_intermediate_size=AsMany("moe_num_shared_experts"),
        ),
    ),
    "afmoe": ArchitectureRow(
        parts=(
            *ATTENTION,
            *QK_NORM,
            MatrixPart("self_attn.gate_proj", ("attention_gate",), "attention_input", "attention"),
            *MLP,
            replace(ROUTER, module="mlp.router.gate"),
            correction("mlp.expert_bias"),
            QWEN_EXPERTS,
            *SHARED_EXPERTS,
            NormPart("input_layernorm", feeds="attention_input"),
            NormPart("post_attention_layernorm"),
            NormPart("pre_mlp_layernorm", feeds="mlp_input"),
            NormPart("post_mlp_layernorm"),
        ),
        qk_norm="head",
        moe=MoeRow(
            "num_experts",
            "moe_intermediate_size",
            "mlp.router.gate",
            "sigmoid",
            after_dense_layers,
            shared="mlp.shared_experts",
            shared_intermediate_size=AsMany("num_shared_experts"),
        ),
    ),
    "hunyuan_v1_moe": ArchitectureRow(
        parts=(
            *ATTENTION,
            *qk_norms("query_layernorm", "key_layernorm"),
            replace(ROUTER, module="mlp.gate.wg"),
            QWEN_EXPERTS,
            *shared_expert("mlp.shared_mlp"),
            *NORMS,
        ),
        qk_norm="head",
        moe=MoeRow(
            "num_experts",
            "intermediate_size",
            "mlp.gate.wg",
            "softmax",
            every_layer,
            shared="mlp.shared_mlp",
            shared_intermediate_size=key("intermediate_size"),
        ),
    ),
    "llama4_text": ArchitectureRow(
        parts=(
            *ATTENTION,
            *mlp("feed_forward"),
            replace(ROUTER, module="feed_forward.router", output=1),
            experts_in_one(
                "feed_forward.experts", "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"
            ),
            *shared_expert("feed_forward.shared_expert"),
            *NORMS,
        ),
        keys={"intermediate_size": "intermediate_size_mlp"},
        moe=MoeRow(
            "num_local_experts",
            "intermediate_size",
            "feed_forward.router",
            "sigmoid",
            lambda config, layer: layer in config.moe_layers,
            shared="feed_forward.shared_expert",
            shared_intermediate_size=key("intermediate_size"),
            weights=lambda config: "each",
        ),
    ),
    "cohere2_moe": ArchitectureRow(
        parts=(
            *ATTENTION,
            *mlp(reads="attention_input"),
            replace(ROUTER, reads="attention_input"),
            experts(reads="attention_input"),
            *shared_expert("mlp.shared_experts", reads="attention_input"),
            *ONE_NORM,
        ),
        norm="layer",
        keys={"intermediate_size": "prefix_dense_intermediate_size"},
        moe=MoeRow(
            "num_experts",
            "intermediate_size",
            "mlp.gate",
            "softmax",
            named_layers,
            shared="mlp.shared_experts",
            shared_intermediate_size=AsMany("num_shared_experts", "intermediate_size"),
            weights=lambda config: (
                "chosen" if config.expert_selection_fn == "softmax" or config.norm_topk_prob else "each"
            ),
        ),
    ),
    "granitemoe": GRANITE_MOE,
    "granitemoeshared": GRANITE_MOE_SHARED,
    "granitemoehybrid": GRANITE_MOE_SHARED,
    "lfm2_moe": replace(
        DENSE["lfm2"],
        parts=(
            *DENSE["lfm2"].parts,
            replace(ROUTER, module="feed_forward.gate"),
            correction("feed_forward.expert_bias"),
            experts("feed_forward.experts", gate="w1", up="w3", down="w2"),
        ),
        moe=MoeRow(
            "num_experts",
            "moe_intermediate_size",
            "feed_forward.gate",
            "sigmoid",
            after_dense_layers,
            weights=normalised_or("each"),
        ),
    ),
    "jamba": ArchitectureRow(
        parts=(
            *ATTENTION,
            MAMBA,
            *mlp("feed_forward"),
            replace(ROUTER, module="feed_forward.router"),
            experts("feed_forward.experts"),
            NormPart("input_layernorm", feeds="attention_input"),
            NormPart("pre_ff_layernorm", feeds="mlp_input"),
        ),
        final_norm="model.final_layernorm",
        moe=MoeRow(
            "num_experts",
            "intermediate_size",
            "feed_forward.router",
            "softmax",
            lambda config, layer: config.layers_num_experts[layer] > 1,
            weights=over_all,
        ),
    ),
    # One mixer a layer: attention, MLP, experts or a state-space mixer, all below the same name.
    "nemotron_h": ArchitectureRow(
        parts=(
            *attention("mixer", reads="mixer_input"),
            *mlp("mixer", gate="", reads="mixer_input"),
            replace(ROUTER, module="mixer.gate", reads="mixer_input"),
            correction("mixer.gate.e_score_correction_bias"),
            MatrixPart("mixer.fc1_latent_proj", ("latent_in",), "mixer_input", "latent"),
            experts("mixer.experts", gate="", reads="mixer_input", through="mixer.fc1_latent_proj"),
            MatrixPart("mixer.fc2_latent_proj", ("latent_out",), "experts_output", "latent"),
            *shared_expert("mixer.shared_experts", gate="", reads="mixer_input"),
            *(OpaquePart(f"mixer.{name}") for name in ("in_proj", "conv1d", "norm", "out_proj")),
            *(VectorPart(f"mixer.{name}", "opaque") for name in ("A_log", "D", "dt_bias")),
            NormPart("norm", feeds="mixer_input"),
        ),
        embedding="model.embeddings",
        final_norm="model.norm_f",
        on_disk={"model.": "backbone."},
        moe=MoeRow(
            "n_routed_experts",
            "moe_intermediate_size",
            "mixer.gate",
            "sigmoid_groups",
            block_of("moe"),
            block_of("mlp"),
            shared="mixer.shared_experts",
            shared_intermediate_size=key("moe_shared_expert_intermediate_size"),
            weights=normalised_or("each"),
        ),
    ),
}

TABLE: dict[str, ArchitectureRow] = DENSE | MIXTURES
