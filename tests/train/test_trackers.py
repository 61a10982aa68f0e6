"""Where the loss table goes beside the ledger, and how fast a training says that it is."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import burnish
from burnish.core.errors import MissingExtraError, SettingsError
from burnish.core.progress import Progress
from burnish.core.runner.work import Work
from burnish.train import Loop, causal_lm_loss, fit
from burnish.train.loop import _Training
from burnish.train.speed import Throughput, speed_of
from burnish.train.stage import Train
from burnish.train.trackers import TRACKERS, Trackers, tracker_names
from small_models import PROSE

TEXT = PROSE.read_text()[:2000]
SMALL = {"steps": 4, "batch": 4, "context": 24, "warmup": 0.0, "save_every": 2}


def scalars(directory):
    """{tag: {step: value}} as TensorBoard itself reads them."""
    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_row_of_the_loss_table_once_after_a_training_that_went_on(tiny_llama, tmp_path):
    stage = Train(**SMALL, report_to="tensorboard")
    tiny = burnish.load(tiny_llama)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.train.loop._Training._step", dying_in(3))
        with pytest.raises(KeyboardInterrupt):
            stage(tiny, data=[TEXT], work_dir=tmp_path)
    stage(tiny, data=[TEXT], work_dir=tmp_path)
    found = scalars(tmp_path / "tracking" / "tensorboard")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for key in ("loss", "lr", "gradient_norm", "tokens_per_second", "flops_per_second"):
        assert found[f"train/{key}"] == {row["step"]: pytest.approx(row[key], rel=1e-6) for row in rows}


def dying_in(step):
    """One step of the loop, but for this one, in which the process is interrupted."""
    whole = _Training._step

    def one(training, number):
        if number == step:
            raise KeyboardInterrupt
        whole(training, number)

    return one


class Board:
    """A tracker that keeps rows and fails when it is told to."""

    def __init__(self, fails_at=None):
        self.rows, self.closed, self.fails_at = [], 0, fails_at

    def log(self, row, step):
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.rows.append((step, dict(row)))

    def close(self):
        self.closed += 1


def trained_with(model_of, tokenizer, context, monkeypatch, board):
    from burnish.data.packing import documents, pack
    from burnish.optim import NorMuon

    monkeypatch.setitem(TRACKERS, "board", lambda *given: board)
    model, ctx = model_of(), context()
    said = []
    monkeypatch.setattr(ctx.progress, "log", said.append)
    rows = pack(documents(tokenizer, [TEXT]), 24)
    trackers = Trackers(["board"], ctx.work_dir, "run", {}, ctx.progress)
    loop = Loop(steps=4, batch_size=4, save_every=0)
    optimizer = NorMuon.for_model(model, lr=0.01)
    return fit(model, rows, causal_lm_loss, optimizer, ctx, loop, trackers=trackers, speed=Throughput(2e6, 1e9)), said


def test_a_tracker_gets_the_rows_as_they_are(model_of, tokenizer, context, monkeypatch):
    board = Board()
    result, said = trained_with(model_of, tokenizer, context, monkeypatch, board)
    assert [{"step": step, **row} for step, row in board.rows] == result.rows
    assert board.closed == 1
    for row in result.rows:
        assert row["flops_per_second"] == pytest.approx(2e6 * row["tokens_per_second"])
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / 1e9)
    assert "tokens/s per device" in said[-1] and "% of the device" in said[-1]


def test_a_tracker_that_dies_is_said_once_and_the_training_goes_on(model_of, tokenizer, context, monkeypatch):
    board = Board(fails_at=2)
    result, said = trained_with(model_of, tokenizer, context, monkeypatch, board)
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4] and [step for step, _ in board.rows] == [1]
    (sentence,) = [line for line in said if "board" in line]
    assert "(ConnectionError: the server); the training goes on without it" in sentence and board.closed == 0


def test_the_functions_of_wandb_and_mlflow_are_called_as_they_are_documented(tmp_path, monkeypatch):
    calls = []

    def module(*names):
        return SimpleNamespace(**{n: lambda *a, _n=n, **k: calls.append((_n, a, k)) for n in names})

    monkeypatch.setitem(sys.modules, "wandb", module("init", "log", "finish"))
    mlflow = ("set_tracking_uri", "start_run", "log_params", "log_metrics", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", module(*mlflow))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trackers = Trackers(["wandb", "mlflow"], tmp_path, "name", {"lr": 0.1}, Progress(enabled=False))
    trackers.start(0)
    trackers.log({"loss": 2.0}, 7)
    trackers.close()
    assert calls == [
        ("init", (), {"project": "burnish", "name": "name", "config": {"lr": 0.1}, "dir": str(tmp_path)}),
        ("set_tracking_uri", (f"sqlite:///{tmp_path / 'mlflow.db'}",), {}),
        ("start_run", (), {"run_name": "name"}),
        ("log_params", ({"lr": "0.1"},), {}),
        ("log", ({"loss": 2.0},), {"step": 7}),
        ("log_metrics", ({"loss": 2.0},), {"step": 7}),
        ("finish", (), {}),
        ("end_run", (), {}),
    ]


def test_trackers_are_checked_before_anything_is_loaded(monkeypatch):
    assert tracker_names("") == [] and tracker_names(" tensorboard, tensorboard,") == ["tensorboard"]
    with pytest.raises(SettingsError, match=r"no tracker 'tensorbord'.*did you mean 'tensorboard'"):
        tracker_names("tensorbord")
    monkeypatch.setattr("burnish.train.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"report_to wandb needs.*burnish\[wandb\]"):
        tracker_names("wandb")


def test_operations_of_a_token_are_those_that_torch_counts(model_of):
    from torch.utils.flop_counter import FlopCounterMode

    # Grouped queries save weights, so nothing of attention is left to the convention but its two products.
    model = model_of()
    model.set_attn_implementation("eager")  # the counter does not know the fused kernel of a CPU
    length = 16
    ids = torch.zeros(2, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    ours = speed_of(model, length, device="cpu", precision="float32")
    assert ours.peak is None and "share of the device unknown" in ours.words(10.0)
    assert ours.flops_per_token * ids.numel() == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_frozen_weights_cost_two_thirds(model_of):
    model = model_of()
    whole = speed_of(model, 1, device="cpu", precision="float32").flops_per_token
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size
    model.requires_grad_(False)
    frozen = speed_of(model, 1, device="cpu", precision="float32").flops_per_token
    assert (frozen - attention) * 6 == pytest.approx((whole - attention) * 4)


def test_experts_that_a_token_is_not_sent_to_cost_nothing(model_of):
    few = speed_of(
        model_of("mixtral", num_local_experts=2, num_experts_per_tok=2), 8, device="cpu", precision="float32"
    )
    many = speed_of(
        model_of("mixtral", num_local_experts=4, num_experts_per_tok=2), 8, device="cpu", precision="float32"
    )
    router = 6 * 2 * 32 * 2  # two more rows in each layer's router
    assert many.flops_per_token - few.flops_per_token == pytest.approx(router)


def test_what_trackers_and_adapters_wrote_stays_beside_the_losses_of_a_finished_run(tmp_path):
    logs = tmp_path / "logs"
    for content in ("first", "second"):
        node = tmp_path / "work" / "tune"
        for name in ("tracking/tensorboard/events", "adapter/adapter_config.json", "metrics.jsonl", "states/state"):
            (node / name).parent.mkdir(parents=True, exist_ok=True)
            (node / name).write_text(content)
        Work(node, None).finish(logs)
        assert not node.exists()
        kept = {str(file.relative_to(logs)): file.read_text() for file in logs.rglob("*") if file.is_file()}
        names = ("tune.tracking/tensorboard/events", "tune.adapter/adapter_config.json", "tune.metrics.jsonl")
        assert kept == dict.fromkeys(names, content)
