"""Sparse attention in a stock model of transformers: the function that its layers call, and what is counted there.

    with sparse(module, parts_of("sink:4+quest:0.1"), dense_layers=(0,)) as attention:
        attention.begin(first)              # the first `first` tokens of the next prompt are read densely
        module.generate(ids, ...)
        cost = attention.cost()

All keys are multiplied with all queries, then masked. So what a mechanism loses is exact, and no time is won.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch.attention import computed_by
from burnish.core.errors import SettingsError
from burnish.evaluate.maths import inclusion as maths
from burnish.evaluate.maths.selection import seen
from burnish.evaluate.sparse.mechanisms import LayerMemory, Queries, evict, inclusion, index_bytes
from burnish.evaluate.sparse.spec import WHERE, DoubleSparsity, Mechanism, SnapKV

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "burnish_sparse"
ENTRIES = 2**24
"""Scores that are held at once."""
STRANGE = ("softcap", "s_aux", "position_bias")
"""What a layer may ask of attention beyond products and a causal mask."""
SEES = ("full_attention", "sliding_attention")
"""Kinds of layers that look at other tokens through attention."""


@dataclass
class LayerCost:
    """Sums over the queries of a layer that were answered sparsely, or would have been in a dense one.

    Attributes:
        queries: their number.
        density, mass_recall, output_error: as in `burnish.evaluate.maths.inclusion`.
        kv_bytes, index_bytes, dense_bytes: of keys and values, of what finds them, and of all keys and values.
    """

    queries: int = 0
    density: float = 0.0
    mass_recall: float = 0.0
    output_error: float = 0.0
    kv_bytes: float = 0.0
    index_bytes: float = 0.0
    dense_bytes: float = 0.0


@dataclass
class SparseAttention:
    """An attention function of transformers, for one prompt at a time.

    Attributes:
        parts: of the mechanism.
        dense_layers: numbers of layers that stay dense.
        seed: of what is drawn.
        memory: of every layer.
        first: tokens of the prompt that are read densely.
        costs: of every layer, for the prompt.
        called: layers that asked.
    """

    parts: Mapping[str, Mechanism]
    dense_layers: Sequence[int] = ()
    seed: int = 0
    memory: dict[int, LayerMemory] = field(default_factory=dict)
    first: int = 0
    costs: dict[int, LayerCost] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)

    def begin(self, first: int) -> None:
        """Another prompt, whose first tokens are read densely."""
        self.first = first
        self.costs = {}
        for one in self.memory.values():
            one.forget()

    def check_called(self, num_layers: int) -> None:
        """Refuses a model whose layers did not all ask, once a prompt has gone through it."""
        if len(self.called) < num_layers:
            raise SettingsError(
                f"{len(self.called)} of the model's {num_layers} layers compute attention by a function of "
                "transformers, the others would stay dense",
                where=WHERE,
                fix="leave attention out",
            )

    def cost(self) -> dict[str, Any]:
        """Means over the queries of the prompt, of each layer and of all; bytes of all layers together."""
        layers = [self.costs[layer] for layer in sorted(self.costs)]
        names = ("density", "mass_recall", "output_error", "kv_bytes", "index_bytes", "dense_bytes")
        queries = max((one.queries for one in layers), default=0)
        if not queries:
            return {"queries": 0}
        each = {name: [getattr(one, name) / one.queries for one in layers] for name in names}
        sums = {name: sum(values) / (1 if name.endswith("bytes") else len(layers)) for name, values in each.items()}
        return {"queries": queries} | sums | {"layers": {name: each[name] for name in names[:3]}}

    def __call__(
        self,
        module: Any,
        query: Float[Tensor, "one heads queries width"],
        key: Float[Tensor, "one kv_heads keys width"],
        value: Float[Tensor, "one kv_heads keys value_width"],
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Float[Tensor, "one queries heads value_width"], None]:
        """In the form of transformers' attention functions.

        Raises:
            SettingsError: the layer asks for more than causal attention, or several prompts at a time.
        """
        from transformers import AttentionInterface

        self._refuse(module, query, others)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        dense = AttentionInterface()["sdpa"](module, query, key, value, attention_mask, scaling=scale, **others)[0]
        layer, num_keys = module.layer_idx, key.shape[2]
        self.called.add(layer)
        before = num_keys - query.shape[2]
        memory = self.memory.setdefault(layer, LayerMemory())
        own = max(0, self.first - before)
        is_sparse = layer not in self.dense_layers
        snapkv = self.parts.get("snapkv")
        if is_sparse and own and isinstance(snapkv, SnapKV) and before + query.shape[2] >= self.first:
            last_HWD = query[0, :, max(0, own - snapkv.window) : own].float()
            evict(snapkv, last_HWD, key[0, :, : self.first].float(), scale, memory)
        step = max(1, ENTRIES // (num_keys * query.shape[1]))
        for start in range(own, query.shape[2], step):
            rows = slice(start, min(start + step, query.shape[2]))
            positions_Q = torch.arange(before + rows.start, before + rows.stop, device=query.device)
            if is_sparse:
                part = query[0, :, rows].float()
                dense[0, rows] = self._rows(part, key[0], value[0], positions_Q, scale, dense[0, rows], layer, memory)
            else:
                self._count_dense(layer, positions_Q, key, value)
        return dense, None

    def _rows(
        self,
        query_HQD: Tensor,
        key_GKD: Tensor,
        value_GKD: Tensor,
        positions_Q: Tensor,
        scale: float,
        dense_QHD: Tensor,
        layer: int,
        memory: LayerMemory,
    ) -> Tensor:
        """Outputs of some queries, which are counted; those of dense attention where nothing is left out."""
        kv_heads, size = key_GKD.shape[0], key_GKD.element_size()
        wide_GKD = key_GKD.float()
        group = query_HQD.shape[0] // kv_heads
        scores_HQK = scale * query_HQD @ wide_GKD.repeat_interleave(group, dim=0).mT
        seen_QK = seen(positions_Q, key_GKD.shape[1])
        scores_HQK = scores_HQK.masked_fill(~seen_QK, -torch.inf)
        asked = Queries(query_HQD, wide_GKD, scores_HQK, seen_QK, positions_Q, self.first, layer, self.seed)
        weights_HQK = inclusion(self.parts, asked, memory)
        support_HQK = weights_HQK > 0
        cost = self.costs.setdefault(layer, LayerCost())
        entry = (key_GKD.shape[-1] + value_GKD.shape[-1]) * size
        cost.queries += len(positions_Q)
        cost.density += float(maths.density(support_HQK, seen_QK).sum())
        cost.mass_recall += float(maths.mass_recall(scores_HQK, support_HQK, seen_QK).sum())
        cost.kv_bytes += float(maths.keys_read(support_HQK, kv_heads).sum()) * entry
        cost.dense_bytes += float(seen_QK.sum()) * kv_heads * entry
        for position in positions_Q.tolist():
            shape = (query_HQD.shape[0], kv_heads, key_GKD.shape[-1], size)
            cost.index_bytes += index_bytes(self.parts, position + 1, *shape)
        if bool((weights_HQK == seen_QK).all()):
            return dense_QHD
        found_HQD = maths.attention_over(scores_HQK, weights_HQK, value_GKD.float().repeat_interleave(group, dim=0))
        cost.output_error += float(maths.relative_error(found_HQD, dense_QHD.transpose(0, 1).float()).sum())
        return found_HQD.transpose(0, 1).to(dense_QHD.dtype)

    def _count_dense(self, layer: int, positions_Q: Tensor, key: Tensor, value: Tensor) -> None:
        cost = self.costs.setdefault(layer, LayerCost())
        read = float((positions_Q + 1).sum()) * key.shape[1] * (key.shape[-1] + value.shape[-1]) * key.element_size()
        cost.queries += len(positions_Q)
        cost.density += len(positions_Q)
        cost.mass_recall += len(positions_Q)
        cost.kv_bytes += read
        cost.dense_bytes += read

    def _refuse(self, module: Any, query: Tensor, others: dict[str, Any]) -> None:
        given = [name for name in STRANGE if others.get(name) is not None]
        if not getattr(module, "is_causal", True):
            given.append("attention to later tokens")
        if given:
            raise SettingsError(
                f"{type(module).__name__} computes attention with {given[0]}, which sparse attention does not know",
                where=WHERE,
                fix="leave attention out",
            )
        if len(query) != 1:
            raise SettingsError("sparse attention answers one prompt at a time", where=WHERE, fix="use a batch of 1")


@contextmanager
def sparse(
    module: PreTrainedModel,
    parts: Mapping[str, Mechanism],
    *,
    dense_layers: Sequence[int] = (),
    seed: int = 0,
    channels: Sequence[Tensor] | None = None,
) -> Iterator[SparseAttention]:
    """Lets a model compute attention so inside the block.

    Args:
        module: of transformers, whose caches hold every key.
        parts: by `burnish.evaluate.sparse.spec.parts_of`.
        dense_layers: numbers of layers that stay as they are.
        seed: of what is drawn.
        channels: Double Sparsity's of every layer, where it is among the parts.

    Raises:
        SettingsError: the model's attention is of another kind, or a layer is not there.
    """
    check(module.config, parts, dense_layers)
    memory = {layer: LayerMemory(channels_GR=one) for layer, one in enumerate(channels or ())}
    attention = SparseAttention(parts, dense_layers, seed, memory)
    with computed_by(module, NAME, attention):
        yield attention


def check(config: Any, parts: Mapping[str, Mechanism], dense_layers: Sequence[int], longest: int = 0) -> None:
    """Refuses a model whose attention is of another kind, as far as its configuration tells.

    Args:
        config: of the model.
        parts: of the mechanism.
        dense_layers: numbers of layers.
        longest: tokens of prompt and answer.

    Raises:
        SettingsError: multi-head latent attention, ALiBi, layers without attention or with a window below `longest`,
            capped scores; a layer that is not there, or none that is sparse; more channels than a key has.
    """
    text = config.get_text_config()
    fix = "leave attention out"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    strange = sorted(kinds - set(SEES))
    why = ""
    if getattr(text, "kv_lora_rank", None):
        why = "attends to latents (MLA), of which a mechanism for keys chooses nothing"
    elif getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        why = "adds distances to its scores (ALiBi), which bounds and hashes of keys do not know"
    elif strange:
        why = f"has layers of the kind {strange[0]}, which keep no keys"
    elif getattr(text, "attn_logit_softcapping", None) is not None:
        why = "bends its attention scores, which sparse attention does not know"
    elif window is not None and slides and window < longest:
        why = f"has layers that see {window:,} tokens alone, below the length of {longest:,}"
    if why:
        raise SettingsError(f"{text.model_type} {why}", where=WHERE, fix=fix)
    missing = [layer for layer in dense_layers if layer >= text.num_hidden_layers]
    if missing:
        raise SettingsError(
            f"there is no layer {missing[0]}: the model has {text.num_hidden_layers}, from 0",
            where="dense_layers",
            fix="leave it out",
        )
    if set(dense_layers) >= set(range(text.num_hidden_layers)):
        raise SettingsError("every layer stays dense", where="dense_layers", fix="leave some out")
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    double = parts.get("doublesparsity")
    if isinstance(double, DoubleSparsity) and double.channels > width:
        raise SettingsError(
            f"doublesparsity looks at {double.channels} channels, but a key has {width}",
            where=WHERE,
            fix=f"write doublesparsity:{double.amount:g},channels={max(1, width // 8)}",
        )
