"""The norm of the latent: what a token's share in it costs, and what the constant channel carries."""

from typing import Any

import torch

from burnish.arch import first_inputs, layers
from burnish.convert.latent_layer import AttentionWeights, LayerChoice, Rest
from burnish.convert.latent_norm import nearly_one, shares, steadied, token_costs
from burnish.convert.maths.rotary import grid
from burnish.convert.moments import Attention, collect
from small_models import make

SLOTS = grid(10_000.0, 2)


class Case:
    """The first layer of a small Llama, whose inputs share a direction that one token in ten lacks."""

    def __init__(self, *, constant: bool) -> None:
        module = make("llama", dtype=torch.float64, disturbed=True, hidden_size=32, head_dim=8, initializer_range=0.3)
        embedding = module.get_input_embeddings().weight.data
        embedding += 1.5
        embedding[::10] -= 1.0
        ids = torch.randint(3, 380, (4, 64), generator=torch.Generator().manual_seed(2))
        self.text = [first_inputs(module, ids)]
        self.attention = Attention(module, 0)
        with torch.no_grad():
            moments = collect(self.attention, self.text)
        parts: Any = [self.attention.weights[role].detach() for role in ("q", "k", "v", "o")]
        weights = AttentionWeights(*parts, self.attention.num_heads, self.attention.num_key_value_heads)
        frequencies = module.model.rotary_emb.inv_freq.double()
        layer = LayerChoice(weights, moments, frequencies, moments.distances)
        kept, _ = layer.assigned(SLOTS)
        self.rest = Rest(layer, kept, SLOTS, averaged=True, constant=constant)
        assert len(layers(module)) == 2

    @torch.no_grad()
    def outputs(self) -> torch.Tensor:
        """What is left of keys and values, for every token."""
        weights = self.rest.layer.weights
        inputs = self.attention.inputs(self.text[0]).flatten(0, 1)
        return inputs @ (self.rest.map @ torch.cat([weights.k, weights.v])).mT


def test_the_cost_of_tokens_adds_up_to_what_losing_all_of_their_keys_and_values_costs():
    case = Case(constant=False)
    with torch.no_grad():
        costs = token_costs(case.rest, case.attention, case.text)
    nothing = case.rest.factors("attention", 0)
    torch.testing.assert_close(float(costs.sum()), case.rest.error(nothing, "attention"), rtol=1e-9, atol=0)


def test_the_functional_is_nearest_to_one_where_tokens_weigh_most():
    case = Case(constant=True)
    with torch.no_grad():
        costs = token_costs(case.rest, case.attention, case.text)
        errors = []
        for weights in (torch.full_like(costs, 1 / len(costs)), shares(costs)):
            functional = nearly_one(case.attention, case.text, weights)
            made = case.rest.weights(case.rest.factors("attention", 8), "attention", "functional", functional)
            errors.append(steadied(made, case.attention, case.text, costs, weights).error)
    assert errors[1] < 0.9 * errors[0]


def test_the_constant_channel_carries_the_mean_so_that_the_latent_holds_what_differs():
    """With an exactly constant channel, what comes out of the latent is off by the error that was predicted."""
    found = []
    for constant in (False, True):
        case = Case(constant=constant)
        factors = case.rest.factors("attention", 6)
        outputs, mean = case.outputs(), case.rest.mean("attention")
        through = factors.up @ factors.down
        error = outputs - (mean + (outputs - mean) @ through.mT)
        seen = case.rest.layer.moments.seen
        cost = ((error @ case.rest.cost("attention")) * error).sum(1) @ seen / seen.sum()
        torch.testing.assert_close(float(cost), case.rest.error(factors, "attention"), rtol=1e-8, atol=0)
        found.append(float(cost))
    assert found[1] < found[0]


def test_what_is_read_of_the_constant_channel_is_the_mean_that_the_latent_lacks():
    case = Case(constant=True)
    factors = case.rest.factors("attention", 6)
    made = case.rest.weights(factors, "attention", "bias", None)
    assert made.bias is not None
    rank = made.kv_b.shape[1]
    inputs = case.attention.inputs(case.text[0]).flatten(0, 1).detach()
    given = (inputs @ made.kv_a[:rank].mT + made.bias[:rank]) * made.gains @ made.kv_b.mT
    mean = case.rest.mean("attention")
    wanted = mean + (case.outputs() - mean) @ (factors.up @ factors.down).mT
    heads = given.unflatten(1, (case.attention.num_heads, 2, -1))[:, ::2].transpose(1, 2)  # one of every group
    torch.testing.assert_close(heads.flatten(1), wanted, rtol=0, atol=1e-9)
