"""`burnish run` and `burnish plan`, and how a single command becomes a recipe of one node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from burnish.core.errors import OutputError
from burnish.core.kinds import Kind, Plan
from burnish.core.progress import byte_count, duration
from burnish.core.recipe import START, Recipe, read_recipe, single_node
from burnish.core.runner import Decision, Run
from burnish.core.runner.preflight import preflight
from burnish.core.stage import Stage
from burnish.stages import ROOMS

Out = Annotated[Path | None, Parameter(name=["--out", "-o"])]
Flag = Annotated[bool, Parameter(negative="")]


def run(
    recipe: Path,
    /,
    *,
    out: Out = None,
    start: str | None = None,
    verify: bool = False,
    continue_with_changes: Flag = False,
    restart: Flag = False,
    no_report: Annotated[bool, Parameter(name="--no-report", negative="")] = False,
) -> None:
    """Run a recipe: make every checkpoint it names, measure it, write the report.

    What is finished and unchanged is skipped, so the same command continues an interrupted run.

    Parameters
    ----------
    recipe:
        The YAML file.
    out:
        The run directory [default: runs/NAME].
    start:
        A checkpoint directory or hub id in place of the recipe's own.
    verify:
        Read every file again instead of trusting size and time.
    continue_with_changes:
        Go on from the states of interrupted stages with changed settings: steps, batch, learning rate and the like.
    restart:
        Delete what interrupted stages have left, and start them again.
    no_report:
        Leave out report.html.
    """
    parsed = read_recipe(recipe, start=start)
    work = Run(
        parsed,
        out or Path("runs") / parsed.name,
        ROOMS,
        verify=verify,
        with_changes=continue_with_changes,
        restart=restart,
    )
    decisions = work.execute()
    for decision in decisions:
        if decision.action == "skip":
            print(f"{decision.node.name}: skipped, {decision.reason}", file=sys.stderr)
    _show(work.directory, write_report=not no_report)


def plan(recipe: Path, /, *, out: Out = None, start: str | None = None, verify: bool = False) -> None:
    """Say what a recipe would do and what it would cost, without doing it.

    Parameters
    ----------
    recipe:
        The YAML file.
    out:
        The run directory whose finished nodes count [default: runs/NAME].
    start:
        A checkpoint directory or hub id in place of the recipe's own.
    verify:
        Read every file again instead of trusting size and time.
    """
    parsed = read_recipe(recipe, start=start)
    work = Run(parsed, out or Path("runs") / parsed.name, ROOMS, verify=verify)
    decisions = work.decide()
    first = work.plan(decisions)
    if first.num_bytes and any(work.start.glob("*.safetensors")):
        preflight(work, decisions)
    _print_plan(work.recipe, first, decisions)
    for note in (*work.remarks(), *work.reads_outside()):
        print(f"note: {note}")


def run_single(stage: Stage, model: str, out: Path, *, evaluate: bool, **how: Any) -> None:
    """What `burnish quantize MODEL -o OUT` and its sisters do: a recipe of one node whose checkpoint is OUT.

    Ledger, logs and resumable state stand beside it in OUT.run. Where the node stands for several (`burnish slim
    --rounds 2`), OUT is the last of them and the others are in there too. `how` are options of `Run`.
    """
    settings: dict[str, Any] = stage.model_dump(mode="json")
    if not out.name:
        raise OutputError("an empty name is no place to write to", where="-o", fix="name a directory")
    recipe = single_node(stage.name, settings, start=model, evaluate=_protocol(model) if evaluate else None)
    directory = out.parent / f"{out.name}.run"
    work = Run(recipe, directory, ROOMS, targets={stage.name: out}, **how)
    decision = next(decision for decision in work.execute() if decision.node.name == stage.name)
    if decision.action == "skip":
        print(f"{out} is up to date: {decision.reason}", file=sys.stderr)
    _show(directory, write_report=True)
    print(f"{'rows' if stage.makes_data else 'checkpoint'}: {out}")


def _protocol(model: str) -> dict[str, Any]:
    """How `--evaluate` measures: as `burnish evaluate` does, in shorter windows where the model's positions end."""
    from burnish.core.checkpoint import load_config, resolve
    from burnish.evaluate.stage import Evaluate

    usual = Evaluate()
    longest = getattr(load_config(resolve(model)).get_text_config(), "max_position_embeddings", None)
    if longest is None or longest >= usual.context:
        return {}
    decode = min(usual.decode_tokens, max(1, longest // 4))
    return {"context": longest, "prompt_tokens": longest - decode, "decode_tokens": decode}


def _show(directory: Path, *, write_report: bool) -> None:
    from rich.console import Console

    from burnish.report import ledger_table, read_run, write

    run = read_run(directory)
    if run.measurements:
        Console().print(ledger_table(run))
    if write_report:
        print(f"report: {write(directory)}")


def _print_plan(recipe: Recipe, first: Plan, decisions: list[Decision]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from burnish.arch import num_active_parameters

    plans = [first, *(decision.plan for decision in decisions if decision.plan)]
    sparse = any(num_active_parameters(plan) != plan.num_parameters for plan in plans)
    table = Table(title=f"{recipe.name}: {len(decisions)} nodes from {recipe.start}", box=box.SIMPLE_HEAD)
    table.add_column("node", overflow="fold", min_width=12)
    table.add_column("stage", no_wrap=True)
    for heading in ("parameters\n(active)" if sparse else "parameters", "on disk", "memory", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("start", "", *_plan_cells(first))
    depth = {START: 0}
    for decision in decisions:
        assert decision.plan is not None, "every decision has been planned"
        node = decision.node
        depth[node.name] = depth[node.parent] + 1
        cells = _plan_cells(decision.plan)
        if decision.action == "skip":
            cells[2:] = ["", ""]  # what has been made costs neither memory nor time
        table.add_row("  " * depth[node.name] + node.name, node.stage, *cells)
    Console().print(table)
    for decision in decisions:
        will = "runs" if decision.action == "run" else "is skipped"
        print(f"{decision.node.name} {will}: {decision.reason}")
        for note in decision.plan.notes if decision.plan and decision.action == "run" else ():
            print(f"    {note}")


def _plan_cells(plan: Plan) -> list[str]:
    from burnish.arch import num_active_parameters
    from burnish.core.page.numbers import number_count

    if plan.kind is Kind.DATA:
        return ["data", "", "", f"~ {duration(plan.seconds)}" if plan.seconds is not None else ""]
    parameters = number_count(plan.num_parameters)
    active = num_active_parameters(plan)
    if active != plan.num_parameters:
        parameters += f" ({number_count(active)})"
    return [
        parameters,
        byte_count(plan.num_bytes),
        byte_count(plan.peak_memory_bytes) if plan.peak_memory_bytes else "",
        f"~ {duration(plan.seconds)}" if plan.seconds is not None else "",
    ]
