"""What a person gets wrong, from the command line: one sentence that says what, where, and what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from burnish.cli import main

NEAREST = "{name: a, stage: quantize, method: rtn, group_size: 32}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Runs a command that must fail, and returns its one line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("burnish: error: ") and "Traceback" not in lines[0]
    return lines[0]


def plan(capsys: pytest.CaptureFixture[str], start: Path, nodes: str) -> str:
    Path("r.yaml").write_text(f"start: {json.dumps(str(start))}\nnodes: [{nodes}]\n")
    return refused(capsys, "plan", "r.yaml")


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ("{name: a, from: b, stage: train}, {name: b, from: a, stage: train}", "circle: a -> b -> a"),
        ("{name: a, from: nobody, stage: train}", "node 'a' comes from 'nobody', which is no node"),
        (f"{NEAREST}, {NEAREST}", "two nodes are called 'a'"),
        (
            f"{NEAREST}, {{name: s, stage: slim, method: drop, num_experts: 2}}",
            "slim needs dense weights, but is given packed ones; put it before the stage that packs the weights",
        ),
        (
            "{name: r, stage: align, loss: reward, data: pairs.jsonl}, "
            "{name: d, from: start, stage: distill, teacher: r, data: text.txt}",
            "node 'd': teacher must be a causal-lm checkpoint, but is a sequence-classifier",
        ),
        ("{name: d, stage: distill, teacher: ../../etc, data: text.txt}", "no config.json"),
        ("{name: t, stage: train, data: empty.txt}", "empty.txt"),
        ("{name: t, stage: train, data: loop.txt}", "loop.txt"),
        ("{name: t, stage: train, data: nothing.txt}", "nothing.txt"),
        ("{name: q, stage: quantize, bits: 9}", "bits is 9"),
        ("{name: q, stage: quantize, method: rtn, group_size: 48}", "group_size 48 does not divide"),
        ("{name: q, stage: quantize, bits: 3, engine: vllm}", "vLLM has no built-in kernel for 3-bit weights"),
        ("{name: '../up', stage: train}", "'../up' cannot be a name"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_by_plan(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path, nodes: str, sentence: str
):
    (place / "text.txt").write_text("It was the best of times, it was the worst of times. " * 50)
    (place / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (place / "empty.txt").write_bytes(b"")
    (place / "loop.txt").symlink_to("loop.txt")
    (place.parent / "etc").mkdir(exist_ok=True)
    if "../../etc" in nodes:
        nodes = nodes.replace("../../etc", "../etc")
    line = plan(capsys, tiny_llama, nodes)
    assert sentence in line
    assert line.startswith("burnish: error: r.yaml:2") or "no config.json" in line


def test_a_start_that_is_a_loop_of_links_or_empty(capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path):
    (place / "loop").symlink_to("loop")
    assert "loop" in plan(capsys, place / "loop", NEAREST)
    shutil.copytree(tiny_llama, place / "empty")
    (place / "empty" / "model.safetensors").write_bytes(b"")
    assert "is not a safetensors file, or is cut short" in plan(capsys, place / "empty", NEAREST)
    (place / "empty" / "config.json").write_bytes(b"")
    assert "config.json: is not valid JSON" in plan(capsys, place / "empty", NEAREST)


def test_a_lineage_that_was_tampered_with_is_refused(capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path):
    main(["quantize", str(tiny_llama), "--method", "rtn", "--group-size", "32", "-o", "größe 4"])
    lineage = json.loads((place / "größe 4" / "burnish.json").read_text())
    lineage["seed"] = 7
    (place / "größe 4" / "burnish.json").write_text(json.dumps(lineage))
    capsys.readouterr()
    again = ["quantize", tiny_llama, "--method", "rtn", "--group-size", "32", "-o", "größe 4"]
    assert "the lineage file was changed by hand or damaged" in refused(capsys, *again)
    shutil.rmtree(place / "größe 4")  # as the sentence advises
    main(list(map(str, again)))


def test_a_run_of_a_newer_burnish_is_refused(capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text(json.dumps({"format": 99}))
    (place / "r.yaml").write_text(f"start: {tiny_llama}\nnodes: [{NEAREST}]\n")
    assert "run.json: was written by a newer burnish" in refused(capsys, "run", "r.yaml", "-o", "run")
    assert "run.json: was written by a newer burnish" in refused(capsys, "plan", "r.yaml", "-o", "run")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["train", "model", "--data", "", "-o", "out"], "--data"),
        (["train", "model", "--data=", "-o", "out"], "--data"),
        (["quantize", "model", "-o", ""], "-o"),
        (["quantize", "", "-o", "out"], "an argument"),
        (["run", ""], "an argument"),
        (["events", "fit", "", "-o", "out"], "an argument"),
        (["events", "fit", "table.csv", "--time", "", "-o", "out"], "--time"),
    ],
)
def test_an_empty_word_is_refused_and_not_read_as_the_working_directory(
    capsys: pytest.CaptureFixture[str], place: Path, command: list[str], where: str
):
    (place / "text.txt").write_text("what nobody named")
    assert f"error: {where}: is empty; give a value, or leave it out" in refused(capsys, *command)
    assert sorted(path.name for path in place.iterdir()) == ["text.txt"]


@pytest.mark.parametrize("seed", ["-1", "99999999999"])
@pytest.mark.parametrize(
    "command", ["quantize tiny -o q", "audit pairs.jsonl --model tiny -o a", "events simulate --out e.csv", "run"]
)
def test_a_seed_that_no_generator_takes_is_refused(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path, command: str, seed: str
):
    (place / "tiny").symlink_to(tiny_llama)
    (place / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    if command == "run":
        said = plan(capsys, tiny_llama, f"{{stage: quantize, method: rtn, group_size: 32, seed: {seed}}}")
    else:
        said = refused(capsys, *command.split(), "--seed", seed)
    assert "seed" in said
    assert not list(place.glob("[qae]*"))


@pytest.mark.parametrize("out", ["a file", "a file/below"])
def test_a_place_for_measurements_is_opened_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, place: Path, out: str
):
    (place / "a file").write_text("mine")
    monkeypatch.setattr("burnish.core.checkpoint.load", lambda *_: pytest.fail("a model was loaded"))
    said = refused(capsys, "evaluate", tiny_llama, "-o", out)
    assert f"{out}: cannot be written to" in said and "choose another place with -o" in said
    assert (place / "a file").read_text() == "mine"


def test_a_full_disk_leaves_no_half_of_a_simulated_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Path
):
    def full(table: object, path: str) -> None:
        Path(path).write_text("sequence_id,ti")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pyarrow.csv.write_csv", full)
    (place / "e.csv").write_text("what was there")
    command = ("events", "simulate", "--out", "e.csv", "--num-sequences", "2", "--overwrite")
    assert "No space left on device" in refused(capsys, *command)
    assert [path.name for path in place.iterdir()] == ["e.csv"]
    assert (place / "e.csv").read_text() == "what was there"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "distill M --teacher M --data t.txt --context 64 --divergence top_k --top-k 10000 -o out",
            "top_k is 10000, but",
        ),
        (
            "events fit e.csv --fractions nan 0.1 0.1 -o out",
            "split fractions are (nan, 0.1, 0.1), but must be positive",
        ),
        ("events fit e.csv --split-by time --fractions nan 0.1 0.1 -o out", "split fractions are (nan, 0.1, 0.1), but"),
        ("events fit e.csv --lr inf -o out", "lr is inf, but must be positive and finite"),
        ("events fit e.csv --batch-size 0 -o out", "batch_size is 0, but must be at least 1"),
        (
            "ASK --temperature nan -o out",
            "nan",
        ),
        (
            "ASK --max-tokens 0 -o out",
            "is 0",
        ),
    ],
)
def test_a_number_that_means_nothing_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, place: Path, command: str, sentence: str
):
    (place / "t.txt").write_text("It was the best of times, it was the worst of times. " * 50)
    rows = "".join(f"{sequence},{time},a\n" for sequence in range(20) for time in range(5))
    (place / "e.csv").write_text(f"sequence_id,time,mark\n{rows}")
    (place / "p.jsonl").write_text(json.dumps({"id": "1", "question": "1+1?", "answer": "2"}) + "\n")
    ask = "reason run p.jsonl --base-url http://127.0.0.1:1/v1 --model m --strategy direct"
    with pytest.raises(SystemExit):
        main([str(tiny_llama) if word == "M" else word for word in command.replace("ASK", ask).split()])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("burnish: error: ") and sentence in said
    assert not (place / "out").exists()
