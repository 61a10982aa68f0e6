"""Pages on which kept episodes are read: every token once, with its kind and weight, and nothing that is markup."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from burnish.cli import main
from burnish.core.checkpoint.tokenizer import read_tokenizer
from burnish.core.progress import Progress
from burnish.data.trajectories import pages as pages_module
from burnish.data.trajectories.curate import Curation, curate
from burnish.data.trajectories.filters import parse_filters
from burnish.data.trajectories.pages import LIST_FILE, pages, token_texts
from burnish.data.trajectories.rows import Masking
from burnish.train.scratch import initialise
from made_episodes import made, write
from small_models import small_tokenizer

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (
    "{% for m in messages %}{{ m.role + eos_token + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name + ' ' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant' + eos_token }}{% endif %}"
)
SPAN = re.compile(
    r'<span(?: class="(?P<class>[^"]*)")?>(?:<b>(?P<told>[^<]*)</b>)?(?P<tokens>(?:<i>[^<]*</i>)*)</span>'
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    made_tokenizer = small_tokenizer()
    made_tokenizer.chat_template = TEMPLATE
    return made_tokenizer


def rows_of(
    episodes: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, place: Path, **weights: float
) -> list[dict[str, Any]]:
    masking = Masking(tokenizer, weights)
    curation = Curation(parse_filters([], has_evaluation=False))
    found = curate([write(place / "e.jsonl", episodes)], curation, masking, place / "work", Progress(enabled=False))
    return list(found.rows)


def tokens_of(page: str) -> list[list[tuple[str, str, str]]]:
    """(class, what is told, text) of every token of every row."""
    found = []
    for row in re.findall(r'<div class="text" dir="auto">(.*?)</div>', page, re.DOTALL):
        spans = list(SPAN.finditer(row))
        assert "".join(span[0] for span in spans) == row  # nothing else stands there
        found.append(
            [
                (span["class"] or "", html.unescape(span["told"] or ""), html.unescape(text))
                for span in spans
                for text in re.findall(r"<i>([^<]*)</i>", span["tokens"])
            ]
        )
    return found


def test_every_token_of_a_row_is_shown_with_its_kind_turn_and_weight(tokenizer, tmp_path: Path):
    episodes = [made("first", turns=2), made("second", turns=1)]
    rows = rows_of(episodes, tokenizer, tmp_path, reasoning=0.5, final=0.0)
    made_pages = dict(pages(rows, tokenizer, lambda: len(rows)))
    shown = tokens_of(made_pages["episodes-01.html"])
    assert len(shown) == len(rows) == 2
    names = {1: "reasoning, weight 0.5", 2: "action", 3: "arguments", 4: "edit", 5: "final, weight 0"}
    for row, tokens in zip(rows, shown, strict=True):
        assert "".join(text for _, _, text in tokens) == tokenizer.decode(row["input_ids"])
        for (class_, told, _), kind, turn in zip(tokens, row["kind"], row["turn"], strict=True):
            assert told == ("" if turn < 0 else f"turn {turn + 1}, {names[kind]}")
            assert class_ == ("" if turn < 0 else f"k{kind}" + (" unweighted" if kind == 5 else ""))
    assert re.findall(r'href="(episodes-[^"]*)">(\w+)', made_pages[LIST_FILE]) == [
        ("episodes-01.html#row-1", "first"),
        ("episodes-01.html#row-2", "second"),
    ]
    trained = sum(turn >= 0 for turn in rows[0]["turn"])
    assert (
        f"<td>{len(rows[0]['input_ids']):,}</td><td>{trained:,}</td><td>{sum(rows[0]['weights']):,.6g}</td>"
        in (made_pages[LIST_FILE])
    )


def test_what_an_episode_says_is_never_markup(tokenizer, tmp_path: Path):
    attack = "</div><script>alert(1)</script><img src=x onerror=alert(1)>&lt;"
    episode = made(attack, turns=1, task=attack)
    episode["messages"][1]["content"] = attack
    rows = rows_of([episode], tokenizer, tmp_path)
    for content in dict(pages(rows, tokenizer, lambda: len(rows))).values():
        assert "<script" not in content and "<img" not in content
    (tokens,) = tokens_of(dict(pages(rows, tokenizer, lambda: len(rows)))["episodes-01.html"])
    assert attack in "".join(text for _, _, text in tokens)


def test_rows_are_spread_over_pages_and_what_is_left_out_is_counted(tokenizer, tmp_path: Path, monkeypatch):
    rows = rows_of([made(f"e{number}", turns=1) for number in range(7)], tokenizer, tmp_path)
    longest = max(len(row["input_ids"]) for row in rows)
    monkeypatch.setattr(pages_module, "PAGE_TOKENS", longest + 1)
    monkeypatch.setattr(pages_module, "MOST_TOKENS", 4 * longest + 1)
    made_pages = dict(pages(iter(rows), tokenizer, lambda: len(rows)))
    assert list(made_pages) == ["episodes-01.html", "episodes-02.html", "episodes-03.html", LIST_FILE]
    assert [len(tokens_of(made_pages[name])) for name in list(made_pages)[:3]] == [2, 2, 1]
    assert "2 more rows are in rows.jsonl" in made_pages[LIST_FILE]
    assert 'href="episodes-03.html#row-5">e4<' in made_pages[LIST_FILE]
    assert 'id="row-5"' in made_pages["episodes-03.html"]


def test_what_is_left_out_is_counted_among_the_rows_that_were_written(tokenizer, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pages_module, "MOST_TOKENS", 1)
    episodes = write(tmp_path / "e.jsonl", [made(f"e{number}", turns=1) for number in range(7)])
    found = curate([episodes], Curation([]), Masking(tokenizer), tmp_path / "work", Progress(enabled=False))
    assert "6 more rows are in rows.jsonl" in dict(found.pages)[LIST_FILE]
    assert len(list(found.rows)) == 7


@settings(max_examples=60)
@given(text=st.text(max_size=60))
def test_the_texts_of_tokens_are_the_text(text: str, tokenizer):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_stands_at_the_last(tokenizer):
    ids = tokenizer("a\N{CJK UNIFIED IDEOGRAPH-4E2D}b", add_special_tokens=False)["input_ids"]
    assert token_texts(tokenizer, ids) == ["a", "", "", "\N{CJK UNIFIED IDEOGRAPH-4E2D}", "b"]


def test_bytes_that_are_no_character_are_shown_and_hold_nothing_back(tokenizer):
    half = tokenizer("\N{CJK UNIFIED IDEOGRAPH-4E2D}", add_special_tokens=False)["input_ids"][0]
    after = tokenizer("abc", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, [*([half] * 40), *after])
    assert "".join(texts[-len(after) :]).endswith("abc")
    assert len(texts) == 40 + len(after)


class TestCommand:
    @pytest.fixture
    def model(self, tiny_llama: Path, tmp_path: Path) -> Path:
        config = ROOT / "examples" / "reasoner_small.json"
        return initialise(config, tokenizer=tiny_llama, chat_template=TEMPLATE).save(tmp_path / "model")

    @pytest.fixture
    def rows(self, model: Path, tmp_path: Path) -> Path:
        episodes = write(tmp_path / "e.jsonl", [made("first", turns=1), made("other", turns=1)])
        main(["data", "trajectories", str(episodes), "--tokenizer", str(model), "-o", str(tmp_path / "rows")])
        return tmp_path / "rows"

    def test_rows_come_with_their_pages_and_one_episode_can_be_shown(self, rows: Path, model: Path, capsys):
        assert {path.name for path in rows.glob("*.html")} == {"episodes-01.html", LIST_FILE}
        page = rows.parent / "other.html"
        main(["data", "show", str(rows), "other", "--tokenizer", str(model), "-o", str(page)])
        assert capsys.readouterr().out.endswith("other.html: 1 rows of other\n")
        shown = page.read_text(encoding="utf-8")
        (tokens,) = tokens_of(shown)
        row = json.loads((rows / "rows.jsonl").read_text(encoding="utf-8").splitlines()[1])
        assert [text for _, _, text in tokens] == token_texts(read_tokenizer(model), row["input_ids"])
        assert "All episodes" not in shown

    def test_a_page_that_is_there_is_replaced_only_where_that_is_said(self, rows: Path, model: Path, capsys):
        page = rows.parent / "page.html"
        command = ["data", "show", str(rows), "{}", "--tokenizer", str(model), "-o", str(page)]
        main([word.format("other") for word in command])
        before = page.read_text()
        with pytest.raises(SystemExit):
            main([word.format("first") for word in command])
        assert "exists; give --overwrite" in " ".join(capsys.readouterr().err.split()) and page.read_text() == before
        main([*(word.format("first") for word in command), "--overwrite"])
        assert capsys.readouterr().out.endswith("page.html: 1 rows of first\n") and page.read_text() != before

    def test_bad_input_is_said_in_one_sentence(self, rows: Path, model: Path, smollm2: Path, capsys):
        plain = rows.parent / "plain"
        main(["data", "trajectories", str(rows.parent / "e.jsonl"), "-o", str(plain)])
        out = rows.parent / "x.html"
        for place, name, tokenizer, said in (
            (rows, "nobody", model, "rows.jsonl: has no episode 'nobody'; name it as its row does, under `id`"),
            (rows.parent / "none", "other", model, "none: no such file; name what"),
            (plain, "other", model, "rows.jsonl:2: has no token ids; make the rows with --tokenizer"),
            (rows, "other", smollm2, "rows.jsonl:2: is made for another tokenizer; name that"),
        ):
            with pytest.raises(SystemExit):
                main(["data", "show", str(place), name, "--tokenizer", str(tokenizer), "-o", str(out)])
            assert said in " ".join(capsys.readouterr().err.split())
