"""GRPO on episodes of several turns with tools: drawn token by token, advantages by episode or by turn.

    rollouts = Rollouts(CallFormat.of(tokenizer, env.tools), max_turns=4, max_tokens=256)
    trainer = EpisodeTrainer(
        model, reward_funcs=[env.reward], args=EpisodeConfig("out"), train_dataset=rows, env=env, rollouts=rollouts
    )

TRL hands prompts to a `rollout_func` and takes back tokens, log-probabilities and a mask; everything else, reward,
rule of length, loss and state, is as for single answers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.align.drawing import Drawn
from burnish.align.envs import Environment
from burnish.align.episodes import DrawnEpisode, Rollouts
from burnish.align.grpo_seam import together
from burnish.align.length_control import ShortARCConfig, ShortARCTrainer
from burnish.align.maths import advantage
from burnish.align.passes import Batch
from burnish.align.read_later import turns_of
from burnish.core.errors import SettingsError


@dataclass
class EpisodeConfig(ShortARCConfig):
    """What `EpisodeTrainer` reads besides."""

    credit: Literal["trajectory", "stepwise", "mixed"] = field(
        default="trajectory", metadata={"help": "Advantages of the whole episode, of each turn, or their sum."}
    )
    turn_weight: float = field(default=1.0, metadata={"help": "mixed: of the turn's advantage."})
    turn_discount: float = field(default=1.0, metadata={"help": "stepwise, mixed: of later turns' rewards, per turn."})

    def __post_init__(self) -> None:
        if self.credit == "stepwise" and self.scale_rewards != "none":
            raise SettingsError("is of advantages of whole episodes, which stepwise has not", where="scale_rewards")
        super().__post_init__()


class EpisodeTrainer(ShortARCTrainer):
    """GRPO whose completions are episodes.

    Args:
        env: whose reward it is, with what turns have earned.
        rollouts: how episodes are drawn; its temperature is the configuration's.
        *given, **named: of `ShortARCTrainer`.
    """

    args: EpisodeConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    episodes: list[DrawnEpisode]
    kind_of_answer: type[Drawn] = DrawnEpisode

    def __init__(self, *given: Any, env: Environment, rollouts: Rollouts, **named: Any) -> None:
        self.env, self.rollouts = env, rollouts
        with warnings.catch_warnings():
            # that it may change: the version of TRL is held, and tests hold what is used of it
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(*given, rollout_func=self._draw, **named)

    @property
    def drawer(self) -> Rollouts:
        return self.rollouts

    def read_prompts(self, prompts: list[Any]) -> list[list[int]]:
        return [list(self.rollouts.form.prompt(question)) for question in prompts]

    def _draw(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        """Episodes to the prompts of this process, in the form that TRL takes them back."""
        questions, several = together(prompts, int(self.num_generations or 1))
        ids = self.read_prompts(questions)
        self.episodes = drawn = self.drawn(ids, several)
        self.drawn_tokens += self.over_all(sum(one.num_drawn for one in drawn))
        for name, numbers in {
            "turns": [len(one.turns) for one in drawn],
            "calls": [sum(one.num_calls) for one in drawn],
            "failed_calls": [sum(one.failed_calls) for one in drawn],
        }.items():
            self._metrics[self.mode][f"episodes/{name}"].append(self.over_all(sum(numbers)) / self.over_all(len(drawn)))
        return {
            "prompt_ids": [ids[place // several] for place in range(len(drawn))],
            "completion_ids": [one.tokens for one in drawn],
            "logprobs": [one.logprobs for one in drawn],
            "env_mask": [one.mask for one in drawn],
            "final": [one.final for one in drawn],
        }

    def credited(self, output: Batch) -> Tensor:
        """Advantages of tokens; whole groups are in one process, so the baselines of turns are too."""
        whole: Tensor = output["advantages"]
        if self.args.credit == "trajectory" or self.mode == "eval":
            return whole
        assert self.judged is not None, "what was drawn has been judged"
        earned = self.judged.shaped[:, 0]
        known = ~earned.isnan()
        counts = torch.tensor([len(one.turns) for one in self.episodes], device=whole.device)
        rewards = torch.zeros(len(counts), int(counts.max()), device=whole.device)
        for row, (episode, one) in enumerate(zip(self.episodes, earned.nan_to_num(nan=0.0).tolist(), strict=True)):
            rewards[row, : len(episode.turns)] = torch.tensor(self.env.turn_rewards(episode, one))
        rows = torch.arange(len(counts), device=whole.device)
        # an episode that could not be judged is a group of its own, and no baseline of the others
        groups = torch.where(known, rows // int(self.num_generations or 1), -1 - rows)
        step = advantage.stepwise(rewards, counts, groups, self.args.turn_discount) * known[:, None]
        if self.args.credit == "mixed":
            step = advantage.mixed(whole, step, self.args.turn_weight)
        turn = torch.full(output["completion_ids"].shape, -1, device=whole.device)
        for row, episode in enumerate(self.episodes):
            turn[row, : len(episode.mask)] = torch.tensor(turns_of([bool(one) for one in episode.mask]))
        return advantage.on_tokens(step, turn)
