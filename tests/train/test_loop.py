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
from burnish.core.progress import Progress
from burnish.data.packing import documents, pack
from burnish.methods import OPTIMIZER_CLASSES
from burnish.optim import WSAM, NorMuon, optimizer_class
from burnish.train import Loop, Loss, balanced_loss, causal_lm_loss, evaluate, fit, state
from burnish.train.maths.schedule import Schedule
from burnish.train.sampler import Sampler
from burnish.train.saved import States
from burnish.train.stage import Train

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


class Sharp:
    """NorMuon with the sharpness of the loss."""

    @staticmethod
    def for_model(model, lr):
        return WSAM(NorMuon.for_model(model, lr=lr), gamma=0.6, rho=0.1)


def test_both_gradients_of_a_step_with_sharpness_are_those_of_its_rows(model_of, rows, context, all_float64):
    ours, theirs = model_of(dtype=torch.float64), model_of(dtype=torch.float64)
    train(ours, rows, context(), optimizer=Sharp, max_grad_norm=None, micro_batch_size=1, steps=3)
    optimizer, sampler = Sharp.for_model(theirs, lr=0.01), Sampler(len(rows), 4, 0)
    for step in range(3):
        batch = rows.take(sampler.rows(step))

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = causal_lm_loss(theirs, batch)
            (loss.total / loss.weight).backward()
            return loss.total

        for group in optimizer.param_groups:
            group["lr"] = 0.01 * Schedule()(step, 3)
        optimizer.step(closure)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=1e-10)


def test_a_training_with_sharpness_goes_on_to_the_same_bits(model_of, rows, context):
    straight, cut, loop = model_of(), model_of(), {"optimizer": Sharp, "max_grad_norm": 0.5, "steps": 5}
    train(straight, rows, context("straight"), **loop)
    with pytest.raises(NumericalError, match="step 4"):  # its second gradient
        train(cut, rows, context("work"), loss_fn=broken_in({8}), save_every=2, **loop)
    resumed = model_of()
    result = train(resumed, rows, context("work"), save_every=2, **loop)
    assert result.resumed_from == 2
    assert torch.equal(weights(straight), weights(resumed))


def test_a_second_gradient_that_is_not_finite_skips_the_step(model_of, rows, context):
    model, untouched = model_of(), model_of()
    result = train(model, rows, context(), optimizer=Sharp, loss_fn=broken_in({2}), on_nonfinite="skip", steps=1)
    assert [row["step"] for row in result.skipped] == [1]
    assert torch.equal(weights(model), weights(untouched))


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
    with pytest.raises(CheckpointError, match=r"is the state of another training .model: not the same"):
        train(model_of(hidden_size=16), rows, context(), save_every=3)


def test_a_state_of_other_settings_is_refused(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    with pytest.raises(CheckpointError, match=r"is the state of another training .seed was 0, now 1"):
        train(model_of(), rows, context(), save_every=3, seed=1)


def test_a_state_of_the_same_shapes_but_other_weights_is_refused_and_stays(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    other = model_of()
    other.model.norm.weight.data[0] += 1e-3
    with pytest.raises(CheckpointError, match="model: not the same"):
        train(other, rows, context(), save_every=3)
    assert train(model_of(), rows, context(), save_every=3).resumed_from == 3


def test_settings_that_only_watch_may_change(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    assert train(model_of(), rows, context(), save_every=4, eval_every=2, log_every=1).resumed_from == 3


def stopping(at, *, unlearning):
    """The loss of the loop's tests, which gives up at one of its calls; or of other targets than those measured on."""
    calls = iter(range(1, 10_000))

    def loss_fn(model, batch):
        if next(calls) == at:
            raise KeyboardInterrupt
        if model.training and unlearning:
            batch = batch | {"targets": batch["targets"].clamp(max=7)}
        return causal_lm_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize("unlearning", [False, True])
def test_the_weights_of_the_best_step_are_kept_also_when_it_was_stopped(model_of, rows, context, unlearning):
    kept_rows, held_out = rows.split(8)

    def run(name, at=0):
        model, loss_fn = model_of(), stopping(at, unlearning=unlearning)
        how = Loop(steps=9, batch_size=4, eval_every=2, keep_best=True, save_every=3)
        optimizer = NorMuon.for_model(model, lr=0.05)
        return model, fit(model, kept_rows, loss_fn, optimizer, context(name), how, validation=held_out)

    whole, result = run("whole")
    last = result.rows[-1]["validation_loss"]
    assert (result.validation["loss"] < last) == unlearning
    kept = evaluate(whole, held_out, causal_lm_loss, micro_batch_size=4)
    assert kept == pytest.approx(result.validation)
    for at in (4, 14, 17):
        with pytest.raises(KeyboardInterrupt):
            run(f"stopped{at}", at)
        again, _ = run(f"stopped{at}")
        assert torch.equal(weights(whole), weights(again))


def test_keeping_the_best_needs_something_to_measure_on(model_of, rows, context):
    with pytest.raises(SettingsError, match="keep_best needs held-out rows"):
        train(model_of(), rows, context(), keep_best=True)


def test_a_damaged_state_is_refused_and_the_advice_works(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    (path,) = context().work_dir.glob("states/*/state.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is not a whole training state.*delete it to start again") as caught:
        train(model_of(), rows, context(), save_every=3)
    shutil.rmtree(caught.value.where)
    assert train(model_of(), rows, context(), save_every=3).resumed_from == 0


def test_a_full_disk_is_one_clear_error_and_the_older_state_stays(model_of, tmp_path):
    model = model_of()
    optimizer = NorMuon.for_model(model, lr=0.01)
    states = States(tmp_path, {})
    state.save(states, 1, model, optimizer, extra={})

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(OutputError, match="the training state of step 2 could not be written"):
            state.save(states, 2, model, optimizer, extra={})

    assert in_child(fill) == 0
    assert [path.name for path in states.store.directory.iterdir()] == ["step-000000001"]


# -- going on with changes ---------------------------------------------------------------------------------------------


def test_what_may_change_goes_on_and_is_told(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    changing = context()
    changing.may_change = frozenset({"steps", "lr"})
    model = model_of()
    result = fit(model, rows, causal_lm_loss, NorMuon.for_model(model, lr=0.001), changing, Loop(8, 4, save_every=3))
    assert result.resumed_from == 3
    assert [row["after_step"] for row in result.changes] == [3, 3]
    assert {row["change"].split()[0] for row in result.changes} == {"steps", "lr"}
    assert [table["rows"] for table in changing.ledger.rows if table["name"] == "changes on the way"] == [
        result.changes
    ]


def test_what_may_not_change_is_refused_all_the_same(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    changing = context()
    changing.may_change = frozenset({"steps"})
    with pytest.raises(CheckpointError, match="seed was 0, now 1"):
        train(model_of(), rows, changing, save_every=3, seed=1, steps=8)


def test_fewer_steps_than_are_done_are_refused(model_of, rows, context):
    train(model_of(), rows, context(), save_every=3)
    changing = context()
    changing.may_change = frozenset({"steps"})
    with pytest.raises(SettingsError, match="steps is 2, but 3 are done already"):
        train(model_of(), rows, changing, steps=2)


def test_with_another_batch_no_row_is_skipped_or_seen_twice():
    before, after = Sampler(12, 4, seed=3), Sampler(12, 2, seed=3)
    after.go_on(2, before.place(2))
    seen = [row for step in range(2) for row in before.rows(step)] + [
        row for step in (2, 3) for row in after.rows(step)
    ]
    assert sorted(seen) == list(range(12))


def test_the_same_batch_goes_on_in_the_same_place():
    before, after = Sampler(12, 4, seed=3), Sampler(12, 4, seed=3)
    after.go_on(7, before.place(7))
    assert [after.rows(step) for step in range(7, 12)] == [before.rows(step) for step in range(7, 12)]


# -- gradients that are not finite -------------------------------------------------------------------------------------


def broken(model, batch):
    loss = causal_lm_loss(model, batch)
    return Loss(loss.total + model.lm_head.weight.sum() * float("nan"), loss.weight)


def test_a_gradient_that_is_not_finite_stops_and_names_the_parameter(model_of, rows, context):
    with pytest.raises(NumericalError, match=r"the gradient of lm_head.weight is not finite in step 1"):
        train(model_of(), rows, context(), loss_fn=broken)


def broken_in(steps):
    """A loss whose gradient is not finite in some steps (from 1)."""
    calls = 0

    def loss_fn(model, batch):
        nonlocal calls
        calls += 1
        return (broken if calls in steps else causal_lm_loss)(model, batch)

    return loss_fn


def test_or_skips_the_step_when_asked_to_and_says_so(model_of, rows, context, capsys):
    told = context()
    told.progress = Progress()
    result = train(model_of(), rows, told, loss_fn=broken_in({3}), on_nonfinite="skip")
    assert result.skipped == [{"step": 3, "parameter": "lm_head.weight"}]
    assert "step 3 is skipped: the gradient of lm_head.weight is not finite" in capsys.readouterr().err
    assert [table["rows"] for table in told.ledger.rows if table["name"] == "skipped steps"] == [result.skipped]


def test_a_skipped_step_changes_no_weight(model_of, rows, context):
    model = model_of()
    before = weights(model)
    train(model, rows, context(), loss_fn=broken, on_nonfinite="skip", steps=1)
    assert torch.equal(weights(model), before)


def test_more_than_one_step_in_twenty_is_an_error(model_of, rows, context):
    with pytest.raises(NumericalError, match="2 of 5 steps had a gradient that is not finite"):
        train(model_of(), rows, context(), loss_fn=broken_in({2, 5}), on_nonfinite="skip")


def test_the_advice_after_a_gradient_that_is_not_finite_is_true(model_of, rows, context):
    """The state is there, and the training goes on from it with on_nonfinite and lr changed."""
    with pytest.raises(NumericalError, match=r"set on_nonfinite to skip; .* pass --continue-with-changes"):
        train(model_of(), rows, context(), loss_fn=broken_in({5}), save_every=2)
    changing = context()
    changing.may_change = Train.changeable
    result = train(model_of(), rows, changing, loss_fn=broken_in({1}), save_every=2, on_nonfinite="skip")
    assert result.resumed_from == 4 and [row["step"] for row in result.skipped] == [5]


def test_a_step_reads_the_gradients_for_their_norm_once(model_of, rows, context, monkeypatch):
    import burnish.optim.optimizer as module

    read = []
    monkeypatch.setattr(module, "without_norm", lambda gradients: read.append(len(gradients)) or [])
    train(model_of(), rows, context("ours"), steps=2)
    assert not read
    model = model_of()
    optimizer = NorMuon.for_model(model, lr=0.01)
    beside = torch.nn.Parameter(torch.ones(3, 3))  # of which the loop does not know
    beside.grad = torch.ones(3, 3)
    optimizer.add_param_group({"params": [("beside", beside)]})
    fit(model, rows, causal_lm_loss, optimizer, context("beside"), Loop(steps=2, batch_size=4, save_every=0))
    assert len(read) == 2


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
