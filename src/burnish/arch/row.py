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
"""`rms`: x / rms(x) * w. `rms_plus_one` (Gemma): x / rms(x) * (1 + w). `layer`: LayerNorm with weight and bias."""

QueryKeyNorm = Literal["none", "head", "all_heads"]
"""Norm of queries and keys: each head alone, or all heads as one vector (then cutting a head changes the others)."""

Part = Literal["embedding", "attention", "mlp", "router", "experts", "shared_expert", "head"]


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
    """

    module: str
    roles: tuple[str, ...]
    reads: str
    part: Part
    fused: str = ""
    transposed: bool = False
    on_disk: str = ""


@dataclass(frozen=True)
class ExpertsPart:
    """Routed experts held as two 3-D parameters `gate_up_proj` (E, 2 I, H) and `down_proj` (E, H, I).

    Attributes:
        module: path of the experts module inside the decoder layer.
        gate, up, down: names on disk inside the decoder layer, with `{expert}` for the number.
        reads: the tensor whose rows the router hands out.
    """

    module: str
    gate: str
    up: str
    down: str
    reads: str = "mlp_input"


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
    """A parameter or saved buffer of a decoder layer that is neither a weight matrix, nor a norm, nor a bias."""

    parameter: str
    role: str


LayerPart = MatrixPart | ExpertsPart | NormPart | VectorPart


@dataclass(frozen=True)
class MoeRow:
    """Columns that only mixtures of experts have.

    Attributes:
        num_experts, intermediate_size: config keys of the number of experts and of one expert's width.
        router: path of the router inside a sparse decoder layer, in memory.
        routing: how logits become weights (see docs/add-an-architecture.md).
        is_sparse: (config, layer number) -> whether that layer has experts.
        shared: path of the shared expert inside a sparse decoder layer, "" without one.
        shared_intermediate_size: config -> width of the shared expert, 0 without one.
    """

    num_experts: str
    intermediate_size: str
    router: str
    routing: Literal["softmax", "sparsemixer", "sigmoid_groups", "softmax_groups"]
    is_sparse: Callable[[Any, int], bool]
    shared: str = ""
    shared_intermediate_size: Callable[[Any], int] = lambda config: 0


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
        keys: {burnish's name of a width: key in config.json}, only where the two differ.
        moe: facts on routed experts, None for dense models.
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
    keys: Mapping[str, str] = field(default_factory=dict)
    moe: MoeRow | None = None
