"""The columns of the architecture table: what one row says about a model type.

A row lists the parts of a decoder layer. A part that a layer does not have (a dense layer has no experts, a model
without low-rank queries no `q_a_proj`) is passed over; a parameter that no part claims is an error, so a row cannot be
silently incomplete. Paths are relative to the decoder layer and in memory; names on disk are given where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Norm = Literal["rms", "rms_plus_one", "layer"]
"""`rms`: x / rms(x) * w. `rms_plus_one` (Gemma): x / rms(x) * (1 + w). `layer`: LayerNorm (Cohere's has no bias)."""

QueryKeyNorm = Literal["none", "head", "all_heads"]
"""Norm of queries and keys: each head alone, or all heads as one vector (then cutting a head changes the others)."""

RoutingWeights = Literal["chosen", "all", "each"]
"""What the routing weights of equal router rows do: they share one weight, because those of the chosen experts, or of
all, add up to a constant; or each has the whole weight."""

Part = Literal["embedding", "attention", "mlp", "router", "latent", "experts", "shared_expert", "head"]


@dataclass(frozen=True)
class MatrixPart:
    """A module with one weight matrix.

    Attributes:
        module: path inside the decoder layer, "self_attn.q_proj".
        roles: of its blocks of output rows, in order: ("q",), or ("q", "k", "v") where they are stored as one.
        reads: a name for its input; parts of one layer that read the same tensor have the same name.
        part: where in the layer it is.
        fused: the name under which vLLM joins it with its siblings, "" where it stays alone.
        transposed: stored as (in, out), such as GPT-2's Conv1D.
        on_disk: path inside the decoder layer in published checkpoints, where it differs.
        output: place of the product among what the module returns, for a router that returns several things.
    """

    module: str
    roles: tuple[str, ...]
    reads: str
    part: Part
    fused: str = ""
    transposed: bool = False
    on_disk: str = ""
    output: int = 0


@dataclass(frozen=True)
class ExpertsPart:
    """Routed experts held as two 3-D parameters: `gate_up_proj`, or `up_proj` without a gate, and `down_proj`.

    Whether they are stored (in, out), whether rows of gate and up alternate, and whether there are biases
    (`gate_up_proj_bias`, `down_proj_bias`) is read from the module.

    Attributes:
        module: path of the experts module inside the decoder layer.
        up, down, gate: names on disk inside the decoder layer, with `{expert}` for the number; names without one are of
            tensors that hold all experts, as the parameters do.
        reads: the tensor whose rows the router hands out.
        through: path of a projection of that tensor in front of the experts, in models that have one.
    """

    module: str
    up: str
    down: str
    gate: str = ""
    reads: str = "mlp_input"
    through: str = ""


@dataclass(frozen=True)
class NormPart:
    """A norm inside a decoder layer.

    Attributes:
        module: path inside the decoder layer.
        feeds: the input name (`MatrixPart.reads`) that is this norm's output, "" where it is no matrix's input.
    """

    module: str
    feeds: str = ""


@dataclass(frozen=True)
class VectorPart:
    """A parameter or saved buffer of a decoder layer that is neither a weight matrix, nor a norm, nor a bias.

    Attributes:
        parameter: path inside the decoder layer.
        role: `router_correction` (the last axis is of experts), `per_head` (an entry for each query head) or another.
        on_disk: path inside the decoder layer in published checkpoints, where it differs.
    """

    parameter: str
    role: str
    on_disk: str = ""


@dataclass(frozen=True)
class OpaquePart:
    """A part of a decoder layer that every method leaves as it is: a state-space or linear-attention mixer.

    Attributes:
        module: path inside the decoder layer; everything below it belongs to the part.
    """

    module: str


LayerPart = MatrixPart | ExpertsPart | NormPart | VectorPart | OpaquePart


@dataclass(frozen=True)
class MoeRow:
    """Columns that only mixtures of experts have.

    Attributes:
        num_experts, intermediate_size: config keys of the number of experts and of one expert's width.
        router: path of the router inside a sparse decoder layer, in memory.
        routing: how logits become weights (see docs/add-an-architecture.md).
        is_sparse: (config, layer number) -> whether that layer has experts.
        is_dense: (config, layer number) -> whether a layer without experts has an ordinary MLP.
        shared: path of the shared expert inside a sparse decoder layer, "" without one.
        shared_intermediate_size: config -> width of the shared expert, 0 without one.
        weights: config -> over which experts routing weights add up to a constant.
    """

    num_experts: str
    intermediate_size: str
    router: str
    routing: Literal["softmax", "sparsemixer", "sigmoid", "sigmoid_groups", "softmax_groups"]
    is_sparse: Callable[[Any, int], bool]
    is_dense: Callable[[Any, int], bool] = lambda config, layer: True
    shared: str = ""
    shared_intermediate_size: Callable[[Any], int] = lambda config: 0
    weights: Callable[[Any], RoutingWeights] = lambda config: "chosen"


@dataclass(frozen=True)
class AsMany:
    """The width of a shared expert that is as wide as so many routed ones.

    Attributes:
        number, width: config keys of how many, and of the width of one.
    """

    number: str
    width: str = "moe_intermediate_size"

    def __call__(self, config: Any) -> int:
        return getattr(config, self.width) * (getattr(config, self.number) or 0)


@dataclass(frozen=True)
class ArchitectureRow:
    """One model type. See `docs/add-an-architecture.md` for the meaning of each column in words.

    Attributes:
        parts: of a decoder layer.
        layers: path of the list of decoder layers.
        embedding, position_embedding, final_norm: module paths; `position_embedding` is "" where positions are rotary.
        heads: module paths of output heads, with their role; those that a class does not have are passed over.
        norm, qk_norm: see `Norm` and `QueryKeyNorm`.
        attention: `gqa` (also covers multi-head and multi-query) or `mla` (latent keys and values).
        query_gate: whether q_proj also holds a gate of each head's output, as many rows again.
        same_heads: what else has as many heads as attention, so that groups cannot be cut; "" where nothing has.
        keys: {burnish's name of a width: key in config.json}, only where the two differ.
        moe: facts on routed experts, None for dense models.
        beside: paths of what is no part of the language model, a vision tower: every method leaves it as it is.
        on_disk: {start of a name in memory: the same in published checkpoints}, the first that fits counts.
    """

    parts: tuple[LayerPart, ...]
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    position_embedding: str = ""
    final_norm: str = "model.norm"
    heads: Mapping[str, str] = field(default_factory=lambda: {"lm_head": "lm_head", "score": "score"})
    norm: Norm = "rms"
    qk_norm: QueryKeyNorm = "none"
    attention: Literal["gqa", "mla"] = "gqa"
    query_gate: bool = False
    same_heads: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    moe: MoeRow | None = None
    beside: tuple[str, ...] = ()
    on_disk: Mapping[str, str] = field(default_factory=dict)
