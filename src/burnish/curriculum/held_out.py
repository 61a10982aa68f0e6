"""What the phases of a curriculum are measured on: rows that none of them trains on, and how a model does on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from burnish.align.envs import environment
from burnish.core.errors import DataError
from burnish.core.made_data import ROWS_FILE
from burnish.core.stage import Context
from burnish.core.statistics import exact_share
from burnish.curriculum.phase import FIELD
from burnish.data import rows_of
from burnish.data.attempt import try_rows
from burnish.data.forms import Completion
from burnish.data.packing import PackedRows
from burnish.generate import generate
from burnish.generate.problems import is_right, problems_of, prompt_of
from burnish.train.loop import evaluate
from burnish.train.losses import LossFn
from burnish.train.rows import packed
from burnish.verify import Verifier, read_problems, verifier
from burnish.verify.problems import holds_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.align.stage import Grpo
    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan
    from burnish.curriculum.phase import Phase
    from burnish.curriculum.stage import Curriculum


@dataclass(frozen=True)
class MeasuredSet:
    """The held-out rows of one phase.

    Attributes:
        name: of the phase.
        rows: what has a loss; None where there are questions and answers alone.
        problems, prompts: what is asked and graded, and the token ids of it; empty without a verifier.
    """

    name: str
    rows: PackedRows | None
    problems: Sequence[dict[str, Any]]
    prompts: Sequence[list[int]]

    def measure(
        self,
        module: Any,
        tokenizer: PreTrainedTokenizerBase,
        grader: Verifier | None,
        settings: Curriculum,
        loss_fn: LossFn,
        rows_at_once: int,
    ) -> dict[str, float]:
        """`value`, with `low` and `high` where it is a solve rate (of greedy answers); `loss` where rows have one."""
        found = {}
        if self.rows is not None:
            found["loss"] = evaluate(module, self.rows, loss_fn, micro_batch_size=rows_at_once)["loss"]
        if grader is None:
            return {"value": found["loss"]} | found
        samples = generate(
            module,
            tokenizer,
            self.prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=0.0,
            batch_size=settings.batch_size,
        )
        right = sum(is_right(one, grader, problem) for one, problem in zip(samples, self.problems, strict=True))
        share = exact_share(right, len(samples))
        return {"value": share.value, "low": share.low, "high": share.high} | found


def held_out(
    settings: Curriculum, phase: Phase, data: str, model: Model, grader: Verifier | None, ctx: Context
) -> MeasuredSet:
    """The held-out rows of a phase, `held_out_rows` of them that are spread over the whole where there are more.

    Raises:
        DataError: none, or some that cannot be read or graded.
    """
    rows, problems = None, list[dict[str, Any]]()
    if grader is not None:
        found = [shown(phase, problem, data) for problem in problems_of(data, grader)]
        step = max(1.0, len(found) / settings.held_out_rows)
        problems = [found[int(place * step)] for place in range(min(len(found), settings.held_out_rows))]
    if not holds_problems(_file(data)):
        where = f"held_out of {phase.name}"
        with_loss = training_rows(phase, data)
        rows = packed(settings.training(phase), model.tokenizer, with_loss, ctx, where=where).spread(
            settings.held_out_rows
        )
    elif grader is None:
        raise DataError("holds problems, whose answers need a verifier", where=data, fix="name one, or use chats")
    if rows is None and phase.until.loss is not None:
        raise DataError("has no answers, so no loss that could end the phase", where=data, fix="use chats")
    texts = [prompt_of(model.tokenizer, grader, problem) for problem in problems] if grader is not None else []
    prompts = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return MeasuredSet(phase.name, rows, problems, prompts)


def training_rows(phase: Phase, data: str) -> Any:
    """The reference itself, or its rows with the question as the phase shows it.

    Raises:
        DataError: rows that have no such fields, or no question to put it in the place of.
    """
    if phase.prompt is None:
        return data
    return [shown(phase, row, data) for row in read_problems(_file(data))]


def shown(phase: Phase, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row with the question as the phase shows it: in `question`, and as the last that a user says."""
    if phase.prompt is None:
        return dict(row)

    def filled(found: re.Match[str]) -> str:
        if found[1] not in row:
            has = ", ".join(row)
            raise DataError(f"row {row.get('id')!r} has no {found[1]!r} for the prompt (it has {has})", where=where)
        return str(row[found[1]])

    question = re.sub(FIELD, filled, phase.prompt)
    messages = [dict(one) for one in row.get("messages") or ()]
    asked = [one for one in messages if one.get("role") == "user"]
    if asked:
        asked[-1]["content"] = question
    elif messages or "question" not in row:
        raise DataError(f"row {row.get('id')!r} has no question that the prompt could stand for", where=where)
    return dict(row) | {"question": question} | ({"messages": messages} if messages else {})


def check_apart(
    settings: Curriculum, inputs: Mapping[str, str], questions: Mapping[str, set[str]] = MappingProxyType({})
) -> None:
    """Refuses to measure any phase on items that any phase trains on; an item is its question, or a whole text.

    Args:
        settings: of the curriculum.
        inputs: what its phases name.
        questions: {phase: what its environment measures on}; environments themselves train on none of it.

    Raises:
        DataError: it names both phases and how many.
    """
    of_data = [(number, phase) for number, phase in enumerate(settings.phases) if phase.env is None]
    measured = {phase.name: set(_items(inputs[f"phases.{number}.held_out"])) for number, phase in of_data}
    measured |= {name: {_digest(text) for text in texts} for name, texts in questions.items()}
    for number, phase in of_data:
        shared = dict.fromkeys(measured, 0)
        data = inputs[f"phases.{number}.data"]
        for item in _items(data):
            for name, items in measured.items():
                shared[name] += item in items
        for name, count in shared.items():
            if count:
                raise DataError(
                    f"{count:,} of the rows that phase {phase.name!r} trains on are items that phase {name!r} is "
                    "measured on, so what it measures would be too good",
                    where=data,
                    fix="take them out, as `burnish data chain --apart-from` does",
                )


def _items(data: str) -> Iterator[bytes]:
    """A digest of every item of a reference."""
    return map(_digest, texts_of(data))


def texts_of(data: str) -> Iterator[str]:
    """What tells the items of a reference apart: questions, or whole texts."""
    if holds_problems(file := _file(data)):
        return (str(row.get("question", row.get("problem"))) for row in read_problems(file))
    return (_asked(row) for row in rows_of(data))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.strip().encode()).digest()


def _asked(row: Any) -> str:
    if isinstance(row, Completion):
        return row[: row.start]
    if isinstance(row, str):
        return row
    before = next((place for place, one in enumerate(row) if one.get("role") == "assistant"), len(row))
    return "\n".join(str(one.get("content")) for one in row[:before] if one.get("role") == "user")


def _file(data: str) -> Path:
    path = Path(data).expanduser()
    return path / ROWS_FILE if (path / ROWS_FILE).is_file() else path


def check_phases(settings: Curriculum, inputs: Mapping[str, str], start: Model, before: Plan) -> None:
    """What can be tried of the phases without weights.

    Raises:
        DataError: rows that cannot be tokenised or graded, or have no field that a prompt names, or held-out rows that
            are trained on.
    """
    grader = None if settings.verifier is None else verifier(settings.verifier)
    try:
        for number, phase in enumerate(settings.phases):
            if phase.env is not None:
                settings.rewarding(phase).preflight(start, before)
                _try_prompt(phase, settings.rewarding(phase))
                continue
            data, asked = (inputs[f"phases.{number}.{name}"] for name in ("data", "held_out"))
            try_rows(start.tokenizer, training_rows(phase, data), before.config, where=data)
            if grader is not None:
                prompt_of(start.tokenizer, grader, shown(phase, problems_of(asked, grader)[0], asked))
    finally:
        if grader is not None:
            grader.close()
    check_apart(settings, inputs)


def _try_prompt(phase: Phase, asked: Grpo) -> None:
    """Writes a question of a phase's environment as the phase shows it.

    Raises:
        DataError: its rows have no such field.
    """
    if phase.prompt is None:
        return
    with closing(environment(asked.env, 1, asked.seed, asked.kind, tables=asked.tables)) as env:
        shown(phase, env.problems[0], where=f"phase {phase.name!r}, env")
