"""Hidden state to hazard, mark law and location score.

A head first turns hidden states into a `Condition` (tensors with one row a history), then is evaluated at any number of
gaps without touching the encoder again. Gaps are in mean gaps; z(s) = log(1 + knee s) is the clock that hazards see,
where 1/knee is about the shortest fifth of the training gaps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.events.maths.quadrature import log_softplus

Condition = dict[str, Tensor]
"""What a head needs of a history: tensors whose leading dimensions are those of the hidden states."""


class LinearHazard(nn.Module):
    """lam_k(s) = softplus(beta_k (a_k s + w_k.h + b_k)) / beta_k, the intensity of the Transformer Hawkes Process.

    The published code clamps the exponent at 20, which bounds the intensity; here softplus stays linear above.

    Args:
        time_scaling: "gap" uses s; "relative" uses s / (t_i + 1) as in the paper, which depends on the clock's origin.
    """

    def __init__(self, hidden_size: int, num_marks: int, time_scaling: str = "gap") -> None:
        super().__init__()
        self.time_scaling = time_scaling
        self.weight = nn.Linear(hidden_size, num_marks)
        self.slope = nn.Parameter(torch.full((num_marks,), -0.1))
        self.log_beta = nn.Parameter(torch.zeros(num_marks))

    def condition(self, hidden: Tensor, last_time: Tensor) -> Condition:
        slope = self.slope.expand(*hidden.shape[:-1], -1)
        if self.time_scaling == "relative":
            slope = slope / (last_time.unsqueeze(-1) + 1)
        beta = self.log_beta.exp()
        return {"level": beta * self.weight(hidden), "slope": beta * slope}

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """Over all types: one product, where a division and a sum would each go over every type at every gap."""
        return F.softplus(self._exponent(condition, gap)) @ torch.exp(-self.log_beta)

    def log_mark_hazards(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return log_softplus(self._exponent(condition, gap)) - self.log_beta

    def _exponent(self, condition: Condition, gap: Tensor) -> Tensor:
        return torch.addcmul(condition["level"].unsqueeze(-2), condition["slope"].unsqueeze(-2), gap.unsqueeze(-1))


class HazardFactor(nn.Module):
    """log of a factor on each of J hazards, as a small network in the gap:

        v_j.g + c_j,   g = tanh(a z + b),   a = tanh(W_a h), b = W_b h,   z = log(1 + knee s)

    The inside is the head of SMURF-THP (arXiv 2310.16336), there with z = s and softplus outside. A factor of a hazard
    that is positive keeps it so, and in the clock z it can fall like a power of s, as bursts in order books do: half of
    their gaps are a thirtieth of the mean gap or less. It is bounded, so the density stays proper at both ends, and it
    begins at one. The derivative in s is analytic; training needs no second backward pass.
    """

    def __init__(self, hidden_size: int, width: int, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.scale_proj = nn.Linear(hidden_size, width)
        self.shift_proj = nn.Linear(hidden_size, width)
        self.out_proj = nn.Linear(width, num_outputs)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def condition(self, hidden: Tensor) -> Condition:
        return {"scale": torch.tanh(self.scale_proj(hidden)), "shift": self.shift_proj(hidden)}

    def _inner(self, condition: Condition, gap: Tensor, knee: float) -> Tensor:
        z = torch.log1p(knee * gap).unsqueeze(-1)
        return torch.tanh(condition["scale"].unsqueeze(-2) * z + condition["shift"].unsqueeze(-2))

    def log_factors(self, condition: Condition, gap: Float[Tensor, "*S q"], knee: float) -> Float[Tensor, "*S q J"]:
        return self.out_proj(self._inner(condition, gap, knee))

    def log_factors_and_slopes(
        self, condition: Condition, gap: Float[Tensor, "*S q"], knee: float
    ) -> tuple[Float[Tensor, "*S q J"], Float[Tensor, "*S q J"]]:
        """The same, and its derivative in s."""
        g = self._inner(condition, gap, knee)
        inner = (1 - g.square()) * condition["scale"].unsqueeze(-2)
        clock = (knee / (1 + knee * gap)).unsqueeze(-1)  # z'(s)
        return self.out_proj(g), F.linear(inner, self.out_proj.weight) * clock


class TimedMarks(nn.Module):
    """Logits C tanh(a z + b) + c beside others: the law of the mark depends on when the event comes (SMURF-THP)."""

    def __init__(self, hidden_size: int, width: int, num_marks: int) -> None:
        super().__init__()
        self.scale_proj = nn.Linear(hidden_size, width)
        self.shift_proj = nn.Linear(hidden_size, width)
        self.out_proj = nn.Linear(width, num_marks)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def condition(self, hidden: Tensor) -> Condition:
        return {"mark_scale": torch.tanh(self.scale_proj(hidden)), "mark_shift": self.shift_proj(hidden)}

    def logits(self, condition: Condition, gap: Float[Tensor, "*S q"], knee: float) -> Float[Tensor, "*S q K"]:
        z = torch.log1p(knee * gap).unsqueeze(-1)
        return self.out_proj(
            torch.tanh(condition["mark_scale"].unsqueeze(-2) * z + condition["mark_shift"].unsqueeze(-2))
        )


class LocationScore(nn.Module):
    """Score of the location at noise level sigma given history and gap: a network for -sigma score.

    Three layers of width M with additive conditioning on (h, z(s), log sigma), and a skip that is exact for a standard
    normal law; after SMASH (arXiv 2310.16310), which trains one noise level and mixes with softmax gates instead.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.history_proj = nn.Linear(hidden_size, width)
        self.clock_proj = nn.Linear(2, width)
        self.in_proj = nn.Linear(2, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.layer_conditions = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.out_proj = nn.Linear(width, 2)

    def condition(self, hidden: Tensor) -> Condition:
        return {"location_context": self.history_proj(hidden)}

    def score(
        self,
        context: Float[Tensor, "*S M"],
        place: Float[Tensor, "*S q 2"],
        gap: Float[Tensor, "*S q"],
        sigma: Tensor,
        knee: float,
    ) -> Float[Tensor, "*S q 2"]:
        sigma = sigma.expand_as(gap)
        clock = torch.stack([torch.log1p(knee * gap), torch.log(sigma)], dim=-1)
        shared = F.silu(context.unsqueeze(-2) + self.clock_proj(clock))
        shrink = 1 / (1 + sigma.square()).sqrt().unsqueeze(-1)
        x = F.silu(self.in_proj(place * shrink) + shared)
        for layer, extra in zip(self.layers, self.layer_conditions, strict=True):
            x = x + F.silu(layer(x) + extra(shared))
        residual = self.out_proj(x)
        # Of a standard normal law smoothed by sigma the score is -x/(1 + sigma^2); the network adds the rest.
        return -place * shrink.square() + residual * shrink / sigma.unsqueeze(-1)
