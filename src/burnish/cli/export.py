"""`burnish export`: a checkpoint in the format of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def gguf(
    model: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    dense: Literal["as stored", "f32", "f16", "bf16", "q8_0"] = "as stored",
    pre: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a checkpoint as one GGUF file, packed whole numbers bit for bit.

    Parameters
    ----------
    model:
        Directory or hub id of a Llama, Mistral, Qwen2 or Qwen3 checkpoint, dense or packed (compressed-tensors).
    out:
        The file [default: the name of the checkpoint and .gguf, here].
    dense:
        Type of the matrices that are not packed; q8_0 rounds them to 8 bits, bf16 and f16 may round.
    pre:
        llama.cpp's name of how the tokenizer cuts text into words, where burnish does not find it out.
    overwrite:
        Replace an older GGUF file there.
    """
    from burnish.export import write_gguf

    target = out or Path(f"{Path(model).name}.gguf")
    written = write_gguf(model, target, dense=dense, pre=pre, overwrite=overwrite, progress=True)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(written.types.items()))
    print(f"{written.path}  {written.num_bytes / 1e6:,.1f} MB, tensors: {kinds}; text is cut as {written.pre}")
    if written.multiplied_out:
        first, reason = next(iter(written.multiplied_out.items()))
        print(f"  {len(written.multiplied_out)} packed weights are written dense: {reason} ({first})")
    if written.rounded:
        print(f"  {len(written.rounded)} dense weights are rounded to {dense}")
    print(f"  llama-server -m {written.path}")
