import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from burnish.core.errors import DataError
from burnish.core.outside import read_lines
from burnish.data import check_disjoint, data_hash, read_rows, read_texts, rows_of
from burnish.data.wikitext import detokenise

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def test_detokenise_joins_punctuation_and_quotes():
    tokenised = (
        "Robert , who 's 1 @,@ 000 @-@ fold , said \" go \" ( twice ) . It is n't 3 @.@ 5 : ok ; the dogs ' <unk>"
    )
    assert detokenise(tokenised) == ("Robert, who's 1,000-fold, said \"go\" (twice). It isn't 3.5: ok; the dogs' unk")


def test_shipped_text_is_one_detokenised_text():
    (text,) = read_texts("wikitext2-test")
    assert text.startswith(" \n = Robert unk = \n")
    assert "@-@" not in text and "<unk>" not in text


def test_shipped_splits_differ():
    assert data_hash("wikitext2-valid") != data_hash("wikitext2-test")


def test_directory_is_read_in_name_order(tmp_path: Path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "ignored.csv").write_text("third")
    assert read_texts(tmp_path) == ["first", "second"]


def test_every_format_of_one_text_has_one_hash(tmp_path: Path):
    rows = ["Ein Satz: größer.", "Two."]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows, "id": [1, 2]}), tmp_path / "a.parquet")
    hashes = {data_hash(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz", "a.parquet")} | {data_hash(rows)}
    assert len(hashes) == 1


def test_chats_survive_as_rows_and_hash(tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    assert read_rows(tmp_path / "chat.jsonl") == [CHAT]


def test_chats_without_a_template_are_refused(tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    with pytest.raises(DataError, match="no chat template"):
        read_texts(tmp_path / "chat.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("spaces.txt", b" \n \n", "holds no text"),
        ("latin.txt", b"caf\xe9 au lait", r"not UTF-8 text \(byte 3"),
        ("binary.txt", b"ab\0cd", "binary file"),
        ("cut.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-12], "not a whole gzip file"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad.jsonl:2: is not valid JSON"),
        ("column.jsonl", b'{"prompt": "a"}\n', r"column.jsonl:1: has neither"),
        ("number.jsonl", b'{"text": 3}\n', r"number.jsonl:1: has neither"),
        ("not.parquet", b"PAR1 but no more", "not a parquet file"),
        ("text.doc", b"text", "of no kind that can be read"),
    ],
)
def test_bad_file_gives_one_clear_sentence(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / name)


def test_parquet_without_text_names_its_columns(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"other": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="it has other"):
        read_texts(tmp_path / "p.parquet")


def test_missing_name_suggests_the_nearest_shipped_text():
    with pytest.raises(DataError, match="did you mean 'wikitext2-test'"):
        read_texts("wikitext-test")


def test_directory_without_texts_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="has no files of the kinds"):
        read_texts(tmp_path)


def test_calibrating_on_the_evaluation_text_is_refused(tmp_path: Path):
    (copy,) = read_texts("wikitext2-test")
    (tmp_path / "renamed.txt").write_text(copy)
    with pytest.raises(DataError, match="shares 1 of its texts"):
        check_disjoint(tmp_path / "renamed.txt", "wikitext2-test")


def test_one_shared_document_is_enough_to_refuse():
    with pytest.raises(DataError, match="shares 1 of its texts"):
        check_disjoint(["a", "b"], ["b", "c"])


def test_shipped_splits_are_disjoint():
    check_disjoint("wikitext2-valid", "wikitext2-test")


def test_rows_come_one_after_the_other(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nthree')
    found = rows_of(path)
    assert [next(found), next(found)] == ["one", "two"]
    with pytest.raises(DataError, match=r"rows.jsonl:3"):
        next(found)


@pytest.mark.parametrize("name", ["lines", "lines.gz"])
def test_lines_are_those_of_the_whole_file_wherever_it_is_cut(tmp_path: Path, name: str):
    content = b"\n".join(bytes([65 + number % 26]) * (number * 7919 % 300_000) for number in range(40)) + b"\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_lines(path)) == content.split(b"\n")


def test_a_line_that_is_no_text_can_be_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\xff\n{"text": "a\x00b"}\n \n{"text": "two"}\n')
    skipped: list[str] = []
    assert read_rows(path, skipped=skipped) == ["one", "two"]
    assert [text.partition(":")[2].partition(":")[0] for text in skipped] == ["2", "3"]
