"""What a code costs and what it leaves: bytes that are held, errors of vectors, divergence of next tokens.

A context is read in one call, exactly. What is then held of it is coded, and the tokens that follow are read in one
call over the coded cache; they see each other exactly, so that all that differs from the dense cache is the context.

    divergence = mean over these tokens of KL(next token | dense cache || next token | coded cache)
    error      = mean over coded vectors of |v - decoded v| / |v|

All codes see the same windows, so differences between two are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core.progress import Progress
from burnish.core.statistics import interval, paired_interval
from burnish.evaluate.quality import chunk_sums
from burnish.quantize.cache.cached import CodedCache
from burnish.quantize.cache.codes import CacheCode
from burnish.quantize.cache.collect import KINDS
from burnish.quantize.cache.fitted import FittedCodes
from burnish.quantize.cache.layer import CodedLayer

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel
    from transformers.cache_utils import Cache


@dataclass
class CodeMeasures:
    """Of one code, on every window.

    Attributes:
        kl: summed over the tokens that follow the context, in nats, a number a window.
        agreeing: of these tokens, those whose likeliest next token is the same.
        tokens: how many follow.
        errors: {"keys.LAYER", "values.LAYER": mean relative error of a vector, a number a window}.
        bytes_per_token: {part: bytes held of one coded token in one layer}, keys and values of all heads.
        buffer_bytes: of the tokens that stay dense, in one layer.
    """

    kl: list[float] = field(default_factory=list)
    agreeing: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)
    bytes_per_token: dict[str, float] = field(default_factory=dict)
    buffer_bytes: float = 0.0

    def error(self, kind: str) -> float:
        """Mean over layers and windows of the relative error of keys or values."""
        return float(np.mean([row for name, row in self.errors.items() if name.startswith(kind)]))


def compare_codes(
    module: PreTrainedModel,
    fitted: FittedCodes,
    codes: Mapping[str, CacheCode],
    windows: Int[Tensor, "windows length"],
    *,
    context: int,
    buffer: int = 0,
    progress: Progress | None = None,
) -> dict[str, CodeMeasures]:
    """What every code costs and leaves on the same windows.

    Args:
        module: the model, in evaluation mode.
        fitted: to it, on other text.
        codes: by name.
        windows: of text; tokens behind the context are those that are predicted from.
        context: tokens that are read exactly and then coded.
        buffer: the last of these, which stay dense.
        progress: shows a bar.
    """
    found = {name: CodeMeasures() for name in codes}
    with (progress or Progress(enabled=False)).task("measuring codes", len(windows), "windows") as task:
        for window in windows:
            read = read_context(module, window, context)
            for name, code in codes.items():
                cache = CodedCache(fitted, code, buffer=buffer)
                fill(cache, read.dense)
                note(cache, read.dense, found[name])
                predict(module, read, cache, found[name])
            task.advance()
    return found


@dataclass(frozen=True)
class ReadContext:
    """A window whose context was read exactly.

    Attributes:
        dense: the cache of the context.
        rest: the tokens behind it.
        logits: at these over the dense cache.
    """

    dense: DynamicCache
    rest: Int[Tensor, " rest"]
    logits: Float[Tensor, "rest vocab"]


@torch.inference_mode()
def read_context(module: PreTrainedModel, window: Int[Tensor, " length"], context: int) -> ReadContext:
    """Reads a window's context, and what follows over it."""
    from transformers import DynamicCache

    window = window.to(module.device)
    dense = DynamicCache(config=module.config)
    module.base_model(input_ids=window[None, :context], past_key_values=dense, use_cache=True)
    logits = module(input_ids=window[None, context:], past_key_values=dense, use_cache=True).logits[0]
    dense.crop(context - len(window))
    return ReadContext(dense, window[context:], logits)


@torch.inference_mode()
def fill(cache: Cache, dense: DynamicCache) -> None:
    """Gives an empty cache, any of transformers', what a dense one holds, as reading it in one call would."""
    for own, layer in zip(cache.layers, dense.layers, strict=True):
        own.update(layer.keys, layer.values)  # type: ignore[union-attr]


def note(cache: CodedCache, dense: DynamicCache, found: CodeMeasures) -> None:
    """Adds errors of the coded vectors to what was found, and says what a token costs."""
    layers = cast(list[CodedLayer], cache.layers)
    for number, (layer, exact) in enumerate(zip(layers, dense.layers, strict=True)):
        for kind in KINDS if layer.num_coded else ():
            true = getattr(exact, kind)[..., : layer.num_coded, :].float()
            length = true.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)  # of a head that says nothing
            away = (layer.decoded(kind).float() - true).norm(dim=-1) / length
            found.errors.setdefault(f"{kind}.{number}", []).append(float(away.mean()))
    held = cache.num_bytes()
    found.buffer_bytes = sum(size for name, size in held.items() if name.startswith("buffer")) / len(layers)
    tokens = layers[0].num_coded * len(layers)
    parts = {name.split(".")[2] for name in held if name.startswith("codes")}
    found.bytes_per_token = {
        part: sum(size for name, size in held.items() if name.endswith(f".{part}")) / tokens for part in sorted(parts)
    }


@torch.inference_mode()
def predict(module: PreTrainedModel, read: ReadContext, cache: Cache, found: CodeMeasures) -> None:
    """Adds what a filled cache leaves of the predictions behind the context."""
    logits = module(input_ids=read.rest[None], past_key_values=cache, use_cache=True).logits[0]
    targets = torch.cat([read.rest[1:], read.rest[-1:]])  # a likelihood that nobody asks for
    _, kl, agreeing = chunk_sums(logits, targets, read.logits).tolist()
    found.kl.append(kl)
    found.agreeing.append(agreeing)
    found.tokens.append(len(read.rest))


def summary(measured: Mapping[str, CodeMeasures], dense_bytes: int) -> list[dict[str, Any]]:
    """A row for every code, the first being what others are compared with.

    Args:
        measured: as `compare_codes` gives it.
        dense_bytes: of a token in one layer of a dense 16-bit cache.
    """
    base, rows = next(iter(measured.values())), []
    for name, one in measured.items():
        kl = interval(np.array(one.kl), np.array(one.tokens), scale="log")
        change = paired_interval(np.array(one.kl), np.array(base.kl), np.array(one.tokens))
        size = sum(one.bytes_per_token.values())
        rows.append(
            {"code": name, "bytes": size, "parts": one.bytes_per_token}
            | {"share": size / dense_bytes, "buffer_bytes": one.buffer_bytes}
            | {"keys_error": one.error("keys"), "values_error": one.error("values")}
            | {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "agreeing": sum(one.agreeing) / sum(one.tokens)}
            | {"change": change.value, "change_low": change.low, "change_high": change.high}
        )
    return rows
