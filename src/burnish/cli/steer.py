"""`burnish steer`: probes and directions of attention heads, and how much of them a model should be given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from burnish.steer import Vectors
    from burnish.steer.sweep import Comparison

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Flag = Annotated[bool, Parameter(negative="")]
SHOWN = 8
"""Heads that are printed."""


def calibrate(
    model: str,
    /,
    *,
    out: Out,
    traces: Path | None = None,
    problems: Path | None = None,
    verifier: str = "math",
    separator: str = r"\n\n",
    cue: list[str] | None = None,
    think_end: str = "</think>",
    rank: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    permutations: Annotated[int, Parameter(validator=Number(gte=1))] = 99,
    force: Flag = False,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: Flag = False,
) -> None:
    """Find the heads that tell checking from going on, and write a steering file.

    Right answers are cut into steps; a step that holds a cue checks. Every head gets a probe, its accuracy on traces
    held out, and a direction.

    Parameters
    ----------
    model:
        The checkpoint that will be steered, dense.
    out:
        The directory of the vectors.
    traces:
        A .jsonl file of problems with `completion`, or of chats (`messages`); some hundred.
    problems:
        Instead: a .jsonl file of problems that the model answers first; a stopped run goes on from OUT.work.
    verifier:
        Who says which answers are right, as in burnish reason run.
    separator:
        Ends a step; every token that holds it counts. \\n is a new line.
    cue:
        What a checking step holds, a word or re:PATTERN; give it several times for several [default: wait, hmm, ...].
    think_end:
        The token behind which nothing is steered.
    rank:
        Of the subspace of directions [default: 1000, or the width of the model].
    permutations:
        Of the labels, for what the best head reaches by chance.
    force:
        Write vectors even where no head beats chance.
    temperature:
        Of the answers to --problems; 0 takes the likeliest token.
    max_new_tokens:
        Of an answer to --problems.
    limit:
        Take so many of --problems only.
    seed:
        Of answers, of which traces are held out, and of the permutations.
    device:
        auto, cpu, cuda or cuda:N.
    overwrite:
        Replace older vectors there.
    """
    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import check_target, load
    from burnish.core.kinds import Kind
    from burnish.steer.maths.steps import CUES
    from burnish.steer.stage import Steer

    given = {
        "traces": traces and str(traces),
        "problems": problems and str(problems),
        "verifier": verifier,
        "separator": separator,
        "cues": cue or list(CUES),
        "think_end": think_end,
        "rank": rank,
        "permutations": permutations,
        "force": force,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "seed": seed,
        "device": device,
    }
    stage = Steer.parse(given, where="burnish steer calibrate")
    check_apart([out], [model, traces, problems])
    check_target(out, overwrite=overwrite, kind=Kind.STEERING)
    start = load(model)
    made = stage(start, work_dir=out.with_name(out.name + ".work"), progress=True)
    made.lineage.stage, made.lineage.stage_version = stage.name, stage.version
    made.lineage.settings, made.lineage.seed = stage.canonical(), seed
    made.lineage.licence = start.lineage.licence
    made.save(out, overwrite=overwrite)
    _print(made.vectors)
    print(f"{out}: {len(made.vectors.heads):,} heads")


def traces(run: Path, /, *, problems: Path, out: Out, verifier: str = "math", overwrite: Flag = False) -> None:
    """Write what a run of strategies has answered as traces for `burnish steer calibrate`.

    The run may have asked any endpoint; the model that is calibrated should be the one that answered.

    Parameters
    ----------
    run:
        Directory from `burnish reason run`.
    problems:
        The .jsonl file of problems that it was given.
    out:
        The .jsonl file of traces.
    verifier:
        Who graded the run.
    overwrite:
        Replace an older file there.
    """
    import json

    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import write_atomically
    from burnish.core.errors import OutputError
    from burnish.steer.traces import kept_answers
    from burnish.verify import read_problems
    from burnish.verify import verifier as verifier_of

    check_apart([out], [run, problems])
    if out.exists() and not overwrite:
        raise OutputError("exists", where=str(out), fix="name another file, or give --overwrite")
    with verifier_of(verifier) as judge:
        rows = kept_answers(run, read_problems(problems, judge))
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    number = sum(len(row["completion"]) for row in rows)
    print(f"{out}: {number:,} answers to {len(rows):,} problems")


def sweep(
    model: str,
    vectors: Path,
    /,
    *,
    problems: Path,
    out: Out,
    verifier: str = "math",
    coef: list[float] | None = None,
    top: list[float] | None = None,
    mode: Literal["threshold", "soft", "ungated", "additive", "mean"] = "threshold",
    lose: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.01,
    tuning: Annotated[float, Parameter(validator=Number(gt=0, lt=1))] = 0.5,
    whole: Flag = False,
    temperature: float = 1.0,
    max_new_tokens: int = 1024,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Answer problems at several strengths, choose one on a part of them, and confirm it on the others.

    Beside the point stand the plain model and controls of the same strength: random directions, and random heads. A
    sweep that was stopped goes on when the same command is given again.

    Parameters
    ----------
    model:
        The checkpoint that answers.
    vectors:
        Directory from `burnish steer calibrate`.
    problems:
        A .jsonl file of problems; the first ones choose, the others report.
    out:
        The directory of what was measured, and of sweep.json.
    verifier:
        Who grades, as in burnish reason run.
    coef:
        Coefficient; give it several times for several [default: -1 and -4].
    top:
        Share of the heads, or how many (above 1); give it several times [default: 0.1, 0.38 and 1].
    mode:
        Which gate; mean brings directions to where they are on steps that go on, in place of taking them away.
    lose:
        Accuracy that the point may lose on the problems that choose it.
    tuning:
        Share of the problems that choose.
    whole:
        Report every strength with its controls, not the point alone.
    temperature:
        Of the answers; 0 takes the likeliest token.
    max_new_tokens:
        Of an answer.
    limit:
        Take so many of the problems only.
    seed:
        Of the answers and of the controls.
    device:
        auto, cpu, cuda or cuda:N.
    """
    import json
    from dataclasses import asdict

    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import compute_dtype, load, pick_device, write_atomically
    from burnish.core.progress import Progress
    from burnish.steer import read_vectors
    from burnish.steer.sweep import Sweep
    from burnish.steer.sweep import sweep as sweep_over
    from burnish.verify import read_problems
    from burnish.verify import verifier as verifier_of

    check_apart([out], [model, vectors, problems])
    place = pick_device(device)
    start = load(model, dtype=compute_dtype(place), device=place)
    with verifier_of(verifier) as judge:
        cells = Sweep(
            start,
            read_vectors(vectors),
            read_problems(problems, judge, limit=limit),
            judge,
            out,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            mode=mode,
            tuning=tuning,
        )
        options: dict[str, Any] = {"lose": lose, "whole": whole, "progress": Progress()}
        tuned, chosen, told = sweep_over(cells, coef or (-1.0, -4.0), top or (0.1, 0.38, 1.0), **options)
        print(f"on {len(cells.parts['tuning']):,} problems that choose")
        _print_rows(tuned)
        if chosen is None:
            print(f"no strength takes fewer tokens and loses at most {lose:.1%} accuracy")
        else:
            print(f"chosen: --coef {chosen.cell.coef:g} --top {chosen.cell.top:g}")
        if told:
            print(f"on {len(cells.parts['reporting']):,} others")
            _print_rows(told)
    content = {
        "chosen": asdict(chosen.cell) if chosen else None,
        "tuning": [asdict(row) for row in tuned],
        "reporting": [asdict(row) for row in told],
    }
    write_atomically(out / "sweep.json", json.dumps(_known(content), indent=1, allow_nan=False) + "\n")


def show(vectors: Path, /) -> None:
    """Print what a steering file was made of and how well its heads tell.

    Parameters
    ----------
    vectors:
        Directory from `burnish steer calibrate`.
    """
    from burnish.steer import read_vectors

    _print(read_vectors(vectors))


def import_(
    released: Path,
    model: str,
    /,
    *,
    out: Out,
    separator: str = r"\n\n",
    think_end: str = "</think>",
    overwrite: Flag = False,
) -> None:
    """Write the vectors of the authors' release (probe_best.pt) as a steering file of a model.

    Parameters
    ----------
    released:
        Their file, which is unpickled as tensors alone.
    model:
        The checkpoint they belong to.
    out:
        The directory of the vectors.
    separator:
        Ends a step; every token that holds it counts. \\n is a new line.
    think_end:
        The token behind which nothing is steered.
    overwrite:
        Replace older vectors there.
    """
    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import Lineage, check_target, load
    from burnish.core.kinds import Kind
    from burnish.steer import marks_of, read_released

    check_apart([out], [released, model])
    check_target(out, overwrite=overwrite, kind=Kind.STEERING)
    start = load(model)
    marks = marks_of(start.tokenizer, separator=separator.replace(r"\n", "\n"), think_end=think_end)
    found = read_released(released, start, marks)
    parents = {"model": found.model}
    lineage = Lineage(stage="steer", parents=parents, base_model=start.name, licence=start.lineage.licence)
    found.save(out, lineage, overwrite=overwrite)
    _print(found)
    print(f"{out}: {len(found.heads):,} heads")


def _known(value: Any) -> Any:
    """As JSON has it: null for what nobody knows, the interval of one problem or a ratio to no checks."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(vectors: Vectors) -> None:
    made = vectors.made_of
    if "chance" in made:
        linear, checking = made["linear_steps"], made["checking_steps"]
        if "wrong" in made:
            print(f"left out {made['wrong']:,} that are not right and {made['without_steps']:,} without a step")
        print(f"fitted on {made['traces']:,} traces with {linear:,} linear and {checking:,} checking steps")
        print(
            f"on {made['held_out_steps']:,} steps of {made['held_out_traces']:,} traces held out the larger class is "
            f"{made['larger_class']:.3f} and chance reaches {made['chance']:.3f}; {made['telling']} of "
            f"{vectors.num_heads} heads are above chance"
        )
    if "strength" in made:
        print("chosen: coef {coef:g}, top {top:g}, mode {mode}".format(**made["strength"]))
    print("layer  head  accuracy")
    for head in vectors.heads[:SHOWN]:
        spread = f"  ({head.low:.3f} to {head.high:.3f})" if head.low is not None else ""
        print(f"{head.layer:5}  {head.head:4}  {head.accuracy:8.3f}{spread}")


def _print_rows(rows: list[Comparison]) -> None:
    """Against the plain model on the same problems, with 95 % intervals."""
    heads = ("accuracy", "lost", "tokens", "of plain", "checks of plain")
    print("{:17} {:>5} {:>5}  {:>8}  {:24}{:>6}  {:24}{}".format("", "coef", "top", *heads))
    for row in rows:
        parts = (row.lost, row.ratio, row.checks)
        lost, ratio, checks = (f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in parts)
        named = f"{row.cell.arm:17} {row.cell.coef:5g} {row.cell.top:5g}"
        print(f"{named}  {row.accuracy:8.3f}  {lost:24}{row.tokens:6.1f}  {ratio:24}{checks}")
