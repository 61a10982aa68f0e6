"""The attention of a converted layer, trained to give what the original's gave.

For the attention A of a converted layer, what comes into it behind converted layers (X'), and what the original's gave
for what came into that (Y),

    min over q, kv_a, kv_b and o of |A(X') - Y|^2

by Adam, with steps in proportion to the weights of each matrix. Layers differ a hundredfold in how far they may be
moved, so how much of the way is kept is chosen on text that was held out, and nothing of it is one of the choices. The
row of the constant channel stays as it is, and so does the norm.
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
RATE = 3e-3
"""First step, in median absolute weights of a matrix; it falls linearly to zero."""
BETAS = 0.9, 0.95
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
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
    """The matrices of a layer's attention by role, and a row: the relative error on held-out text, and what was kept.

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

    start = {role: layer.self_attn.get_submodule(name).weight.detach().float() for role, name in PROJECTIONS.items()}
    frozen = layer.self_attn.kv_lora_rank - 1 if constant else None
    end = trained(start, error, order(places[False], text, tokens, number), frozen)
    tried = {share: {role: start[role].lerp(end[role], share) for role in start} for share in SHARES}
    with torch.no_grad():
        errors = {
            share: sum(float(error(place, weights)) for place in places[True]) / len(places[True])
            for share, weights in tried.items()
        }
    best = min(SHARES, key=errors.__getitem__)
    row = {"output error, not healed": errors[0.0], "output error, healed": errors[best], "healing kept": best}
    return tried[best], row


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
    frozen: int | None,
) -> dict[str, Tensor]:
    """The matrices behind one step of Adam for every batch.

    Args:
        start: matrices by role.
        error: of a batch, with given matrices.
        batches: in order.
        frozen: row of `kv_a` that stays as it is.
    """
    weights = {role: tensor.clone().requires_grad_() for role, tensor in start.items()}
    groups = [{"params": [weight], "lr": RATE * float(start[role].abs().median())} for role, weight in weights.items()]
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
