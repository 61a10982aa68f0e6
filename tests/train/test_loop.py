"""What the one loop promises."""

import json
import multiprocessing
import os
import resource
import shutil
import signal

import pytest
import torch
from torch._dynamo.utils import counters

from burnish.core.errors import CheckpointError, NumericalError, OutputError, SettingsError
from burnish.data.packing import documents, pack
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import NorMuon, optimizer_class
from burnish.train import Loop, Loss, balanced_loss, causal_lm_loss, evaluate, fit, state
from burnish.train.sampler import Sampler

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 20


@pytest.fixture
def rows(tokenizer):
    """Rows with different numbers of tokens that count, some with two documents."""
    texts = [TEXT[start : start + 13 * (1 + start % 5)] for start in range(0, 600, 17)]
    return pack(documents(tokenizer, texts), 24)


def train(model, rows, context, *, optimizer=NorMuon, loss_fn=causal_lm_loss, **loop):
    settings = {"steps": 6, "batch_size": 4, "save_every": 0} | loop
    return fit(model, rows, loss_fn, optimizer.for_model(model, lr=0.01), context, Loop(**settings))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_loss_falls(model_of, rows, context):
    result = train(model_of(), rows, context(), steps=30)
    losses = [row["loss"] for row in result.rows]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_cutting_a_step_into_micro_batches_changes_nothing(model_of, rows, context, all_float64, micro):
    whole, cut = model_of(dtype=torch.float64), model_of(dtype=torch.float64)
    train(whole, rows, context("whole"))
    train(cut, rows, context("cut"), micro_batch_size=micro)
    torch.testing.assert_close(weights(whole), weights(cut), rtol=0, atol=1e-10)


def test_every_token_of_a_step_counts_the_same(model_of, rows, context, all_float64):
    model = model_of(dtype=torch.float64)
    batch = rows.take(Sampler(len(rows), 4, 0).rows(0))
    loss = causal_lm_loss(model, batch)
    (loss.total / loss.weight).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    seen = []

    class Spy(torch.optim.SGD):
        def step(self):
            seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])

    optimizer = Spy(model.parameters(), lr=1.0)
    loop = Loop(steps=1, batch_size=4, micro_batch_size=1, max_grad_norm=None, save_every=0)
    fit(model, rows, causal_lm_loss, optimizer, context(), loop)
    for gradient, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_gradients_are_clipped_to_the_norm(model_of, rows, context):
    model, norms = model_of(), []

    class Spy(torch.optim.SGD):
        def step(self):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())

    optimizer = Spy(model.parameters(), lr=1.0)
    result = fit(model, rows, causal_lm_loss, optimizer, context(), Loop(2, 4, max_grad_norm=0.01, save_every=0))
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert result.rows[0]["gradient_norm"] > 0.1


@pytest.mark.parametrize("optimizer", map(optimizer_class, OPTIMIZER_CLASSES))
def test_a_training_that_is_resumed_ends_with_the_same_bits(model_of, rows, context, optimizer):
    loop = {"steps": 7, "optimizer": optimizer, "max_grad_norm": 0.5}
    straight = model_of(attention_dropout=0.1)
    full = train(straight, rows, context("straight"), **loop)

    class Died(Exception):
        pass

    calls = 0

    def dying(model, batch):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise Died
        return causal_lm_loss(model, batch)

    with pytest.raises(Died):
        train(model_of(attention_dropout=0.1), rows, context("work"), loss_fn=dying, save_every=2, **loop)
    resumed = model_of(attention_dropout=0.1)
    result = train(resumed, rows, context("work"), save_every=2, **loop)
    assert result.resumed_from == 4
    assert torch.equal(weights(straight), weights(resumed))
    assert [row["loss"] for row in result.rows] == [row["loss"] for row in full.rows]


def in_child(work):
    """Runs a function in a forked process and returns its exit code; -9 where it was killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def test_kill_9_at_any_step_and_resume_ends_with_the_same_bits(model_of, rows, context):
    straight = model_of()
    train(straight, rows, context("straight"))

    def run(name, kill_at):
        calls = 0

        def loss_fn(model, batch):
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return causal_lm_loss(model, batch)

        model = model_of()
        train(model, rows, context(name), loss_fn=loss_fn, save_every=1)
        torch.save(weights(model), context(name).work_dir / "end.pt")

    for kill_at in range(1, 7):
        name = f"killed{kill_at}"
        assert in_child(lambda name=name, kill_at=kill_at: run(name, kill_at)) == -signal.SIGKILL
        assert in_child(lambda name=name: run(name, 0)) == 0
        ended = torch.load(context(name).work_dir / "end.pt", weights_only=True)
        assert torch.equal(ended, weights(straight))


def test_a_state_of_another_model_is_refused(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    with pytest.raises(CheckpointError, match="is the training state of another model"):
        train(model_of(hidden_size=16), rows, context(), save_every=3)


def test_a_state_of_other_settings_is_refused(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    with pytest.raises(CheckpointError, match="is the training state of another setting"):
        train(model_of(), rows, context(), save_every=3, seed=1)


def test_a_damaged_state_is_refused(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    (path,) = context().work_dir.glob("step-*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not a whole training state"):
        train(model_of(), rows, context(), save_every=3)


def test_a_full_disk_is_one_clear_error_and_the_older_state_stays(model_of, tmp_path):
    model = model_of()
    optimizer = NorMuon.for_model(model, lr=0.01)
    state.save(tmp_path, 1, model, optimizer, fingerprint={}, extra={})

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OutputError, match="the training state of step 2 could not be written"):
            state.save(tmp_path, 2, model, optimizer, fingerprint={}, extra={})

    assert in_child(fill) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]


def broken(model, batch):
    loss = causal_lm_loss(model, batch)
    return Loss(loss.total + model.lm_head.weight.sum() * float("nan"), loss.weight)


def test_a_gradient_that_is_not_finite_stops_and_names_the_parameter(model_of, rows, context):
    with pytest.raises(NumericalError, match=r"the gradient of lm_head.weight is not finite in step 1"):
        train(model_of(), rows, context(), loss_fn=broken)


def test_or_skips_the_step_when_asked_to(model_of, rows, context):
    model = model_of()
    before = weights(model)
    result = train(model, rows, context(), loss_fn=broken, on_nonfinite="skip")
    assert result.skipped == 6 and torch.equal(weights(model), before)


def test_bfloat16_products_keep_float32_weights_and_state(model_of, rows, context):
    exact, low = model_of(), model_of()
    optimizer = NorMuon.for_model(low, lr=0.01)
    wanted = train(exact, rows, context("exact")).rows
    loop = Loop(steps=6, batch_size=4, save_every=0, precision="bfloat16")
    found = fit(low, rows, causal_lm_loss, optimizer, context("low"), loop).rows
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert {t.dtype for state in optimizer.state.values() for t in state.values()} == {torch.float32}
    losses = [[row["loss"] for row in part] for part in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2) and losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_forward_pass_takes_the_same_steps(model_of, rows, context):
    plain, compiled = model_of(), model_of()
    wanted = train(plain, rows, context("plain")).rows
    counters.clear()
    found = train(compiled, rows, context("compiled"), compile=True).rows
    assert counters["stats"]["unique_graphs"] > 0
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-4)
    torch.testing.assert_close(weights(compiled), weights(plain), rtol=0, atol=1e-3)


def test_measuring_does_not_change_the_training(model_of, rows, context):
    kept, held_out = rows.split(3)
    plain, measured = model_of(attention_dropout=0.2), model_of(attention_dropout=0.2)
    train(plain, kept, context("plain"))
    optimizer = NorMuon.for_model(measured, lr=0.01)
    loop = Loop(steps=6, batch_size=4, eval_every=2, save_every=0)
    result = fit(measured, kept, causal_lm_loss, optimizer, context("measured"), loop, validation=held_out)
    assert torch.equal(weights(plain), weights(measured))
    assert [row["step"] for row in result.rows if "validation_loss" in row] == [2, 4, 6]
    again = evaluate(measured, held_out, causal_lm_loss, micro_batch_size=2)["loss"]
    assert result.validation["loss"] == pytest.approx(again, rel=1e-6)


def test_held_out_loss_is_the_mean_over_tokens(model_of, rows):
    model = model_of().eval()
    with torch.no_grad():
        whole = causal_lm_loss(model, rows.take(range(len(rows))))
    result = evaluate(model, rows, causal_lm_loss, micro_batch_size=3)["loss"]
    assert result == pytest.approx((whole.total / whole.weight).item(), rel=1e-5)


def test_the_loss_table_goes_to_ledger_and_metrics_file(model_of, rows, context):
    ctx = context()
    result = train(model_of(), rows, ctx, steps=5, log_every=2)
    (table,) = [row for row in ctx.ledger.rows if row["row"] == "table"]
    assert table["name"] == "loss" and [row["step"] for row in table["rows"]] == [2, 4, 5]
    lines = (ctx.work_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.rows


def test_global_randomness_is_given_back(model_of, rows, context):
    model = model_of(attention_dropout=0.2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, rows, context())
    assert torch.equal(torch.rand(3), expected)


def test_experts_are_balanced_by_their_own_loss(model_of, rows, context):
    model = model_of("mixtral", num_local_experts=4)
    result = train(model, rows, context(), loss_fn=balanced_loss(0.02), steps=3)
    assert all(row["balance"] > 0 for row in result.rows)
    routers = [p.grad for name, p in model.named_parameters() if "gate.weight" in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in routers)


def test_steps_see_every_row_once_per_epoch():
    sampler = Sampler(10, 4, seed=3)
    drawn = [row for step in range(5) for row in sampler.rows(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}])
def test_impossible_settings_are_refused(model_of, rows, context, wrong):
    with pytest.raises(SettingsError, match=r"must be 1\+"):
        train(model_of(), rows, context(), **wrong)
