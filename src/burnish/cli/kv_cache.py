"""`burnish kv-cache`: codes of a model's KV cache, fitted, compared on text that fitted nothing, and written.

A plain command and no stage: it changes no weights, and what it writes is no model that a next stage could take, but a
file beside one, as `burnish steer calibrate` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

Flag = Annotated[bool, Parameter(negative="")]
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
CODES = "rotated:3,rotated:2,rotated:4,int2,int3,int4"


def kv_cache(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    codes: str = CODES,
    data: str = "wikitext2-valid",
    text: str = "wikitext2-test",
    tokens: Positive = 16_384,
    context: Positive = 512,
    windows: Annotated[int, Parameter(validator=Number(gte=2))] = 8,
    buffer: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    atoms: Annotated[int, Parameter(validator=Number(gte=1, lte=32_768))] = 1024,
    seed: int = 0,
    device: str = "auto",
    overwrite: Flag = False,
) -> None:
    """Fit codes for the keys and values that a model caches, and say what each costs and leaves.

    The table is measured on windows that fitted nothing: bytes are those of the tensors that are held, errors those of
    the coded vectors, and the divergence that of the next tokens behind a coded context from those behind a dense one.
    The first code is what the others are compared with.

    Parameters
    ----------
    model:
        A checkpoint with full attention in every layer.
    out:
        The directory of what was fitted, for CodedCache.load in Python. A stopped run goes on from OUT.fitting.
    codes:
        With commas between: rotated:BITS, intBITS, lexico:ATOMS or lexico:ATOMS:packed (of a learned dictionary).
    data:
        Text to fit on: a name of a shipped text, a file, a directory.
    text:
        Text to measure on.
    tokens:
        Of --data.
    context:
        Tokens that are read and coded; an eighth as many follow, whose predictions are compared.
    windows:
        Of --text, spread over it.
    buffer:
        Last tokens of the context that stay dense.
    atoms:
        Of a dictionary of lexico.
    seed:
        Of which windows of --data are taken, of the rotation and of dictionaries.
    device:
        auto, cpu, cuda or cuda:N.
    overwrite:
        Replace older codes there.
    """
    from dataclasses import replace

    import torch

    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import Lineage, check_target, compute_dtype, load, pick_device
    from burnish.core.errors import DataError, SettingsError
    from burnish.core.kinds import Kind
    from burnish.core.progress import Progress
    from burnish.core.stage import seeded_generator
    from burnish.core.store import Store
    from burnish.data import calibration, check_disjoint, read_texts
    from burnish.data import windows as windows_of
    from burnish.evaluate.measure import longest_context
    from burnish.quantize.cache import compare_codes, fit
    from burnish.quantize.cache.codes import codes_of
    from burnish.quantize.cache.fitting import DictionaryLearning
    from burnish.quantize.cache.measure import summary

    wanted = codes_of(codes)
    check_apart([out], [model, data, text])
    check_target(out, overwrite=overwrite, kind=Kind.DICTIONARY)
    if buffer >= context:
        raise SettingsError(f"is {buffer}, and nothing of {context} tokens would be coded", where="buffer")
    check_disjoint(data, text)
    start = load(model)
    identity, base, tokenizer = start.identity, start.name, start.tokenizer
    generator = seeded_generator(seed)
    fitting = calibration(tokenizer, data, length=min(context, tokens), max_tokens=tokens, generator=generator)
    length, longest = context + max(context // 8, 1), longest_context(start)
    if longest is not None and length > longest:
        raise SettingsError(
            f"is {context:,}, {length:,} with what follows, and the model has positions for {longest:,}",
            where="context",
        )
    every = windows_of(tokenizer, read_texts(text, tokenizer=tokenizer), length, where=text)
    if len(every) < windows:
        raise DataError(
            f"has {len(every)} windows of {every.shape[1]:,} tokens, and {windows} are asked for",
            where=text,
            fix="use a longer text, or a shorter --context",
        )
    unseen = every[torch.linspace(0, len(every) - 1, windows).long()]
    place, work = pick_device(device), out.with_name(out.name + ".fitting")
    module = load(model, dtype=compute_dtype(place), device=place).module.eval()
    options = {
        "model": identity,
        "learning": DictionaryLearning(atoms),
        "seed": seed,
        "work": work,
        "progress": Progress(),
    }
    fitted = fit(module, fitting, wanted.values(), generator, **options)
    measured = compare_codes(module, fitted, wanted, unseen, context=context, buffer=buffer, progress=Progress())
    rows = summary(measured, dense_bytes=2 * 2 * fitted.shape.num_heads * fitted.shape.head_dim)
    settings = {"codes": [*wanted], "data": data, "text": text, "tokens": tokens, "context": context}
    settings |= {"windows": windows, "buffer": buffer, "atoms": atoms}
    lineage = Lineage(
        stage="kv-cache", settings=settings, seed=seed, parents={"model": identity}, base_model=base,
        licence=start.lineage.licence, methods=["Lexico, 2024, arXiv:2412.08890", "TurboQuant, 2025, arXiv:2504.19874"],
    )  # fmt: skip
    replace(fitted, table=rows).save(out, lineage, overwrite=overwrite)
    Store(work).clear()
    _print(rows, f"{text}, {windows} windows, {context} tokens coded and {unseen.shape[1] - context} that follow")
    print(f"{out}: CodedCache.load({str(out)!r}, {rows[0]['code']!r}, model)")


def _print(rows: Sequence[Mapping[str, Any]], protocol: str) -> None:
    """The table."""
    first = rows[0]["code"]
    print(f"{protocol}; bytes of a token in one layer, keys and values")
    print(
        f"{'code':>16} {'bytes':>8} {'of dense':>9} {'keys':>6} {'values':>6}  {'KL (95 %)':<26} against {first} (95 %)"
    )
    for row in rows:
        kl = f"{row['kl']:.3g} ({row['kl_low']:.3g} to {row['kl_high']:.3g})"
        change = f"{row['change']:+.3g} ({row['change_low']:+.3g} to {row['change_high']:+.3g})"
        told = "" if row["code"] == first else change
        errors = f"{row['keys_error']:>6.3f} {row['values_error']:>6.3f}"
        print(f"{row['code']:>16} {row['bytes']:>8.1f} {row['share']:>9.1%} {errors}  {kl:<26} {told}".rstrip())
        print(f"{'':>16} {', '.join(f'{part} {size:g}' for part, size in row['parts'].items())}")
    if rows[0]["buffer_bytes"]:
        print(f"besides, {rows[0]['buffer_bytes']:,.0f} bytes a layer of tokens that stay dense")
