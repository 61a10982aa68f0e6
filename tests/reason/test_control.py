"""Control while decoding: without limits it is the plain sample, forced ends have an answer, and sums are bounded."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.core.errors import SettingsError
from burnish.reason import strategy
from burnish.reason.probe import Finding, Probe
from reason_runs import run

Body = dict[str, Any]


class Thinker:
    """A model that thinks in steps of three words and knows the answer from some step on, drawn for each problem.

    Asked to answer before that step it says something else each time. It continues what it has begun. With `block` its
    steps stand in a think block; with `repeats` the server sends the begun turn again.
    """

    def __init__(self, *, steps: tuple[int, int] = (40, 40), block: bool = False, repeats: bool = False) -> None:
        self.steps, self.block, self.repeats = steps, block, repeats
        self.bodies: list[Body] = []
        self.written: dict[str, int] = {}

    def known(self, task: str) -> int:
        return random.Random(f"known {task}").randint(2, 30)

    def text(self, task: str) -> str:
        num = random.Random(f"steps {task}").randint(*self.steps)
        steps = "".join(f"step {i} done\n\n" for i in range(1, num + 1))
        answer = 1 if num >= self.known(task) else 0
        return f"<think>\n{steps}</think>\n\nFinal answer: {answer}" if self.block else f"{steps}Final answer: {answer}"

    def after(self, task: str, begun: str) -> str:
        whole = self.text(task)
        if begun.endswith("Final answer:"):
            num = begun.count("done")
            return f" {1 if num >= self.known(task) else 2 + num}"
        if whole.startswith(begun):
            return whole[len(begun) :]
        return " once more done\n\n" * 200  # after words that were not its own

    async def __call__(self, endpoint: object, body: Any, /) -> bytes:
        self.bodies.append(dict(body))
        task, *rest = [turn["content"] for turn in body["messages"]]
        begun = rest[0] if rest else ""
        assert bool(begun) == ("continue_final_message" in body)
        words = re.findall(r"\s*\S+\n*|\s+", self.after(task, begun))
        limit = body.get("max_tokens", 10**6)
        shown = "".join(words[:limit])
        self.written[task] = self.written.get(task, 0) + len(words[:limit])
        usage = {"prompt_tokens": len(begun.split()), "completion_tokens": len(words[:limit])}
        message = {"role": "assistant", "content": begun + shown if self.repeats else shown}
        finish = "length" if len(words) >= limit else "stop"
        return json.dumps({"choices": [{"message": message, "finish_reason": finish}], "usage": usage}).encode()


@pytest.mark.parametrize("spec", ["budget-forcing", "stability(agree=0)"])
def test_without_limits_it_is_the_plain_sample(tmp_path: Path, spec: str):
    model = Thinker()
    direct, controlled = run(tmp_path, ["direct", spec], transport=model).values()
    assert controlled == direct
    assert len(model.bodies) == 1


@pytest.mark.parametrize("model", [Thinker(), Thinker(block=True), Thinker(repeats=True)], ids=["", "think", "repeats"])
def test_thinking_that_ends_within_the_budget_is_the_generation_word_for_word(tmp_path: Path, model: Thinker):
    (result,) = run(tmp_path, ["budget-forcing(budget=500)"], transport=model).values()
    assert result.text == model.text("What is the answer to problem p0?").rpartition("</think>\n\n")[2]
    pieces = "stability(agree=99,chunk=7,budget=500)"
    (again,) = run(tmp_path / "pieces", [pieces], transport=model).values()
    assert again.text == result.text


def test_a_turn_that_was_cut_at_its_very_end_is_followed_by_nothing(tmp_path: Path):
    model = Thinker()
    (result,) = run(tmp_path, ["stability(agree=9,chunk=41,growth=1)"], transport=model).values()
    assert result.text == model.text("What is the answer to problem p0?")
    assert model.written["What is the answer to problem p0?"] == 123 + 3 * 1


@pytest.mark.parametrize("model", [Thinker(), Thinker(block=True), Thinker(repeats=True)], ids=["", "think", "repeats"])
@pytest.mark.parametrize("budget", [1, 2, 10, 60, 119])
def test_a_forced_end_has_an_answer(tmp_path: Path, model: Thinker, budget: int):
    for result in run(tmp_path, [f"budget-forcing(budget={budget})"], 5, transport=model).values():
        assert result.answer
        assert result.text.count("Final answer:") == 1


def test_an_early_end_is_sent_on_and_the_sum_is_bounded(tmp_path: Path):
    model = Thinker(steps=(1, 20), block=True)
    specs = [f"budget-forcing(budget={b},more={m},chunk=9,answer=4)" for b in (5, 30, 90) for m in (0, 1, 3)]
    for spec in specs:
        made = strategy(spec).model_dump()
        most = made["budget"] + made["more"] * made["chunk"] + made["answer"]
        found = run(tmp_path / spec, [spec], 20, transport=model)
        written = [sum(one.completion for one in result.used.values()) for result in found.values()]
        assert max(written) <= most
    assert sum("Wait," in body["messages"][-1]["content"] for body in model.bodies) > 20


def test_stable_answers_end_the_thinking_where_no_constant_budget_does_as_well(tmp_path: Path):
    """Of budgets, the one that is right as often must write more."""
    budgets = range(3, 125, 6)
    specs = ["stability(chunk=6,growth=1.1,trial=2)", *(f"budget-forcing(budget={b},answer=2)" for b in budgets)]
    found = run(tmp_path, specs, 60, transport=Thinker(), concurrency=512)
    points = {}
    for spec in specs:
        mine = [one for name, one in found.items() if name.endswith(f"|{strategy(spec).label}")]
        written = np.mean([one.used["exact"].completion for one in mine])
        points[spec] = (written, np.mean([one.answer == "1" for one in mine]))
    words, right = points.pop(specs[0])
    assert right == 1.0
    assert not [spec for spec, (more, as_often) in points.items() if more <= words and as_often >= right]


def test_a_trial_does_not_enter_the_text(tmp_path: Path):
    model = Thinker()
    run(tmp_path, ["stability(chunk=6,trial=2)"], transport=model)
    chunks = [body for body in model.bodies if body["max_tokens"] != 2]
    assert len(chunks) > 3
    assert not [body for body in chunks if "Final answer" in str(body["messages"][1:])]
    assert all(body["temperature"] == 0.0 for body in model.bodies if body["max_tokens"] == 2)


def test_thinking_that_never_settles_ends_with_its_budget(tmp_path: Path):
    model = Thinker(steps=(400, 400))
    (result,) = run(tmp_path, ["stability(agree=9,chunk=10,budget=35,trial=2)"], transport=model).values()
    assert result.answer
    assert sum(b["max_tokens"] for b in model.bodies if b["max_tokens"] != 2) == 35


def test_a_server_that_begins_anew_is_refused_by_its_probe():
    denies = Probe("http://h/v1", "m", findings={"prefill": Finding(False, "it began anew")})
    for spec in ("budget-forcing(budget=9)", "budget-forcing(more=1)", "stability"):
        with pytest.raises(SettingsError, match="an assistant turn that is continued"):
            denies.refuse(strategy(spec))
    for spec in ("budget-forcing", "stability(agree=0)"):
        denies.refuse(strategy(spec))
