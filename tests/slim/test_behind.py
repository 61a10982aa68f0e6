"""The refit behind layers that have been cut: all experts of a layer together, to what the original layer gave."""

import copy

import pytest
import torch

from burnish.core.errors import NumericalError
from burnish.core.progress import Progress
from burnish.slim.behind import refit_behind
from burnish.slim.collect import down_views
from burnish.slim.maths.refit import refit_together
from burnish.slim.stage import Slim
from small_models import make

QUIET = Progress(enabled=False)
SMALL = {"length": 32, "multiple": 8, "allow_unseen": True}
TOKENS = torch.randint(3, 384, (16, 32), generator=torch.Generator().manual_seed(0))
KINDS = {
    "mixtral": {},
    "granitemoe": {"residual_multiplier": 0.22},
    "afmoe": {},
    "nemotron_h": {"moe_latent_size": 24},
    "llama4_text": {},
    "gpt_oss": {},
}


def damaged(kind, dtype=torch.float64):
    """A model, and the same with half of the neurons of every expert gone."""
    original = make(kind, dtype=dtype, disturbed=True, **KINDS[kind])
    smaller = copy.deepcopy(original)
    for view in down_views(smaller, "experts"):
        down = view.tensor.clone()
        down[:, ::2] = 0
        view.write_(down)
    return original, smaller


def logits(module):
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_nearer_to_the_original_on_the_text(kind):
    """Also where a norm, a projection or a multiplier stands between experts and the output of their layer."""
    original, smaller = damaged(kind)
    columns = {view.layer: [torch.arange(1, view.shape[1], 2)] * 4 for view in down_views(smaller, "experts")}
    wanted = logits(original)
    before = (logits(smaller) - wanted).norm()
    found = dict(refit_behind(original, smaller, TOKENS, QUIET, ridge=1e-3, columns=columns))
    assert (logits(smaller) - wanted).norm() < 0.95 * before
    for view in down_views(smaller, "experts"):
        assert torch.equal(view.tensor, found[view.layer, view.expert])
        assert view.tensor[:, ::2].eq(0).all()


def test_a_model_that_lost_nothing_stays_as_it_is():
    original = make("qwen3_moe", disturbed=True)
    smaller = copy.deepcopy(original)
    for _ in refit_behind(original, smaller, TOKENS, QUIET):
        pass
    after = smaller.state_dict()
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-6)


def test_outputs_that_are_not_finite_are_refused_with_the_name_of_the_layer():
    original, smaller = damaged("mixtral", torch.float32)
    original.model.layers[1].mlp.experts.down_proj.data[0] = float("inf")
    with pytest.raises(NumericalError, match=r"model\.layers\.1"):
        dict(refit_behind(original, smaller, TOKENS, QUIET))


def test_narrowed_experts_are_refitted_behind_too(model_of, texts):
    model = model_of("mixtral")
    made = [Slim(width=24, refit=refit, tokens=512, **SMALL)(model, calibration=texts) for refit in ("none", "behind")]
    plain, refitted = (one.module.state_dict() for one in made)
    changed = {name.rpartition(".")[2] for name, tensor in plain.items() if not torch.equal(tensor, refitted[name])}
    assert changed == {"down_proj"}


def test_sweeps_reach_the_joint_solution():
    """Of two experts that share tokens, against one least-squares problem with all columns."""
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.arange(0, 60), torch.arange(30, 90)]
    blocks = [torch.randn(60, 5, generator=draw, dtype=torch.float64) for _ in tokens]
    missing = torch.randn(90, 4, generator=draw, dtype=torch.float64)
    joint = torch.zeros(90, 10, dtype=torch.float64)
    for number, (rows, block) in enumerate(zip(tokens, blocks, strict=True)):
        joint[rows, 5 * number : 5 * number + 5] = block
    wanted = torch.linalg.lstsq(joint, missing).solution
    parts = [(rows, lambda block=block: block) for rows, block in zip(tokens, blocks, strict=True)]
    left = missing.clone()
    found = refit_together(parts, left, ridge=0.0, sweeps=200)
    torch.testing.assert_close(torch.cat(found, 1).T, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(left, missing - joint @ wanted, rtol=1e-9, atol=1e-9)


def test_an_expert_whose_neurons_are_silent_is_left_as_it_is():
    found = refit_together([(torch.arange(3), lambda: torch.zeros(3, 2))], torch.ones(3, 4))
    assert torch.equal(found[0], torch.zeros(4, 2))
