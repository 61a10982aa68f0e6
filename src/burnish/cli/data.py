"""`burnish data`: problems whose every answer can be checked, and episodes of agents worth training on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from burnish.data.trajectories.curate import Curated, Curation


def chain(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    modulus: int = 10,
    steps: str = "1-8",
    operations: str = "+-*",
    largest: int | None = None,
    repeat: float = 0.4,
    again: float = 0.5,
    most_repeats: int = 3,
    direct: float = 0.05,
    slips: float = 0.0,
    distinct: Annotated[bool, Parameter(negative="")] = False,
    apart_from: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write verifiable chains, `3a+4b*2` with solutions such as `a3+4=7;b7*2=4;#4`, one JSON row a line.

    A row has `question`, `answer` and `solution` for graders and `messages` for `burnish train`.

    Parameters
    ----------
    out:
        The .jsonl file.
    number:
        How many.
    seed:
        The same seed and settings write the same bytes.
    modulus:
        Of all results.
    steps:
        Fewest and most operations: 4, or 1-8.
    operations:
        Which are drawn from.
    largest:
        Operand [default: modulus - 1].
    repeat:
        Chance that a step is repeated as a redundant check.
    again:
        Chance that a repeated step is repeated once more.
    most_repeats:
        Of one step.
    direct:
        Chance of an answer without steps.
    slips:
        Chance that a step's first derivation is wrong and its repeat corrects it.
    distinct:
        No question twice.
    apart_from:
        A file of chains none of whose questions may occur: hold out by question, not by seed.
    overwrite:
        Replace the file.
    """
    from burnish.core.errors import SettingsError
    from burnish.data.chain import Chains, chain_rows
    from burnish.data.draws import questions_of

    _may_write(out, number, [apart_from], overwrite=overwrite)
    low, _, high = steps.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise SettingsError(f"is {steps!r}", where="--steps", fix="write 4, or 1-8")
    kinds = Chains(
        modulus=modulus,
        steps=(int(low), int(high or low)),
        operations=operations,
        largest=largest,
        repeat=repeat,
        again=again,
        most_repeats=most_repeats,
        direct=direct,
        slips=slips,
    )
    held_out = questions_of(apart_from) if apart_from else set()
    rows = list(chain_rows(kinds, number, seed=seed, apart_from=held_out, distinct=distinct))
    _write(out, rows)
    questions = len({row["question"] for row in rows})
    letters = sum(len(row["solution"]) for row in rows) / number
    print(f"{out}: {number:,} chains, {questions:,} different questions, {letters:.1f} letters a solution")


def table(
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    rows: int = 3,
    columns: int = 3,
    cells: int = 2,
    direct: float = 0.0,
    distinct: Annotated[bool, Parameter(negative="")] = False,
    apart_from: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write tables to be read, `nop/a374/b921?bo+ap` with solutions such as `bo2;ap4;2+4=6;#6`, one JSON row a line.

    A row has `grid`, `description` (every cell in words), `asked`, and `question`, which shows the grid alone; `answer`
    and `solution` for graders and `messages` for `burnish train`.

    Parameters
    ----------
    out:
        The .jsonl file.
    number:
        How many.
    seed:
        The same seed and settings write the same bytes.
    rows:
        Of the grid.
    columns:
        Of the grid.
    cells:
        That a question adds, modulo 10.
    direct:
        Chance of an answer without steps.
    distinct:
        No question twice.
    apart_from:
        A file of tables none of whose questions may occur.
    overwrite:
        Replace the file.
    """
    from burnish.data.draws import questions_of
    from burnish.data.table import Tables, table_rows

    _may_write(out, number, [apart_from], overwrite=overwrite)
    held_out = questions_of(apart_from) if apart_from else set()
    kinds = Tables(rows=rows, columns=columns, cells=cells, direct=direct)
    _write(out, list(table_rows(kinds, number, seed=seed, apart_from=held_out, distinct=distinct)))
    print(f"{out}: {number:,} tables of {rows:,} rows and {columns:,} columns")


def gym(
    *,
    task: list[str],
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    number: Annotated[int, Parameter(name=["--number", "-n"])] = 200,
    seed: int = 0,
    apart_from: list[Path] | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write fresh problems of reasoning-gym, which `--verifier reasoning-gym` grades, one JSON row a line.

    Parameters
    ----------
    task:
        Kind of problem, such as countdown; give it several times for several, which take turns.
    out:
        The .jsonl file.
    number:
        How many, all different.
    seed:
        The same seed and tasks write the same problems.
    apart_from:
        A file none of whose questions may occur; give it several times for several.
    overwrite:
        Replace the file.
    """
    from burnish.data.draws import questions_of
    from burnish.data.gym import gym_rows

    _may_write(out, number, apart_from or [], overwrite=overwrite)
    held_out = {question for path in apart_from or () for question in questions_of(path)}
    rows = list(gym_rows(task, number, seed=seed, apart_from=held_out))
    _write(out, rows)
    print(f"{out}: {number:,} problems of {', '.join(task)}")


def trajectories(
    files: list[Path],
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    tokenizer: str | None = None,
    filter_: Annotated[list[str] | None, Parameter(name="--filter")] = None,
    apart_from: Path | None = None,
    weights: dict[str, float] | None = None,
    failed: float = 0.0,
    context: int = 0,
    bad_rows: Literal["refuse", "skip"] = "refuse",
    workers: int = 1,
    explain: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Filter episodes of agents, redact secrets, and mark the tokens that the model has written.

    Prints what every filter dropped. A run that was stopped goes on from OUT.work, which is gone at the end.

    Parameters
    ----------
    files:
        Episodes, or folders of them: JSON with `messages`, SWE-agent's .traj, OpenHands' output.jsonl.
    out:
        Where rows.jsonl and about.json go.
    tokenizer:
        Checkpoint whose chat template and tokens the rows are for; without, rows of messages alone.
    filter_:
        NAME or NAME=NUMBER, in order: verified, finished, budget=0, repeats=3, patch, tests, duplicates, per-task=4.
    apart_from:
        File with the repository and base_commit of what is evaluated on.
    weights:
        Weight in the loss of a kind of token: --weights.reasoning 0.5; reasoning, action, arguments, edit, final.
    failed:
        Weight, at most 0.1, by which the last turn of what verified alone would drop is unlearned.
    context:
        Leave out episodes with a longer row, in tokens; 0 takes any.
    bad_rows:
        Episodes that cannot be read; skip leaves them out and counts them.
    workers:
        Processes that read, filter and mask; the rows are the same with any number.
    explain:
        Say why this episode is kept or dropped, and write nothing.
    overwrite:
        Replace rows that burnish made there.
    """
    from burnish.core.errors import SettingsError
    from burnish.core.progress import Progress
    from burnish.data.trajectories.curate import Curation
    from burnish.data.trajectories.curate import explain as explained
    from burnish.data.trajectories.filters import DEFAULT, parse_filters
    from burnish.data.trajectories.kinds import check_failed, check_weights

    check_weights(weights or {})
    if workers < 1:
        raise SettingsError(f"is {workers}, but one process at least is needed", where="--workers")
    filters = parse_filters(DEFAULT if filter_ is None else filter_, has_evaluation=apart_from is not None)
    check_failed(failed, [filter_.name for filter_ in filters])
    curation = Curation(filters, apart_from, bad_rows == "skip", failed > 0)
    if explain is not None:
        print("\n".join(explained(files, curation, explain, Progress(), workers)))
    elif out is None:
        raise SettingsError("is needed", where="--out", fix="give -o OUT, or --explain EPISODE")
    elif tokenizer is None and (weights or failed or context):
        raise SettingsError(
            "is needed for weights, failed episodes and a context", where="--tokenizer", fix="name a checkpoint"
        )
    else:
        _write_rows(files, curation, out, tokenizer, weights or {}, failed, context, workers, overwrite=overwrite)


def show(
    rows: Path,
    episode: str,
    /,
    *,
    tokenizer: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    overwrite: bool = False,
) -> None:
    """Write a page on which a kept episode is read token by token: what is trained, as what, with what weight.

    Parameters
    ----------
    rows:
        What `burnish data trajectories` wrote with a tokenizer: a folder, or its rows.jsonl.
    episode:
        Its id.
    tokenizer:
        Checkpoint that the rows are for.
    out:
        The .html file.
    overwrite:
        Replace what is there.
    """
    from burnish.core import page
    from burnish.core.checkpoint import resolve
    from burnish.core.checkpoint.tokenizer import read_tokenizer
    from burnish.data.trajectories.pages import episode_page, rows_named

    _may_replace(out, [rows, Path(tokenizer)], overwrite=overwrite)
    words = read_tokenizer(resolve(tokenizer))
    found = rows_named(rows, episode, words)
    page.write(out, episode_page(found, words))
    print(f"{out}: {len(found):,} rows of {episode}")


def _write_rows(
    files: list[Path],
    curation: Curation,
    out: Path,
    tokenizer: str | None,
    weights: dict[str, float],
    failed: float,
    context: int,
    workers: int,
    *,
    overwrite: bool,
) -> None:
    import shutil

    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import check_target, resolve
    from burnish.core.checkpoint.tokenizer import read_tokenizer
    from burnish.core.kinds import Kind
    from burnish.core.made_data import Data
    from burnish.core.progress import Progress
    from burnish.data.trajectories.curate import curate, try_episode
    from burnish.data.trajectories.rows import Masking

    work = out.with_name(f"{out.name}.work")
    check_apart([out, work], [*files, curation.apart_from, tokenizer])
    check_target(out, overwrite=overwrite, kind=Kind.DATA)
    progress, masking = Progress(), None
    if tokenizer is not None:
        masking = Masking(read_tokenizer(resolve(tokenizer)), weights, context, failed)
        try_episode(files, masking.tokenizer, skip_bad=curation.skip_bad)
    made = curate(files, curation, masking, work, progress, workers)
    Data(made.rows, about=made.about, pages=made.pages).save(out, overwrite=overwrite)
    shutil.rmtree(work)
    _print_funnel(made, out)


def _print_funnel(made: Curated, out: Path) -> None:
    width = max(len(step["filter"]) for step in made.funnel)
    for step in made.funnel:
        print(f"{step['filter']:<{width}}  dropped {step['dropped']:>7,}  left {step['left']:>7,}")
        for one in step["sample"]:
            print(f"{'':<{width}}    {one['episode']}: {one['reason']}")
    if made.num_failed:
        print(f"{made.num_failed:,} of these have failed, and their last turns are to be unlearned")
    if made.num_secrets:
        print(f"{made.num_secrets:,} secrets in observations were redacted")
    tokens = ", ".join(f"{count:,} {kind}" for kind, count in made.tokens.items() if count)
    print(f"{out}: {made.funnel[-1]['left']:,} episodes" + (f"; trained tokens: {tokens}" if tokens else ""))


def _may_write(out: Path, number: int, read: Sequence[Path | None], *, overwrite: bool) -> None:
    from burnish.core.errors import SettingsError

    _may_replace(out, read, overwrite=overwrite)
    if number < 1:
        raise SettingsError(f"is {number}, but at least one problem is needed", where="--number")


def _may_replace(out: Path, read: Sequence[Path | None], *, overwrite: bool) -> None:
    from burnish.core.apart import check_apart
    from burnish.core.checkpoint.durable import check_place
    from burnish.core.errors import OutputError

    check_apart([out], read)
    if out.exists() and not overwrite:
        raise OutputError("exists", where=str(out), fix="give --overwrite, or another name")
    check_place(out)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    from burnish.core.checkpoint.durable import write_atomically
    from burnish.data.draws import json_lines

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json_lines(iter(rows)))
