"""What codes need to know of a model, learned from text: means of channels, signs, dictionaries.

Dictionaries take most of the time (some seconds each, two a layer), so each is kept in a store as soon as it is there,
and a stopped run goes on with the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core.checkpoint import tensor_digest
from burnish.core.errors import DataError
from burnish.core.progress import Progress
from burnish.core.store import Store
from burnish.quantize.cache.codes import CacheCode, LayerFit
from burnish.quantize.cache.collect import KINDS, cache_shape, collect
from burnish.quantize.cache.fitted import FittedCodes
from burnish.quantize.maths.dictionary import learn_dictionary
from burnish.quantize.maths.rotation import random_signs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DictionaryLearning:
    """How dictionaries are learned.

    Attributes:
        num_atoms: of a dictionary.
        sparsity: atoms of a vector while learning; codes of more and of fewer use the same dictionary.
        num_vectors: of a layer and kind that it is learned on.
        epochs, batch, lr: the published ones are 20, 64 and 1e-4; a higher rate needs a quarter of the epochs and gives
            smaller errors (docs/methods/kv-cache.md).
    """

    num_atoms: int = 1024
    sparsity: int = 8
    num_vectors: int = 20_000
    epochs: int = 5
    batch: int = 64
    lr: float = 1e-3


def fit(
    module: PreTrainedModel,
    windows: Int[Tensor, "windows length"],
    codes: Iterable[CacheCode],
    generator: torch.Generator,
    *,
    model: str,
    learning: DictionaryLearning | None = None,
    seed: int = 0,
    work: Path | None = None,
    progress: Progress | None = None,
) -> FittedCodes:
    """Everything that some codes need.

    Args:
        module: a causal language model whose layers keep every key and value.
        windows: of text.
        codes: dictionaries are learned only where one needs them.
        generator: draws the tokens whose vectors are looked at.
        model: identity of the model.
        learning: of dictionaries.
        seed: of signs, and of what is drawn for each dictionary.
        work: where dictionaries are kept as they are made; None keeps nothing.
        progress: shows bars.

    Raises:
        CheckpointError: a model whose cache is of another kind.
        SettingsError: a code that does not fit the heads, or asks for more atoms than a dictionary has.
        DataError: too little text for the atoms of a dictionary.
        NumericalError: a key or value is not finite.
    """
    learning, progress = learning or DictionaryLearning(), progress or Progress(enabled=False)
    shape, codes = cache_shape(module), list(codes)
    signs = random_signs(shape.head_dim, torch.Generator().manual_seed(seed))
    to_come = torch.empty(learning.num_atoms, shape.head_dim, device="meta")
    for code in codes:  # which refuses what does not fit the heads or the dictionary, before anything is learned
        code.parts(LayerFit(torch.zeros(shape.num_heads, 1, shape.head_dim), signs, to_come))
    found = collect(module, windows, learning.num_vectors, generator, progress=progress)
    made_of = {"tokens": windows.numel(), "vectors": found["keys"][0].shape[:2].numel(), "seed": seed}
    tensors = {"signs": signs.to(module.device)}
    for kind in KINDS:
        for layer, vectors in enumerate(found[kind]):
            tensors[f"{kind}.{layer}.mean"] = vectors.mean(dim=1, keepdim=True)
    if any("dictionary" in code.needs for code in codes):
        if made_of["vectors"] < learning.num_atoms:
            raise DataError(
                f"gives {made_of['vectors']:,} vectors, fewer than the {learning.num_atoms:,} atoms of a dictionary",
                where="calibration text",
                fix="use more --tokens, or fewer --atoms",
            )
        key = {"model": model, "windows": tensor_digest(windows), "seed": seed} | asdict(learning)
        store = None if work is None else Store(work)
        with progress.task("learning dictionaries", 2 * shape.num_layers, "dictionaries") as task:
            for name, vectors in (
                (f"{k}.{n}", v) for n in range(shape.num_layers) for k in KINDS for v in [found[k][n]]
            ):
                tensors[f"{name}.dictionary"] = _learned(vectors.flatten(0, 1), learning, seed, store, name, key)
                task.advance()
        made_of |= asdict(learning)
    return FittedCodes(model, shape, tensors, made_of)


def _learned(
    vectors: Float[Tensor, "vectors dim"],
    learning: DictionaryLearning,
    seed: int,
    store: Store | None,
    name: str,
    key: Mapping[str, Any],
) -> Float[Tensor, "atoms dim"]:
    """The dictionary of these vectors, from the store where it is there already."""
    from safetensors.torch import load_file, save_file

    if store is not None and (kept := store.find(name, key)) is not None:
        return load_file(kept / "dictionary.safetensors", device=str(vectors.device))["atoms"]
    atoms = learn_dictionary(
        vectors,
        learning.num_atoms,
        min(learning.sparsity, vectors.shape[1]),
        torch.Generator().manual_seed(seed),
        epochs=learning.epochs,
        batch=learning.batch,
        lr=learning.lr,
    )
    if store is not None:
        with store.writing(name, key) as place:
            save_file({"atoms": atoms}, place / "dictionary.safetensors")
    return atoms
