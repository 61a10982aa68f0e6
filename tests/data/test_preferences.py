"""Reading preference files."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.data.preferences import fault_of, holds_pairs, pairs_hash, read_pairs
from burnish.data.prompts import split_prompt

GOOD = {"prompt": "p ", "chosen": "a", "rejected": "b"}
SAID = [{"role": "assistant", "content": "yes"}]
OTHER = [{"role": "assistant", "content": "no"}]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_formats_give_the_same_rows(tmp_path):
    rows = [GOOD, GOOD | {"chosen": "c"}]
    write(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = [read_pairs(tmp_path / name).rows for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet")]
    assert all(part == rows for part in found)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="at least one pair must be read, not 0"):
        read_pairs(write(tmp_path / "a.jsonl", [GOOD]), limit=0)


def test_a_directory_is_read_file_by_file(tmp_path):
    write(tmp_path / "a.jsonl", [GOOD])
    write(tmp_path / "b.jsonl", [GOOD, GOOD])
    assert len(read_pairs(tmp_path)) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, r"prefs.jsonl:2: has no column 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, r"prefs.jsonl:2: .* identical"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, r"prefs.jsonl:2: the chosen answer is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, r"'rejected' is of type int"),
        (GOOD | {"margin": "0.5"}, r"prefs.jsonl:2: the margin is '0.5', but it must be a finite number"),
        (GOOD | {"prompt": None}, r"prefs.jsonl:2: the prompt is missing, but other pairs have one"),
        ([1], r"prefs.jsonl:2: is not a JSON object"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, r"prefs.jsonl:2: 'prompt' is of type int"),
        ({"prompt": "p", "chosen": SAID, "rejected": SAID}, r"identical"),
        ({"prompt": "p", "chosen": SAID, "rejected": "b"}, r"one answer is text and the other a list"),
        ({"prompt": SAID, "chosen": "a", "rejected": "b"}, r"of prompt and answers, one is text"),
        (
            GOOD | {"prompt": "p", "chosen": SAID, "rejected": OTHER},
            r"prefs.jsonl:2: is a conversation, but the first pair is plain text",
        ),
        ({"chosen": SAID, "rejected": [{"role": "assistant", "content": " "}]}, r"the rejected answer is empty"),
        ({"chosen": SAID, "rejected": [{"role": "assistant"}]}, r"'rejected' holds a message without content"),
        ({"chosen": [{"content": "a"}], "rejected": OTHER}, r"'chosen' holds a message without a role"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / "prefs.jsonl", [GOOD, row, GOOD, GOOD]))


def test_bad_rows_can_be_dropped_and_are_counted(tmp_path):
    pairs = read_pairs(
        write(tmp_path / "prefs.jsonl", [GOOD, {"chosen": "a", "rejected": "a"}, GOOD]), on_bad_pair="drop"
    )
    assert (len(pairs), pairs.numbers) == (2, [1, 3])
    assert pairs.dropped == {"the chosen and the rejected answer are identical": 1}


def test_a_broken_line_names_its_column(tmp_path):
    (tmp_path / "prefs.jsonl").write_text('{"chosen": "a", "rejected" "b"}\n')
    with pytest.raises(DataError, match=r"prefs.jsonl:1: is not valid JSON .* column 28"):
        read_pairs(tmp_path / "prefs.jsonl")


@pytest.mark.parametrize("name", ["missing.jsonl", "/no/such/file.jsonl", "nothing"])
def test_a_missing_file_is_refused(name):
    with pytest.raises(DataError, match="no such preference file"):
        read_pairs(name)


def test_a_prompt_inside_both_answers_is_cut_where_they_part():
    assert split_prompt({"chosen": "Human: hi Bot: hello", "rejected": "Human: hi Bot: help"}) == (
        "Human: hi Bot:",
        " hello",
        " help",
    )


def test_a_conversation_is_text_with_its_last_message_alone():
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "chosen": [{"role": "assistant", "content": "hello"}],
        "rejected": [{"role": "assistant", "content": "go"}],
    }
    assert split_prompt(row) == ("hi", "hello", "go")


def test_a_tool_call_is_an_answer():
    call = [{"type": "function", "function": {"name": "look", "arguments": {"place": "here"}}}]
    row = {"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "tool_calls": call}]}
    row["rejected"] = SAID
    assert fault_of(row) is None
    assert "look" in split_prompt(row)[1]


def test_hash_depends_on_the_rows_and_not_on_the_file(tmp_path):
    write(tmp_path / "a.jsonl", [GOOD])
    (tmp_path / "b.json").write_text(json.dumps([GOOD]))
    write(tmp_path / "c.jsonl", [GOOD | {"chosen": "z"}])
    assert pairs_hash(tmp_path / "a.jsonl") == pairs_hash(tmp_path / "b.json") != pairs_hash(tmp_path / "c.jsonl")


def test_preference_files_are_told_from_texts(tmp_path):
    write(tmp_path / "pairs.jsonl", [GOOD])
    write(tmp_path / "texts.jsonl", [{"text": "a text"}])
    found = [holds_pairs(name) for name in (tmp_path / "pairs.jsonl", tmp_path / "texts.jsonl", "wikitext2-test")]
    assert found == [True, False, False]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    file = write(tmp_path / "a.jsonl", [GOOD])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_pairs(file).rows == [GOOD] and holds_pairs(file)


def test_half_of_a_surrogate_pair_is_named():
    assert "surrogate" in fault_of(GOOD | {"chosen": "a \ud800"})
