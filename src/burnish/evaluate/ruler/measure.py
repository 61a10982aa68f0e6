"""A model on tasks of RULER: prompts of a length, greedy answers, scores by depth; kept sample by sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from burnish.core.checkpoint import Model, compute_dtype, pick_device
from burnish.core.errors import SettingsError
from burnish.core.progress import Progress
from burnish.core.store import Store
from burnish.evaluate.evaluation import Evaluation, Metric
from burnish.evaluate.measure import check_kind, device_name, longest_context, network
from burnish.evaluate.ruler.answering import RulerAnswer, RulerAnswering
from burnish.evaluate.ruler.prompt import Template, added_tokens, check_slip, sent, template_of
from burnish.evaluate.ruler.score import by_depth, spread, summary
from burnish.evaluate.ruler.settings import RulerMeasurement, lengths_of
from burnish.evaluate.ruler.tasks import TASKS, Prompt, RulerTask
from burnish.evaluate.sparse.attention import check
from burnish.evaluate.sparse.spec import parts_of
from burnish.evaluate.sparse.tables import COSTS, LAYERS, cost_row, layer_rows
from burnish.verify.ruler import share_found

if TYPE_CHECKING:
    from burnish.core.ledger import Ledger

PROTOCOL_VERSION = 2
"""Raised whenever a change here changes numbers."""
SCORES, DEPTHS = "ruler_scores", "ruler_depths"
"""Names of the ledger's tables."""
ANSWERS = "answers.json"


@dataclass
class RulerEvaluation:
    """One model on some tasks at some lengths.

    Attributes:
        evaluation: metrics `ruler_TASK_LENGTH`, scores of every prompt, and the protocol.
        tables: `ruler_scores`, a row for each task and length; `ruler_depths`, one for each of their depths; with
            sparse attention `sparse_attention` and `sparse_layers`.
    """

    evaluation: Evaluation
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def record(self, ledger: Ledger, checkpoint: str, path: str) -> None:
        """Appends the measurement and its tables."""
        self.evaluation.record(ledger, checkpoint, path)
        for name, rows in self.tables.items():
            if rows:
                ledger.table(name, rows)


def places(settings: RulerMeasurement, task: RulerTask) -> list[float]:
    """The depths that a sample of a task is asked at; one without a needle is asked once."""
    return [place / (settings.depths - 1) for place in range(settings.depths)] if task.has_depth else [0.5]


def fitted(
    tokenizer: Any, task: RulerTask, length: int, depths: Sequence[float], template: Template, seed: str
) -> list[tuple[Prompt, list[int]]]:
    """One sample at all depths, with as much haystack as fits into `length` tokens together with the answer.

    Raises:
        SettingsError: not even the shortest fits.
    """

    def made(units: int) -> list[tuple[Prompt, list[int]]]:
        drawn = [task.draw(seed, units, length, depth) for depth in depths]
        return [(prompt, sent(tokenizer, prompt, template)) for prompt in drawn]

    def fits(units: int) -> bool:
        return _taken(tokenizer, task, units, length, depths, template, seed) <= length

    check_room(tokenizer, task, length, depths, template, seed)
    least = least_units(task, depths)
    low, high = least, 2 * least
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Where a needle stands can change the tokens at its borders by a few.
    found = made(low)
    while max(len(ids) for _, ids in found) + task.num_generated > length and low > least:
        low -= 1
        found = made(low)
    return found


def check_room(
    tokenizer: Any, task: RulerTask, length: int, depths: Sequence[float], template: Template, seed: str
) -> None:
    """
    Raises:
        SettingsError: not even the shortest prompt fits into `length` tokens together with the answer, or not one
            with a place of its own for every depth.
    """
    shortest = _taken(tokenizer, task, task.least, length, depths, template, seed)
    if shortest > length:
        raise SettingsError(
            f"{length:,} tokens are too few for {task.name}, whose shortest prompt and answer take {shortest:,}",
            where="lengths",
            fix="use a larger length",
        )
    apart = _taken(tokenizer, task, least_units(task, depths), length, depths, template, seed)
    if apart > length:
        raise SettingsError(
            f"{length:,} tokens of {task.name} have no {len(depths)} places for a needle, for which prompt and answer "
            f"take {apart:,}",
            where="depths",
            fix="use fewer depths, or a larger length",
        )


def least_units(task: RulerTask, depths: Sequence[float]) -> int:
    """Units of haystack of the shortest prompt in which no two depths are one place."""
    return max(task.least, len(depths) - 1)


def _taken(
    tokenizer: Any, task: RulerTask, units: int, length: int, depths: Sequence[float], template: Template, seed: str
) -> int:
    """Tokens of a prompt with its answer, the longer of the first and the last depth."""
    ends = [task.draw(seed, units, length, depth) for depth in (depths[0], depths[-1])]
    return max(len(sent(tokenizer, prompt, template)) for prompt in ends) + task.num_generated


def sample_seed(settings: RulerMeasurement, task: RulerTask, length: int, number: int) -> str:
    """What a sample is drawn from."""
    return f"{settings.seed}/{task.name}/{length}/{number}"


def measure_ruler(
    settings: RulerMeasurement,
    model: Model,
    tasks: Sequence[str],
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    store: Store | None = None,
    progress: Progress | None = None,
) -> RulerEvaluation:
    """Scores of a causal language model.

    Args:
        settings: lengths, samples, depths, template.
        model: left as it is.
        tasks: official names.
        dtype, device: as of other measurements.
        store: where answers are kept, so that a measurement that was stopped goes on.
        progress: for a bar.

    Raises:
        SettingsError: a length below what a task needs, or beyond the model's positions.
        CheckpointError: not a causal language model.
    """
    check_kind(model)
    place = pick_device(device)
    compute = compute_dtype(place) if dtype == "auto" else getattr(torch, dtype)
    lengths, template = lengths_of(settings.lengths), template_of(model.tokenizer, settings.template)
    check_slip(model.tokenizer, template, settings.slip)
    check_lengths(model, lengths, added_tokens(model.tokenizer, template, settings.slip))
    check_attention(settings, model, max(lengths))
    protocol = protocol_of(settings, tasks, template) | {
        "dtype": str(compute).removeprefix("torch."),
        "device": device_name(place),
        "threads": torch.get_num_threads(),
    }
    work = [(TASKS[name], length, number) for name in tasks for length in lengths for number in range(settings.samples)]
    check_all_room(settings, model.tokenizer, work, template)
    kept: dict[tuple[str, int], list[list[dict[str, Any]]]] = {}
    bars = progress or Progress(enabled=False)
    answering: RulerAnswering | None = None
    with bars.task("answering prompts of RULER", total=len(work), unit="samples") as task_bar:
        for task, length, number in work:
            key = _key(settings, model, task, length, number, template, protocol)
            name = _name(settings, task, length, number)
            rows = None if store is None else _read(store, name, key)
            if rows is None:
                if answering is None:
                    module = network(model, dtype=compute, device=place)
                    answering = RulerAnswering(module, model.tokenizer, settings)
                seed = sample_seed(settings, task, length, number)
                asked = fitted(model.tokenizer, task, length, places(settings, task), template, seed)
                if settings.slip is not None:  # the same prompts as without it
                    asked = [(prompt, sent(model.tokenizer, prompt, template, settings.slip)) for prompt, _ in asked]
                rows = [row_of(prompt, ids, answering(prompt, ids, task.num_generated)) for prompt, ids in asked]
                if store is not None:
                    _keep(store, name, key, rows)
            kept.setdefault((task.name, length), []).append(rows)
            task_bar.advance()
    return evaluation_of(settings, kept, protocol)


def check_all_room(
    settings: RulerMeasurement, tokenizer: Any, work: Sequence[tuple[RulerTask, int, int]], template: Template
) -> None:
    """Refuses a length that is too short for any task, so that one which stands last is not refused after hours."""
    for task, length, number in work:
        seed = sample_seed(settings, task, length, number)
        check_room(tokenizer, task, length, places(settings, task), template, seed)


def check_lengths(model: Model, lengths: Sequence[int], added: int = 0) -> None:
    """Refuses what the model's positions do not hold; `added` tokens are sent beyond the length."""
    longest = longest_context(model)
    if longest is not None and max(lengths) + added > longest:
        beyond = f" and {added} more by the slip" if added > 0 else ""
        raise SettingsError(
            f"a length is {max(lengths):,} tokens{beyond}, but the model's positions end at {longest:,}",
            where="lengths",
            fix="use shorter ones",
        )


def check_attention(settings: RulerMeasurement, model: Model, longest: int) -> None:
    """Refuses sparse attention that the model cannot have."""
    if settings.attention is not None:
        check(model.config, parts_of(settings.attention), settings.dense_layers, longest)


def attention_of(settings: RulerMeasurement) -> dict[str, Any]:
    """What the protocol says of sparse attention; nothing of dense attention."""
    if settings.attention is None:
        return {}
    return {
        "attention": settings.attention,
        "attention_protocol": settings.attention_protocol,
        "dense_layers": list(settings.dense_layers),
        "attention_kernel": "reference masking: all keys are computed, so that no time is measured",
    }


def protocol_of(settings: RulerMeasurement, tasks: Sequence[str], template: Template) -> dict[str, Any]:
    """What two measurements must share to be comparable, but for where they were computed."""
    drawn = hashlib.sha256()
    for name in tasks:
        task = TASKS[name]
        for number in range(min(3, settings.samples)):
            prompt = task.draw(sample_seed(settings, task, 0, number), task.least, 1024, 0.5)
            drawn.update("\0".join([prompt.text, prompt.prefix, *prompt.answers]).encode())
    return {
        "version": PROTOCOL_VERSION,
        "engine": f"transformers {version('transformers')}",
        "benchmark": "RULER",
        "tasks": list(tasks),
        "prompts": drawn.hexdigest(),
        "lengths": lengths_of(settings.lengths),
        "samples": settings.samples,
        "depths": settings.depths,
        "template": f"{template}, written twice" if settings.slip == "template" else template,
        "answer_prefix": "left out" if settings.slip == "prefix" else "behind the template",
        "beginning_token": "twice" if settings.slip == "bos" else "once",
        "decoding": "greedy",
        "seed": settings.seed,
        "interval": "95 %, Student's t over samples, shares on their logit, depths paired by sample",
    } | attention_of(settings)


# -- what is kept ------------------------------------------------------------------------------------------------------


def _key(
    settings: RulerMeasurement,
    model: Model,
    task: RulerTask,
    length: int,
    number: int,
    template: Template,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    own = {name: protocol[name] for name in ("version", "engine", "dtype", "device", "threads")}
    seed = sample_seed(settings, task, length, number)
    own |= {"model": model.identity, "seed": seed, "depths": places(settings, task), "template": template}
    return own | apart(settings)


def apart(settings: RulerMeasurement) -> dict[str, Any]:
    """What is not as in a plain measurement: sparse attention, or a slip."""
    return attention_of(settings) | ({} if settings.slip is None else {"slip": settings.slip})


def _name(settings: RulerMeasurement, task: RulerTask, length: int, number: int) -> str:
    """Of a sample's directory; those of other attention, or with a slip, lie beside it."""
    others = apart(settings)
    mark = hashlib.sha256(json.dumps(others).encode()).hexdigest()[:8] if others else ""
    return f"{task.name}-{length}-{number:04d}" + (f"-{mark}" if mark else "")


def row_of(prompt: Prompt, ids: list[int], answer: RulerAnswer) -> dict[str, Any]:
    """What is kept of one answer."""
    row = {"depth": prompt.depth, "tokens": len(ids), "wanted": prompt.answers, "answer": answer.text}
    row |= {"score": share_found(answer.text, prompt.answers)}
    return row | ({"attention": answer.cost} if answer.cost else {})


def _read(store: Store, name: str, key: dict[str, Any]) -> list[dict[str, Any]] | None:
    found = store.find(name, key)
    return None if found is None else json.loads((found / ANSWERS).read_text(encoding="utf-8"))


def _keep(store: Store, name: str, key: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    with store.writing(name, key) as path:
        (path / ANSWERS).write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


# -- what is said ------------------------------------------------------------------------------------------------------


def evaluation_of(
    settings: RulerMeasurement, kept: dict[tuple[str, int], list[list[dict[str, Any]]]], protocol: dict[str, Any]
) -> RulerEvaluation:
    """Metrics and tables of kept answers: {(task, length): rows of every depth, of every sample}."""
    metrics: dict[str, Metric] = {}
    tables: dict[str, list[dict[str, Any]]] = {SCORES: [], DEPTHS: [], COSTS: [], LAYERS: []}
    sequences: dict[str, list[float]] = {"sample": [float(number) for number in range(settings.samples)]}
    for (name, length), rows in kept.items():
        scores = np.array([[row["score"] for row in sample] for sample in rows])
        found: dict[str, Any] = dict(summary(scores))
        value: Metric = {"value": found["score"], "unit": "", "note": ""}
        value |= {"low": found["score_low"], "high": found["score_high"]}
        metrics[f"ruler_{name}_{length}"] = value
        sequences[f"{name}_{length}"] = scores.mean(axis=1).tolist()
        if TASKS[name].has_depth:
            depths = places(settings, TASKS[name])
            found |= spread(scores, depths, settings.seed)
            tables[DEPTHS] += [{"task": name, "length": length} | row for row in by_depth(scores, depths)]
        tables[SCORES].append({"task": name, "length": length, "prompts": scores.size} | apart(settings) | found)
        costs = [row.get("attention", {}) for sample in rows for row in sample]
        if cost := cost_row(costs):
            own = {"task": name, "length": length} | attention_of(settings)
            own |= {bound: found[bound] for bound in ("score", "score_low", "score_high")}
            tables[COSTS].append(own | cost)
            tables[LAYERS] += [{"task": name, "length": length} | row for row in layer_rows(costs)]
    return RulerEvaluation(Evaluation(metrics, sequences, protocol), tables)
