"""A run's records, what is counted of them, and the page that shows it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import CHROMIUM, WIDTHS, check_layout
from burnish.core.errors import DataError, SettingsError
from burnish.core.statistics import paired_interval
from burnish.reason import Endpoint, JournalReader, Price, Usage
from burnish.reason.endpoints import named, price, priced, read_endpoints
from burnish.reason.harness import run
from burnish.reason.page import page, write_page
from burnish.reason.tally import Found, read
from burnish.verify import verifier
from exact_server import Chain, InProcess

URL = "http://127.0.0.1:1/v1"
SAMPLING = {"logprobs": True, "top_logprobs": 3}
PRICES = {"strong": Price(2.0, 8.0, 0.5), "cheap": Price(0.2, 0.8)}
STRATEGIES = [
    "direct",
    "self-consistency:12",
    "gsa:3",
    "rsa(n=4,k=2,loops=2)",
    "routed-rsa(models=cheap+strong,n=4,k=2,loops=2)",
]


def levels(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
    """Easy and hard problems, so that a vote has something to gain."""
    level = random.Random(messages[0]["content"][:14]).random()
    return Chain(first=level, any_right=0.7, none=0.2)(model, messages, draw)


def made(directory: Path, specs: list[str] = STRATEGIES, *, prices: bool = True, num: int = 12, **more: Any) -> Found:
    problems = [{"id": str(i), "question": f"Is problem {i:03}?", "answer": "1"} for i in range(num)]
    endpoints = [Endpoint(URL, name, price=PRICES[name] if prices else None, sampling=SAMPLING) for name in PRICES]
    more = {"transport": InProcess(levels), "concurrency": 512} | more
    with verifier("number") as grader:
        run(problems, grader, specs, endpoints, directory, **more)
    return read(directory)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return made(tmp_path_factory.mktemp("run"), seeds=2)


def tally(found: Found, name: str) -> Any:
    return next(one for one in found.tallies if one.strategy.startswith(name))


def test_costs_are_money_where_all_prices_are_known_and_tokens_where_one_is_not(found: Found, tmp_path: Path):
    assert found.unit == "money"
    gsa = tally(found, "gsa")
    assert gsa.cost * 24 == pytest.approx(gsa.used["strong"].cost(PRICES["strong"]))
    routed = tally(found, "routed")
    assert set(routed.used) == {"cheap", "strong"}
    assert routed.cost * 24 == pytest.approx(sum(used.cost(PRICES[name]) for name, used in routed.used.items()))
    unpriced = made(tmp_path, ["direct", "self-consistency:4"], prices=False)
    assert unpriced.unit == "tokens"
    used = sum(tally(unpriced, "self").used.values(), Usage())
    assert tally(unpriced, "self").cost * 12 == used.prompt + used.completion
    assert "money is not" in page(unpriced, "x")
    assert ">unknown<" in page(unpriced, "x")


def test_prices_may_be_given_to_the_report(tmp_path: Path):
    made(tmp_path, ["direct"], prices=False)
    assert read(tmp_path, PRICES).unit == "money"
    assert read(tmp_path, PRICES).tallies[0].cost == pytest.approx(
        made(tmp_path / "priced", ["direct"]).tallies[0].cost
    )


def test_what_a_server_does_not_count_has_no_cost(tmp_path: Path):
    async def silent(endpoint: object, body: object) -> bytes:
        reply = json.loads(await InProcess()(endpoint, body))
        del reply["usage"]
        return json.dumps(reply).encode()

    found = made(tmp_path, ["direct", "gsa:3"], transport=silent)
    assert [one.cost for one in found.tallies] == [None, None]
    assert tally(found, "gsa").against.why == "a cost is unknown"
    assert "no cost is known" in page(found, "x")


def test_a_strategy_is_compared_with_the_vote_that_costs_as_much(found: Found):
    """By hand: samples for the money, the vote between two numbers of them, means by problem, paired."""
    gsa, curve = tally(found, "gsa"), found.curves[0]
    assert curve.model == "strong"
    assert len(curve.vote) == 12
    samples = gsa.cost / curve.cost
    lower = int(samples)
    level = curve.by_place[:, lower - 1] * (lower + 1 - samples) + curve.by_place[:, lower] * (samples - lower)
    assert gsa.against.samples == samples
    assert gsa.against.vote == pytest.approx(level.mean())
    by_problem = level.reshape(12, 2).mean(1)
    assert gsa.against.difference.value == pytest.approx(gsa.accuracy.value - by_problem.mean())
    assert 3 < samples < 12


def test_the_interval_of_the_comparison_is_paired_by_problem(tmp_path: Path):
    found = made(tmp_path, ["self-consistency:8", "gsa:2"], seeds=2)
    records = JournalReader(tmp_path).records()
    gsa, curve = tally(found, "gsa"), found.curves[0]
    kept = {(r["problem"], r["repetition"]): r["score"] for r in records.values() if "gsa" in r["strategy"]}
    scores = np.array([kept[place] for place in curve.places])
    lower = int(gsa.against.samples)
    share = gsa.against.samples - lower
    level = curve.by_place[:, lower - 1] * (1 - share) + curve.by_place[:, lower] * share
    expected = paired_interval(scores.reshape(-1, 2).mean(1), level.reshape(-1, 2).mean(1))
    assert gsa.against.difference.low == pytest.approx(expected.low)
    assert gsa.against.difference.high == pytest.approx(expected.high)


def test_a_vote_of_all_samples_is_the_strategy(found: Found):
    vote = tally(found, "self-consistency")
    assert found.curves[0].vote[0].value == pytest.approx(found.curves[0].by_place[:, 0].mean())
    assert vote.accuracy.value == pytest.approx(found.curves[0].vote[-1].value, abs=0.1)  # but for ties
    assert vote.cost == pytest.approx(12 * found.curves[0].cost)
    assert vote.against.why == "is a vote itself"


def test_what_is_too_dear_for_the_samples_of_the_run_is_said(tmp_path: Path):
    found = made(tmp_path, ["self-consistency:3", "rsa(n=4,k=2,loops=3)"])
    against = tally(found, "rsa").against
    assert against.difference is None
    assert against.why.startswith("needs ")
    assert against.why.endswith("samples, the run has 4")


def test_populations_are_told_by_member_majority_and_best(found: Found):
    loops = tally(found, "rsa").loops
    assert len(loops) == 2
    for loop in loops:
        assert loop.mean.value <= loop.best.value
        assert loop.majority.value <= loop.best.value
        assert 1 <= loop.distinct <= 4
    assert loops[1].majority.value == tally(found, "rsa").accuracy.value
    assert tally(found, "gsa").loops == ()  # its second population is one answer


def test_a_finished_run_is_read_and_not_done_again_and_strategies_may_be_added(tmp_path: Path):
    transport = InProcess(levels)
    made(tmp_path, ["self-consistency:4"], transport=transport)
    asked = len(transport.bodies)
    made(tmp_path, ["self-consistency:4"], transport=transport)
    assert len(transport.bodies) == asked == 48
    found = made(tmp_path, ["gsa:4"], transport=transport)
    assert len(transport.bodies) == asked + 12
    assert len(found.tallies) == 2
    made(tmp_path, ["gsa:4"], transport=transport, seeds=2)
    assert len(transport.bodies) == 2 * 12 * 5


def test_without_curves_nothing_but_answers_is_graded_and_they_may_be_had_later(tmp_path: Path):
    transport = InProcess(levels)
    found = made(tmp_path, ["self-consistency:4"], transport=transport, curves=False)
    assert found.curves == ()
    assert made(tmp_path, ["self-consistency:4"], transport=transport).curves
    assert len(transport.bodies) == 48


def test_a_page_escapes_what_it_shows_and_says_what_was_unfinished(tmp_path: Path):
    from burnish.reason import Budget

    found = made(tmp_path, ["self-consistency:6"], budget=Budget(calls=50))
    text = page(found, "<script>alert(1)</script>")
    assert "<script>alert" not in text
    assert "were ended by a budget or an error" in text


@pytest.mark.slow
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary on this machine")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_screen(found: Found, tmp_path: Path, width: int):
    check_layout(write_page(tmp_path, found).read_text(), width, tmp_path)


def test_models_of_a_file_have_their_prices_and_fields():
    text = '[a]\nurl = "http://h/v1"\nprice_in = 1\nprice_out = 2\nsampling = {top_p = 0.8}\n'
    text += '[b]\nurl = "http://g/v1"\nmodel = "m"\n'
    one, two = read_endpoints(text, {"temperature": 1.0}, where="f.toml")
    assert (one.called, one.model, one.price) == ("a", "a", Price(1.0, 2.0))
    assert one.sampling == {"temperature": 1.0, "top_p": 0.8}
    assert (two.called, two.model, two.price) == ("b", "m", None)
    assert priced([one, two], price(3.0, 4.0))[1].price == Price(3.0, 4.0)
    assert named("cheap=http://h/v1,org/model", {}).model == "org/model"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a", "is no TOML"),
        ("", "one table for each model"),
        ("a = 1", "one table for each model"),
        ("[a]\nurl = 'http://h/v1'\nprice_in = 1", "price_in and price_out belong together"),
        ("[a]\nurl = 'http://h/v1'\nprice_in = -1\nprice_out = 1", "price_in"),
        ("[a]\nurl = 'nowhere'", "is no address of a server"),
        ("[a]\nurl = 'http://h/v1'\napi_key = 'sk'", "api_key"),
    ],
)
def test_a_file_of_models_that_cannot_be_is_refused_in_a_sentence(text: str, sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        read_endpoints(text, {}, where="f.toml")


@pytest.mark.parametrize("spec", ["http://u:secret@h/v1", "a=http://u:secret@h/v1", "=http://u:secret@h/v1,m"])
def test_a_model_that_is_named_wrongly_is_refused_without_its_credentials(spec: str):
    with pytest.raises(SettingsError, match="write NAME=URL,MODEL") as caught:
        named(spec, {})
    assert "secret" not in str(caught.value)


def test_a_run_without_records_or_with_half_a_price_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no journal"):
        read(tmp_path)
    with pytest.raises(SettingsError, match="one of two prices is missing"):
        price(1.0, None)
    with pytest.raises(SettingsError, match="a model 'c' that the run does not have"):
        made(tmp_path, ["routed-rsa(models=c+strong)"])


def test_a_run_of_one_problem_says_that_it_has_no_intervals(tmp_path: Path):
    from burnish.cli.reason import _lines

    found = made(tmp_path, ["direct", "self-consistency:8", "gsa:2"], num=1)
    shown = re.sub("<(script|style).*?</\\1>", "", page(found, "one"), flags=re.DOTALL)
    for said in (shown, *_lines(found)):
        assert not re.search(r"\bnan\b", said, re.IGNORECASE)
    assert "interval unknown" in shown
    assert any("interval unknown" in line for line in _lines(found))
