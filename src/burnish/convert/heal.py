"""The attention of a converted layer, trained to give what the original's gave.

For the attention A of a converted layer, what comes into it behind converted layers (X'), and what the original's gave
for what came into that (Y),

    min over q, kv_a, kv_b and o of |A(X') - Y|^2

by Adam, with steps in proportion to the weights of each matrix. Layers differ a hundredfold in how far they may be
moved, so how far to go is chosen on text that was held out, and nowhere is one of the choices. The row of the constant
channel stays as it is, and so does the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.arch import HiddenStates, layers
from burnish.convert.refit import is_held_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = {"q": "q_proj", "kv_a": "kv_a_proj_with_mqa", "kv_b": "kv_b_proj", "o": "o_proj"}
RATES = (1e-2, 3e-3)
"""First steps, in median absolute weights of a matrix; they fall linearly to zero. The second is for layers in which
half of the way or less of the first is the best."""
BETAS = 0.9, 0.95
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Of the way that are tried."""


def heal(
    source: PreTrainedModel,
    new: PreTrainedModel,
    number: int,
    original: Sequence[HiddenStates],
    text: Sequence[HiddenStates],
    *,
    tokens: int,
    constant: bool,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The matrices of a layer's attention by role, and a row: the relative error on held-out text, and the steps kept.

    Those are the first step times the share of the way that is kept, 0 where nothing is.

    Args:
        source, new: the networks, of which the new one is converted up to and with this layer.
        number: of the layer.
        original: at least two batches, in front of the source's layer.
        text: the same, in front of the new one's.
        tokens: to train on; more than there are go through several times.
        constant: whether the last row of the latent is the constant channel.
    """
    layer: Any = layers(new)[number][1]
    with torch.no_grad():
        targets = [attended(layers(source)[number][1], number, states) for states in original]
    places = {held: [p for p in range(len(text)) if is_held_out(p, len(text)) is held] for held in (False, True)}
    energy = torch.cat([target.flatten() for target in targets]).square().mean()

    def error(place: int, weights: Mapping[str, Tensor]) -> Tensor:
        made = attended(layer, number, text[place], weights)
        return (made - targets[place]).square().mean() / energy

    def held_out(weights: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            return sum(float(error(place, weights)) for place in places[True]) / len(places[True])

    start = {role: layer.self_attn.get_submodule(name).weight.detach().float() for role, name in PROJECTIONS.items()}
    frozen = layer.self_attn.kv_lora_rank - 1 if constant else None
    batches = order(places[False], text, tokens, number)
    kept, before = (start, 0.0), held_out(start)
    after = before
    for rate in RATES:
        end = trained(start, error, batches, rate, frozen)
        ways = {share: {role: start[role].lerp(end[role], share) for role in start} for share in SHARES}
        errors = {share: held_out(weights) for share, weights in ways.items()}
        best = min(SHARES, key=errors.__getitem__)
        if errors[best] < after:
            kept, after = (ways[best], best * rate), errors[best]
        if best > 0.5:
            break
    return kept[0], {"output error, not healed": before, "output error, healed": after, "steps kept": kept[1]}


def attended(
    layer: Any, number: int, states: HiddenStates, weights: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "windows length hidden"]:
    """What the attention of a layer adds to the stream, with other weights by role where they are given."""
    inputs = layer.input_layernorm(states.hidden)
    attention: nn.Module = layer.self_attn
    if weights is None:
        return attention(hidden_states=inputs, **states.arguments[number])[0]
    named = {f"{PROJECTIONS[role]}.weight": weight.to(inputs.dtype) for role, weight in weights.items()}
    return torch.func.functional_call(attention, named, (), {"hidden_states": inputs, **states.arguments[number]})[0]


def order(places: Sequence[int], text: Sequence[HiddenStates], tokens: int, seed: int) -> list[int]:
    """Batches to train on, until there were so many tokens: all of them in a drawn order before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    while tokens > 0:
        for chosen in torch.randperm(len(places), generator=generator).tolist():
            if tokens > 0:
                found.append(places[chosen])
                tokens -= text[places[chosen]].hidden.shape[:2].numel()
    return found


@torch.enable_grad()
def trained(
    start: Mapping[str, Tensor],
    error: Callable[[int, Mapping[str, Tensor]], Tensor],
    batches: Sequence[int],
    rate: float,
    frozen: int | None,
) -> dict[str, Tensor]:
    """The matrices behind one step of Adam for every batch.

    Args:
        start: matrices by role.
        error: of a batch, with given matrices.
        batches: in order.
        rate: the first step, in median absolute weights.
        frozen: row of `kv_a` that stays as it is.
    """
    weights = {role: tensor.clone().requires_grad_() for role, tensor in start.items()}
    groups = [{"params": [weight], "lr": rate * float(start[role].abs().median())} for role, weight in weights.items()]
    adam = torch.optim.Adam(groups, betas=BETAS)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / len(batches))
    for place in batches:
        gradients = dict(zip(weights, torch.autograd.grad(error(place, weights), list(weights.values())), strict=True))
        if frozen is not None:
            gradients["kv_a"][frozen] = 0
        for role, weight in weights.items():
            weight.grad = gradients[role]
        adam.step()
        falling.step()
    return {role: weight.detach() for role, weight in weights.items()}
