"""A model behind a server on the same tasks of RULER.

    burnish evaluate MODEL --task ruler:vt --endpoint NAME=URL,SERVED

MODEL says how long prompts are, by its tokenizer and its template; the server writes its own template, and continues
the answer prefix as the assistant's turn. So it may read other tokens than this package would send, which is found
out: the tokens that it counts are compared with those that were meant. Calls go through the pool and the journal of
`burnish.reason`: they are retried, and none that was answered is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from burnish.core import interrupts
from burnish.core.checkpoint import Model
from burnish.core.errors import SettingsError
from burnish.core.progress import Progress
from burnish.evaluate.ruler.answering import RulerAnswer
from burnish.evaluate.ruler.measure import (
    RulerEvaluation,
    check_all_room,
    check_lengths,
    evaluation_of,
    fitted,
    places,
    protocol_of,
    row_of,
    sample_seed,
)
from burnish.evaluate.ruler.prompt import sent, template_of
from burnish.evaluate.ruler.settings import RulerMeasurement, lengths_of
from burnish.evaluate.ruler.tasks import TASKS, Prompt, RulerTask
from burnish.reason import Endpoint, Journal, Pool, UpstreamError
from burnish.reason.calls import ContextExceeded

GREEDY = {"temperature": 0.0}
Asked = tuple[RulerTask, int, int, Prompt, list[int]]
"""Task, length, number of the sample, prompt, and the tokens that are meant."""


def measure_endpoint(
    settings: RulerMeasurement,
    model: Model,
    tasks: Sequence[str],
    endpoint: Endpoint,
    directory: Path,
    *,
    progress: Progress | None = None,
) -> RulerEvaluation:
    """Scores of what a server answers.

    Args:
        settings: lengths, samples, depths.
        model: whose tokenizer and template count; no weights are read.
        tasks: official names.
        endpoint: who is asked.
        directory: of the journal of calls.
        progress: for a bar.

    Raises:
        SettingsError: sparse attention, no chat template, or a slip that a server alone could make; a length below what
            a task needs.
        UpstreamError: the server cannot be used, or does not continue an assistant's turn.
    """
    template = template_of(model.tokenizer, settings.template)
    check_settings(settings, template)
    lengths = lengths_of(settings.lengths)
    check_lengths(model, lengths)
    work = [(TASKS[name], length, number) for name in tasks for length in lengths for number in range(settings.samples)]
    check_all_room(settings, model.tokenizer, work, template)
    bars = progress or Progress(enabled=False)
    asked: list[Asked] = []
    with bars.task("drawing prompts of RULER", total=len(work), unit="samples") as bar:
        for task, length, number in work:
            seed = sample_seed(settings, task, length, number)
            for prompt, _ in fitted(model.tokenizer, task, length, places(settings, task), template, seed):
                asked.append((task, length, number, prompt, sent(model.tokenizer, prompt, template, settings.slip)))
            bar.advance()
    greedy = replace(endpoint, sampling={**endpoint.sampling, **GREEDY})
    rows = interrupts.run(_answers(settings, greedy, asked, directory, bars))
    kept: dict[tuple[str, int], list[list[dict[str, Any]]]] = {}
    for (task, length, number, _, _), row in zip(asked, rows, strict=True):
        samples = kept.setdefault((task.name, length), [])
        if number == len(samples):
            samples.append([])
        samples[number].append(row)
    found = evaluation_of(settings, kept, protocol_of(settings, tasks, template) | _protocol(endpoint))
    for row in found.tables["ruler_scores"]:
        read = [one["tokens_read"] for sample in kept[row["task"], row["length"]] for one in sample]
        meant = [one["tokens"] for sample in kept[row["task"], row["length"]] for one in sample]
        row["more_tokens"] = None if None in read else mean(read) - mean(meant)
    return found


def check_settings(settings: RulerMeasurement, template: str) -> None:
    """Refuses what a server does not let one decide.

    Raises:
        SettingsError: see `measure_endpoint`.
    """
    why = where = ""
    if settings.attention is not None:
        why, where = "sparse attention is computed in a model of this process, not in a server", "attention"
    elif template == "none":
        why, where = "a server is asked in chats, and without a chat template their length is not known", "template"
    elif settings.slip in ("template", "bos"):
        why, where = (
            f"a server writes template and beginning itself, so that the slip {settings.slip} is its own",
            "slip",
        )
    if why:
        raise SettingsError(why, where=where, fix=f"leave {where} or endpoint out")


def _protocol(endpoint: Endpoint) -> dict[str, Any]:
    """What is the server's, and may be another's than ours."""
    theirs = "the server's"
    return {"engine": f"endpoint, {endpoint.model}", "endpoint": endpoint.called, "beginning_token": theirs} | {
        "template": theirs
    }


async def _answers(
    settings: RulerMeasurement, endpoint: Endpoint, asked: Sequence[Asked], directory: Path, bars: Progress
) -> list[dict[str, Any]]:
    facts = {"endpoint": endpoint.called, "model": endpoint.model}
    with Journal(directory, facts, secrets=endpoint.secrets) as journal:
        async with Pool([endpoint], journal, seed=settings.seed) as pool:
            with bars.task("asking the server", total=len(asked), unit="prompts") as bar:

                async def one(each: Asked) -> dict[str, Any]:
                    row = await _answer(settings, pool, endpoint, each)
                    bar.advance()
                    return row

                return await asyncio.gather(*(one(each) for each in asked))


async def _answer(settings: RulerMeasurement, pool: Pool, endpoint: Endpoint, asked: Asked) -> dict[str, Any]:
    task, length, number, prompt, ids = asked
    path = f"{sample_seed(settings, task, length, number)}/{prompt.depth}"
    turns = [{"role": "user", "content": prompt.text}]
    fields: dict[str, Any] = {"max_tokens": task.num_generated}
    if settings.slip != "prefix":
        turns.append({"role": "assistant", "content": prompt.prefix})
        fields |= endpoint.continuing
    try:
        reply = await pool.call(None, turns, path, fields)
    except UpstreamError as error:
        if isinstance(error, ContextExceeded) or error.status not in (400, 422) or settings.slip == "prefix":
            raise
        raise UpstreamError(
            f"refuses to continue the answer prefix ({error.what})",
            where=error.where or endpoint.address,
            status=error.status,
            fix="use --slip prefix, which sends none and says so, or another server",
        ) from None
    row = row_of(prompt, ids, RulerAnswer(reply.text))
    return row | {"tokens_read": None if reply.usage.unknown else reply.usage.prompt}
