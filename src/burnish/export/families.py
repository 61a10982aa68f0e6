"""The model types that can be written as GGUF: what their numbers are called there, and which rows change places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        architecture: its name there.
        interleaved: whether rotary pairs are neighbours there, while transformers keeps them half a head apart.
    """

    architecture: str
    interleaved: bool = False


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
}
"""{model type of config.json: its family}."""


def family_of(config: Any) -> Family:
    """The family of a model, all of whose settings llama.cpp computes with.

    Raises:
        SettingsError: its model type is none of `FAMILIES`, or a setting has no counterpart.
    """
    model_type = config.model_type
    if model_type not in FAMILIES:
        raise SettingsError(f"model type {model_type!r} is not written as GGUF, only {', '.join(FAMILIES)}")
    if config.hidden_act != "silu":
        raise SettingsError(f"hidden_act is {config.hidden_act!r}, and llama.cpp takes silu for {model_type}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and model_type != "mistral":
        raise SettingsError(f"some layers attend to a sliding window, which llama.cpp has not for {model_type}")
    kind = rotary(config).get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise SettingsError(f"rope_type is {kind!r}, and default, linear, yarn and llama3 can be written")
    if rotary(config).get("partial_rotary_factor", 1.0) != 1.0:
        raise SettingsError("only a part of each head is rotated, which llama.cpp does not do here")
    return FAMILIES[model_type]


def rotary(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_of(config: Any) -> int:
    """Positions, within which a sliding window has not begun to slide."""
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def add_numbers(writer: GGUFWriter, config: Any) -> None:
    """Puts what the configuration says into a file."""
    from gguf import RopeScalingType

    rope, width = rotary(config), head_width(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_of(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") in ("linear", "yarn"):
        yarn = rope["rope_type"] == "yarn"
        writer.add_rope_scaling_type(RopeScalingType.YARN if yarn else RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if yarn:
            before = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            writer.add_rope_scaling_orig_ctx_len(int(before))


def frequency_factors(config: Any) -> np.ndarray | None:
    """What llama3's scaling divides every frequency by, (head width / 2,); None for other scalings."""
    rope = rotary(config)
    if rope.get("rope_type") != "llama3":
        return None
    width = head_width(config)
    frequencies = rope["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    waves = 2 * np.pi / frequencies
    before = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((before / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)


def row_order(config: Any, family: Family, name: str) -> np.ndarray | None:
    """The order in which rows of a projection are written; None where they stay.

    transformers rotates channel i of a head with channel i + width / 2, llama.cpp's own order has pairs side by side.

    Args:
        config: of the model.
        family: of the model.
        name: of the tensor in GGUF.
    """
    part = name.split(".")[2] if name.startswith("blk.") else ""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    if heads is None or not family.interleaved:
        return None
    return np.arange(heads * head_width(config)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
