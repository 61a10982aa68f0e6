"""A Hawkes process inside a network: what events excite, as a skip path that the network only has to correct.

    log lam_j(s | H) = log H_j(s) + v_j.g(s) + c_j,      g(s) = tanh(a z(s) + b) of the history
    H_k(s) = mu_k + sum_d R_{d,k} exp(-b_d s),           R <- R exp(-b_d gap) + A_d[:, k] at an event of type k

H is fitted by maximum likelihood before the first epoch (maths/excitation.py) and stays; the network's part begins at
zero. So training begins at the parametric model, and as the epoch is chosen on validation data with the start among the
candidates, the network is never much worse than it: on data that is a Hawkes process, nothing has to be learned. The
excitement is carried over the windows of a long sequence.

    Lam(s) = sum_j [ int_0^s H_j  +  int_0^s H_j (exp(v_j.g + c_j) - 1) ]

The first integral is a closed form and only the correction is integrated by quadrature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from burnish.core.errors import SettingsError
from burnish.events.batches import EventBatch
from burnish.events.data import EventDataset
from burnish.events.heads import Condition, HazardFactor
from burnish.events.maths.excitation import decay_grid, excitement, maximum_likelihood
from burnish.events.maths.quadrature import gauss_legendre
from burnish.events.model import EncodedModel, TrainingStatistics

SLOWEST = 0.02
"""Slowest decay that is tried, per mean gap."""
MOST_NUMBERS = 3e7
"""Numbers of a table of excitements, at most; of longer data the first events are used."""
UNSEEN = 2.0
"""As if so many more events of every type had been seen that excited nothing: rare types claim little."""


class Excitation(nn.Module):
    """A Hawkes process with `num_decays` exponential kernels, fitted once and then fixed; times in mean gaps.

    Attributes:
        decays: (D + 1,) of which the first, zero, belongs to the base rate.
        base: (K,) mu.
        jumps: (D, K, K) A.
    """

    decays: Tensor
    base: Tensor
    jumps: Tensor

    def __init__(self, num_marks: int, num_decays: int) -> None:
        super().__init__()
        self.num_marks, self.num_decays = num_marks, num_decays
        decays = torch.cat([torch.zeros(1), torch.logspace(-1, 1, num_decays)])
        self.register_buffer("decays", decays)
        self.register_buffer("base", torch.full((num_marks,), 1 / num_marks))
        self.register_buffer("jumps", torch.zeros(num_decays, num_marks, num_marks))

    @property
    def size(self) -> int:
        """Numbers of a state R."""
        return self.num_decays * self.num_marks

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, training: EventDataset, statistics: TrainingStatistics, seed: int) -> None:
        """Chooses the decays by those of the events together, and fits base rates and jumps to them."""
        grid = decay_grid(2 * statistics.knee, SLOWEST, self.num_decays)
        most = int(MOST_NUMBERS / max(len(grid), self.size))
        gaps, marks, counted = _observed(training, statistics.mean_gap, most, seed)
        decays = grid[:0]
        if self.num_decays:
            together = [np.where(mark < 0, mark, 0) for mark in marks]
            _, jumps = _fitted(gaps, together, counted, grid, 1)
            explained = jumps[:, 0, 0] / grid
            decays = np.sort(grid[np.argsort(-explained, kind="stable")[: self.num_decays]])
        base, jumps = _fitted(gaps, marks, counted, decays, self.num_marks)
        for name, value in (("decays", np.append(0.0, decays)), ("base", base), ("jumps", jumps)):
            getattr(self, name).copy_(torch.from_numpy(value))

    # -- states ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 DK"]:
        """R after 0, 1, ... L events."""
        rises = self.jumps.permute(2, 0, 1)[batch.marks]  # (B, L, D, K)
        fades = torch.exp(-batch.gaps.unsqueeze(-1) * self.decays[1:]).unsqueeze(-1)
        state = rises.new_zeros(len(rises), self.num_decays, self.num_marks)
        if batch.before is not None:
            state = torch.einsum("bdm,dkm->bdk", batch.before, self.jumps)
        path = [state]
        for i in range(batch.gaps.shape[1]):
            state = torch.addcmul(rises[:, i], state, fades[:, i])
            path.append(state)
        return torch.stack(path, dim=1).flatten(-2)

    def online(self) -> OnlineExcitation:
        """The same for one stream, in numpy."""
        return OnlineExcitation(self.decays[1:].cpu().numpy(), self.jumps.cpu().numpy())

    def drive(self, state: Float[Tensor, "*S DK"]) -> Float[Tensor, "*S D+1 K"]:
        """mu and R, the factors of exp(-b_d s)."""
        base = self.base.expand(*state.shape[:-1], 1, -1)
        return torch.cat([base, state.unflatten(-1, (self.num_decays, self.num_marks))], dim=-2)

    # -- hazards -----------------------------------------------------------------------------------------------------

    def hazards(self, drive: Float[Tensor, "*S D+1 J"], gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q J"]:
        """H_j(s)."""
        return torch.exp(-gap.unsqueeze(-1) * self.decays) @ drive

    def slopes(self, drive: Float[Tensor, "*S D+1 J"], gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q J"]:
        """H_j'(s)."""
        return (-self.decays * torch.exp(-gap.unsqueeze(-1) * self.decays)) @ drive

    def integrals(self, drive: Float[Tensor, "*S D+1 J"], gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q J"]:
        """int_0^s H_j."""
        decays = self.decays[1:]
        fading = -torch.expm1(-gap.unsqueeze(-1) * decays) / decays
        return torch.cat([gap.unsqueeze(-1), fading], dim=-1) @ drive


class OnlineExcitation:
    """R of one stream, event by event."""

    def __init__(self, decays: NDArray[Any], jumps: NDArray[Any]) -> None:
        self.decays, self.jumps = decays, jumps
        self.state = np.zeros(jumps.shape[:2], jumps.dtype)

    def step(self, gap: float, mark: int) -> None:
        self.state = self.state * np.exp(-gap * self.decays)[:, None] + self.jumps[:, :, mark]


def _observed(
    training: EventDataset, mean_gap: float, most: int, seed: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.int64]], NDArray[np.bool_]]:
    """Gaps, marks and which gaps count; a censored last gap is one that ends with the mark -1."""
    gaps, marks, counted, total = [], [], [], 0
    for index in np.random.default_rng(seed).permutation(len(training)):
        sequence = training.sequences[index]
        if len(sequence) == 0 or total >= most:
            continue
        sequence = sequence.head(most - total) if len(sequence) > most - total else sequence
        own, kinds = sequence.gaps / mean_gap, sequence.marks
        targets = np.arange(len(own)) >= sequence.first_target
        if sequence.end is not None:
            own = np.append(own, (sequence.end - sequence.times[-1]) / mean_gap)
            kinds, targets = np.append(kinds, -1), np.append(targets, True)
        total += len(own)
        gaps.append(own)
        marks.append(kinds)
        counted.append(targets & (own > 0))  # a tie has a probability of its own, and no hazard
    return gaps, marks, np.concatenate(counted)


def _fitted(
    gaps: list[NDArray[np.float64]],
    marks: list[NDArray[np.int64]],
    counted: NDArray[np.bool_],
    decays: NDArray[np.float64],
    num_marks: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Base rates (K,) and jumps (D, K, K) for these decays."""
    x = excitement(gaps, marks, decays, num_marks)[counted]
    gap, mark = np.concatenate(gaps)[counted], np.concatenate(marks)[counted]
    fade = np.exp(-np.multiply.outer(gap, decays))
    exposure = (((1 - fade) / decays)[:, :, None] * x).sum(0) + UNSEEN / decays[:, None]
    x *= fade[:, :, None]
    base, jumps = np.zeros(num_marks), np.zeros((len(decays), num_marks, num_marks))
    for kind in range(num_marks):
        own = mark == kind
        features = x[own].reshape(own.sum(), exposure.size)
        base[kind], found = maximum_likelihood(features, exposure.ravel(), float(gap.sum()))
        jumps[:, kind] = found.reshape(exposure.shape)
    return base, jumps


class ExcitedModel(EncodedModel):
    """A network over a Transformer history that corrects the hazards of a Hawkes process.

    Args:
        num_marks: types of events.
        encoder: fields of `EncoderSettings`.
        head_size: width of the network of the correction.
        num_decays: kernels of the Hawkes process; 0 leaves base rates only.
        num_hazards: one for all types together, or one a type.
        **settings: the subclass's own.
    """

    def __init__(
        self,
        num_marks: int,
        encoder: dict[str, Any],
        *,
        head_size: int,
        num_decays: int,
        num_hazards: int,
        **settings: Any,
    ) -> None:
        if num_decays < 0:
            raise SettingsError(f"num_decays is {num_decays}, but must be at least 0")
        super().__init__(num_marks, encoder, head_size=head_size, num_decays=num_decays, **settings)
        self.excitation = Excitation(num_marks, num_decays)
        self.time_head = HazardFactor(self.hidden_size, head_size, num_hazards)
        self.excited_size = self.state_size = self.hidden_size + self.excitation.size

    def prepare(self, training: EventDataset, seed: int) -> None:
        """Fits the Hawkes process."""
        super().prepare(training, seed)
        self.excitation.fit(training, self.statistics, seed)

    @property
    def carried_decays(self) -> NDArray[np.float64]:
        return self.excitation.decays[1:].double().cpu().numpy()

    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 M"]:
        """The encoder's states, and behind each the excitement."""
        return torch.cat([super().states(batch), self.excitation.states(batch)], dim=-1)

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        drive = self.excitation.drive(hidden[..., self.hidden_size : self.excited_size])
        total = drive if self.time_head.num_outputs > 1 else drive.sum(-1, keepdim=True)
        return self.time_head.condition(hidden[..., : self.hidden_size]) | {"drive": drive, "total_drive": total}

    # -- hazards -----------------------------------------------------------------------------------------------------

    def log_hazards(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q J"]:
        """log lam_j(s)."""
        factor = self.time_head.log_factors(condition, gap, self.statistics.knee)
        return self.excitation.hazards(condition["total_drive"], gap).log() + factor

    def log_hazards_and_slopes(
        self, condition: Condition, gap: Float[Tensor, "*S q"]
    ) -> tuple[Float[Tensor, "*S q J"], Float[Tensor, "*S q J"]]:
        """log lam_j(s) and d/ds log lam_j(s)."""
        factor, slope = self.time_head.log_factors_and_slopes(condition, gap, self.statistics.knee)
        hazard = self.excitation.hazards(condition["total_drive"], gap)
        slope = slope + self.excitation.slopes(condition["total_drive"], gap) / hazard
        return hazard.log() + factor, slope

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        factor = self.time_head.log_factors(condition, gap, self.statistics.knee)
        return (self.excitation.hazards(condition["total_drive"], gap) * factor.exp()).sum(-1)

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.log_hazards(condition, gap).logsumexp(-1)

    def gap_score(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """psi(s) = d/ds log lam(s) - lam(s)."""
        log_hazards, slopes = self.log_hazards_and_slopes(condition, gap)
        return (torch.softmax(log_hazards, dim=-1) * slopes).sum(-1) - log_hazards.exp().sum(-1)

    def compensator(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """Lam(s): the Hawkes part in closed form, the correction by Gauss-Legendre nodes that are even in the clock."""
        knee, drive = self.statistics.knee, condition["total_drive"]
        nodes, weights = gauss_legendre(self.num_quadrature_nodes, gap)
        top = torch.log1p(knee * gap).unsqueeze(-1)
        at = torch.expm1(top * nodes) / knee
        inner = at.flatten(-2)
        change = torch.expm1(self.time_head.log_factors(condition, inner, knee))
        values = (self.excitation.hazards(drive, inner) * change).sum(-1).unflatten(-1, (-1, len(nodes)))
        corrected = (values * (top * (1 + knee * at) / knee)) @ weights
        return self.excitation.integrals(drive, gap).sum(-1) + corrected
