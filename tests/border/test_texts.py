"""Texts and recipes that are damaged or made to harm: one sentence with its place, in bounded memory."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import resource
import signal
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from burnish.core.errors import DataError, RecipeError
from burnish.core.outside import BOMB_BYTES, bounded
from burnish.core.recipe import parse_recipe
from burnish.data import read_rows, read_texts
from small_models import small_tokenizer

CHAT = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is nested deeper than 64 levels"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ' + b"9" * 5000 + b"}", "a.jsonl:2: holds a number of 5,000 digits"),
        ("a.jsonl", b'{"text": "\\udc00"}', "a.jsonl:1: holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: has neither `text` (a string) nor `messages`"),
        ("a.jsonl", b"null", "a.jsonl:1: is not an object but null"),
        ("a.jsonl", b'{"messages": [{"role": 3, "content": "x"}]}', "a.jsonl:1, message 1: has no role"),
        ("a.jsonl", b'{"messages": ["x"]}', "a.jsonl:1, message 1: is not {role, content}"),
        ("a.jsonl", b"\xff\xfe{", "is not UTF-8 text"),
        ("a.txt", b"a\0b", "is a binary file, not text"),
        ("a.txt", b" \n", "holds no text"),
        ("a.txt.gz", b"\x1f\x8b\x08nothing", "is not a whole gzip file"),
        ("a.txt.gz", b"plain", "is not a whole gzip file"),
        ("a.parquet", b"PAR1", "is not a parquet file, or is damaged"),
        ("a.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1", "is not a parquet file, or is damaged"),
        ("a.csv", b"text\nx", "is of no kind that can be read"),
    ],
)
def test_a_text_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, sentence: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "   ", "a\0b", "x" * 5000, "~nobody-here/a.txt"])
def test_a_name_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / "a.txt").write_text("What the working directory holds is not what an empty name means.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no data|no such file"):
        read_rows(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="is no ordinary file"):
        read_rows(tmp_path / "a.txt")


@pytest.mark.slow
def test_a_gzip_bomb_is_refused_before_it_has_expanded(tmp_path: Path):
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"a" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match="expands to more than 50 times its size"):
        read_rows(tmp_path / "a.txt.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * BOMB_BYTES


@pytest.mark.slow
def test_a_parquet_bomb_is_refused_before_it_has_expanded(tmp_path: Path):
    table = pyarrow.table({"text": ["a" * 100_000] * 5_000})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", use_dictionary=True)
    del table
    with pytest.raises(DataError, match="expands to more than 50 times its size"):
        read_rows(tmp_path / "a.parquet")


def test_a_repetitive_text_is_no_bomb(tmp_path: Path):
    text = "It was the best of times. " * 100_000
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read_rows(tmp_path / "a.txt.gz") == [text]


def test_messages_that_hold_dates(tmp_path: Path):
    day = datetime.date(2024, 5, 1)
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": [[{"role": "user", "content": day}]]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="message 1: has content that is date, not text"):
        read_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 1 // 0 }}",
        "{% for %}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_chat_template_that_raises(tmp_path: Path, template: str):
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT))
    tokenizer = small_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="the tokenizer's chat template cannot write it out"):
        read_texts(tmp_path / "a.jsonl", tokenizer=tokenizer)


LOOP = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (LOOP, "it takes longer than 0.2 seconds"),
        ("{{ 'a' * 10**10 }}", "it needs more than 2 GB of memory"),
        ("{{ ('a' * 10**6) * 10**6 }}", "it needs more than 2 GB of memory"),
    ],
)
def test_a_chat_template_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, sentence: str
):
    monkeypatch.setattr("burnish.data.chat.TEMPLATE_SECONDS", 0.2)
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT))
    tokenizer = small_tokenizer()
    tokenizer.chat_template = template
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(DataError, match=f"the tokenizer's chat template cannot write it out .{sentence}"):
        read_texts(tmp_path / "a.jsonl", tokenizer=tokenizer)
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == before


def test_a_clock_that_was_running_goes_on():
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        with bounded(300, 1 << 30):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# -- recipes ---------------------------------------------------------------------------------------------------------


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, source="r.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("4: x", "r.yaml:1: the key 4 is no name of a setting"),
        ("null: x", "r.yaml:1: the key null is no name of a setting"),
        ("start: a\n? [a, b]\n: c", "r.yaml:2: the key a list or mapping is no name of a setting"),
        ("start: a\nnodes: [{stage: train, 4: x}]", "r.yaml:2: the key 4 is no name of a setting"),
        ("start: " + "[" * 100_000, "is nested deeper than 32 levels"),
        ("start: " + "{a: " * 50 + "1" + "}" * 50, "is nested deeper than 32 levels, or refers to itself"),
        ("start: &a [*a]", "is nested deeper than 32 levels, or refers to itself"),
        ("start: a\nnodes: [{stage: train, steps: " + "9" * 5000 + "}]", "a number of 5,000 digits"),
        ("start: a\nnodes: [{stage: train, steps: 040}]", "040 is 40 to some and octal to others"),
        ("start: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("start: !!timestamp 2024-05-01", "the tag 'tag:yaml.org,2002:timestamp'"),
        ("start: true", "start is True, which is no text; write it in quotes"),
        ("start: a\nname: 1.50\nnodes: [{stage: train}]", "name is 1.5, which is no text; write it in quotes"),
        ("start: a\nnodes: [{stage: train, name: [a]}]", "name is ['a'], which is no text"),
        ("start: a\nnodes: [{stage: train, launch: {processes: true}}]", "'launch' is written {processes: N}"),
        ("start: a\nnodes: [{stage: train, launch: {processes: 100000}}]", "launch.processes is 100,000, but this"),
        ('start: ""\nnodes: [{stage: train}]', "names no start checkpoint"),
        ("start: \x00", "is not valid YAML"),
        ('start: "\\ud800"', "r.yaml:1: holds half of a surrogate pair"),
        ("", "is empty"),
    ],
)
def test_a_recipe_that_is_no_recipe(text: str, sentence: str):
    assert sentence in refusal(text)


def test_words_and_numbers_are_read_as_yaml_1_2_reads_them():
    recipe = parse_recipe(
        "start: on\nname: no\n"
        "nodes: [{stage: train, name: off, a: yes, b: 1:30, c: 2024-05-01, d: 1e-4, e: 0o40, f: 0x1F, g: ~, h: .inf,"
        " i: 12, j: True, k: +.5, l: '4', m: <<}]",
        source="r.yaml",
    )
    assert (recipe.start, recipe.name, recipe.nodes[0].name) == ("on", "no", "off")
    values = [recipe.nodes[0].settings[key] for key in "abcdefghijklm"]
    assert values == ["yes", "1:30", "2024-05-01", 1e-4, 32, 31, None, float("inf"), 12, True, 0.5, "4", "<<"]


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"sequence_id,ti\xff,mark\n0,1,a\n", "is not a table of comma-separated values"),
        ("a.csv", b"sequence_id,time,mark\n0,1\n", "is not a table of comma-separated values"),
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"sequence_id,time,mark\n", "has no events"),
        ("a.csv", b"sequence_id,time,mark\n0,nan,a\n", "is not a number in row 1"),
        ("a.csv", b"sequence_id,time,mark\n0,noon,a\n", "'noon' in row 1, which is not a time"),
        ("a.csv", b"sequence,time,mark\n0,1,a\n", "did you mean 'sequence'?"),
        ("a.csv.gz", b"sequence_id,time,mark\n0,1,a\n", "is not a whole gzip file"),
        ("a.jsonl", b'{"time": [1, 2], "mark": ["a"]}', "mark has 1 entries, but time has 2"),
        ("a.jsonl", b"[1]", "is not an object"),
        ("a.jsonl", b"[" * 100_000, "is nested deeper than 64 levels"),
        ("a.jsonl", b'{"time": 1}\n{"time": "x"}', "its rows do not make a table"),
        ("a.parquet", b"PAR1PAR1", "is not a parquet file, or is damaged"),
        ("a.xlsx", b"x", "is neither .csv, .tsv, .parquet nor .jsonl"),
    ],
)
def test_events_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, sentence: str):
    from burnish.events.columns import from_table
    from burnish.events.reading import read_any

    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        from_table(read_any(tmp_path / name), where=str(tmp_path / name))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


# -- preferences and decisions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: is nested deeper than 64 levels"),
        ("a.jsonl", b'"a"', "a.jsonl:1: is not a JSON object"),
        ("a.jsonl", b'{"chosen": "a"}', "has no column 'rejected'"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "a"}', "identical"),
        ("a.jsonl", b'{"chosen": "a", "rejected": " "}', "the rejected answer is empty"),
        ("a.jsonl", b'{"chosen": "a", "rejected": ["a"]}', "holds a message without a role"),
        ("a.jsonl", b'{"chosen": "\\ud800", "rejected": "a"}', "holds half of a surrogate pair"),
        ("a.jsonl", b"\xff", "is not UTF-8 text"),
        ("a.jsonl", b"", "holds no usable pair"),
        ("a.jsonl.gz", b"no", "is not a whole gzip file"),
        ("a.json", b"{}", "is not a list of objects"),
        ("a.json", b"[1]", "is not a list of objects"),
        ("a.parquet", b"PAR1", "is not a parquet file, or is damaged"),
    ],
)
def test_pairs_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, sentence: str):
    from burnish.data.preferences import read_pairs

    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_pairs(tmp_path / name)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b'{"decisions": 3}', b'{"decisions": [{"key": "a"}]}', b'{"decisions": [{"key": [], "row": 1}]}'],
)
def test_decisions_that_are_none(tmp_path: Path, content: bytes):
    from burnish.align.decisions import apply_decisions
    from burnish.data.preferences import Pairs

    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(DataError, match="is not an export of the audit page"):
        apply_decisions(Pairs([], [], "a.jsonl"), tmp_path / "d.json")
