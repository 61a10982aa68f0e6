"""A saved forecaster that is damaged or made to harm gives one sentence, before any memory is taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from malformed import DEEP, Spoil, edited, written
from safetensors.torch import load_file, save_file

from burnish.cli import main


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a forecaster and its table."""
    place = tmp_path_factory.mktemp("fitted")
    rows = "".join(f"{sequence},{time},{'ab'[time % 2]}\n" for sequence in range(12) for time in range(6))
    (place / "e.csv").write_text(f"sequence_id,time,mark\n{rows}")
    main(
        ["events", "fit", str(place / "e.csv"), "--hidden-size", "8", "--epochs", "1", "-o", str(place / "forecaster")]
    )
    return place


def inside(name: str, **changes: Any) -> Spoil:
    """An object of config.json with other values; `...` removes a key."""

    def spoil(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        config[name] = {key: value for key, value in (config[name] | changes).items() if value is not ...}
        (directory / "config.json").write_text(json.dumps(config))

    return spoil


def weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    def spoil(directory: Path) -> None:
        file = directory / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)

    return spoil


KIND = '{"model_type": "burnish-events"'
FIT = "its weights do not fit its config.json"
SPOILT: dict[str, tuple[Spoil, str]] = {
    "a config of brackets": (written("config.json", f'{KIND}, "x": {"[" * DEEP}'), "is nested deeper than 64 levels"),
    "a config of a long number": (written("config.json", f'{KIND}, "x": {"9" * 5000}}}'), "a number of 5,000 digits"),
    "a config that is cut": (written("config.json", KIND), "is not valid JSON"),
    "a config of another format": (edited("config.json", format=[1]), "was written in format [1]"),
    "a config without settings": (edited("config.json", settings=...), "settings is"),
    "a model that nobody knows": (edited("config.json", model="hwakes"), "model is 'hwakes', but input should be"),
    "a model that is a list": (edited("config.json", model=[]), "model is [], but"),
    "settings that are a list": (edited("config.json", settings=[1]), "settings is [1], but"),
    "names that are a number": (edited("config.json", mark_names=3), "mark_names is 3, but"),
    "names of too few types": (edited("config.json", mark_names=["a"]), FIT),
    "a window of nothing": (edited("config.json", window=0), "window is 0, but"),
    "statistics in words": (inside("statistics", mean_gap="long"), "statistics.mean_gap is 'long', but"),
    "baselines of one number": (edited("config.json", baselines={"rate": 1}), "baselines.mark_shares is"),
    "an objective of odd noise": (inside("objective", num_noise=7), "num_noise is 7"),
    "a width of a million": (inside("settings", hidden_size=10**6), FIT),
    "a width in words": (inside("settings", hidden_size="wide"), "holds no forecaster that can be made"),
    "a billion layers": (inside("settings", num_layers=10**9), FIT),
    "a setting that no model has": (inside("settings", speed=3), "holds no forecaster that can be made"),
    "another model's settings": (edited("config.json", model="exponential-hawkes"), "holds no forecaster that can"),
    "no words on the table": (edited("config.json", extra={}), "does not say which columns to read"),
    "a column that is a list": (
        edited("config.json", extra={"reading": {"time": []}, "seen": []}),
        "time is [], but input should be a valid string",
    ),
    "events seen that are none": (edited("config.json", extra={"reading": {}, "seen": [[1]]}), "0.0 is 1, but"),
    "weights of integers": (weights(lambda state: {name: t.to(torch.int8) for name, t in state.items()}), "holds no"),
    "weights of nothing": (written("model.safetensors", b"\x02" + b"\0" * 7 + b"{}"), FIT),
    "weights that are cut": (
        lambda directory: written("model.safetensors", (directory / "model.safetensors").read_bytes()[:-9])(directory),
        "the file is incomplete or corrupt",
    ),
    "weights elsewhere": (
        lambda directory: (
            written("model.safetensors.index.json", '{"weight_map": {"a": "../e.safetensors"}}')(directory),
            (directory / "model.safetensors").unlink(),
        )[1],
        "names '../e.safetensors', which lies outside the checkpoint",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_one_sentence_says_what_is_wrong(capsys: pytest.CaptureFixture[str], fitted: Path, tmp_path: Path, name: str):
    spoil, sentence = SPOILT[name]
    shutil.copytree(fitted / "forecaster", tmp_path / "forecaster")
    spoil(tmp_path / "forecaster")
    for command in ("forecast", "evaluate"):
        with pytest.raises(SystemExit) as caught:
            main(["events", command, str(tmp_path / "forecaster"), str(fitted / "e.csv")])
        assert caught.value.code == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("burnish: error: ") and sentence in said and len(said) < 700
