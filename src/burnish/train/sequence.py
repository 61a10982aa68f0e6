"""Sequence parallelism: every process of a group has a stretch of each row, and for attention whole rows of some heads.

    (rows, all heads, a stretch)  -> all-to-all ->  (rows, some heads, every position)  -> attention -> all-to-all ->

Everything else in a decoder is token by token, so that a process holds 1/P of a row's activations. Gradients need
nothing more: the loss is a sum over tokens, which the loop adds up over all processes as ever, and the backward pass of
an exchange is the exchange back. Which documents a row holds every process knows, for all of a group take the same
rows.

Source: DeepSpeed Ulysses (2023, arXiv:2309.14509). What differs: key and value heads that are fewer than processes, or
that these do not divide, are repeated before they are sent.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.arch.attention import use
from burnish.core.errors import SettingsError
from burnish.data.packing import IGNORED, MARKS
from burnish.train.losses import Batch
from burnish.train.maths.masks import document_numbers, visible

NAME = "burnish_sequence"
"""What transformers calls this attention."""

WHERE = "sequence_parallel"
LAYER_TYPES = {"full_attention", "sliding_attention"}


class Sequence:
    """This process's part in a group that shares rows.

    Args:
        group: of the processes; None is the default group.
        inner: what computes attention over whole rows.
    """

    def __init__(self, group: dist.ProcessGroup | None, inner: Literal["sdpa", "flash_attention_2"] = "sdpa") -> None:
        self.group, self.inner = group, inner
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._positions: Tensor | None = None
        self._masks: dict[int | None, Bool[Tensor, "#rows 1 length length"] | None] = {}
        self._calls, self._layers = 0, 0

    # -- the batch ---------------------------------------------------------------------------------------------------

    def cut(self, batch: Batch) -> dict[str, Tensor]:
        """This process's stretch of every row, with position ids; what the stretches need to be equal is padding.

        Raises:
            SettingsError: in the batch before, a layer has mixed tokens without this attention.
        """
        self.check_calls()
        tokens = batch["input_ids"]
        rows, length = tokens.shape
        positions = batch.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=tokens.device).expand(rows, length)
        padding = -length % self.size
        whole = {
            "input_ids": torch.nn.functional.pad(tokens, (0, padding)),
            "targets": torch.nn.functional.pad(batch["targets"], (0, padding), value=IGNORED),
            "position_ids": torch.nn.functional.pad(positions, (0, padding)),
        }
        whole |= {name: torch.nn.functional.pad(batch[name], (0, padding)) for name in MARKS if name in batch}
        self._positions = whole["position_ids"] if "position_ids" in batch else None
        self._masks.clear()
        self._calls = 0
        own = (length + padding) // self.size
        return {name: tensor[:, self.rank * own : (self.rank + 1) * own] for name, tensor in whole.items()}

    # -- attention ---------------------------------------------------------------------------------------------------

    def attend(self, module: Any, attention: str) -> None:
        """Lets a model of transformers look at whole rows; `attention` is what it would use in one process."""
        self.inner = "flash_attention_2" if attention == "flash_attention_2" else "sdpa"
        use(module, self.register(module.config))

    def register(self, config: Any) -> str:
        """Makes this known to transformers as an attention function; returns its name.

        Args:
            config: of the model.

        Raises:
            SettingsError: the model's heads cannot be shared, or it does not look at tokens through attention alone.
        """
        from transformers import AttentionInterface

        check_config(config, self.size)
        AttentionInterface.register(NAME, self.attention)
        self._layers = config.get_text_config().num_hidden_layers
        self._calls = self._layers  # nothing has run yet that could be checked
        return NAME

    def check_calls(self) -> None:
        """Refuses a model that has layers of another kind, once a batch has gone through it."""
        if self._calls < self._layers:
            raise SettingsError(
                f"{self._calls} of the model's {self._layers} layers look at other tokens through attention of "
                "transformers, the others would see a part of each row",
                where=WHERE,
                fix="leave sequence_parallel out",
            )

    def attention(
        self,
        module: Any,
        query: Float[Tensor, "rows heads stretch width"],
        key: Float[Tensor, "rows kv_heads stretch width"],
        value: Float[Tensor, "rows kv_heads stretch value_width"],
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        is_causal: bool | None = None,
        **others: Any,
    ) -> tuple[Float[Tensor, "rows stretch heads value_width"], None]:
        """In the form of transformers' attention functions.

        Raises:
            SettingsError: the model asks for more than causal attention.
        """
        self._refuse(module, query.shape[1], attention_mask, is_causal, others)
        self._calls += 1
        heads = query.shape[1]
        key, value = self._repeated(key, heads), self._repeated(value, heads)
        query, key, value = (_exchange(tensor, self.group, 1, 2) for tensor in (query, key, value))
        if self.inner == "sdpa":
            whole = self._sdpa(query, key, value, dropout, scaling, sliding_window)
        else:
            whole = self._flash(module, query, key, value, dropout, scaling, sliding_window)
        return _exchange(whole, self.group, 2, 1).transpose(1, 2).contiguous(), None

    def _refuse(
        self, module: Any, heads: int, mask: Tensor | None, is_causal: bool | None, others: dict[str, Any]
    ) -> None:
        given = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
        if mask is not None:
            given.append("a mask of its own")
        if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
            given.append("attention to later tokens")
        if given:
            raise SettingsError(
                f"{type(module).__name__} computes attention with {given[0]}, which is not known here",
                where=WHERE,
                fix="leave sequence_parallel out",
            )
        _check_heads(heads, self.size)

    def _repeated(self, tensor: Tensor, heads: int) -> Tensor:
        """Key or value heads, as many that every process gets those that its query heads look at."""
        own = tensor.shape[1]
        if own % self.size == 0:
            return tensor
        wanted = self.size if self.size % own == 0 else heads
        return tensor.repeat_interleave(wanted // own, dim=1)

    def _sdpa(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
    ) -> Tensor:
        times = query.shape[1] // key.shape[1]
        if times > 1:
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        mask = self._mask(query.shape[2], window, query.device)
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )

    def _flash(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: float,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        from transformers import AttentionInterface

        apart = {} if self._positions is None else {"position_ids": self._positions}
        flash = AttentionInterface()["flash_attention_2"]
        options = {"dropout": dropout, "scaling": scaling, "sliding_window": window, "is_causal": True, **apart}
        return flash(module, query, key, value, None, **options)[0].transpose(1, 2)

    def _mask(self, length: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which position sees which, None where each sees all before it; made once for all layers of a batch."""
        if window is not None and window >= length:
            window = None
        if window is None and self._positions is None:
            return None
        if window not in self._masks:
            one = torch.zeros(1, length, dtype=torch.long, device=device)
            documents = one if self._positions is None else document_numbers(self._positions)
            self._masks[window] = visible(documents, window)[:, None]
        return self._masks[window]


def check_config(config: Any, size: int) -> None:
    """Refuses a model that cannot be trained so, as far as its configuration tells.

    Raises:
        SettingsError: see `Sequence.register`.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if heads is None:
        raise SettingsError("the model has no attention heads", where=WHERE, fix="leave sequence_parallel out")
    _check_heads(heads, size)
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES)
    if strange:
        raise SettingsError(
            f"the model has layers of the kind {strange[0]}, which must see whole rows",
            where=WHERE,
            fix="leave sequence_parallel out",
        )
    if getattr(text, "attn_logit_softcapping", None) is not None:
        raise SettingsError(
            "the model bends its attention scores, which is not known here",
            where=WHERE,
            fix="leave sequence_parallel out",
        )


def _check_heads(heads: int, size: int) -> None:
    if heads % size:
        raise SettingsError(
            f"{heads} attention heads cannot be shared evenly by {size} processes",
            where=WHERE,
            fix=f"use a number that divides {heads}",
        )


class _Exchange(torch.autograd.Function):
    """Cuts along one dimension, sends every process its part, and joins what comes along another."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None, split: int, join: int) -> Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _all_to_all(tensor, group, split, join)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _all_to_all(grad_outputs[0], ctx.group, ctx.join, ctx.split), None, None, None


def _exchange(tensor: Tensor, group: dist.ProcessGroup | None, split: int, join: int) -> Tensor:
    return _Exchange.apply(tensor, group, split, join)


def _all_to_all(tensor: Tensor, group: dist.ProcessGroup | None, split: int, join: int) -> Tensor:
    parts = torch.stack(tensor.chunk(dist.get_world_size(group), dim=split))
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return torch.cat(received.unbind(), dim=join)
