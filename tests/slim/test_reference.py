"""Scores, kept neurons and repair of the toy block, against numbers computed independently."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from burnish.slim.maths.experts import reap, reap_terms
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.refit import gram_terms, refit_down
from burnish.slim.maths.scores import SCORES, saliency

REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "slim"
EXPECTED = json.loads((REFERENCE / "slimmoe_toy_expected.json").read_text())


class Toy:
    """The block, expert by expert: activations, routing weights and gradients of the tokens each saw."""

    def __init__(self):
        with np.load(REFERENCE / "slimmoe_toy.npz", allow_pickle=False) as file:
            self.data = {name: torch.from_numpy(file[name]) for name in file.files}
        data = self.data
        self.down, self.out = data["Wd"], data["out"]
        self.tokens, self.routing, self.activations = [], [], []
        for expert in range(4):
            token, choice = torch.where(data["topk_idx"] == expert)
            x = data["X"][token]
            self.tokens.append(token)
            self.routing.append(data["topk_w"][token, choice, None])
            self.activations.append(F.silu(x @ data["Wg"][expert].T) * (x @ data["Wu"][expert].T))
        out = self.block(self.down).requires_grad_()
        loss = F.cross_entropy((data["X"] + out) @ data["Wo"].T, data["y"])
        self.loss = loss.item()
        (gradient,) = torch.autograd.grad(loss, out)
        self.gradients = [g * gradient[t] for g, t in zip(self.routing, self.tokens, strict=True)]

    def block(self, down, keep=None):
        out = torch.zeros_like(self.out)
        for expert in range(4):
            kept = self.activations[expert] if keep is None else self.activations[expert][:, keep[expert]]
            out.index_add_(0, self.tokens[expert], self.routing[expert] * (kept @ down[expert].T))
        return out

    def score(self, name):
        score = SCORES[name]
        rows = []
        for expert in range(4):
            values = self.activations[expert]
            if score.needs == "gradients":
                values = saliency(values, self.gradients[expert], self.down[expert])
            rows.append(score.finish(score.terms(values, self.routing[expert]), self.down[expert].norm(dim=0)))
        return torch.stack(rows)

    def relative_error(self, down, keep):
        return ((self.block(down, keep) - self.out).norm() / self.out.norm()).item()


@pytest.fixture(scope="module")
def toy():
    return Toy()


NAMES = {
    "taylor_total": "taylor_abs_total",
    "taylor": "taylor_abs_token",
    "fisher": "taylor_sq_token",
    "act_l2": "act_l2",
    "wanda": "wanda_down",
    "energy": "out_energy",
}


def test_the_block_and_its_loss_are_those_of_the_reference(toy):
    assert toy.loss == pytest.approx(EXPECTED["L0"], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_proportional_to_the_reference_within_each_expert(toy, name):
    ratio = toy.score(name) / toy.data[f"score_{NAMES[name]}"]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_keeps_the_same_neurons(toy, name):
    assert torch.equal(keep_highest(toy.score(name), 10), toy.data[f"keep_{NAMES[name]}"])


@pytest.mark.parametrize("name", NAMES)
def test_output_error_after_slicing(toy, name):
    keep = keep_highest(toy.score(name), 10)
    sliced = [toy.down[expert][:, keep[expert]] for expert in range(4)]
    assert toy.relative_error(sliced, keep) == pytest.approx(EXPECTED[NAMES[name]]["rel_out_err"], rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_output_error_after_refitting(toy, name):
    keep = keep_highest(toy.score(name), 10)
    grams = [gram_terms(a, g) for a, g in zip(toy.activations, toy.routing, strict=True)]
    refitted = [refit_down(toy.down[e], grams[e], keep[e], ridge=1e-12) for e in range(4)]
    # the reference used some small ridge of its own
    assert toy.relative_error(refitted, keep) == pytest.approx(EXPECTED[NAMES[name]]["refit_rel_out_err"], rel=1e-4)


def test_reap_scores(toy):
    sums = torch.stack([reap_terms(toy.activations[e], toy.routing[e], toy.down[e]) for e in range(4)])
    counts = torch.tensor([len(tokens) for tokens in toy.tokens])
    assert counts.tolist() == EXPECTED["freq"]
    assert reap(sums, counts).tolist() == pytest.approx(EXPECTED["reap_scores"], rel=1e-12)
