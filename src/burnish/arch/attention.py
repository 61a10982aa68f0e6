"""Lets a model of transformers compute attention by another of the functions that transformers knows by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from burnish.core.progress import Progress


def use(module: Any, name: str, progress: Progress | None = None) -> str:
    """Lets a model of transformers compute attention so; returns the name of how it did before.

    Args:
        module: of transformers.
        name: what transformers calls it; an empty one changes nothing.
        progress: where it is said.

    Raises:
        SettingsError: the model's class does not know it.
    """
    before: str = module.config._attn_implementation
    if name in ("", before):
        return before
    try:
        module.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise _not_known(module, name) from error
    if module.config._attn_implementation != name:  # some classes say so in a log only
        raise _not_known(module, name)
    if progress is not None:
        progress.log(f"attention is computed by {name}")
    return before


@contextmanager
def computed_by(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Lets a model of transformers compute attention by a function of ours inside the block, under the mask of `sdpa`.

    Args:
        module: of transformers.
        name: that transformers is going to know the function by.
        function: in the form of transformers' attention functions.

    Raises:
        SettingsError: the model's class takes none.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, AttentionMaskInterface()["sdpa"])
    before = use(module, name)
    try:
        yield
    finally:
        use(module, before)


def _not_known(module: Any, name: str) -> SettingsError:
    what = f"attention cannot be {name}: {type(module).__name__} does not know it"
    return SettingsError(what, where="attention", fix="leave it out")
