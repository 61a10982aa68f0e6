"""No command writes over what it reads, into it, or around it: refused before anything is loaded, and all stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from burnish.cli import main
from burnish.core.checkpoint import load
from burnish.core.ledger import LEDGER_FILE, Ledger
from small_models import PROSE

IS, LIES, HOLDS = "is what is read", ", which is read", ", which is read"

COMMANDS = {
    # -- a checkpoint, and what is made from it
    "quantize model --method rtn --group-size 32 -o model/inside": "model/inside: lies in model, which is read",
    "quantize model --method rtn --group-size 32 -o model/deep/inside": "model/deep/inside: lies in model",
    "quantize link --method rtn --group-size 32 -o model/inside": "model/inside: lies in link, which is read",
    "quantize made --method rtn --group-size 32 -o made --overwrite": f"made: {IS}",
    "quantize made --method rtn --group-size 32 -o ./x/../made --overwrite": f"made: {IS}",
    "quantize made/inner --method rtn --group-size 32 -o made --overwrite": "made: holds made/inner, which is read",
    "quantize inner.run/nodes/a --method rtn --group-size 32 -o inner": "inner.run: holds inner.run/nodes/a",
    "distill model --teacher made --data text.txt --context 32 -o made --overwrite": f"made: {IS}",
    "distill model --teacher made --data text.txt --context 32 -o made/student": "made/student: lies in made",
    "align model --data pairs.jsonl --reference made -o made --overwrite": f"made: {IS}",
    "train model --data texts -o texts/out": "texts/out: lies in texts, which is read",
    "train model --data made/text.txt -o made --overwrite": "made: holds made/text.txt, which is read",
    "train made/config.json --tokenizer bpe:300 --data text.txt -o made --overwrite": "made: holds made/config.json",
    "train config.json --tokenizer made --data text.txt -o made --overwrite": f"made: {IS}",
    "init made --tokenizer bpe:300 --data text.txt -o made --overwrite": f"made: {IS}",
    "init config.json --tokenizer made --data text.txt -o made/inside": "made/inside: lies in made",
    "run recipe.yaml -o model/run": "model/run: lies in model, which is read",
    "plan recipe.yaml -o model/run": "model/run: lies in model, which is read",
    # -- measurements
    "evaluate model -o model": f"model: {IS}",
    "evaluate model -o model/run": "model/run: lies in model, which is read",
    "evaluate model --against made -o made": f"made: {IS}",
    # -- tables and pages
    "audit pairs.jsonl --model model -o model/audit": "model/audit: lies in model, which is read",
    "audit pairs.jsonl --decisions decisions.json -o decisions.json": f"decisions.json: {IS}",
    "events fit events/e.csv -o events --overwrite": "events: holds events/e.csv, which is read",
    "events forecast forecaster e.csv -o e.csv": f"e.csv: {IS}",
    "events forecast forecaster e.csv -o forecaster/config.json": f"forecaster/config.json: {IS}",
    "events evaluate forecaster e.csv -o e.csv": f"e.csv: {IS}",
    "data chain -n 3 --apart-from text.txt -o text.txt --overwrite": f"text.txt: {IS}",
    "data gym --task countdown -n 3 --apart-from text.txt -o text.txt --overwrite": f"text.txt: {IS}",
    "data trajectories text.txt -o text.txt --overwrite": f"text.txt: {IS}",
    "data trajectories texts -o texts/out": "texts/out: lies in texts, which is read",
    "reason serve --local model -o model/calls": "model/calls: lies in model, which is read",
    "reason journal run -o run/journal.db": f"run/journal.db: {IS}",
}


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def filled(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with something of every kind that commands read."""
    place = tmp_path_factory.mktemp("filled")
    shutil.copytree(tiny_llama, place / "model")
    (place / "link").symlink_to("model")
    for made in ("made", "inner.run/nodes/a"):
        load(tiny_llama).save(place / made)
    shutil.copytree(tiny_llama, place / "made" / "inner")
    shutil.copy(tiny_llama / "config.json", place)
    (place / "inner.run" / "run.json").write_text('{"format": 1, "nodes": {}, "files": {}}')
    for text in ("text.txt", "texts/a.txt", "made/text.txt"):
        (place / text).parent.mkdir(exist_ok=True)
        (place / text).write_text(PROSE.read_text())
    pair = {"prompt": "Why? ", "chosen": "Because.", "rejected": "No."}
    (place / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (place / "decisions.json").write_text('{"decisions": []}')
    for table in ("e.csv", "events/e.csv"):
        (place / table).parent.mkdir(exist_ok=True)
        rows = "".join(f"{sequence},{time},a\n" for sequence in range(20) for time in range(5))
        (place / table).write_text(f"sequence_id,time,mark\n{rows}")
    for name in ("forecaster/config.json", "run/journal.db"):
        (place / name).parent.mkdir()
        (place / name).write_text("{}")
    (place / "recipe.yaml").write_text("start: model\nnodes: [{stage: quantize, method: rtn, group_size: 32}]\n")
    return place


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_read_is_not_written_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, filled: Path, command: str
):
    monkeypatch.chdir(filled)
    before = files(filled)
    said = refused(capsys, command)
    assert said.startswith("burnish: error: ") and COMMANDS[command] in said
    assert files(filled) == before and not (filled / "model" / "deep").exists()


def test_measurements_may_be_added_to_the_run_that_holds_the_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llama, tmp_path / "run" / "nodes" / "a")
    main(["evaluate", "run/nodes/a", "--context", "32", "--num-windows", "2", "--no-speed", "-o", "run"])
    assert (tmp_path / "run" / LEDGER_FILE).is_file()


@pytest.mark.parametrize("content", ['{"row": "stage"}\n', "a,b\n1,2\n", "\0\1"])
def test_a_page_takes_the_place_of_a_page_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
):
    monkeypatch.chdir(tmp_path)
    Ledger(tmp_path / "run", node="a").table("anything", [{"step": 1}])
    place = Path("run") / LEDGER_FILE if content.startswith("{") else Path("mine.csv")
    before = place.read_bytes() if place.exists() else content.encode()
    place.write_bytes(before)
    assert f"{place}: exists and is another kind of file" in refused(capsys, f"report run -o {place}")
    assert place.read_bytes() == before
    main(["report", "run"])
    main(["report", "run"])
