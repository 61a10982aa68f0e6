"""Traces: what a model wrote on problems, kept where the answer is right, cut into steps with their labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import text_digest
from burnish.core.errors import DataError
from burnish.core.store import Store
from burnish.data.chat import written_out
from burnish.generate.problems import problems_of
from burnish.steer.marks import Marks
from burnish.verify import Verifier
from burnish.verify.adapter import CORRECT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.core.checkpoint import Model

TOGETHER = 64
"""Answers that are written and kept together."""
FORMS = "`completion` (a text, or a list of them) beside the problem, or `messages` that end with the assistant's"


@dataclass(frozen=True)
class ReasoningTrace:
    """One right answer as token ids.

    Attributes:
        tokens: of prompt and completion.
        ends: places in `tokens` of those that end a step.
        labels: of these steps: +1 linear, -1 checking.
    """

    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """What a file of traces came to.

    Attributes:
        traces: right ones with at least one step.
        wrong: left out because their answer is not right.
        without_steps: left out because no token ends a step.
    """

    traces: list[ReasoningTrace]
    wrong: int
    without_steps: int


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, where: str) -> list[int]:
    """What stands before the answer: the chat in its template, or without one the last message alone.

    Raises:
        DataError: the template refuses the chat, fails, or does not end.
    """
    if not tokenizer.chat_template:
        return list(tokenizer(messages[-1]["content"])["input_ids"])
    text = written_out(tokenizer, messages, where=where, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def question_ids(tokenizer: PreTrainedTokenizerBase, verifier: Verifier, problem: dict[str, Any]) -> list[int]:
    """The prompt of a problem, with what its verifier says of the form of an answer."""
    chat = [{"role": "user", "content": verifier.prompt(problem)}]
    return prompt_ids(tokenizer, chat, where=str(problem.get("id", "a problem")))


def read_traces(given: Any, tokenizer: PreTrainedTokenizerBase, marks: Marks, verifier: Verifier) -> Read:
    """The traces of a JSON Lines file, of a directory of rows, or of the rows themselves.

    Args:
        given: problems with `completion`, or chats with `messages`.
        tokenizer: of the model.
        marks: that cut them.
        verifier: that says which are right.

    Raises:
        DataError: no such file, a row that is no problem, or one without an answer to read.
    """
    traces, wrong, without = list[ReasoningTrace](), 0, 0
    for number, problem in enumerate(problems_of(given, verifier, where="traces"), start=1):
        where = f"{given}, {problem['id']}" if isinstance(given, str | Path) else f"row {number}"
        chat, completions = _written(problem, verifier, where=where)
        before = prompt_ids(tokenizer, chat, where=where)
        for completion in completions:
            if verifier.score(completion, problem) < CORRECT:
                wrong += 1
            elif trace := trace_of(tokenizer, marks, before, completion):
                traces.append(trace)
            else:
                without += 1
    return Read(traces, wrong, without)


def trace_of(
    tokenizer: PreTrainedTokenizerBase, marks: Marks, before: Sequence[int], completion: str
) -> ReasoningTrace | None:
    """A completion behind its prompt; None where no token ends a step."""
    written = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    steps = marks.steps(tokenizer, written)
    if not steps:
        return None
    ends, labels = zip(*steps, strict=True)
    return ReasoningTrace((*before, *written), tuple(len(before) + end for end in ends), labels)


def sampled(
    model: Model,
    problems: Sequence[dict[str, Any]],
    verifier: Verifier,
    place: Path,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The problems with a `completion` each, written by the model in this process: rows for `read_traces`.

    Args:
        model: that answers.
        problems: of the verifier.
        verifier: that says the form of an answer.
        place: directory in which answers are kept, `TOGETHER` at a time, so that who was stopped goes on.
        temperature, max_new_tokens, seed: of the answers.
    """
    from burnish.generate import generate

    prompts = [question_ids(model.tokenizer, verifier, problem) for problem in problems]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    facts = {"model": model.identity, "prompts": text_digest(prompts), "seed": seed} | options
    store, texts = Store(place / text_digest(facts)[:16]), list[str]()
    for first in range(0, len(prompts), TOGETHER):
        name, own = f"answers-{first}", range(first, min(first + TOGETHER, len(prompts)))
        found = store.find(name, facts)
        if found is None:
            seeds = [f"{seed} {number}" for number in own]
            samples = generate(model.module, model.tokenizer, [prompts[n] for n in own], seed=seeds, **options)
            with store.writing(name, facts) as path:
                (path / "texts.json").write_text(json.dumps([sample.text for sample in samples]))
            found = store.open(name, facts)
        texts += json.loads((found / "texts.json").read_text())
    return [_answered(problem, text) for problem, text in zip(problems, texts, strict=True)]


def kept_answers(run: str | Path, problems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The problems with a `completion` for each answer that a run has kept: rows for `read_traces`.

    Args:
        run: directory of `burnish reason run`, through whatever endpoint, over these problems.
        problems: as given to it; those without an answer are left out.

    Raises:
        DataError: no run, or no answer to any of them.
    """
    from burnish.reason.journal import JournalReader

    reader, texts = JournalReader(run), dict[str, list[str]]()
    try:
        for record in reader.records().values():
            if record.get("text"):
                texts.setdefault(record["problem"], []).append(record["text"])
    finally:
        reader.close()
    rows = [_answered(problem, texts[str(problem["id"])]) for problem in problems if str(problem["id"]) in texts]
    if not rows:
        raise DataError(
            f"has no answer to any of {len(problems):,} problems", where=str(run), fix="name the problems of that run"
        )
    return rows


def _answered(problem: dict[str, Any], completion: str | list[str]) -> dict[str, Any]:
    """A row; a solution that came with the problem is left out."""
    return {key: value for key, value in problem.items() if key != "messages"} | {"completion": completion}


def _written(problem: dict[str, Any], verifier: Verifier, *, where: str) -> tuple[list[dict[str, str]], list[str]]:
    """What was asked, as a chat, and the answers."""
    messages, found = problem.get("messages"), problem.get("completion")
    if isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages):
        *asked, last = messages
        if found is None and asked and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            return asked, [last["content"]]
    completions = [found] if isinstance(found, str) else found
    if not isinstance(completions, list) or not all(isinstance(one, str) for one in completions) or not completions:
        raise DataError("holds no answer", where=where, fix=f"give {FORMS}")
    return [{"role": "user", "content": verifier.prompt(problem)}], completions
