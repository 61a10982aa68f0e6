"""`burnish steer`, from traces to vectors that steer."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
import torch

from burnish.cli import main
from burnish.core.checkpoint import Lineage, Model, load
from burnish.data.chain import Chains, chain_rows
from burnish.data.draws import json_lines
from burnish.reason import Journal
from burnish.steer import read_vectors, steer
from made_vectors import some_vectors
from small_models import make, small_tokenizer

CHAINS = ["--verifier", "chain", "--separator", ";", "--cue", "re:^W", "--think-end", "#"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model, chains as chats, and one of them with a wrong answer."""
    place = tmp_path_factory.mktemp("steer")
    Model(module=make("llama"), tokenizer=small_tokenizer()).save(place / "model")
    rows = list(chain_rows(Chains(steps=(2, 4), direct=0.1), 80, seed=0))
    rows[3]["messages"][1]["content"] += "1"
    (place / "traces.jsonl").write_text(json_lines(iter(rows)))
    return place


def test_traces_become_vectors_that_steer_the_model(place: Path, capsys: pytest.CaptureFixture[str]):
    out = place / "vectors"
    main(["steer", "calibrate", str(place / "model"), "--traces", str(place / "traces.jsonl"), "-o", str(out), *CHAINS])
    said = capsys.readouterr().out
    direct = sum(row["solution"].startswith("#") for row in map(json.loads, (place / "traces.jsonl").open()))
    assert f"left out 1 that are not right and {direct} without a step" in said
    main(["steer", "show", str(out)])
    shown = capsys.readouterr().out
    assert "heads are above chance" in shown and shown in said
    vectors = read_vectors(out)
    assert vectors.made_of["telling"] > 0
    assert vectors.model == load(place / "model").identity
    tokenizer = small_tokenizer()
    assert ";" in [tokenizer.decode([token]) for token in vectors.marks.separator_ids]
    model = load(place / "model")
    with steer(model, vectors, coef=-4, top=1.0) as steering:
        ids = torch.tensor([tokenizer("3a+4b*2").input_ids])
        model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4)
    assert steering.counts.seen == 3


def test_a_model_writes_the_traces_itself(place: Path, capsys: pytest.CaptureFixture[str]):
    """The random model is right nowhere, so what it wrote is kept and the calibration refused in one sentence."""
    words = ["steer", "calibrate", str(place / "model"), "--problems", str(place / "traces.jsonl"), "--limit", "3"]
    with pytest.raises(SystemExit):
        main([*words, "-o", str(place / "own"), "--max-new-tokens", "5", *CHAINS])
    assert "no right trace with a step is left" in capsys.readouterr().err
    (kept,) = (place / "own.work" / "answers").rglob("texts.json")
    written = json.loads(kept.read_text())
    assert len(written) == 3 and all(isinstance(text, str) for text in written)


def test_answers_of_a_run_at_an_endpoint_are_calibrated_on(place: Path, capsys: pytest.CaptureFixture[str]):
    """Two repetitions of a problem are two traces; a problem that failed has none."""
    problems = [json.loads(line) for line in (place / "traces.jsonl").open()][:20]
    records = [(f"{one['id']}#{n}", one["id"], one["solution"]) for one in problems for n in range(2)]

    async def kept(journal: Journal) -> None:
        for name, problem, text in (*records, ("failed", problems[-1]["id"], None)):
            await journal.record(name, {"problem": problem, "text": text})

    with Journal(place / "run", {}) as journal:
        asyncio.run(kept(journal))
    (place / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    asked = ["--problems", str(place / "asked.jsonl"), "--verifier", "chain"]
    main(["steer", "traces", str(place / "run"), *asked, "-o", str(place / "made.jsonl")])
    assert "40 answers to 20 problems" in capsys.readouterr().out
    words = ["--traces", str(place / "made.jsonl"), "-o", str(place / "of-run"), *CHAINS, "--force"]
    main(["steer", "calibrate", str(place / "model"), *words])
    made = read_vectors(place / "of-run").made_of
    assert made["wrong"] == 0 and made["traces"] + made["held_out_traces"] + made["without_steps"] == 40
    (place / "others.jsonl").write_text(json.dumps(problems[0] | {"id": "another"}) + "\n")
    with pytest.raises(SystemExit):
        others = ["--problems", str(place / "others.jsonl"), "--verifier", "chain"]
        main(["steer", "traces", str(place / "run"), *others, "-o", str(place / "none.jsonl")])
    assert "has no answer to any of 1 problems" in capsys.readouterr().err


def test_the_authors_file_is_imported(place: Path, capsys: pytest.CaptureFixture[str]):
    one = {"accuracy": 0.9, "model_dict": {"weight": torch.ones(1, 64)}, "steering_vector": torch.ones(64)}
    torch.save({1: {2: one}}, place / "probe_best.pt")
    words = [str(place / "probe_best.pt"), str(place / "model"), "-o", str(place / "theirs"), "--separator", r"\n"]
    main(["steer", "import", *words])
    assert "1 heads" in capsys.readouterr().out
    assert [(head.layer, head.head) for head in read_vectors(place / "theirs").heads] == [(1, 2)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either traces or problems"),
        (["--traces", "nowhere.jsonl"], "no such file"),
        (["--traces", "traces.jsonl", "--cue", "nothing"], "are linear, so there is nothing to tell"),
        (["--traces", "traces.jsonl", "--separator", "@@@@@"], "no token of the vocabulary holds the separator"),
        (["--traces", "answers.jsonl"], "holds no answer; give `completion`"),
    ],
)
def test_bad_input_is_one_sentence(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    (place / "answers.jsonl").write_text('{"question": "3a+4", "answer": "7", "modulus": 10}\n')
    given = [str(place / word) if word.endswith(".jsonl") else word for word in words]
    base = CHAINS if "--cue" not in words else [*CHAINS[:4], *CHAINS[6:]]
    options = [*given, *(base if "--separator" not in words else CHAINS[:2])]
    run = ["steer", "calibrate", str(place / "model"), "-o", str(place / f"bad-{len(said)}"), *options]
    with pytest.raises(SystemExit):
        main(run)
    *_, line = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said in line


def test_a_sweep_prints_its_table_and_goes_on_where_it_was(place: Path, capsys: pytest.CaptureFixture[str]):
    out = place / "swept"
    main(["steer", "calibrate", str(place / "model"), "--traces", str(place / "traces.jsonl"), "-o", str(out), *CHAINS])
    words = [str(place / "model"), str(out), "--problems", str(place / "traces.jsonl"), "-o", str(place / "sweep")]
    words += ["--verifier", "chain", "--limit", "8", "--max-new-tokens", "6", "--coef", "-4", "--top", "0.5", "--whole"]
    capsys.readouterr()
    main(["steer", "sweep", *words])
    said = capsys.readouterr().out
    main(["steer", "sweep", *words])
    assert capsys.readouterr().out == said
    assert [line[:17].strip() for line in said.splitlines() if "-4   0.5" in line] == [
        "steered",
        "steered",
        "random directions",
        "random heads",
    ]
    content = json.loads((place / "sweep" / "sweep.json").read_text())
    assert len(content["tuning"]) == 1 and len(content["reporting"]) == 3


def test_what_nobody_knows_is_null_in_what_a_sweep_writes(place: Path, capsys: pytest.CaptureFixture[str]):
    """One problem that chooses has no interval, and a plain model that never checks gives no ratio."""
    out = place / "few"
    run = ["--traces", str(place / "traces.jsonl"), "-o", str(out), *CHAINS]
    main(["steer", "calibrate", str(place / "model"), *run])
    words = [str(place / "model"), str(out), "--problems", str(place / "traces.jsonl"), "-o", str(place / "few-swept")]
    words += ["--verifier", "chain", "--limit", "4", "--max-new-tokens", "2", "--coef", "-4", "--top", "0.5"]
    main(["steer", "sweep", *words, "--tuning", "0.25"])
    text = (place / "few-swept" / "sweep.json").read_text()
    (row,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["tuning"]
    assert row["lost"]["low"] is None and row["tokens"] == 2


def test_vectors_do_not_take_the_place_of_their_model(place: Path, capsys: pytest.CaptureFixture[str]):
    one = {"accuracy": 0.9, "model_dict": {"weight": torch.ones(1, 64)}, "steering_vector": torch.ones(64)}
    torch.save({1: {2: one}}, place / "mine.pt")
    words = [str(place / "mine.pt"), str(place / "model"), "--separator", r"\n", "--overwrite"]
    with pytest.raises(SystemExit):
        main(["steer", "import", *words, "-o", str(place / "model")])
    assert "is what is read" in capsys.readouterr().err
    assert (place / "model" / "config.json").is_file()


def test_a_steered_server_leaves_no_directory_of_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    module, temporary = make("llama"), tmp_path / "temporary"
    temporary.mkdir()
    Model(module=module, tokenizer=small_tokenizer()).save(tmp_path / "m")
    some_vectors(module).save(tmp_path / "v", Lineage(stage="steer"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("BURNISH_STEER", "")  # the command sets it; undone at the end
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $PROMETHEUS_MULTIPROC_DIR > {tmp_path / 'told'}\nexit 3\n")
    python.chmod(0o700)
    words = ["serve", "up", str(tmp_path / "m"), "--steer", str(tmp_path / "v"), "--python", str(python)]
    with pytest.raises(SystemExit):
        main([*words, "--log", str(tmp_path / "log")])
    assert "ended with status 3" in capsys.readouterr().err
    assert (tmp_path / "told").read_text().startswith(str(temporary / "vllm-metrics-"))
    assert not list(temporary.iterdir())
