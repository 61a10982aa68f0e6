"""Control while decoding: without limits it is the plain sample, forced ends have an answer, and sums are bounded."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import DataError, SettingsError
from burnish.reason import Endpoint, strategy
from burnish.reason.probe import Finding, Probe
from burnish.reason.strategies.difficulty import quantile_line
from burnish.reason.strategies.stability import circling
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
        choice: Body = {"message": message, "finish_reason": finish}
        if body.get("logprobs"):
            logprob = self.logprob(task, begun)
            choice["logprobs"] = {"content": [{"token": word, "logprob": logprob} for word in words[:limit]]}
        return json.dumps({"choices": [choice], "usage": usage}).encode()

    def logprob(self, task: str, begun: str) -> float:
        """Of every token: -0.01 of an answer that it knows, -1 of one that it guesses; else harder tasks surprise."""
        if begun.endswith("Final answer:"):
            return -0.01 if begun.count("done") >= self.known(task) else -1.0
        return -random.Random(f"steps {task}").randint(*self.steps) / 100


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


@pytest.mark.slow
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


def test_a_sure_answer_ends_the_thinking_at_the_first_look_that_knows_it(tmp_path: Path):
    model = Thinker()
    found = run(tmp_path, ["stability(agree=0,sure=0.95,chunk=6,growth=1,trial=2)"], 20, transport=model)
    for name, result in found.items():
        task = f"What is the answer to problem {name.partition('|')[0]}?"
        assert result.answer == "1"
        looks = max(1, math.ceil(model.known(task) / 2))  # two steps of three words to a look
        assert result.used["exact"].completion == looks * (6 + 1)
    trials = [body for body in model.bodies if body["max_tokens"] == 2]
    assert all(body["stop"] == ["\n"] and body["logprobs"] is True for body in trials)
    assert not [body for body in model.bodies if body["max_tokens"] == 6 and "logprobs" in body]


def test_one_that_is_never_sure_thinks_to_its_end(tmp_path: Path):
    model = Thinker(steps=(9, 9))
    (result,) = run(tmp_path, ["stability(agree=0,sure=0.999,chunk=6,trial=2)"], transport=model).values()
    assert result.text == model.text("What is the answer to problem p0?")


class Circler(Thinker):
    def text(self, task: str) -> str:
        return "the same words once more\n\n" * 500


def test_a_text_that_goes_in_circles_is_forced_to_answer(tmp_path: Path):
    specs = [f"stability(agree=0,circles={times},chunk=10,growth=1,trial=2)" for times in (2, 4)]
    two, four = run(tmp_path, specs, transport=Circler()).values()
    assert [one.used["exact"].completion for one in (two, four)] == [10 + 1, 20 + 2]
    (calm,) = run(tmp_path / "calm", [specs[1].replace("10", "200")], transport=Thinker()).values()
    assert calm.text == Thinker().text("What is the answer to problem p0?")


@pytest.mark.parametrize(
    ("text", "found"),
    [("", False), ("a b c", False), ("a b c a b c", True), ("x a b a b a b", False), ("1 " * 6, True)],
)
def test_three_words_and_more_are_a_circle(text: str, found: bool):
    assert circling(text, 2) is found


def recording(place: Path, model: Thinker, num: int = 60, **sampling: Any) -> None:
    fields = {"logprobs": True, "temperature": 1.0} | sampling
    endpoints = [Endpoint("http://127.0.0.1:1/v1", "exact", sampling=fields)]
    run(place, ["direct"], num, endpoints=endpoints, transport=model, concurrency=512)


def test_a_budget_that_difficulty_tells_is_what_so_hard_problems_have_needed(tmp_path: Path):
    """Lengths follow from the surprise of the first tokens, so the line is exact: all finish, and nobody has more."""
    model = Thinker(steps=(5, 40))
    recording(tmp_path / "recorded", model)
    spec = f"difficulty(run={tmp_path / 'recorded'},first=6,quantile=0.5)"
    model.bodies.clear()
    for name, result in run(tmp_path / "run", [spec], 60, transport=model).items():
        assert result.text.startswith(model.text(f"What is the answer to problem {name.partition('|')[0]}?"))
    for body in model.bodies:
        task, *begun = [turn["content"] for turn in body["messages"]]
        if begun and not begun[0].endswith("Final answer:"):
            assert abs(6 + body["max_tokens"] - len(model.text(task).split())) <= 1


def test_what_its_budget_does_not_finish_is_forced_to_answer(tmp_path: Path):
    model = Thinker(steps=(5, 40))
    recording(tmp_path / "recorded", model)
    longer = Thinker(steps=(100, 100))
    longer.logprob = model.logprob  # type: ignore[method-assign]
    spec = f"difficulty(run={tmp_path / 'recorded'},first=6,answer=3)"
    for result in run(tmp_path / "run", [spec], 10, transport=longer).values():
        assert result.answer
        assert result.used["exact"].completion <= 40 * 3 + 3 + 3
        assert result.text.count("Final answer:") == 1


@pytest.mark.parametrize(
    ("num", "sampling", "said"),
    [(5, {}, "has 5 samples of 'exact'"), (40, {"max_tokens": 60}, "samples of 'exact', so that quantile 0.9")],
)
def test_a_recording_that_tells_no_budget_is_refused_before_any_call(
    tmp_path: Path, num: int, sampling: Body, said: str
):
    recording(tmp_path / "recorded", Thinker(steps=(5, 40)), num, **sampling)
    model = Thinker()
    with pytest.raises(DataError, match=said):
        run(tmp_path / "run", [f"difficulty(run={tmp_path / 'recorded'})"], transport=model)
    assert not model.bodies


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_line_has_a_quantile_of_the_samples_below_it(seed: int, quantile: float):
    """The condition of the optimum: at most q n lie strictly below, at most (1 - q) n strictly above."""
    draw = np.random.default_rng(seed)
    features = np.column_stack([np.ones(40), draw.normal(size=(40, 2))])
    values = features @ [50.0, 10.0, -5.0] + draw.exponential(20.0, 40)
    left = values - features @ quantile_line(features, values, quantile)
    assert np.sum(left < -1e-6) <= quantile * 40 <= np.sum(left < 1e-6)


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


def test_a_server_that_begins_anew_is_refused_by_its_probe(tmp_path: Path):
    recording(tmp_path, Thinker(), 2)
    denies = Probe("http://h/v1", "m", findings={"prefill": Finding(False, "it began anew")})
    for spec in ("budget-forcing(budget=9)", "budget-forcing(more=1)", "stability", f"difficulty(run={tmp_path})"):
        with pytest.raises(SettingsError, match="an assistant turn that is continued"):
            denies.refuse(strategy(spec))
    for spec in ("budget-forcing", "stability(agree=0)"):
        denies.refuse(strategy(spec))
