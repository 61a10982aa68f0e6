"""What a width for each expert would gain is measured on masks, on text that chose nothing."""

import pytest
import torch

from burnish.arch import matrices
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.slim.price import own_widths, price
from burnish.slim.stage import Slim
from burnish.train.maths.divergence import forward_kl

FEW = {"tokens": 256, "length": 32, "multiple": 8, "allow_unseen": True}


def downs(module):
    return [view for view in matrices(module) if view.part == "experts" and view.role == "down"]


def table(model, texts, place, **settings):
    ledger = Ledger(None)
    ctx = Context({"calibration": texts}, place, "cpu", seeded_generator(0), Progress(False), ledger)
    Slim(**FEW | settings).run(model, ctx)
    return [row["rows"] for row in ledger.rows if row["row"] == "table" and row["name"] == "slim widths"]


def test_every_layer_keeps_as_many_neurons_those_with_the_highest_scores():
    scores = {0: torch.tensor([[5.0, 4.0, 3.0], [2.0, 6.0, 1.0]]), 3: torch.zeros(2, 3)}
    kept = own_widths(scores, 2)
    assert [neurons.tolist() for neurons in kept[0]] == [[0, 1, 2], [1]]
    assert [neurons.tolist() for neurons in kept[3]] == [[0, 1, 2], [0]]


def test_the_price_is_the_divergence_of_the_masked_model(model_of):
    module = model_of("qwen3_moe").module
    windows = torch.randint(3, 384, (3, 16), generator=torch.Generator().manual_seed(0))
    kept = {view.layer: [torch.arange(5), torch.arange(7, 40), *[torch.arange(0)] * 2] for view in downs(module)}
    weights = {view.name: view.tensor.clone() for view in downs(module)}
    with torch.no_grad():
        before = module(input_ids=windows).logits
    rows = price(module, windows, {"all": {0: [torch.arange(48)] * 4}, "some": kept}, lambda view: weights[view.name])
    assert rows[0] == {"widths": "all", "nats per token": pytest.approx(0, abs=1e-6), "narrowest": 48, "widest": 48}
    for view in downs(module):
        masked = weights[view.name].clone()
        masked[:, [j for j in range(48) if j not in kept[view.layer][view.expert].tolist()]] = 0
        assert torch.equal(view.tensor, masked)
    with torch.no_grad():
        found = forward_kl(module(input_ids=windows).logits, before).mean()
    assert rows[1]["nats per token"] == pytest.approx(float(found), rel=1e-4)
    assert (rows[1]["narrowest"], rows[1]["widest"]) == (0, 33)


def test_an_expert_that_does_nothing_would_give_its_width_to_others(model_of, texts, tmp_path):
    model = model_of("mixtral")
    for view in downs(model.module):
        if view.expert in (0, 1):
            view.write_(view.tensor * 1e-4)
    ((one, own),) = table(model, texts, tmp_path, width=24, score="energy")
    assert (own["narrowest"], own["widest"]) == (0, 48)
    assert own["nats per token"] < 0.01 * one["nats per token"]


@pytest.mark.parametrize("refit", ["none", "behind"])
def test_pieces_are_not_taken_for_one_width(model_of, texts, tmp_path, capsys, refit):
    settings = Slim(**FEW, method="split", num_experts=4, score="energy", refit=refit)
    ctx = Context({"calibration": texts}, tmp_path, "cpu", seeded_generator(0), Progress(), Ledger(None))
    settings.run(model_of("mixtral"), ctx)
    said = capsys.readouterr().err
    assert "with one width it would be" in said and "with one width the model is" not in said
    assert ("in pieces the model is" in said) == (refit == "behind")


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 48, "score": "energy"},
        {"width": 24, "score": "wanda"},
        {"width": 24, "num_experts": 3, "score": "energy"},
        {"width": 24, "score": "energy", "tokens": 10**6},
    ],
    ids=["nothing is cut", "scores of other experts do not compare", "experts go too", "no window is left"],
)
def test_what_has_no_price_has_no_table(model_of, texts, tmp_path, settings):
    assert table(model_of("mixtral"), texts, tmp_path, **settings) == []
