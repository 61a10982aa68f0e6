"""Parts of decoder layers that rows of the table share, and which layers have experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from burnish.arch.row import ExpertsPart, MatrixPart, NormPart, OpaquePart, Part, RoutingWeights, VectorPart

# -- attention ---------------------------------------------------------------------------------------------------------


def attention(
    path: str = "self_attn", *, out: str = "o_proj", reads: str = "attention_input"
) -> tuple[MatrixPart, ...]:
    """Queries, keys, values and their output projection."""
    joined = (
        MatrixPart(f"{path}.{name}_proj", (name,), reads, "attention", fused="qkv_proj") for name in ("q", "k", "v")
    )
    return (*joined, MatrixPart(f"{path}.{out}", ("o",), "attention_heads", "attention"))


def qk_norms(query: str = "q_norm", key: str = "k_norm") -> tuple[NormPart, ...]:
    return NormPart(f"self_attn.{query}"), NormPart(f"self_attn.{key}")


ATTENTION = attention()
QK_NORM = qk_norms()
SINKS = VectorPart("self_attn.sinks", "per_head")

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

GATED_DELTA = OpaquePart("linear_attn")
MAMBA = OpaquePart("mamba")

# -- norms -------------------------------------------------------------------------------------------------------------

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

# Cohere's attention and MLP read the same.
ONE_NORM = (NormPart("input_layernorm", feeds="attention_input"),)

# -- dense MLPs --------------------------------------------------------------------------------------------------------


def mlp(
    path: str = "mlp",
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    reads: str = "mlp_input",
    fused: str = "gate_up_proj",
    part: Part = "mlp",
) -> tuple[MatrixPart, ...]:
    """Gate, up and down; without a gate where its name is empty. `fused` is what vLLM joins gate and up into."""
    hidden = f"{part}_hidden"
    gated = (MatrixPart(f"{path}.{gate}", ("gate",), reads, part, fused=fused),) if gate else ()
    return (
        *gated,
        MatrixPart(f"{path}.{up}", ("up",), reads, part, fused=fused if gate else ""),
        MatrixPart(f"{path}.{down}", ("down",), hidden, part),
    )


def mlp_in_one(
    path: str = "mlp", *, first: str = "gate_up_proj", down: str = "down_proj", part: Part = "mlp"
) -> tuple[MatrixPart, ...]:
    """Gate and up stored as one matrix, and down."""
    return (
        MatrixPart(f"{path}.{first}", ("gate", "up"), "mlp_input", part, fused="gate_up_proj"),
        MatrixPart(f"{path}.{down}", ("down",), f"{part}_hidden", part),
    )


def shared_expert(path: str, *, gate: str = "gate_proj", reads: str = "mlp_input") -> tuple[MatrixPart, ...]:
    return mlp(path, gate=gate, reads=reads, part="shared_expert")


MLP = mlp()

# -- routed experts ----------------------------------------------------------------------------------------------------


def experts(
    path: str = "mlp.experts",
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    on_disk: str = "",
    reads: str = "mlp_input",
    through: str = "",
) -> ExpertsPart:
    """Experts that are stored one by one."""
    stored = on_disk or path
    names = {role: f"{stored}.{{expert}}.{name}.weight" for role, name in (("gate", gate), ("up", up), ("down", down))}
    return ExpertsPart(path, names["up"], names["down"], names["gate"] if gate else "", reads=reads, through=through)


def experts_in_one(path: str, first: str, down: str) -> ExpertsPart:
    """Experts of a layer that are two tensors on disk too, of these names inside the decoder layer."""
    return ExpertsPart(path, first, down, first)


def correction(parameter: str = "mlp.gate.e_score_correction_bias", on_disk: str = "") -> VectorPart:
    """What is added to the router's scores for the choice alone."""
    return VectorPart(parameter, "router_correction", on_disk)


QWEN_EXPERTS = experts()
MIXTRAL_EXPERTS = experts(gate="w1", up="w3", down="w2", on_disk="block_sparse_moe.experts")
ROUTER = MatrixPart("mlp.gate", ("router",), "mlp_input", "router")
SHARED_EXPERT_GATE = MatrixPart("mlp.shared_expert_gate", ("shared_expert_gate",), "mlp_input", "router")

# -- which layers have experts, and how wide the shared one is ---------------------------------------------------------


def every_layer(config: Any, layer: int) -> bool:
    return True


def qwen_layers(config: Any, layer: int) -> bool:
    return layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0


def deepseek_layers(config: Any, layer: int) -> bool:
    return layer >= config.first_k_dense_replace


def named_layers(config: Any, layer: int) -> bool:
    return config.mlp_layer_types[layer] == "sparse"


def after_dense_layers(config: Any, layer: int) -> bool:
    return layer >= config.num_dense_layers


def ernie_layers(config: Any, layer: int) -> bool:
    between = config.moe_layer_start_index <= layer <= config.moe_layer_end_index
    return between and (layer + 1) % config.moe_layer_interval == 0


def block_of(kind: str) -> Callable[[Any, int], bool]:
    """Layers of which the configuration says that they are of this kind."""
    return lambda config, layer: config.layers_block_type[layer] == kind


def key(name: str) -> Callable[[Any], int]:
    """A shared expert whose width has a key of its own."""
    return lambda config: getattr(config, name)


# -- how routing weights add up ---------------------------------------------------------------------------------------


def over_chosen(config: Any) -> RoutingWeights:
    return "chosen"


def over_all(config: Any) -> RoutingWeights:
    return "all"


def normalised_or(otherwise: RoutingWeights) -> Callable[[Any], RoutingWeights]:
    """Over the chosen experts where the configuration says that their weights are normalised."""
    return lambda config: "chosen" if config.norm_topk_prob else otherwise
