"""What a checkpoint with latent attention looks like, and which models can become one.

The target is `deepseek_v3` with every MLP dense. Two forms of it are written, because engines read different things:

* `transformers`: the rotary frequencies are a list (`longrope` with one factor for every slot), and a bias is allowed;
* `vllm`: they are base^(-j / slots), written as YaRN with the factor 1, which is the same function. vLLM turns every
  scaled rotary embedding of this class into YaRN, and its kernel for CPUs computes the unscaled one wrongly. Its class
  always has an output head of its own, which stays zero where the file has none, so a tied head is written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from burnish.arch import describe
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import DeepseekV3Config

Engine = Literal["vllm", "transformers"]

SOURCES = ("llama", "mistral")
"""Model types whose layers are DeepSeek's but for attention and, in DeepSeek, experts."""
REFUSED = {
    "deepseek_v2": "a deepseek_v2 has latent attention already",
    "deepseek_v3": "a deepseek_v3 has latent attention already",
    "qwen2": "the queries of a qwen2 have biases, and DeepSeek's query projection has none",
    "qwen3": "a qwen3 normalises every key head, and a latent holds no head that could be normalised",
}
STEP = 16
"""Rotary widths that `cache` tries are multiples of it; of a cache below eight of them, of about an eighth of it."""


@dataclass(frozen=True)
class Widths:
    """Numbers that are cached for a token and a layer: `rank` of the latent, `rope_dim` of the shared rotary key."""

    rank: int
    rope_dim: int

    @property
    def total(self) -> int:
        return self.rank + self.rope_dim


def cached_numbers(config: Any) -> int:
    """Keys and values of a token and a layer of the source."""
    facts = describe(config)
    return 2 * facts.num_key_value_heads * facts.head_dim


def shared_total(config: Any, share: float) -> int:
    """A share of them: the nearest multiple of 16, so that ranks stay such that formats and kernels take them."""
    numbers = share * cached_numbers(config)
    return STEP * round(numbers / STEP) if numbers >= 8 * STEP - 1 else 2 * int(numbers / 2)


def check_source(config: Any, engine: Engine) -> None:
    """Refuses what DeepSeek's layers cannot compute.

    Raises:
        SettingsError: with the reason.
    """
    facts = describe(config)
    kind = config.model_type
    if kind not in SOURCES:
        reason = REFUSED.get(kind, f"a {kind} has norms, scalings or layers that DeepSeek's have no counterpart for")
        raise SettingsError(f"latent attention is made of a {' or '.join(SOURCES)} model: {reason}")
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            raise SettingsError(f"{key} is set, but DeepSeek's query projection and MLP have no biases")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise SettingsError(
            f"the model attends to the last {window:,} of {config.max_position_embeddings:,} positions, and latent "
            "attention has no sliding window",
            fix=f"set max_position_embeddings to {window} in config.json if no longer text is served",
        )
    if facts.head_dim % 2:
        raise SettingsError(f"head_dim is {facts.head_dim}, and rotary channels come in pairs")
    rope = config.rope_parameters
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise SettingsError("only a part of each head is rotary (partial_rotary_factor), which is not converted")
    scaling = rope.get("rope_type", "default")
    if engine == "vllm" and scaling != "default":
        raise SettingsError(
            f"rotary frequencies are scaled ({scaling}), and vLLM reads any scaling of this class as YaRN",
            fix="use --engine transformers, which keeps every frequency",
        )
    if scaling not in ("default", "linear", "llama3"):
        raise SettingsError(f"rotary scaling {scaling!r} changes with the length of the text, or changes the scores")


def check_widths(config: Any, widths: Widths, *, extra: int, allow_larger: bool) -> None:
    """Refuses widths that no model has, or that cache more than the source does.

    Args:
        config: of the source.
        widths: asked for.
        extra: ranks that hold no keys and values, but the constant of the norm.
        allow_larger: whether the cache may grow.
    """
    facts, numbers = describe(config), cached_numbers(config)
    most = facts.num_key_value_heads * facts.head_dim
    if widths.rope_dim % 2 or not 2 <= widths.rope_dim <= most:
        raise SettingsError(
            f"rope_dim is {widths.rope_dim}, but rotary channels come in pairs, and the keys have {most} of them"
        )
    full = numbers - widths.rope_dim + extra
    if not extra < widths.rank <= full:
        raise SettingsError(
            f"rank is {widths.rank}, but beside {widths.rope_dim} rotary channels it is from {extra + 1} to {full}"
        )
    if widths.total >= numbers and not allow_larger:
        raise SettingsError(
            f"rank {widths.rank} and rope_dim {widths.rope_dim} cache {widths.total} numbers for a token and layer, "
            f"and the source caches {numbers}",
            fix="choose smaller ones, or pass --allow-larger",
        )


def tried_widths(config: Any, total: int, *, extra: int) -> list[Widths]:
    """Ways to share `total` cached numbers between latent and rotary key.

    Raises:
        SettingsError: there is none.
    """
    facts = describe(config)
    most = facts.num_key_value_heads * facts.head_dim
    full = cached_numbers(config) + extra
    step = min(STEP, max(total // 16 * 2, 2))
    found = [
        Widths(total - rope_dim, rope_dim)
        for rope_dim in range(step, min(most, total - step) + 1, step)
        if total <= full and total - rope_dim > extra
    ]
    if not found:
        raise SettingsError(
            f"{total} cached numbers for a token and layer cannot be shared between a latent and a rotary key",
            fix="choose a larger cache, or say rank and rope_dim",
        )
    return found


def latent_config(
    config: Any, widths: Widths, rope_parameters: dict[str, Any], *, engine: Engine, biases: bool
) -> DeepseekV3Config:
    """The configuration of the result.

    Args:
        config: of the source.
        widths: of its latent and rotary key.
        rope_parameters: see `as_list` and `as_yarn`.
        engine: which form to write.
        biases: whether projections of the latent have biases.
    """
    from transformers import DeepseekV3Config

    facts = describe(config)
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *("max_position_embeddings", "initializer_range", "rms_norm_eps", "pad_token_id", "bos_token_id"),
        *("eos_token_id", "attention_dropout", "dtype"),
    )
    kept: dict[str, Any] = {key: getattr(config, key) for key in same} | {"num_nextn_predict_layers": 0}
    return DeepseekV3Config(
        **kept,
        num_key_value_heads=facts.num_attention_heads,
        kv_lora_rank=widths.rank,
        q_lora_rank=None,
        qk_rope_head_dim=widths.rope_dim,
        qk_nope_head_dim=facts.head_dim,
        v_head_dim=facts.head_dim,
        rope_parameters=rope_parameters,
        rope_interleave=True,
        attention_bias=biases,
        tie_word_embeddings=config.tie_word_embeddings and engine == "transformers",
        # Every layer is dense; what says how experts are routed is read all the same, and must be consistent.
        first_k_dense_replace=config.num_hidden_layers,
        n_routed_experts=2,
        n_shared_experts=1,
        num_experts_per_tok=1,
        moe_intermediate_size=config.intermediate_size,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
    )


def as_yarn(config: Any, base: float) -> dict[str, Any]:
    """Frequencies base^(-j / slots), as vLLM computes them rightly on every device."""
    return {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }


def as_list(config: Any, frequencies: list[float]) -> dict[str, Any]:
    """Any frequencies, as factors of those that the base gives."""
    base, slots = config.rope_parameters["rope_theta"], len(frequencies)
    factors = [base ** (-number / slots) / frequency for number, frequency in enumerate(frequencies)]
    return {
        "rope_type": "longrope",
        "rope_theta": base,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.max_position_embeddings,
        "short_factor": factors,
        "long_factor": factors,
    }
