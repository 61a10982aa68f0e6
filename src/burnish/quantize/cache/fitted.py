"""What codes know of a model, as a checkpoint directory of kind `dictionary`.

    CACHE/codes.safetensors    signs, and for every layer keys.L.mean, values.L.mean; with dictionaries
                               keys.L.dictionary and values.L.dictionary, all float32
    CACHE/codes.json           the model, the shape of its cache, how dictionaries were learned, and the measured table
    CACHE/burnish.json         lineage

It belongs to one model, by core's identity, and another one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from burnish.core.checkpoint import (
    CARD_FILE,
    Lineage,
    Model,
    check_made_on,
    check_target,
    hash_directory,
    library_versions,
    read_from,
    saving,
)
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind
from burnish.core.outside import read_object
from burnish.quantize.cache.codes import LayerFit
from burnish.quantize.cache.collect import KINDS, CacheShape, cache_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TENSORS, FACTS = "codes.safetensors", "codes.json"
FORMAT = 1


@dataclass(frozen=True)
class FittedCodes:
    """
    Attributes:
        model: identity of the model.
        shape: of its cache.
        tensors: as on disk.
        made_of: text, vectors, and how dictionaries were learned.
        table: what was measured of each code, a row each.
    """

    model: str
    shape: CacheShape
    tensors: Mapping[str, Tensor] = field(repr=False)
    made_of: Mapping[str, Any] = field(default_factory=dict)
    table: Sequence[Mapping[str, Any]] = ()

    def of(self, layer: int, kind: str) -> LayerFit:
        """What codes know of the "keys" or "values" of a layer."""
        prefix = f"{kind}.{layer}"
        return LayerFit(self.tensors[f"{prefix}.mean"], self.tensors["signs"], self.tensors.get(f"{prefix}.dictionary"))

    def check(self, model: Model | PreTrainedModel) -> None:
        """Refuses a model that these were not fitted to.

        A transformers model is known by the directory that it was read from; of one that was not read from any, the
        shape of its cache alone can be compared.

        Raises:
            CheckpointError: another model, or one whose cache is of another kind.
        """
        known = model if isinstance(model, Model) else read_from(model)
        module = model.module if isinstance(model, Model) else model
        if known is not None:
            fix = "fit them to this one: burnish kv-cache"
            check_made_on(self.model, known, told="the codes were fitted to", fix=fix)
        if (own := cache_shape(module)) != self.shape:
            raise CheckpointError(f"the codes are of a cache of {self.shape}, and this model has {own}")

    def save(self, directory: str | Path, lineage: Lineage, *, overwrite: bool = False) -> Path:
        """Writes them atomically.

        Raises:
            OutputError: the place is taken, or there is no room.
        """
        from safetensors.torch import save_file

        target = Path(directory)
        check_target(target, overwrite=overwrite)
        facts = {
            "format": FORMAT,
            "model": self.model,
            "shape": asdict(self.shape),
            "made_of": dict(self.made_of),
            "table": [dict(row) for row in self.table],
        }
        with saving(target, replace=overwrite) as staging:
            save_file(
                {name: tensor.float().cpu().contiguous() for name, tensor in self.tensors.items()}, staging / TENSORS
            )
            (staging / FACTS).write_text(json.dumps(facts, indent=1))
            lineage.kind, lineage.files, lineage.versions = Kind.DICTIONARY, hash_directory(staging), library_versions()
            lineage.write(staging)
            (staging / CARD_FILE).write_text(_card(self, lineage))
        return target


def read_fitted(directory: str | Path) -> FittedCodes:
    """What `burnish kv-cache` has written.

    Raises:
        CheckpointError: not there, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(directory)
    if not (place / FACTS).is_file():
        raise CheckpointError(f"has no {FACTS}, so it holds no codes of a cache", where=str(place))
    facts = read_object(place / FACTS)
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"has format {facts.get('format')!r}, which this burnish does not read", where=str(place / FACTS)
        )
    try:
        tensors, shape = load_file(place / TENSORS), CacheShape(**facts["shape"])
        wanted = {"signs", *(f"{kind}.{layer}.mean" for kind in KINDS for layer in range(shape.num_layers))}
        if missing := sorted(wanted - tensors.keys()):
            raise KeyError(missing[0])
        return FittedCodes(facts["model"], shape, tensors, facts["made_of"], facts["table"])
    except (KeyError, TypeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"is damaged ({error})", where=str(place), fix="burnish kv-cache makes it anew") from None


COLUMNS = ("bytes", "share", "keys_error", "values_error", "kl")


def _card(fitted: FittedCodes, lineage: Lineage) -> str:
    rows = [f"| {row['code']} | {' | '.join(f'{row[name]:.4g}' for name in COLUMNS)} |" for row in fitted.table]
    return "\n".join(
        [
            f"# Codes of the KV cache of {lineage.base_model or 'a model'}",
            "",
            "Means, signs and dictionaries of keys and values, read with `safetensors.torch.load_file`;",
            "`burnish.quantize.cache.CodedCache.load(DIRECTORY, CODE, model)` is a cache for `model.generate`.",
            "",
            "| code | bytes of a token in a layer | of 16-bit | error of keys | of values | KL to the dense cache |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
