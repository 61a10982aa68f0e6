"""Several processes train as one does: same rows, same losses, same weights, and a state that any number can read."""

import math
import resource
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh

from burnish.arch import head_of
from burnish.core.errors import NumericalError, OutputError, SettingsError, StageError
from burnish.data.packing import documents, pack
from burnish.optim import COSMOS, Muon, NorMuon
from burnish.train import Loop, Loss, fit, model_inputs
from burnish.train.distributed import Processes, world
from burnish.train.kept_weights import KeptWeights
from burnish.train.long_context import LongContext
from burnish.train.losses import HeadLoss
from burnish.train.objective import Objective
from burnish.train.world import ALONE
from processes import together

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 20
STEPS = 6

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tokenizer):
    texts = [TEXT[start : start + 13 * (1 + start % 5)] for start in range(0, 900, 17)]
    return pack(documents(tokenizer, texts), 24)


def float64_loss(model, batch):
    """`causal_lm_loss` sums in float32; here everything is to be exact."""
    logits = model(**model_inputs(batch)).logits
    total = torch.nn.functional.cross_entropy(logits.flatten(0, -2), batch["targets"].flatten(), reduction="sum")
    return Loss(total, (batch["targets"] != -100).sum().double())


class Died(Exception):
    pass


def dying_in(step, micro_batches):
    """A loss that raises in a step, as a process would that is killed."""
    calls = 0

    def loss_fn(model, batch):
        nonlocal calls
        calls += 1
        if calls > step * micro_batches:
            raise Died
        return float64_loss(model, batch)

    return loss_fn


def run(world, model, rows, context, optimizer=NorMuon, loss_fn=float64_loss, **changes):
    """The weights after training, and the loss table."""
    kept, held_out = rows.split(7)
    loop = Loop(**{"steps": STEPS, "batch_size": 12, "micro_batch_size": 2, "save_every": 0, "eval_every": 3} | changes)
    model = world.shard(model, loop.precision)
    # AdamW divides by the size of a gradient, and so makes much of the rounding of one that is as small as its eps.
    made = optimizer.for_model(model, lr=0.003, adamw_eps=1e-6)
    result = fit(model, kept, loss_fn, made, context, loop, validation=held_out, world=world)
    whole = world.whole(model)
    weights = None if whole is None else {name: p.detach().clone() for name, p in whole.named_parameters()}
    # Padding is counted as tokens, and how much there is depends on which rows share a forward pass.
    table = [{key: row[key] for key in row if "tokens" not in key} for row in result.rows]
    return weights, table, result.resumed_from


def one_of_many(rank, shape, work):
    names = None if len(shape) == 1 else ("replicate", "shard")
    return work(Processes(init_device_mesh("cpu", shape, mesh_dim_names=names)))


def same(found, expected, tolerance):
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=tolerance)


def same_table(found, expected, tolerance):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # A norm is no minimum: it feels the first order of the weights' difference, the loss less.
            assert ours[key] == pytest.approx(value, rel=tolerance * (10 if key == "gradient_norm" else 1)), key


def test_one_process_after_the_other_does_what_is_done_in_turn(tmp_path):
    def work(world):
        with world.in_turn(), (tmp_path / "turns").open("a") as turns:
            turns.write(f"{world.rank} in\n")
            turns.flush()
            turns.write(f"{world.rank} out\n")

    together(3, one_of_many, (3,), work)
    assert (tmp_path / "turns").read_text().split("\n")[:-1] == [
        f"{r} {what}" for r in range(3) for what in ("in", "out")
    ]


@pytest.mark.parametrize("shape", [(2,), (3,), (4,), (2, 2)])
def test_any_mesh_trains_as_one_process_does(model_of, rows, context, all_float64, shape):
    def make():
        return model_of(dtype=torch.float64, tie_word_embeddings=len(shape) == 1)

    for optimizer in (NorMuon, COSMOS):
        weights, table, _ = run(ALONE, make(), rows, context("alone"), optimizer, max_grad_norm=0.5)
        assert max(row["gradient_norm"] for row in table) > 0.5, "clipping is to matter"

        def work(world, optimizer=optimizer):
            return run(world, make(), rows, context(f"rank{world.rank}"), optimizer, max_grad_norm=0.5)

        found = together(int(torch.Size(shape).numel()), one_of_many, shape, work)
        same(found[0][0], weights, 1e-10)
        for _, losses, _ in found:
            same_table(losses, table, 1e-10)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_the_loss_without_all_logits_trains_as_the_plain_one_on_one_process(
    model_of, rows, context, all_float64, tied, adapters
):
    def make():
        model = model_of(dtype=torch.float64, tie_word_embeddings=tied)
        loss = HeadLoss(head_of(model))
        if adapters:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "down_proj"])).double()
        return model, loss

    weights, table, _ = run(ALONE, make()[0], rows, context("alone"))

    def work(world):
        model, loss = make()
        return run(world, model, rows, context(f"rank{world.rank}"), loss_fn=loss)

    for number in (1, 2):
        found = [work(ALONE)] if number == 1 else together(number, one_of_many, (number,), work)
        same(found[0][0], weights, 1e-10)
        for _, losses, _ in found:
            same_table(losses, table, 1e-10)


@pytest.mark.parametrize("objective", ["view=skip,weights=kl,window=5,sinks=1", "view=cyclic,view_prob=0.5"])
def test_views_and_weights_of_tokens_train_as_on_one_process(model_of, rows, context, all_float64, objective):
    def work(world):
        model = model_of(dtype=torch.float64)
        loss = LongContext(Objective.of(objective), HeadLoss(head_of(model)))
        return run(world, model, rows, context(f"rank{world.rank}of{world.size}"), loss_fn=loss)

    weights, table, _ = work(ALONE)
    found = together(2, one_of_many, (2,), work)
    same(found[0][0], weights, 1e-9)
    for _, losses, _ in found:
        same_table(losses, table, 1e-9)


def test_kept_weights_of_tokens_are_shared_by_the_processes(model_of, rows, context, all_float64, tmp_path):
    """A row that one process has weighed in the first pass is read by another in the second."""
    objective = Objective.of("weights=kl,window=5,sinks=1,cache=true")
    kept_rows = len(rows) - 7
    first_pass = math.ceil(kept_rows / 12)
    assert first_pass < STEPS

    def work(world):
        model = model_of(dtype=torch.float64)
        with world.in_turn():
            place = tmp_path / f"kept{world.size}"
            kept = KeptWeights.opened(place, {"of": "a test"}, (kept_rows, rows.length), first_pass)
        loss = LongContext(objective, HeadLoss(head_of(model)), kept=kept)
        return run(world, model, rows, context(f"rank{world.rank}of{world.size}"), loss_fn=loss)

    weights, table, _ = work(ALONE)
    found = together(2, one_of_many, (2,), work)
    same(found[0][0], weights, 1e-6)  # what is kept is rounded to float32
    for _, losses, _ in found:
        same_table(losses, table, 1e-6)


def test_float32_losses_agree_within_rounding(model_of, rows, context):
    _, table, _ = run(ALONE, model_of(), rows, context("alone"), Muon)
    found = together(3, one_of_many, (3,), lambda world: run(world, model_of(), rows, context("three"), Muon))
    same_table(found[0][1], table, 1e-5)


def test_bfloat16_products_agree_within_their_rounding(model_of, rows, context):
    changes = {"precision": "bfloat16", "steps": 3, "eval_every": 0}
    _, table, _ = run(ALONE, model_of(), rows, context("alone"), **changes)
    found = together(2, one_of_many, (2,), lambda world: run(world, model_of(), rows, context("two"), **changes))
    same_table(found[0][1], table, 2e-2)


def test_adapters_train_as_on_one_process(model_of, rows, context, all_float64):
    def make():
        model = model_of(dtype=torch.float64)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "down_proj"])).double()

    weights, table, _ = run(ALONE, make(), rows, context("alone"))
    found = together(2, one_of_many, (2,), lambda world: run(world, make(), rows, context("two")))
    same(found[0][0], weights, 1e-10)
    same_table(found[0][1], table, 1e-10)


def test_a_gradient_that_is_not_finite_stops_every_process_with_the_parameters_name(model_of, rows, context):
    def broken(model, batch):
        loss = float64_loss(model, batch)
        return Loss(loss.total + model.lm_head.weight.sum() * float("nan"), loss.weight)

    def work(world):
        with pytest.raises(NumericalError) as error:
            run(world, model_of(tie_word_embeddings=False), rows, context("broken"), loss_fn=broken)
        return str(error.value)

    for text in together(2, one_of_many, (2,), work):
        assert "the gradient of lm_head.weight is not finite in step 1" in text


def test_a_model_that_is_not_sharded_is_refused(model_of, rows, context):
    def work(world):
        model = model_of()
        loop = Loop(steps=1, batch_size=2)
        with pytest.raises(SettingsError, match="the model is not sharded, but there are 2 processes"):
            fit(model, rows, float64_loss, Muon.for_model(model, lr=0.01), context("plain"), loop, world=world)

    together(2, one_of_many, (2,), work)


def test_processes_with_other_data_are_refused(model_of, rows, context):
    def work(world):
        with pytest.raises(SettingsError, match=r"the data is \w+ in process 0 but \w+ in process 1"):
            run(world, model_of(), rows.split(1 + world.rank)[0], context("data"))

    together(2, one_of_many, (2,), work)


@pytest.mark.parametrize("save_async", [False, True])
def test_a_state_is_continued_by_any_other_number_of_processes(model_of, rows, context, all_float64, save_async):
    """2 -> 3 -> 1 -> 2 processes, killed in between, end where one process does that nothing stopped."""

    def make():
        return model_of(dtype=torch.float64)

    weights, table, _ = run(ALONE, make(), rows, context("alone"), steps=8)
    changes = {"steps": 8, "save_every": 2, "save_async": save_async}

    def until(step):
        def work(world):
            try:
                loss_fn = dying_in(step, 12 // 2 // world.size) if step else float64_loss
                return run(world, make(), rows, context("work"), loss_fn=loss_fn, **changes)
            except Died:
                world.finish()

        return work

    together(2, one_of_many, (2,), until(3))
    together(3, one_of_many, (3,), until(2 + 1))
    with pytest.raises(Died):
        run(ALONE, make(), rows, context("work"), loss_fn=dying_in(2 + 1, 6), **changes)
    found = together(2, one_of_many, (2,), until(None))
    assert [resumed for _, _, resumed in found] == [6, 6]
    same(found[0][0], weights, 1e-10)
    same_table(found[0][1], table, 1e-10)


def limited_in(step, micro_batches, size):
    """A loss after whose step the process can write no file beyond that many bytes, as on a full disk."""
    calls = 0

    def loss_fn(model, batch):
        nonlocal calls
        calls += 1
        if calls > step * micro_batches:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return float64_loss(model, batch)

    return loss_fn


@pytest.mark.parametrize("save_async", [False, True])
@pytest.mark.parametrize(("full", "size"), [(0, 10), (1, 1000)], ids=["at the header", "in the middle"])
def test_a_full_disk_is_one_error_on_every_process_and_the_older_state_stays(
    model_of, rows, context, save_async, full, size
):
    changes = {"steps": 8, "save_every": 2, "save_async": save_async, "log_every": 8, "eval_every": 0}

    def work(world):
        loss_fn = limited_in(3, 3, size) if world.rank == full else float64_loss
        with pytest.raises(OutputError) as error:
            run(world, model_of(), rows, context("full"), loss_fn=loss_fn, **changes)
        return str(error.value)

    first, second = together(2, one_of_many, (2,), work)
    for text in (first, second):
        assert "the training state could not be written" in text
        assert "free some space and run the same command again; it continues from the state before" in text
    expected = "only a part was written, as on a full disk" if full else "File too large"
    assert expected in (first, second)[full]
    left = list((context("full").work_dir / "states").iterdir())
    assert [path.name for path in left] == ["step-000000002"]
    assert (left[0] / ".metadata").is_file()  # torch writes it last


def test_a_process_that_is_gone_is_one_sentence_in_the_others(model_of, rows, context, monkeypatch):
    """In a script of one's own, where no runner watches the processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work(rank):
        expected = (Died, "") if rank == 1 else (StageError, "another process of the training died or did not answer")
        with pytest.raises(expected[0], match=expected[1]) as error, world("cpu") as processes:
            loss_fn = dying_in(2, 3) if rank == 1 else float64_loss
            run(processes, model_of(), rows, context("gone"), loss_fn=loss_fn)
        return str(error.value)

    assert "seen by process 0; run the same command again" in together(2, work)[0].replace(". R", "; r")
