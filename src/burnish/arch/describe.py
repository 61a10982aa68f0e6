"""The facts of one model: its row of the table together with its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from burnish.arch.row import ArchitectureRow, AsMany, Norm, QueryKeyNorm, RoutingWeights
from burnish.arch.table import TABLE
from burnish.core.checkpoint.own_classes import plain_type
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Experts:
    """Routed experts of one model.

    Attributes:
        num_experts, top_k: per sparse layer, and used per token.
        intermediate_size: width of one expert.
        shared_intermediate_size: width of the shared expert, 0 without one.
        router: path of the router inside a sparse decoder layer, in memory ("mlp.gate").
        shared: path of the shared expert inside a sparse decoder layer, "" without one.
        routing: how logits become weights: `softmax` (softmax, top-k, renormalised when the configuration or the class
            says so), `sparsemixer` (Phi-MoE), `softmax_groups` and `sigmoid_groups` (DeepSeek V2 and V3).
        sparse_layers, dense_layers: layer numbers with experts, and those with an ordinary MLP.
        shares_width: whether the configuration has one width for experts and ordinary MLPs, and there are both.
        weights: over which experts routing weights add up to a constant: `chosen`, `all`, or none (`each`).
        shared_number: config key of how many routed experts the shared one is as wide as, "" for another width.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_intermediate_size: int
    router: str
    shared: str
    routing: str
    sparse_layers: tuple[int, ...]
    dense_layers: tuple[int, ...]
    shares_width: bool
    weights: RoutingWeights
    shared_number: str


@dataclass(frozen=True)
class Architecture:
    """What a model type is (`row`), for one configuration. Widths are read from the configuration when asked for.

    Attributes:
        model_type: of the whole configuration.
        row: of the table.
        config: of the language model, which is a part of the whole configuration where there is a vision tower.
    """

    model_type: str
    row: ArchitectureRow
    config: Any

    def key(self, width: str) -> str:
        """The key in published config.json files of what burnish calls `hidden_size`, `num_experts`, ...

        Read and set it as an attribute of the configuration: some classes keep it under another name (`attribute_map`).
        """
        moe = self.row.moe
        if moe is not None and width == "num_experts":
            return moe.num_experts
        if moe is not None and width == "moe_intermediate_size":
            return moe.intermediate_size
        return self.row.keys.get(width, width)

    def width(self, width: str) -> int:
        """The value of that key."""
        value: Any = getattr(self.config, self.key(width))
        # GPT-2 may leave this one out.
        return 4 * self.hidden_size if width == "intermediate_size" and value is None else value

    @property
    def hidden_size(self) -> int:
        return self.width("hidden_size")

    @property
    def intermediate_size(self) -> int:
        """Width of the dense MLP (of one expert where the model type has only one key for both)."""
        return self.width("intermediate_size")

    @property
    def num_layers(self) -> int:
        return self.width("num_hidden_layers")

    @property
    def num_attention_heads(self) -> int:
        return self.width("num_attention_heads")

    @property
    def num_key_value_heads(self) -> int:
        return self.width("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        """Width of one query head (with latent attention: its rotary and its other part together)."""
        if self.row.attention == "mla":
            return self.config.qk_nope_head_dim + self.config.qk_rope_head_dim
        # As transformers' own attention classes: the key is optional in several configurations.
        return getattr(self.config, "head_dim", None) or self.hidden_size // self.num_attention_heads

    @property
    def vocab_size(self) -> int:
        return self.width("vocab_size")

    @property
    def norm(self) -> Norm:
        return self.row.norm

    @property
    def qk_norm(self) -> QueryKeyNorm:
        return self.row.qk_norm

    @property
    def attention(self) -> str:
        return self.row.attention

    @property
    def experts(self) -> Experts | None:
        """Facts on routed experts, None for a dense model."""
        moe = self.row.moe
        if moe is None:
            return None
        num_experts = self.width("num_experts")
        if not num_experts:
            return None
        sparse = tuple(layer for layer in range(self.num_layers) if moe.is_sparse(self.config, layer))
        others = (layer for layer in range(self.num_layers) if layer not in sparse)
        dense = tuple(layer for layer in others if moe.is_dense(self.config, layer))
        return Experts(
            num_experts=num_experts,
            top_k=self.config.num_experts_per_tok,
            intermediate_size=self.width("moe_intermediate_size"),
            shared_intermediate_size=moe.shared_intermediate_size(self.config),
            router=moe.router,
            shared=moe.shared,
            routing=moe.routing,
            sparse_layers=sparse,
            dense_layers=dense,
            shares_width=bool(dense) and self.key("intermediate_size") == self.key("moe_intermediate_size"),
            weights=moe.weights(self.config),
            shared_number=shared.number if isinstance(shared := moe.shared_intermediate_size, AsMany) else "",
        )


def known_model_types() -> list[str]:
    return sorted(TABLE)


def describe(config_or_module: PretrainedConfig | PreTrainedModel) -> Architecture:
    """The facts of a model.

    Raises:
        CheckpointError: the table has no row for its `model_type`.
    """
    config: Any = config_or_module.config if isinstance(config_or_module, nn.Module) else config_or_module
    if (known_as := plain_type(config.model_type)) not in TABLE:
        raise CheckpointError(
            f"burnish does not know model_type {config.model_type!r}; it knows {', '.join(known_model_types())}",
            fix='one row in src/burnish/arch/table.py adds it, see the docs page "add an architecture"',
        )
    return Architecture(config.model_type, TABLE[known_as], config.get_text_config())
