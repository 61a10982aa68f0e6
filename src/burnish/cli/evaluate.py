"""`burnish evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from burnish.cli.options import Options
from burnish.cli.run import Flag
from burnish.core.errors import SettingsError
from burnish.core.settings import Settings
from burnish.evaluate.longppl.settings import TASK as LONGPPL
from burnish.evaluate.longppl.settings import LongPplMeasurement
from burnish.evaluate.pair_settings import PairMeasurement
from burnish.evaluate.ruler.settings import RulerMeasurement, lengths_of, tasks_of
from burnish.evaluate.stage import Evaluate

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.ledger import Ledger
    from burnish.core.statistics import Interval
    from burnish.evaluate.pairs import PairEvaluation
    from burnish.evaluate.ruler.measure import RulerEvaluation


class _Settings(Evaluate):
    reference: Annotated[str | None, Parameter(name="--against")] = Field(
        default=None,
        description="checkpoint to measure the divergence from; with --pairs, the one to compare accuracies with",
    )


_DEFAULTS = _Settings.parse({}, where="defaults")
_PAIR_DEFAULTS = PairMeasurement.parse({}, where="defaults")
_RULER_DEFAULTS = RulerMeasurement.parse({}, where="defaults")
_LONGPPL_DEFAULTS = LongPplMeasurement.parse({}, where="defaults")


def evaluate(
    model: str,
    /,
    *,
    settings: Options[_Settings] = _DEFAULTS,
    pairs: str | None = None,
    on_pairs: Options[PairMeasurement] = _PAIR_DEFAULTS,
    task: str | None = None,
    on_task: Options[RulerMeasurement] = _RULER_DEFAULTS,
    on_keys: Options[LongPplMeasurement] = _LONGPPL_DEFAULTS,
    audit: Flag = False,
    endpoint: str | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
) -> None:
    """Measure quality, size and speed of a checkpoint: every value with its interval, under a named protocol.

    With --pairs, measure a reward model instead, or a policy as the reward model that it implies: accuracy,
    calibration, margins and the pull of length, on preference pairs. With --task, measure answers to tasks of RULER, by
    the depth of the evidence; with --attention besides, by sparse attention. With --task longppl, measure perplexity on
    the tokens that need more than the nearest thousands.

    Parameters
    ----------
    model:
        A checkpoint directory or hub id.
    pairs:
        Preference pairs (RewardBench's form too): .jsonl, .jsonl.gz, .json, .parquet, or a hub id.
    task:
        longppl, or ruler: and tasks, of niah_single,niah_multikey,niah_multikey_3,vt,cwe,fwe,kv_json,letters.
    audit:
        With --task: only print the first and the last 40 tokens that each task sends.
    endpoint:
        With --task ruler:..., the server that answers, as NAME=URL,MODEL; the checkpoint says how long prompts are.
    out:
        A run directory whose ledger the measurement is added to; on text, what it already holds is not measured again.
    """
    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import load
    from burnish.core.ledger import Ledger
    from burnish.core.runner.directory import check_run_directory

    if out is not None:
        read = [model, settings.reference, on_pairs.reference, pairs, on_keys.evaluator]
        check_apart([out], read, may_hold=True)
        check_run_directory(out)
    _check_measured(task, pairs, on_task, on_keys, on_pairs, settings, audit=audit, endpoint=endpoint)
    opened = load(model)
    ledger = Ledger(out, node=opened.path.name if opened.path else model)
    if task == LONGPPL:
        _on_key_tokens(opened, model, on_keys, settings, ledger)
        return
    if task is not None:
        _on_ruler(opened, model, tasks_of(task), on_task, settings, ledger, audit=audit, endpoint=endpoint)
        return
    if pairs is not None:
        _on_pairs(opened, model, pairs, on_pairs, settings, ledger)
        return
    _on_text(opened, model, settings, ledger)


def _check_measured(
    task: str | None,
    pairs: str | None,
    on_task: RulerMeasurement,
    on_keys: LongPplMeasurement,
    on_pairs: PairMeasurement,
    settings: _Settings,
    *,
    audit: bool,
    endpoint: str | None,
) -> None:
    """Refuses two measurements at once, and settings of one that is not asked for."""
    if task is not None and pairs is not None:
        raise SettingsError("--task and --pairs measure different things", where="task", fix="give one of them")
    if task is None or task == LONGPPL:
        if audit:
            fix = "add --task ruler:vt"
            raise SettingsError("there is no task whose prompts could be shown", where="audit", fix=fix)
        if endpoint is not None:
            what = "is for tasks of RULER, and none are named"
            raise SettingsError(what, where="--endpoint", fix="add --task ruler:vt")
        for option in _changed(on_task, _RULER_DEFAULTS):
            what = "is for tasks of RULER, and none are named"
            raise SettingsError(what, where=option, fix="add --task ruler:vt")
    if endpoint is not None:
        for option in _changed(settings, _DEFAULTS):
            raise SettingsError("is for a model in this process", where=option, fix=f"leave out {option} or --endpoint")
    if task != LONGPPL:
        for option in _changed(on_keys, _LONGPPL_DEFAULTS):
            raise SettingsError("is for LongPPL, which is not asked for", where=option, fix="add --task longppl")
    if pairs is None:
        for option in _changed(on_pairs, _PAIR_DEFAULTS):
            raise SettingsError("is for preference pairs, and none are named", where=option, fix="add --pairs FILE")
    if task is not None or pairs is not None:
        other, but = ("--pairs", ("dtype", "device", "against")) if task is None else ("--task", ("dtype", "device"))
        but += ("text", "num_windows", "context", "max_chars") if task == LONGPPL else ()
        for option in _changed(settings, _DEFAULTS, but):
            raise SettingsError("is for a measurement on text", where=option, fix=f"leave out {option} or {other}")


def _changed(given: Settings, defaults: Settings, but: Sequence[str] = ()) -> Iterator[str]:
    """Options whose values are no defaults."""
    for name in type(given).model_fields:
        called = "against" if isinstance(given, _Settings) and name == "reference" else name
        if called not in but and getattr(given, name) != getattr(defaults, name):
            yield f"--{called.replace('_', '-')}"


def _on_key_tokens(opened: Model, name: str, on_keys: LongPplMeasurement, settings: _Settings, ledger: Ledger) -> None:
    """LongPPL beside the perplexity of all tokens."""
    from burnish.core.checkpoint import load
    from burnish.core.progress import Progress
    from burnish.evaluate.longppl.measure import measure_longppl
    from burnish.report.metrics import metric
    from burnish.report.run import values_of

    evaluator = load(on_keys.evaluator) if on_keys.evaluator else opened
    found = measure_longppl(on_keys, settings, opened, evaluator, progress=Progress())
    if ledger.measured(opened.identity, found.protocol) is None:
        found.record(ledger, opened.identity, name)
    protocol = found.protocol
    print(
        f"{name} on {protocol['text']}, {protocol['num_windows']} windows of {protocol['context']:,} tokens; key "
        f"tokens by {on_keys.evaluator or 'itself'}, beyond {on_keys.short_context:,} tokens"
    )
    for key, value in values_of(found.metrics).items():
        ends = metric(key).write_interval(value) if value.value is not None else ""
        said = metric(key).write(value) if value.value is not None else found.metrics[key]["note"]
        print(f"  {metric(key).label:<34} {said}" + (f" ({ends})" if ends else ""))


def _on_ruler(
    opened: Model,
    name: str,
    tasks: list[str],
    on_task: RulerMeasurement,
    settings: _Settings,
    ledger: Ledger,
    *,
    audit: bool,
    endpoint: str | None,
) -> None:
    from burnish.core.progress import Progress
    from burnish.core.store import Store
    from burnish.evaluate.ruler.measure import measure_ruler

    if audit:
        _show_prompts(opened, tasks, on_task)
        return
    if endpoint is not None:
        _on_endpoint(opened, name, tasks, on_task, endpoint, ledger)
        return
    store = None if ledger.directory is None else Store(ledger.directory / "work" / "ruler" / opened.identity[:12])
    found = measure_ruler(
        on_task,
        opened,
        tasks,
        dtype=settings.dtype,
        device=settings.device,
        store=store,
        progress=Progress(),
    )
    _tell_ruler(found, opened, name, ledger, f", {found.evaluation.protocol['dtype']}")
    if on_task.attention is not None:
        _show_sparse(found.tables["sparse_attention"], on_task)


def _on_endpoint(
    opened: Model, name: str, tasks: list[str], on_task: RulerMeasurement, endpoint: str, ledger: Ledger
) -> None:
    """The same tasks, answered by a server; its calls are kept where the ledger is."""
    from tempfile import TemporaryDirectory

    from burnish.core.progress import Progress
    from burnish.evaluate.ruler.endpoint import measure_endpoint
    from burnish.reason.endpoints import named

    asked = named(endpoint, {})
    with TemporaryDirectory() as passing:
        kept = (
            Path(passing) if ledger.directory is None else ledger.directory / "work" / "ruler-endpoints" / asked.called
        )
        found = measure_endpoint(on_task, opened, tasks, asked, kept, progress=Progress())
    _tell_ruler(found, opened, name, ledger, f", {asked.model} at {asked.address}")
    more = [row["more_tokens"] for row in found.tables["ruler_scores"]]
    if None in more:
        print("  The server does not say how many tokens it read, so that a doubled beginning would not be seen.")
    elif any(more):
        print(
            f"  The server read {min(more):+.1f} to {max(more):+.1f} tokens a prompt against what {name} makes of it: "
            "look at its template, its beginning token, and whether it continues the answer prefix."
        )


def _tell_ruler(found: RulerEvaluation, opened: Model, name: str, ledger: Ledger, more: str) -> None:
    """Puts scores into the ledger and prints them."""
    protocol = found.evaluation.protocol
    if ledger.measured(opened.identity, protocol) is None:
        found.record(ledger, opened.identity, name)
    print(f"{name} on RULER, template {protocol['template']}, {protocol['decoding']}{more}")
    for row in found.tables["ruler_scores"]:
        print(_ruler_line(row))


def _show_sparse(rows: list[dict[str, Any]], on_task: RulerMeasurement) -> None:
    """What sparse attention read and lost; of several tasks the worst beside the mean."""
    dense = ", ".join(map(str, on_task.dense_layers)) or "none"
    does = "the answer" if on_task.attention_protocol == "A" else "question and answer"
    print(f"{on_task.attention}, protocol {on_task.attention_protocol} ({does}); dense layers: {dense}")
    for row in rows:
        index = row["index_bytes"] / (row["kv_bytes"] + row["index_bytes"])
        print(
            f"  {row['task']:<16} {row['length']:>7,} tokens  density {row['density']:.1%}; {row['read_share']:.1%} of "
            f"the bytes read, {index:.0%} of that to find keys; attention kept {row['mass_recall']:.1%}; outputs off "
            f"by {row['output_error']:.3f}"
        )
    if not rows:
        print("  every answer was settled by its first token, which read everything")
    if len(rows) > 1:
        worst = min(rows, key=lambda row: row["score"])
        mean = sum(row["score"] for row in rows) / len(rows)
        print(f"  mean {mean:.1%}, worst {worst['task']} at {worst['length']:,} tokens: {worst['score']:.1%}")
    print("  All keys are computed and then masked, so no time is measured.")


def _show_prompts(opened: Model, tasks: list[str], on_task: RulerMeasurement) -> None:
    """What is sent, without a model's weights."""
    from burnish.evaluate.ruler.measure import check_lengths, fitted, places, sample_seed
    from burnish.evaluate.ruler.prompt import added_tokens, audit, check_slip, sent, template_of
    from burnish.evaluate.ruler.tasks import TASKS

    lengths, template = lengths_of(on_task.lengths), template_of(opened.tokenizer, on_task.template)
    check_slip(opened.tokenizer, template, on_task.slip)
    check_lengths(opened, lengths, added_tokens(opened.tokenizer, template, on_task.slip))
    for name in tasks:
        for length in lengths:
            task = TASKS[name]
            depths, seed = places(on_task, task), sample_seed(on_task, task, length, 0)
            prompt, _ = fitted(opened.tokenizer, task, length, depths, template, seed)[0]
            ids = sent(opened.tokenizer, prompt, template, on_task.slip)
            first, last = audit(opened.tokenizer, ids)
            print(f"{name}, {length:,} tokens: {len(ids):,} sent, {task.num_generated} to answer, template {template}")
            print(f"  first: {first!r}\n  last:  {last!r}\n  wanted: {', '.join(prompt.answers)}")


def _ruler_line(row: dict[str, Any]) -> str:
    """A task at a length."""

    def share(name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{row[name]:.1%}" + (f" ({low:.1%} to {high:.1%})" if low is not None else "")

    line = f"  {row['task']:<16} {row['length']:>7,} tokens  {share('score')} of {row['prompts']:,} prompts"
    if "spread" not in row:
        return line
    return (
        f"{line}; worst at depth {row['worst_depth']:.0%}: {row['worst_score']:.1%}; spread {share('spread')}, "
        f"by chance {row['spread_by_chance']:.1%} (p {row['p_value']:.3f})"
    )


def _on_text(opened: Model, name: str, settings: _Settings, ledger: Ledger) -> None:
    from rich.console import Console

    from burnish.core.checkpoint import load
    from burnish.report import ledger_table, run_of

    reference = load(settings.reference) if settings.reference else None
    for one in (opened, reference):
        if one is not None:
            settings.check_engine(one)
    evaluation = settings(opened, reference, ledger=ledger, progress=True)
    if ledger.measured(opened.identity, evaluation.protocol) is None:
        evaluation.record(ledger, opened.identity, name)
    Console().print(ledger_table(run_of(ledger)))
    print(
        f"{evaluation.protocol['text']}, {evaluation.protocol['num_windows']} windows of "
        f"{evaluation.protocol['context']} tokens, {evaluation.protocol['dtype']}, {evaluation.protocol['engine']}"
    )
    if settings.measured_together() is not None:
        _in_engine([*([(reference, str(settings.reference))] if reference else []), (opened, name)], settings, ledger)


def _in_engine(checkpoints: list[tuple[Model, str]], settings: _Settings, ledger: Ledger) -> None:
    """Measures speed in the engine, adds it to the ledger and shows it; the last checkpoint is what was asked for."""
    from rich.console import Console

    from burnish.core.errors import EngineError
    from burnish.core.ledger import Ledger
    from burnish.core.page.console import console_table
    from burnish.report import engine_speed
    from burnish.report.run import values_of

    models = {name: model for model, name in checkpoints}  # one that is its own reference is measured once
    places = {name: Path(str(model.path)) for name, model in models.items()}
    found = settings.together(places, logs=ledger.directory / "logs" if ledger.directory else None, progress=True)
    entries, labels = [], {name: place.name for name, place in places.items()}
    if len(set(labels.values())) < len(labels):
        labels = {name: str(place) for name, place in places.items()}
    for name, one in found.items():
        one.record(Ledger(ledger.directory, node=labels[name]), models[name].identity, name)
        entries.append(engine_speed.SpeedEntry(labels[name], values_of(one.metrics), one.sequences, one.facts or {}))
    comparison = engine_speed.SpeedComparison(next(iter(found.values())).protocol, entries)
    print(f"\nSpeed in {comparison.engine}:")
    Console().print(console_table(engine_speed.rates_table(comparison, brief=True)))
    for line in engine_speed.sentences(comparison):
        print(f"- {line}")
    asked = checkpoints[-1][1]
    if not found[asked].sequences:
        note = next(iter(found[asked].metrics.values()))["note"].removeprefix("not measured: ")
        raise EngineError(note, where=asked)


def _on_pairs(
    opened: Model, name: str, source: str, on_pairs: PairMeasurement, settings: _Settings, ledger: Ledger
) -> None:
    from burnish.core.checkpoint import load
    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.data.preferences import read_pairs
    from burnish.evaluate.pairs import check_reader, difference, measure_pairs

    read = read_pairs(source, on_bad_pair=on_pairs.on_bad_pair, limit=on_pairs.limit, columns=on_pairs.columns)
    reference = load(on_pairs.reference) if on_pairs.reference else None
    other = load(settings.reference) if settings.reference else None
    readers = [(opened, name)] if other is None else [(opened, name), (other, str(settings.reference))]
    for reader, _ in readers:
        check_reader(reader, _reference_of(reader, reference, len(readers)))
    found = []
    for reader, called in readers:
        against = _reference_of(reader, reference, len(readers))
        measured = measure_pairs(
            on_pairs,
            reader,
            read,
            reference=against,
            dtype=settings.dtype,
            device=settings.device,
            progress=Progress(),
        )
        found.append(measured)
        node = Ledger(ledger.directory, node=reader.path.name if reader.path else called)
        if node.measured(reader.identity, measured.evaluation.protocol) is None:
            measured.record(node, reader.identity, called)
        print(_said(called, measured))
    if other is not None:
        _compare(name, str(settings.reference), difference(*found), ledger)


def _compare(first: str, second: str, gap: Interval, ledger: Ledger) -> None:
    """Says which of two rewards ranks more pairs right, and adds it to the ledger."""
    row: dict[str, Any] = {"first": first, "second": second, "difference": gap.value}
    if math.isnan(gap.low):
        print(f"{first} - {second}: {gap.value:+.1%}; one question gives no interval")
        row["verdict"] = "not known"
    else:
        row |= {"low": gap.low, "high": gap.high}
        row["verdict"] = "within noise" if gap.low <= 0 <= gap.high else "a difference"
        said = f"{first} - {second}: {gap.value:+.1%} ({gap.low:+.1%} to {gap.high:+.1%}, paired)"
        print(f"{said}, {row['verdict']}")
    ledger.table("pair_comparison", [row])


def _reference_of(reader: Model, reference: Model | None, num_readers: int) -> Model | None:
    """The reference for a policy; of two readers a reward model has none, alone it is refused with one."""
    from burnish.core.kinds import Kind

    return None if num_readers > 1 and reader.lineage.kind is Kind.SEQUENCE_CLASSIFIER else reference


def _said(name: str, found: PairEvaluation) -> str:
    """Figures and subsets as lines."""
    from burnish.report.metrics import metric
    from burnish.report.run import Value

    protocol = found.evaluation.protocol
    lines = [f"{name} on {protocol['num_pairs']:,} pairs of {protocol['pairs']} ({protocol['reward']})"]
    if found.left_out:
        lines.append(f"  {found.left_out:,} pairs of more than {protocol['max_length']:,} tokens left out")
    for key, one in found.evaluation.metrics.items():
        if one["value"] is None:
            continue
        value = Value(one["value"], one["low"], one["high"], one["unit"])
        ends = metric(key).write_interval(value)
        lines.append(f"  {metric(key).label:<34} {metric(key).write(value)}" + (f" ({ends})" if ends else ""))
    for row in found.tables.get("pair_subsets", []) + found.tables.get("pair_sections", []):
        label = row.get("subset") or row.get("section")
        lines.append(f"  {label:<34} {row['accuracy']:.1%}" + (f" of {row['pairs']:,}" if "pairs" in row else ""))
    return "\n".join(lines)
