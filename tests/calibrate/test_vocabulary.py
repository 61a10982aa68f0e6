"""What text says of the embedding and the head: sums of both uses, against ordinary back-propagation."""

import pytest
import torch
import torch.nn.functional as F

from burnish.arch import matrices
from burnish.calibrate import Calibration
from burnish.calibrate import vocabulary as of_vocabulary
from burnish.calibrate.labels import draw_labels
from burnish.calibrate.vocabulary import collect_vocabulary
from burnish.core.errors import CheckpointError
from burnish.quantize.maths.allocation import sensitivity_of_rows
from small_models import make

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
SEED = 3


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 64, (6, 12), generator=torch.Generator().manual_seed(0))


def rows_of_tokens(module):
    """The embedding and the head, or the one that is both."""
    return [view for view in matrices(module) if view.layer is None and view.part in ("embedding", "head")]


def by_hand(module, tokens):
    """n, G, a and H."""
    weight = module.get_input_embeddings().weight
    rows, width = weight.shape
    counts, variances = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    looked_up, multiplied = torch.zeros(2, width, width, dtype=torch.float64)
    for number, row in enumerate(tokens):
        states = module.get_input_embeddings()(row[None]).detach().requires_grad_()
        hidden = module.base_model(inputs_embeds=states).last_hidden_state
        logits = module.get_output_embeddings()(hidden)[0]
        labels = draw_labels(logits.detach(), SEED, number)
        (gradients,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), states)
        error = logits.detach().softmax(-1) - F.one_hot(labels, rows)
        counts += F.one_hot(row, rows).sum(0)
        variances += error.square().sum(0)
        looked_up += gradients[0].T @ gradients[0]
        multiplied += (hidden[0].T * error.square().sum(1)).detach() @ hidden[0].detach()
    return counts, looked_up, variances, multiplied


@pytest.mark.parametrize("tied", [True, False])
def test_the_sums_are_those_of_ordinary_back_propagation(tokens, tmp_path, tied):
    module = make("llama", dtype=torch.float64, **SHAPE, tie_word_embeddings=tied)
    views = rows_of_tokens(module)
    text = Calibration(tokens, seed=SEED, num_folds=2)
    found = collect_vocabulary(module, views, text, tmp_path, key={})
    counts, looked_up, variances, multiplied = by_hand(module, tokens)
    uses = [use for view in views for use in found.uses(view, [0, 1])]
    wanted = [(counts, looked_up), (variances, multiplied)]
    for use, (rows, columns) in zip(uses, wanted, strict=True):
        torch.testing.assert_close(use.rows, rows, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(use.columns, columns, rtol=1e-9, atol=1e-12)
    read = found.read(views[0], [0, 1])
    torch.testing.assert_close(read.covariance, looked_up + multiplied if tied else looked_up, rtol=1e-9, atol=1e-12)
    assert read.num_tokens == tokens.numel()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_looked_up_counts_as_often_as_its_module_multiplies_it(tokens, tmp_path):
    module = make("gemma3_text", dtype=torch.float64, **SHAPE)
    views = rows_of_tokens(module)
    found = collect_vocabulary(module, views, Calibration(tokens, SEED, 2), tmp_path, key={})
    factor = float(module.get_input_embeddings().embed_scale)
    assert factor != 1
    looked_up = by_hand(module, tokens)[1]
    torch.testing.assert_close(found.uses(views[0], [0, 1])[0].columns, factor**2 * looked_up, rtol=1e-6, atol=1e-12)


def test_an_interrupted_collection_goes_on_and_another_text_is_refused(tokens, tmp_path, monkeypatch):
    module = make("llama", dtype=torch.float64, **SHAPE)
    text = Calibration(tokens, seed=SEED, num_folds=2)
    truly, calls = of_vocabulary.drawn_label_loss, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return truly(*given)

    monkeypatch.setattr(of_vocabulary, "drawn_label_loss", stopped)
    for _ in range(2):
        try:
            found = collect_vocabulary(module, rows_of_tokens(module), text, tmp_path, key={})
        except KeyboardInterrupt:
            continue
    assert len(calls) == 3  # the first fold was not collected again
    (view, *_) = rows_of_tokens(module)
    whole = collect_vocabulary(module, rows_of_tokens(module), text, tmp_path / "whole", key={})
    assert torch.equal(found.read(view, [0, 1]).covariance, whole.read(view, [0, 1]).covariance)
    with pytest.raises(CheckpointError, match="calibration text"):
        collect_vocabulary(module, rows_of_tokens(module), Calibration(tokens - 1, SEED, 2), tmp_path, key={})


def test_what_rows_cost_is_the_divergence_of_the_logits_to_second_order():
    """For a head whose inputs and predictions are independent, where the factors are exact, and errors of single rows,
    which the part of the Fisher matrix that is left out does not touch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 8, dtype=torch.float64, generator=generator)
    weight = torch.zeros(5, 8, dtype=torch.float64)
    weight[:, 0] = torch.tensor([0.0, 1, 2, 0, -1])
    inputs[:, 0] = 1  # all predict the same
    p = (inputs @ weight.T).softmax(-1)
    variance = p * (1 - p)
    columns = (inputs.T * variance.sum(1)) @ inputs
    for row in range(5):
        error = torch.zeros_like(weight)
        error[row] = 1e-3 * torch.randn(8, dtype=torch.float64, generator=generator)
        q = (inputs @ (weight - error).T).log_softmax(-1)
        measured = float((p * (p.log() - q)).sum(-1).mean())
        assert sensitivity_of_rows(error, variance.sum(0), columns, 4000) == pytest.approx(measured, rel=0.01)
