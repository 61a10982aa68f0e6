"""COSMOS on parameters that FSDP2 shards along their rows, with the answer of one process.

The low-rank algebra needs little of the other processes: `G U` is made of local rows, `G^T (G U)` and
`(G U')^T (G U')` are sums over processes of small matrices (n x r and r x r), and the QR of the basis is done by all.
The remainder is orthogonalised by owners, as in `burnish.optim.exchange`; the norms are sums over processes. In the
first step the owner of a matrix gets its whole gradient, and everyone the basis that it finds.

Bases and covariances are kept on every process, the momentum and the second moment with their rows.
Source: COSMOS (2025, arXiv:2502.17410); it was not published for shards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from burnish.optim.exchange import Exchange, Transfer, Unit, in_rounds, orthogonalise_owned, overlapped, units_of
from burnish.optim.maths import cosmos as maths
from burnish.optim.orthogonal import orthogonalisation_dtype
from burnish.optim.rule import Item


def update_sharded(items: list[Item]) -> None:
    """One step of COSMOS on sharded parameters, each of which is one matrix; collective."""
    same: dict[tuple[torch.dtype, bool], list[Unit]] = {}
    for item in items:
        (unit,) = units_of(item)
        dtype = orthogonalisation_dtype(item.group["ns_dtype"], item.state["momentum"])
        item.state["step"] += 1
        same.setdefault((dtype, int(item.state["step"]) == 1), []).append(unit)
    overlapped(
        _round(exchange, dtype, first=first) for (dtype, first), some in same.items() for exchange in in_rounds(some)
    )


def _round(exchange: Exchange, dtype: torch.dtype, *, first: bool) -> Transfer[None]:
    """One round from gradients to weights."""
    units = exchange.units
    gradients = [unit.item.gradient.to(unit.item.state["momentum"].dtype) for unit in units]
    directions = [_direction(unit, gradient) for unit, gradient in zip(units, gradients, strict=True)]
    yield from (_first_bases if first else _next_bases)(exchange, gradients)

    parts = [_parts(unit, g, d) for unit, g, d in zip(units, gradients, directions, strict=True)]
    squares = [torch.stack([r.square().sum(), d.square().sum()]) for (_, r), d in zip(parts, directions, strict=True)]
    outside = yield from exchange.totals(squares)
    remainders = [remainder.to(dtype) for _, remainder in parts]
    wholes = yield from exchange.to_owners(remainders)
    orthogonal = yield from exchange.to_shards(orthogonalise_owned(exchange.mine, wholes), remainders[0])
    muons = [o.to(d.dtype) for o, d in zip(orthogonal, directions, strict=True)]
    norms = yield from exchange.totals([muon.square().sum() for muon in muons])

    combined = []
    for unit, (adam, _), muon, norm, squares_of in zip(units, parts, muons, norms, outside, strict=True):
        group = unit.item.group
        muon = maths.sized(muon, _size(unit), _as_norm(norm), group["eps"])
        if unit.item.state["basis0"].shape[-1] == 0:  # no leading space: normalised Muon
            combined.append(muon)
            continue
        if not group["legacy"]:
            remainder_norm, momentum_norm = (_as_norm(square) for square in squares_of)
            muon = maths.without_noise(muon, remainder_norm, momentum_norm)
        combined.append(adam + group["gamma"] * muon)
    norms = yield from exchange.totals([change.square().sum() for change in combined])
    for unit, change, norm in zip(units, combined, norms, strict=True):
        item, group = unit.item, unit.item.group
        if item.state["basis0"].shape[-1]:
            change = maths.sized(change, _size(unit), _as_norm(norm), group["eps"])
        item.decay_(item.weight)
        item.weight.sub_(change, alpha=group["lr"] * group["lr_ratio"])
        item.commit()


def _direction(unit: Unit, gradient: Tensor) -> Tensor:
    """D of the local rows."""
    state, group = unit.item.state, unit.item.group
    beta1 = group["betas"][0]
    state["momentum"].lerp_(gradient, 1 - beta1)
    return maths.momentum(
        state["momentum"], gradient, beta1, int(state["step"]), nesterov=group["nesterov"], legacy=group["legacy"]
    )


def _first_bases(exchange: Exchange, gradients: list[Tensor]) -> Transfer[None]:
    wholes = yield from exchange.to_owners(gradients)
    found: list[list[Tensor]] = [[], []]
    for unit, whole in zip(exchange.mine, wholes, strict=True):
        rank = unit.item.state["basis0"].shape[-1]
        for kind, tensor in zip(found, maths.first_basis(whole, rank, unit.item.group["betas"][1]), strict=True):
            kind.append(tensor)
    for key, owned in zip(("basis0", "covariance0"), found, strict=True):
        states = [unit.item.state[key] for unit in exchange.units]
        new = yield from exchange.to_everyone(owned, [tuple(state.shape) for state in states], gradients[0])
        for state, tensor in zip(states, new, strict=True):
            state.copy_(tensor)


def _next_bases(exchange: Exchange, gradients: list[Tensor]) -> Transfer[None]:
    units = exchange.units

    def each(share: Callable[[Unit, Tensor], Tensor]) -> list[Tensor]:
        return [share(unit, gradient) for unit, gradient in zip(units, gradients, strict=True)]

    powers = yield from exchange.totals(each(lambda u, g: maths.power_share(u.item.state["basis0"], g, _beta2(u))))
    bases = [
        maths.next_basis(unit.item.state["basis0"], unit.item.state["covariance0"], power, _beta2(unit))
        for unit, power in zip(units, powers, strict=True)
    ]
    shares = [
        maths.covariance_share(gradient @ basis, _beta2(unit))
        for unit, gradient, basis in zip(units, gradients, bases, strict=True)
    ]
    totals = yield from exchange.totals(shares)
    for unit, basis, share in zip(units, bases, totals, strict=True):
        old, covariance = unit.item.state["basis0"], unit.item.state["covariance0"]
        covariance.copy_(maths.next_covariance(old, basis, covariance, share, _beta2(unit)))
        old.copy_(basis)


def _parts(unit: Unit, gradient: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's step in the leading space and what is left outside, of the local rows; moves the second moment."""
    state, group = unit.item.state, unit.item.group
    beta2 = _beta2(unit)
    state["second_moment0"].lerp_((gradient @ state["basis0"]).square(), 1 - beta2)
    corrected = state["second_moment0"] / (1 - beta2 ** int(state["step"]))
    return maths.parts(direction, state["basis0"], corrected, group["eps"])


def _beta2(unit: Unit) -> float:
    return unit.item.group["betas"][1]


def _size(unit: Unit) -> float:
    return unit.spread.num_elements**0.5


def _as_norm(square: Tensor) -> Tensor:
    return square.sqrt().view(1, 1)
