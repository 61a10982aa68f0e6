"""To which model something belongs that was made on one: steering vectors, the codes of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint.identity import text_digest
from burnish.core.checkpoint.model import Model, load
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_from(module: PreTrainedModel) -> Model | None:
    """The checkpoint that a transformers model names as its place; None where it was not read from a directory."""
    place = Path(module.name_or_path) if module.name_or_path else None
    return load(place) if place is not None and (place / "config.json").is_file() else None


def check_made_on(identity: str, model: Model, *, told: str, fix: str) -> None:
    """Refuses a model that something was not made on.

    Args:
        identity: of the model that it was made on.
        model: that it is to be used with.
        told: the beginning of the sentence, such as "the codes were fitted to".
        fix: what to do.

    Raises:
        CheckpointError: another model.
    """
    if identity not in names_of(model):
        raise CheckpointError(f"{told} another model ({identity[:12]}, not {model.identity[:12]})", fix=fix)


def names_of(model: Model) -> set[str]:
    """Identities that what belongs to this model may carry.

    Its own, that without a cast on reading, and those of what it was made of in one step: a quantized checkpoint takes
    what was made on its original.
    """
    names = {model.identity, *model.lineage.parents.values()}
    if model.path is not None and model.identity == text_digest([model.hash, str(model.dtype)]):
        names.add(model.hash)
    return names
