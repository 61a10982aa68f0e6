"""Which program computes attention in a training.

    sdpa     torch.nn.functional.scaled_dot_product_attention, with a mask where a row holds several documents
    eager    the formula, written out
    flex     torch's flex attention, compiled; its backward pass runs on GPUs only
    flash    FlashAttention 2 (package flash-attn), bfloat16 on GPUs; documents of a row are calls of different lengths

All of them keep the documents of a row apart by position ids. `auto` is flash where it can run, and what the model was
loaded with elsewhere.
"""

from __future__ import annotations

from typing import Literal

from burnish.core.errors import SettingsError

Attention = Literal["auto", "sdpa", "eager", "flex", "flash"]

NAMES = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
"""What transformers calls them."""


def chosen(attention: Attention, device: str, precision: str, *, masked: bool = False) -> str:
    """The name in transformers; an empty one leaves a model as it is.

    Args:
        attention: see above.
        device: of the training.
        precision: of its products, "float32" or "bfloat16".
        masked: whether it is given masks of its own; auto is then flex on a GPU and sdpa elsewhere.

    Raises:
        SettingsError: it cannot run there, or takes no masks.
    """
    if masked and attention == "flash":
        raise SettingsError(
            "attention is flash, which takes no mask of a window with sinks, nor of a view",
            where="attention",
            fix="use flex or sdpa, or auto",
        )
    if masked and attention == "auto":
        attention = "flex" if device.startswith("cuda") else "sdpa"
    lacking = _lacking_for_flash(device, precision)
    if attention == "auto":
        return "" if lacking else NAMES["flash"]
    if attention == "flash" and lacking:
        raise SettingsError(f"attention is flash, which needs {lacking}", where="attention", fix="use sdpa, or auto")
    if attention == "flex" and not device.startswith("cuda"):
        what = "attention is flex, whose backward pass runs on GPUs only"
        raise SettingsError(what, where="attention", fix="use sdpa, or auto")
    return NAMES[attention]


def _lacking_for_flash(device: str, precision: str) -> str:
    from transformers.utils import is_flash_attn_2_available

    if not device.startswith("cuda"):
        return "a GPU"
    if precision != "bfloat16":
        return "precision: bfloat16"
    return "" if is_flash_attn_2_available() else "the package flash-attn"
