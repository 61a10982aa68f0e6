"""What the stage `steer` and `burnish steer calibrate` do: traces, vectors, and the strengths that are tried."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import Lineage, Model, compute_dtype, load
from burnish.core.checkpoint.model import move
from burnish.core.errors import DataError
from burnish.core.kinds import Kind
from burnish.generate.problems import problems_of
from burnish.steer.calibration import calibrate
from burnish.steer.marks import Marks, marks_of
from burnish.steer.stage import NEWLINE, Steer
from burnish.steer.sweep import LEAST, PLAIN, Comparison, Part, Sweep, sweep
from burnish.steer.traces import Read, read_traces, sampled
from burnish.steer.vectors import Vectors
from burnish.verify import Verifier, verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.core.stage import Context

SOURCE = "CREST, 2025, arXiv:2512.24574"


@dataclass
class SteeringFile:
    """Vectors with where they come from: what the stage makes.

    Attributes:
        vectors: of the model.
        lineage: of kind steering.
    """

    vectors: Vectors
    lineage: Lineage

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes them; see `Vectors.save`."""
        return self.vectors.save(directory, self.lineage, overwrite=overwrite)


def run(settings: Steer, model: Model, ctx: Context) -> SteeringFile:
    """Vectors of a model, with the strength that was chosen where problems for that are given.

    Raises:
        DataError: no right traces, or no head that tells.
        SettingsError: marks that the vocabulary has not.
        EngineError, MissingExtraError: the verifier cannot run here.
    """
    own, identity = marks(settings, model.tokenizer), model.identity
    computing = to_compute(model, ctx.device)
    with verifier(settings.verifier) as judge:
        trying = _apart(ctx, judge) if ctx.inputs.get("strengths") is not None else []
        read = _traces(settings, computing, own, judge, ctx)
        options: dict[str, Any] = {"rank": settings.rank, "permutations": settings.permutations}
        options |= {"force": settings.force, "seed": settings.seed, "progress": ctx.progress}
        found = calibrate(computing.module, read.traces, own, model=identity, **options)
        left_out = {"wrong": read.wrong, "without_steps": read.without_steps}
        found = replace(found, made_of=found.made_of | left_out)
        ctx.ledger.table("steering heads", [asdict(head) for head in found.heads])
        if trying:
            found = _with_strength(settings, computing, found, trying, judge, ctx)
    lineage = Lineage(kind=Kind.STEERING, methods=[SOURCE], parents={"model": identity}, base_model=model.name)
    return SteeringFile(found, lineage)


def marks(settings: Steer, tokenizer: PreTrainedTokenizerBase) -> Marks:
    """What cuts answers into steps.

    Raises:
        SettingsError: as `marks_of`.
    """
    separator = settings.separator.replace(NEWLINE, "\n")
    return marks_of(tokenizer, separator=separator, cues=settings.cues, think_end=settings.think_end)


def to_compute(model: Model, device: str) -> Model:
    """The model on a device: read in the dtype to compute in, or as it is in memory."""
    if model.path is not None and not model.is_loaded:
        return load(model.path, dtype=compute_dtype(device), device=device)
    move(model.module, device).eval()
    return model


def _apart(ctx: Context, judge: Verifier) -> list[dict[str, Any]]:
    """The problems on which strengths are tried, without those that vectors are made from.

    Raises:
        DataError: too few are left.
    """
    given = "problems" if ctx.inputs.get("traces") is None else "traces"
    known = {problem["question"] for problem in problems_of(ctx.inputs[given], judge, where=given)}
    found = problems_of(ctx.inputs["strengths"], judge, where="strengths")
    apart = [one for one in found if one["question"] not in known]
    if len(apart) < LEAST:
        what = f"{len(apart):,} of {len(found):,} questions are not those of {given}, and {LEAST} are needed"
        raise DataError(what, where="strengths", fix="name more problems, and others")
    if shared := len(found) - len(apart):
        ctx.progress.log(f"{shared:,} of {len(found):,} questions of strengths are those of {given} and left out")
    return apart


def _traces(settings: Steer, model: Model, own: Marks, judge: Verifier, ctx: Context) -> Read:
    """Right traces, written first where problems are given; these are kept in the work directory."""
    given = ctx.inputs.get("traces")
    if given is None:
        asked = problems_of(ctx.inputs["problems"], judge, where="problems")[: settings.limit]
        options: dict[str, Any] = {"temperature": settings.temperature, "max_new_tokens": settings.max_new_tokens}
        given = sampled(model, asked, judge, ctx.work_dir / "answers", seed=settings.seed, **options)
    read = read_traces(given, model.tokenizer, own, judge)
    ctx.progress.log(
        f"{len(read.traces):,} right traces with steps; left out {read.wrong:,} that are not right and "
        f"{read.without_steps:,} without a step"
    )
    if not read.traces:
        fix = "give others, or a separator that the tokenizer writes as one token or a part of one"
        raise DataError("no right trace with a step is left", where="traces", fix=fix)
    return read


def _with_strength(
    settings: Steer, model: Model, vectors: Vectors, trying: list[dict[str, Any]], judge: Verifier, ctx: Context
) -> Vectors:
    """The vectors with the strength that was chosen; every strength that was tried goes into the ledger."""
    cells = Sweep(
        model,
        vectors,
        trying,
        judge,
        ctx.work_dir / "strengths",
        temperature=settings.strength_temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        mode=settings.mode,
        tuning=settings.tuning,
        batch_size=settings.batch_size,
    )
    tuned, chosen, told = sweep(cells, settings.coef, settings.top, lose=settings.lose, progress=ctx.progress)
    parts: tuple[tuple[Part, list[Comparison]], ...] = (("tuning", tuned), ("reporting", told))
    for part, rows in parts:
        if rows:
            plain = cells.rows([PLAIN], part)
            ctx.ledger.table(f"steering, {part}", [told_of(row) for row in (*plain, *rows)])
    if chosen is None:
        ctx.progress.log(f"no strength takes fewer tokens and loses at most {settings.lose:.1%} accuracy")
        return vectors
    strength = {"coef": chosen.cell.coef, "top": chosen.cell.top, "mode": settings.mode}
    ctx.progress.log(f"chosen: coef {chosen.cell.coef:g} and top {chosen.cell.top:g}, mode {settings.mode}")
    return replace(vectors, made_of=vectors.made_of | {"strength": strength})


def told_of(row: Comparison) -> dict[str, Any]:
    """A row of a table: against the plain model on the same problems, with 95 % intervals."""

    def shown(one: Any, form: str) -> str:
        return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"

    found: dict[str, Any] = {"vectors": row.cell.arm, "coef": row.cell.coef, "top": row.cell.top}
    found |= {"accuracy": row.accuracy, "tokens": row.tokens}
    if row.cell != PLAIN:
        found |= {"lost": shown(row.lost, ".3f"), "of plain": shown(row.ratio, ".2f")}
        found |= {"checks of plain": shown(row.checks, ".2f")}
    return found
