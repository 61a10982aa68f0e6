"""Everything that any room writes so as to go on after a kill, listed; all of it lies in entries of the store.

A stage or command that keeps something else, or keeps it elsewhere, fails here until its line says so.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.align.audit import AuditSettings, audit_pairs
from burnish.core.errors import DataError
from burnish.core.store import KEY_FILE
from burnish.data.chain import Chains, chain_rows
from burnish.data.packing import MARKS, PackedRows
from burnish.data.preferences import read_pairs
from burnish.events import EventForecaster, SmurfTHP
from burnish.events.hawkes import PRESETS, simulate_hawkes
from burnish.methods import VERBS
from small_models import PROSE

PAIRS = Path(__file__).resolve().parents[1] / "examples" / "data" / "qa_feedback_120.jsonl"
LOGS = {"metrics.jsonl"}
"""Written for people to look at and never read again."""
SHORT = {"context": 32, "batch": 4, "steps": 4, "save_every": 2}
CALIBRATION = {"tokens": 512, "length": 64}
CHECKPOINT = (
    "README.md",
    "burnish.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def _train(model: burnish.Model, place: Path) -> None:
    burnish.Train(**SHORT)(model, data=[PROSE.read_text()], work_dir=place)


def _train_from_a_large_file(model: burnish.Model, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.train.rows.LARGE", 0)
        text = place.parent / "text.txt"
        shutil.copy(PROSE, text)
        burnish.Train(**SHORT)(model, data=str(text), work_dir=place)


def _train_with_kept_weights(model: burnish.Model, place: Path) -> None:
    objective = "weights=kl,window=8,sinks=1,cache=true"
    burnish.Train(**SHORT, objective=objective)(model, data=[PROSE.read_text()[:200]], work_dir=place)


def _distill(model: burnish.Model, place: Path) -> None:
    stage = burnish.Distill(**SHORT, divergence="top_k", offline=True)
    stage(model, data=[PROSE.read_text()], teacher=burnish.load(model.path or ""), work_dir=place)


def _tune(model: burnish.Model, place: Path) -> None:
    packed = burnish.Quantize(method="rtn", group_size=32)(model).save(place.with_name("packed"))
    burnish.Tune(**SHORT)(burnish.load(packed), data=[PROSE.read_text()], teacher=str(model.path), work_dir=place)


def _qat(model: burnish.Model, place: Path) -> None:
    burnish.Qat(**SHORT, group_size=32, low_rank=2)(model, data=[PROSE.read_text()], work_dir=place)


def _align(model: burnish.Model, place: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_every": 2, "batch": 4, "micro_batch": 2, "max_length": 128}
    burnish.Align(**settings, on_bad_pair="drop")(model, data=str(PAIRS), work_dir=place)


def _grpo(model: burnish.Model, place: Path) -> None:
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    shape: dict[str, Any] = {"problems": 2, "held_out": 0, "prompts": 2, "rollouts": 2, "max_new_tokens": 4}
    burnish.Grpo(**shape, updates=2, save_every=1)(model, work_dir=place)


def _quantize(model: burnish.Model, place: Path) -> None:
    stage = burnish.Quantize(method="yaqa", bits=3, group_size=32, **CALIBRATION)
    stage(model, calibration=[PROSE.read_text()], work_dir=place)


def _learn(model: burnish.Model, place: Path) -> None:
    stage = burnish.Quantize(method="learned", start="rtn", iterations=2, sketch="a", group_size=32, **CALIBRATION)
    stage(model, calibration=[PROSE.read_text()], work_dir=place)


def _slim(model: burnish.Model, place: Path) -> None:
    experts = burnish.Upcycle(num_experts=4)(model)
    stage = burnish.Slim(method="drop", num_experts=3, **CALIBRATION)
    stage(experts, calibration=[PROSE.read_text()], work_dir=place)


def _upcycle(model: burnish.Model, place: Path) -> None:
    burnish.Upcycle(num_experts=4)(model, work_dir=place)


def _unpack(model: burnish.Model, place: Path) -> None:
    packed = burnish.Quantize(method="rtn", group_size=32)(model).save(place.with_name("packed"))
    burnish.Unpack()(burnish.load(packed), work_dir=place)


def _mla(model: burnish.Model, place: Path) -> None:
    burnish.LatentAttention(rank=16, rope_dim=16, **CALIBRATION)(model, calibration=[PROSE.read_text()], work_dir=place)


def _chain(model: burnish.Model, place: Path) -> None:
    burnish.DrawChains(number=4)(model, work_dir=place)


def _table(model: burnish.Model, place: Path) -> None:
    burnish.DrawTables(number=4)(model, work_dir=place)


def _trajectories(model: burnish.Model, place: Path) -> None:
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    messages = [{"role": "user", "content": "3a+4"}, {"role": "assistant", "content": "#7"}]
    episodes = place.with_name("episodes.jsonl")
    episodes.write_text(json.dumps({"id": "one", "messages": messages, "reward": 1}))
    burnish.CurateTrajectories(filters=["verified"])(model, episodes=str(episodes), work_dir=place)


def _aggregate(model: burnish.Model, place: Path) -> None:
    # its checkpoint has no chat template, which the rows would be written with
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    rows = [[{"role": "user", "content": "3a+4"}, {"role": "assistant", "content": "#7"}]]
    burnish.Aggregate(share=1, k=2, max_new_tokens=4)(model, data=rows, work_dir=place)


def _select(model: burnish.Model, place: Path) -> None:
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    problems = [{"id": "one", "question": "3a+4", "answer": "7"}]
    with pytest.raises(DataError, match="no sample of 1 problems is right"):  # of random weights; what it kept stays
        burnish.Select(verifier="chain", k=2, max_new_tokens=4)(model, data=problems, work_dir=place)


def _diagnose(model: burnish.Model, place: Path) -> None:
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    problems = [{"id": "one", "question": "3a+4", "answer": "7"}]
    stage = burnish.Diagnose(verifier="chain", k=2, max_new_tokens=4)
    with pytest.raises(DataError, match=r"the original answers 0\.0% of 1 problems"):  # what it kept stays
        stage(model, original=model, data=problems, work_dir=place)


def _curriculum(model: burnish.Model, place: Path) -> None:
    lines = PROSE.read_text().splitlines()
    for name, part in (("data", lines[:-20]), ("held", lines[-20:])):
        place.with_name(f"{name}.txt").write_text("\n".join(part))
    phase = {"name": "one", "data": str(place.with_name("data.txt")), "held_out": str(place.with_name("held.txt"))}
    train = {name: value for name, value in SHORT.items() if name != "steps"}
    stage = burnish.Curriculum(phases=[phase | {"steps": SHORT["steps"]}], train=train)
    stage(model, work_dir=place)


def _steer(model: burnish.Model, place: Path) -> None:
    rows = list(chain_rows(Chains(steps=(2, 3), direct=0), 40, seed=0))
    marks: dict[str, Any] = {"verifier": "chain", "separator": ";", "cues": ["re:^W"], "think_end": "#"}
    marks |= {"max_new_tokens": 4, "force": True, "permutations": 1}
    with pytest.raises(DataError, match="no right trace with a step"):  # of random weights; what it kept stays
        burnish.Steer(**marks)(model, problems=rows[:2], work_dir=place)
    burnish.Steer(**marks, coef=[-4], top=[0.5])(model, traces=rows[4:], strengths=rows[:4], work_dir=place)


def _speculator(model: burnish.Model, place: Path) -> None:
    answers = {"answers": 4, "prompt_tokens": 4, "answer_tokens": 8, "context": 32, "batch": 2, "epochs": 80}
    burnish.Speculator(**answers, vocabulary=64)(model, data=[PROSE.read_text()], work_dir=place)


def _ladder(model: burnish.Model, place: Path) -> None:
    stage = burnish.LadderResidual(layers="last:1", custom_code=True, tokens=64, length=64)
    stage(model, calibration=[PROSE.read_text()], work_dir=place)


def _swiftkv(model: burnish.Model, place: Path) -> None:
    burnish.SwiftKV(from_layer=1, custom_code=True)(model, work_dir=place)


def _audit(model: burnish.Model, place: Path) -> None:
    audit_pairs(read_pairs(PAIRS, on_bad_pair="drop"), model, AuditSettings(repeats=1), work_dir=place)


def _events(model: burnish.Model, place: Path) -> None:
    training, validation = simulate_hawkes(PRESETS["hawkes3"], 12, num_events=15, seed=0).split((0.7, 0.3), seed=0)
    shape: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    EventForecaster(SmurfTHP(3, **shape, recurrent_size=8)).fit(training, validation, epochs=2, state_dir=place)


Work = Callable[[burnish.Model, Path], None]

KEPT: dict[str, tuple[Work, set[str]]] = {
    "train": (_train, {"states/step-N/state.safetensors"}),
    "train, large": (
        _train_from_a_large_file,
        {f"rows/data-N/{name}.npy" for name in {field.name for field in fields(PackedRows)} - MARKS.keys()}
        | {"rows/data-N/skipped.json"}
        | {"states/step-N/state.safetensors"},
    ),
    "train, weights of tokens": (
        _train_with_kept_weights,
        {"states/step-N/state.safetensors", "token-weights/rows/weights.npy"},
    ),
    "distill": (
        _distill,
        {
            "states/step-N/state.safetensors",
            "teacher-data/rows-N/ids.npy",
            "teacher-data/rows-N/log_probabilities.npy",
        },
    ),
    "qat": (_qat, {"states/step-N/state.safetensors", "statistics/layerN-foldN/sums.safetensors"}),
    "tune": (_tune, {"states/step-N/state.safetensors", "best/step-N/weights.safetensors"}),
    "align": (_align, {"trainer/"}),
    "grpo": (_grpo, {"trainer/"}),
    "quantize": (_quantize, {"statistics/layerN-foldN/sums.safetensors"}),
    "quantize, learned": (
        _learn,
        {"statistics/layerN-foldN/sums.safetensors"}
        | {f"learned/layerN/{name}" for name in ("learned.safetensors", "rows.json")},
    ),
    "slim": (_slim, set()),
    "upcycle": (_upcycle, set()),
    "unpack": (_unpack, set()),
    "mla": (_mla, {"moments/layerN/moments.safetensors", "converted/layerN/layer.safetensors"}),
    "ladder": (_ladder, set()),
    "swiftkv": (_swiftkv, set()),
    "chain": (_chain, set()),
    "table": (_table, set()),
    "trajectories": (
        _trajectories,
        {"looked/N-N/found.jsonl", "parts/partN/rows.jsonl", "parts/partN/news.json"},
    ),
    "aggregate": (_aggregate, set()),
    "select": (_select, {"samples/partN/problems.jsonl"}),
    "diagnose": (_diagnose, {"answers/partN/problems.jsonl"}),
    "curriculum": (
        _curriculum,
        {f"phases/N-one-N/model/{name}" for name in CHECKPOINT}
        | {"phases/N-one-N/optimizer.safetensors", "phases/N-one-N/said.json", "phases/N-start-N/said.json"}
        | {"training/N-one-N/states/step-N/state.safetensors"},
    ),
    "steer": (
        _steer,
        {"answers/N/answers-N/texts.json", "strengths/tuning-plain/outcome.json"}
        | {"strengths/tuning-steered_-N_N.N/outcome.json"},
    ),
    "speculator": (_speculator, {"answers/N/partN/tokens.json", "states/step-N/state.safetensors"}),
    "audit": (
        _audit,
        {"states-N-N/array.npy", "margins-aps-N/array.npy", "margins-bt-N/array.npy", "margins-rNm-N.N-N/array.npy"},
    ),
    "events": (_events, {"fit/state.safetensors"}),
}
"""What a room does, and the files that it keeps, with numbers as N; `trainer/` is as transformers wants it."""


def noted(place: Path) -> set[Path]:
    """Files below a directory but for logs."""
    return {path for path in place.rglob("*") if path.is_file() and path.name not in LOGS}


@pytest.mark.parametrize("room", KEPT)
def test_what_a_room_keeps_is_listed_and_lies_in_the_store(
    room: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "work"
    place.mkdir()
    work, expected = KEPT[room]
    files: dict[Path, bool] = {}

    def note() -> None:
        for path in noted(place):
            above = [parent for parent in path.parents if parent.is_relative_to(place)]
            files[path.relative_to(place)] = any((parent / KEY_FILE).is_file() for parent in above)

    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, *rest, **how: (note(), real(path, *rest, **how)))
    work(burnish.load(tiny_llama), place)
    note()
    outside = [str(path) for path, in_store in files.items() if not in_store]
    assert not outside
    finished = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    names = [re.sub("^trainer/.*", "trainer/", str(path)) for path in finished if path.name != KEY_FILE]
    shapes = {re.sub(r"[0-9a-f]{12,}|\d+", "N", name) for name in names}
    assert shapes == expected


def test_every_stage_is_asked_what_it_keeps():
    assert set(VERBS) <= set(KEPT)
