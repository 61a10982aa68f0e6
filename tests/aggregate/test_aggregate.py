"""Aggregation prompts are the very calls of GSA and RSA, over own answers of the model, for the share asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from burnish import Aggregate
from burnish.core.checkpoint import Model
from burnish.core.errors import DataError, SettingsError
from burnish.data.chain import Chains, chain_rows
from burnish.generate import generate
from burnish.reason import prompts
from burnish.train.scratch import initialise

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPTS = ROOT / "src" / "burnish" / "reason" / "prompts"
QUICK = {"max_new_tokens": 12, "seed": 5}


@pytest.fixture(scope="module")
def model() -> Model:
    return initialise(
        ROOT / "examples" / "reasoner_small.json",
        tokenizer="bpe:400",
        texts=[path.read_text() for path in sorted(PROMPTS.glob("*.txt"))],
        chat_template=(ROOT / "examples" / "reasoner.jinja").read_text(),
        seed=0,
    )


def chats(number: int) -> list[list[dict[str, str]]]:
    return [row["messages"] for row in chain_rows(Chains(steps=(2, 4)), number, seed=0)]


def made(model: Model, given: list[list[dict[str, str]]], **settings: object) -> list[list[dict[str, str]]]:
    return [row["messages"] for row in Aggregate(**QUICK | settings)(model, data=given).rows]


def test_a_share_of_the_chats_shows_k_own_answers_and_all_keep_their_right_answer(model: Model):
    given = chats(60)
    found = made(model, given, share=0.5, k=3)
    assert [chat[-1] for chat in found] == [chat[-1] for chat in given]
    shown = [chat for chat, plain in zip(found, given, strict=True) if chat != plain]
    assert 18 <= len(shown) <= 42  # a fair coin, four standard errors
    for chat in shown:
        assert len(re.findall(r"^Attempt \d:$", chat[0]["content"], re.MULTILINE)) == 3


def test_the_prompts_are_the_words_of_the_strategies_over_what_the_model_samples(model: Model):
    given = chats(3)
    found = made(model, given, share=1, k=2, prompt="gsa", temperature=0)
    for chat, plain in zip(found, given, strict=True):
        ids = model.tokenizer(plain[0]["content"] + "\n", add_special_tokens=False)["input_ids"]
        (own,) = generate(model.module, model.tokenizer, [ids], max_new_tokens=12, temperature=0)
        assert chat[:-1] == prompts.appended(plain[:-1], prompts.filled(prompts.ours("gsa"), [own.text, own.text]))


def test_one_own_answer_has_the_words_of_refinement(model: Model):
    (chat,) = made(model, chats(1), share=1, k=1)
    assert "Below is an earlier attempt" in chat[0]["content"]


def test_rows_do_not_depend_on_the_batch_and_follow_from_the_seed(model: Model):
    given = chats(9)
    once = made(model, given, share=1, batch_size=8)
    assert once == made(model, given, share=1, batch_size=100)
    assert once != made(model, given, share=1, seed=6)


def test_own_answers_to_one_problem_differ(model: Model):
    (chat,) = made(model, chats(1), share=1, k=2)
    first, second = re.findall(r"Attempt \d:\n(.*?)\n\n", chat[0]["content"], re.DOTALL)
    assert first != second


def test_no_share_leaves_every_chat_as_it_is(model: Model):
    given = chats(4)
    assert made(model, given, share=0) == given


@pytest.mark.parametrize(
    "given, message",
    [
        (["a text"], "row 1: is no chat that ends with an answer"),
        ([[{"role": "user", "content": "3a+4"}]], "row 1: is no chat that ends with an answer"),
    ],
)
def test_rows_without_a_right_answer_are_refused(model: Model, given: list[object], message: str):
    with pytest.raises(DataError, match=message):
        made(model, given)


def test_problems_beyond_the_positions_of_the_model_are_refused(model: Model):
    with pytest.raises(SettingsError, match="passes the 1,024 of the model"):
        made(model, chats(1), share=1, max_new_tokens=2000)


def test_data_must_be_named(model: Model):
    with pytest.raises(SettingsError, match="no data is named"):
        Aggregate()(model)


def test_a_chain_node_makes_the_rows_of_the_command(model: Model, tmp_path: Path):
    from burnish import DrawChains

    data = DrawChains(number=5, seed=3, kind={"modulus": 20, "steps": [4, 6], "repeat": 0})(model)
    rows = [json.loads(line) for line in (data.save(tmp_path / "rows") / "rows.jsonl").read_text().splitlines()]
    assert rows == list(chain_rows(Chains(modulus=20, steps=(4, 6), repeat=0), 5, seed=3))


def test_a_kind_of_chain_that_cannot_be_is_refused():
    from burnish import DrawChains

    with pytest.raises(SettingsError, match="modulus is 2"):
        DrawChains.parse({"kind": {"modulus": 2}}, where="here")
    with pytest.raises(SettingsError, match=r"kind\.modulo"):
        DrawChains.parse({"kind": {"modulo": 20}}, where="here")
