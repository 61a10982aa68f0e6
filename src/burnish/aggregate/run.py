"""Aggregation-aware rows: a model learns to read what it wrote itself.

    plain row         x -> y                    y the right answer that the data has
    aggregation row   x, s_1 .. s_k -> y        s_i ~ p(. | x) of the model that is given, all k of one problem

"Recursive Self-Aggregation Unlocks Deep Thinking in Large Language Models", 2025, arXiv:2509.26626, section on
aggregation-aware training: half of the prompts are of the second kind, as training for the task alone made aggregation
worse there. The paper trains by reinforcement (RLOO); here the right answer is known and is learned as text, which is
what a model of a million parameters can do. Words and order of the prompts are those of `burnish.reason`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from burnish.core.errors import DataError
from burnish.core.made_data import Data
from burnish.core.stage import Context
from burnish.data import read_rows
from burnish.data.chat import written_out
from burnish.data.forms import Row
from burnish.generate import generate
from burnish.reason import prompts

if TYPE_CHECKING:
    from burnish.aggregate.stage import Aggregate
    from burnish.core.checkpoint import Model

Messages = list[dict[str, Any]]


def run(settings: Aggregate, model: Model, ctx: Context) -> Data:
    """The chats of `ctx.inputs["data"]` in their order, a share of them as aggregation prompts.

    Raises:
        DataError: a row that is no chat, does not end with an answer, or whose problem the template cannot write.
        SettingsError: problems too long for the model.
    """
    chats = [_chat(row, f"row {number}") for number, row in enumerate(read_rows(ctx.inputs["data"]), start=1)]
    chosen = [i for i in range(len(chats)) if _chance(settings, "share", i).random() < settings.share]
    own = _own_answers(settings, model, ctx, [chats[i][:-1] for i in chosen])
    template = prompts.ours("rsa_single" if settings.k == 1 and settings.prompt == "rsa" else settings.prompt)
    shown = dict(zip(chosen, own, strict=True))
    ctx.ledger.table("aggregation prompts", [_counts(chats, shown)])

    def rows() -> Iterator[dict[str, Any]]:
        for number, chat in enumerate(chats):
            problem: Sequence[Any] = chat[:-1]
            if number in shown:
                problem = prompts.appended(problem, prompts.filled(template, shown[number]))
            yield {"messages": [*problem, chat[-1]]}

    return Data(rows())


def _chat(row: Row, where: str) -> Messages:
    if isinstance(row, str) or len(row) < 2 or row[-1]["role"] != "assistant":
        raise DataError("is no chat that ends with an answer of the assistant", where=where)
    return [dict(message) for message in row]


def _own_answers(settings: Aggregate, model: Model, ctx: Context, problems: Sequence[Messages]) -> list[list[str]]:
    """k samples of every problem."""
    tokenizer = model.tokenizer
    ids = []
    for problem in problems:
        text = written_out(tokenizer, problem, where="data", add_generation_prompt=True)
        ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    module: Any = model.module
    module = module.to(ctx.device)
    share = max(1, settings.batch_size // settings.k)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # little padding
    answers: list[list[str]] = [[] for _ in ids]
    with ctx.progress.task("own answers", total=len(ids), unit="problems") as task:
        for start in range(0, len(order), share):
            together = order[start : start + share]
            samples = generate(
                module,
                tokenizer,
                [ids[index] for index in together],
                n=settings.k,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                seed=[_chance(settings, "answers", index).getrandbits(32) for index in together],
                batch_size=settings.batch_size,
            )
            for place, index in enumerate(together):
                answers[index] = [one.text for one in samples[place * settings.k : (place + 1) * settings.k]]
            task.advance(len(together))
    return answers


def _counts(chats: Sequence[Messages], shown: dict[int, list[str]]) -> dict[str, Any]:
    """How many rows, and how often an own answer is the right one to the letter."""
    same = sum(one.strip() == chats[number][-1]["content"].strip() for number, own in shown.items() for one in own)
    answers = sum(map(len, shown.values()))
    return {"rows": len(chats), "aggregation_prompts": len(shown), "own_answers": answers, "same_as_given": same}


def _chance(settings: Aggregate, *names: object) -> random.Random:
    """Chance that depends on the seed and on names, and on no order of events."""
    return random.Random(" ".join(map(str, ("aggregate", settings.seed, *names))))
