"""What is rounded outside of the decoder layers: a head by itself, and the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from burnish.arch import MatrixView
from burnish.core.checkpoint import weight_of_embedding
from burnish.core.errors import EngineError, SettingsError
from burnish.quantize.budget import HEADER_ENTRY, NO_PACKED_EMBEDDING
from burnish.quantize.packing import check_loadable
from burnish.quantize.scheme import Scheme
from burnish.quantize.schemes import matches, scheme_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.kinds import Plan
    from burnish.quantize.stage import Quantize

Outside = tuple[MatrixView, Scheme]
SETTINGS = ("head_bits", "quantize_embedding")


def asked_for(settings: Quantize) -> str | None:
    """The first setting that asks for anything here."""
    return next((name for name in SETTINGS if getattr(settings, name) is not None), None)


def outside_of(settings: Quantize, module: PreTrainedModel, views: Sequence[MatrixView]) -> list[Outside]:
    """The matrices and their schemes: of the stage's groups, with widths of their own.

    Args:
        settings: of the stage.
        module: the network, also without memory.
        views: all of its matrices.

    Raises:
        SettingsError: the head is the embedding, or what is asked for is not found, lies elsewhere, is ignored, or the
            groups do not divide it.
        EngineError: the engine has no kernel, or was not seen to read an embedding.
    """
    found = []
    if settings.head_bits is not None:
        found.append((_head(settings, module, views), replace(scheme_of(settings), bits=settings.head_bits)))
    if isinstance(settings.quantize_embedding, int):
        embedding = _embedding(settings, module, views)
        found.append((embedding, replace(scheme_of(settings), bits=settings.quantize_embedding)))
    for view, scheme in found:
        _check(settings, view, scheme)
    return found


def embedding_of_target(settings: Quantize, module: PreTrainedModel, views: Sequence[MatrixView]) -> MatrixView | None:
    """The embedding, where its width is chosen with those of the layers; arguments and errors as in `outside_of`."""
    if settings.quantize_embedding != "auto":
        return None
    view = _embedding(settings, module, views)
    _check(settings, view, scheme_of(settings))
    return view


def _check(settings: Quantize, view: MatrixView, scheme: Scheme) -> None:
    if any(matches(pattern, view) for pattern in settings.ignore):
        raise SettingsError(f"names {view.name}, which is asked for beside it", where="ignore", fix="leave one out")
    check_loadable([view], {view.name: scheme})
    if settings.engine is not None:
        scheme.check_kernel(view, settings.engine)


def _head(settings: Quantize, module: PreTrainedModel, views: Sequence[MatrixView]) -> MatrixView:
    heads = [view for view in views if view.part == "head"]
    if not heads:
        tied = module.config.get_text_config().tie_word_embeddings
        raise SettingsError(
            f"head_bits is {settings.head_bits}, but "
            + (f"the head is the embedding, and {NO_PACKED_EMBEDDING}" if tied else "no head was found"),
            where="head_bits",
            fix="leave head_bits out" + (", or take quantize_embedding, which is for both" if tied else ""),
        )
    return heads[0]


def _embedding(settings: Quantize, module: PreTrainedModel, views: Sequence[MatrixView]) -> MatrixView:
    name, found = weight_of_embedding(module), [view for view in views if view.role == "embedding"]
    if settings.engine is not None:
        raise EngineError(
            f"{settings.engine} was not seen to read a packed embedding",
            where=f"engine: {settings.engine}",
            fix="leave quantize_embedding or engine out",
        )
    if not found or (found[0].disk, found[0].parameter) != (name, name):
        raise SettingsError(
            f"quantize_embedding is {settings.quantize_embedding}, but "
            + (f"{name} is stored as {found[0].disk}" if found else "no embedding was found"),
            where="quantize_embedding",
            fix="leave quantize_embedding out",
        )
    return found[0]


def working_bytes(settings: Quantize, views: Sequence[MatrixView]) -> int:
    """Held beside the network while an embedding or a head is rounded: copies of it, or its gradients for some text."""
    from burnish.calibrate.vocabulary import BATCH_TOKENS

    rows = [view.shape for view in views if view.layer is None] if asked_for(settings) else []
    tokens = BATCH_TOKENS if settings.needs else 0
    return max((max(40 * prod(shape), 16 * tokens * shape[0]) for shape in rows), default=0)


def saved_bytes(outside: Sequence[Outside], before: Plan) -> int:
    """By which the files become smaller, their headers counted."""
    per_weight = before.num_bytes / before.num_parameters
    scale_bytes = max(round(per_weight), 2)
    dense = sum(round(per_weight * prod(view.shape)) for view, _ in outside)
    headers = sum(3 * (HEADER_ENTRY + len(view.disk)) for view, _ in outside)
    return dense - headers - sum(scheme.num_bytes(*view.shape, scale_bytes) for view, scheme in outside)


def notes_on(settings: Quantize, outside: Sequence[Outside]) -> list[str]:
    """Sentences for the plan."""
    how = "one column after another, as the text weighs them" if settings.needs else "rounded to nearest"
    notes = [f"{view.name} at {scheme.bits} bits, {how}" for view, scheme in outside]
    if settings.quantize_embedding is not None:
        notes.append(
            f"{NO_PACKED_EMBEDDING}: burnish reads it, convert unpack makes it dense, export gguf takes it as it is"
        )
    return notes


def check_outside(settings: Quantize) -> None:
    """Raises `SettingsError` where other settings leave no room for these."""
    for name in SETTINGS:
        if getattr(settings, name) is None:
            continue
        target = settings.target is not None and name == "head_bits"
        if settings.scheme != "int" or settings.stream or target:
            other = "target" if target else "stream" if settings.stream else f"scheme {settings.scheme}"
            raise SettingsError(f"{name} and {other} cannot be combined", where=name, fix="leave one of them out")
    if settings.quantize_embedding == "auto" and settings.target is None:
        raise SettingsError(
            "quantize_embedding is auto, but a width is chosen for a target alone",
            where="quantize_embedding",
            fix="give target, or a width, such as 8",
        )
