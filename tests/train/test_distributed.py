"""Several processes train as one does: same rows, same losses, same weights, and a state that any number can read."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from burnish.data.packing import documents, pack
from burnish.optim import COSMOS, Muon, NorMuon
from burnish.train import Loop, Loss, fit, model_inputs
from burnish.train.distributed import Processes
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
    made = optimizer.for_model(model, lr=0.01, adamw_eps=1e-6)
    result = fit(model, kept, loss_fn, made, context, loop, validation=held_out, world=world)
    whole = world.whole(model)
    weights = None if whole is None else {name: p.detach().clone() for name, p in whole.named_parameters()}
    table = [{key: row[key] for key in row if key != "tokens_per_second"} for row in result.rows]
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
        assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize("shape", [(2,), (3,), (4,), (2, 2)])
def test_any_mesh_trains_as_one_process_does(model_of, rows, context, shape):
    def make():
        return model_of(dtype=torch.float64, tie_word_embeddings=len(shape) == 1)

    for optimizer in (NorMuon, COSMOS):
        weights, table, _ = run(ALONE, make(), rows, context("alone"), optimizer, max_grad_norm=0.5)

        def work(world, optimizer=optimizer):
            return run(world, make(), rows, context(f"rank{world.rank}"), optimizer, max_grad_norm=0.5)

        found = together(int(torch.Size(shape).numel()), one_of_many, shape, work)
        same(found[0][0], weights, 1e-10)
        for _, losses, _ in found:
            same_table(losses, table, 1e-10)


def test_float32_losses_agree_within_rounding(model_of, rows, context):
    _, table, _ = run(ALONE, model_of(), rows, context("alone"), Muon)
    found = together(3, one_of_many, (3,), lambda world: run(world, model_of(), rows, context("three"), Muon))
    same_table(found[0][1], table, 1e-5)


def test_bfloat16_products_agree_within_their_rounding(model_of, rows, context):
    changes = {"precision": "bfloat16", "steps": 3, "eval_every": 0}
    _, table, _ = run(ALONE, model_of(), rows, context("alone"), **changes)
    found = together(2, one_of_many, (2,), lambda world: run(world, model_of(), rows, context("two"), **changes))
    same_table(found[0][1], table, 2e-2)


@pytest.mark.parametrize("save_async", [False, True])
def test_a_state_is_continued_by_any_other_number_of_processes(model_of, rows, context, save_async):
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
