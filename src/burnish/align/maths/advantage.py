"""Advantages: how much better a rollout was than its prompt's others, per episode, per turn and per token.

With R the rewards of groups of G episodes:

    centred       R - mean                          Dr. GRPO, 2025, arXiv 2503.20783
    standardised  (R - mean) / (std + eps)          GRPO, 2024, arXiv 2402.03300; eps 1e-4 in TRL, 1e-6 in verl
    leave_one_out R - mean of the other G - 1       RLOO, 2024, arXiv 2402.14740
    stepwise      g_k - mean of g_k over the group  g_k the turn's return to go
    gae           sum of (gamma lambda)^j delta     2015, arXiv 1506.02438; what the environment said is stepped over

They are computed once for an episode, before it is split into rows: an episode of more rows must not weigh more.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def centred(reward: Float[Tensor, "groups episodes"]) -> Float[Tensor, "groups episodes"]:
    """R - mean; rewards that are NaN (an answer that could not be judged) have advantage 0 and no part in the mean."""
    return (reward - reward.nanmean(dim=1, keepdim=True)).nan_to_num(nan=0.0)


def standardised(reward: Float[Tensor, "groups episodes"], eps: float = 1e-4) -> Float[Tensor, "groups episodes"]:
    """(R - mean)/(std + eps), with the sample standard deviation of the rewards that are known."""
    difference = centred(reward)
    known = (~reward.isnan()).sum(dim=1, keepdim=True)
    spread = (difference.square().sum(dim=1, keepdim=True) / (known - 1).clamp(min=1)).sqrt()
    return difference / (spread + eps)


def leave_one_out(reward: Float[Tensor, "groups episodes"]) -> Float[Tensor, "groups episodes"]:
    """R minus the mean of the others, which is G/(G - 1) times the centred one."""
    known = (~reward.isnan()).sum(dim=1, keepdim=True)
    return centred(reward) * known / (known - 1).clamp(min=1)


ESTIMATORS = {"centred": centred, "standardised": standardised, "leave_one_out": leave_one_out}
"""Of one reward an episode."""


def return_to_go(
    reward: Float[Tensor, "episodes turns"], turns: Int[Tensor, " episodes"], gamma: float = 1.0
) -> Float[Tensor, "episodes turns"]:
    """g_k = sum over j >= k of gamma^(j - k) r_j, over the turns that an episode has; 0 beyond them."""
    has = torch.arange(reward.shape[1], device=reward.device) < turns[:, None]
    reward = torch.where(has, reward, 0.0)
    found, after = torch.zeros_like(reward), torch.zeros_like(reward[:, 0])
    for turn in range(reward.shape[1] - 1, -1, -1):
        after = reward[:, turn] + gamma * after
        found[:, turn] = after
    return found * has


def stepwise(
    reward: Float[Tensor, "episodes turns"],
    turns: Int[Tensor, " episodes"],
    group: Int[Tensor, " episodes"],
    gamma: float = 1.0,
) -> Float[Tensor, "episodes turns"]:
    """g_k minus its mean over the episodes of the group that reach turn k; 0 beyond an episode's turns.

    Where fewer than two episodes reach turn k, the group's mean return from the first turn stands in.

    Args:
        reward: of each turn.
        turns: how many an episode has.
        group: which prompt an episode is of.
        gamma: discount per turn.
    """
    go = return_to_go(reward, turns, gamma)
    has = (torch.arange(reward.shape[1], device=reward.device) < turns[:, None]).to(reward.dtype)
    same = (group[:, None] == group[None, :]).to(reward.dtype)
    reached = same @ has
    mean = same @ go / reached.clamp(min=1)
    whole = (same @ go[:, :1]) / same.sum(dim=1, keepdim=True)
    return (go - torch.where(reached >= 2, mean, whole)) * has


def mixed(
    episode: Float[Tensor, " episodes"], step: Float[Tensor, "episodes turns"], weight: float
) -> Float[Tensor, "episodes turns"]:
    """A of the whole episode plus `weight` times A of the turn."""
    return episode[:, None] + weight * step


def on_tokens(
    advantage: Float[Tensor, "episodes turns"], turn: Int[Tensor, "episodes tokens"]
) -> Float[Tensor, "episodes tokens"]:
    """Every token has its turn's advantage; tokens that are of no turn (-1) have 0."""
    return torch.where(turn >= 0, advantage.gather(1, turn.clamp(min=0)), 0.0)


def gae(
    reward: Float[Tensor, "episodes tokens"],
    value: Float[Tensor, "episodes tokens"],
    mask: Bool[Tensor, "episodes tokens"],
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Float[Tensor, "episodes tokens"], Float[Tensor, "episodes tokens"]]:
    """Generalised advantages and returns on the tokens that the policy wrote.

        delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma lambda A_next

    "next" is the next token of the policy: what an environment said between two turns is stepped over, with value and
    accumulator as they were. Advantages and returns of other tokens are 0.

    Args:
        reward: at each token; of a whole episode, at its last token.
        value: of the state before each token.
        mask: tokens that the policy wrote.
        gamma: discount per token.
        lam: lambda.
    """
    advantage = torch.zeros_like(reward)
    following, accumulated = torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])
    for token in range(reward.shape[1] - 1, -1, -1):
        written = mask[:, token]
        delta = reward[:, token] + gamma * following - value[:, token]
        here = delta + gamma * lam * accumulated
        following = torch.where(written, value[:, token], following)
        accumulated = torch.where(written, here, accumulated)
        advantage[:, token] = torch.where(written, here, 0.0)
    return advantage, torch.where(mask, advantage + value, 0.0)
