"""Accuracy and tokens of a model on an environment, by difficulty, sampled and greedy; and whether RL may start.

Greedy decoding can hide what sampling does: a habit whose probability is below one half at every step never shows. So
lengths are told of both, and sampled ones are what training sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.align.call_format import CallFormat
from burnish.align.envs import Environment
from burnish.align.episodes import Rollouts
from burnish.core.errors import DataError
from burnish.core.statistics import exact_share
from burnish.generate import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from burnish.core.checkpoint import Model

ROWS = 256
"""Drawn at a time."""


@dataclass(frozen=True)
class DrawnAnswers:
    """One answer a problem.

    Attributes:
        bins: how hard each problem is.
        correct: which are right.
        tokens: how many the model wrote in each, its end included.
        cut: which ran into a limit, of tokens or turns.
        spare: tokens beyond the shortest answer that shows its steps, of correct answers where that is known; else NaN.
        texts: what was written.
    """

    bins: list[str]
    correct: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray
    spare: np.ndarray
    texts: list[str]

    def table(self, how: str) -> list[dict[str, Any]]:
        """A row for each difficulty, in the order of the problems, and one for their mean."""
        rows = []
        for name in dict.fromkeys(self.bins):
            here = np.array([one == name for one in self.bins])
            share = exact_share(int(self.correct[here].sum()), int(here.sum()))
            rows.append(
                {
                    "difficulty": name,
                    "drawn": how,
                    "problems": int(here.sum()),
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "tokens": float(self.tokens[here].mean()),
                }
            )
        means = {key: float(np.mean([row[key] for row in rows])) for key in ("accuracy", "tokens")}
        return [*rows, {"difficulty": "mean", "drawn": how, "problems": len(self.bins)} | means]

    @property
    def redundant(self) -> float:
        """Share of the correct answers' tokens that the shortest ones do without; NaN where those are not known."""
        known = ~np.isnan(self.spare)
        return float(self.spare[known].sum() / self.tokens[known].sum()) if known.any() else float("nan")


def answers(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    env: Environment,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    problems: Sequence[int] | None = None,
    max_turns: int = 4,
) -> DrawnAnswers:
    """One answer to every problem of an environment, or to those that are numbered; an episode where it has tools."""
    chosen = list(range(len(env.problems))) if problems is None else list(problems)
    rows = env.rows
    asked = [rows[number]["prompt"] for number in chosen]
    training = module.training
    module.eval()
    if env.tools:
        form = CallFormat.of(tokenizer, env.tools)
        rollouts = Rollouts(form, max_turns, max_new_tokens, {"temperature": temperature, "batch_size": ROWS})
        prompts = [form.prompt(one) for one in asked]
        episodes = rollouts.draw(module, prompts, [f"{seed} {place}" for place in range(len(prompts))])
        texts = ["\n".join(one.turns) for one in episodes]
        judged = [(one.final, one.num_drawn, one.end != "answered") for one in episodes]
    else:
        written: Any = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        drawn = generate(
            module,
            tokenizer,
            written["input_ids"],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=ROWS,
        )
        texts = [one.text for one in drawn]
        judged = [(one.text, len(one.tokens), one.finish_reason == "length") for one in drawn]
    module.train(training)
    correct = np.array([env.score(answer, number) for (answer, _, _), number in zip(judged, chosen, strict=True)])
    tokens = np.array([count for _, count, _ in judged], dtype=float)
    shortest = [env.shortest(number) for number in chosen]
    needed = [np.nan if text is None else len(tokenizer(text)["input_ids"]) + 1 for text in shortest]
    return DrawnAnswers(
        bins=[env.bin(number) for number in chosen],
        correct=correct,
        tokens=tokens,
        cut=np.array([was_cut for _, _, was_cut in judged]),
        spare=np.where(correct > 0, (tokens - np.array(needed)).clip(min=0), np.nan),
        texts=texts,
    )


def assert_ready(
    model: Model,
    env: Environment,
    floor: float = 0.8,
    *,
    max_new_tokens: int = 256,
    seed: int = 0,
    redundant: float = 0.0,
) -> DrawnAnswers:
    """Refuses a start that RL could not learn from: accuracy below the floor somewhere, or nothing to shorten.

    A length rule on a task that the model cannot do rewards short guesses, and whatever comes out means nothing.

    Args:
        model: the start.
        env: problems to ask, each once.
        floor: least sampled accuracy of every difficulty.
        max_new_tokens: of an answer.
        seed: of the draws.
        redundant: least share of redundant tokens, where the environment knows it; 0 asks for none.

    Returns:
        The sampled answers.

    Raises:
        DataError: a difficulty below the floor, or too few redundant tokens.
    """
    found = answers(model.module, model.tokenizer, env, max_new_tokens=max_new_tokens, seed=seed)
    check_ready(found, env.name, floor, redundant)
    return found


def check_ready(found: DrawnAnswers, name: str, floor: float, redundant: float = 0.0) -> None:
    """`assert_ready` of answers that are there already."""
    low = [row for row in found.table("sampled")[:-1] if row["accuracy"] < floor]
    if low:
        said = ", ".join(f"{row['difficulty']} {row['accuracy']:.2f}" for row in low)
        raise DataError(
            f"the start is right too seldom for RL: {said}, below the floor of {floor:g}",
            where=name,
            fix="train it longer on worked solutions, take easier problems, or lower floor",
        )
    if found.redundant < redundant:
        raise DataError(
            f"{found.redundant:.0%} of the start's tokens are redundant, below {redundant:.0%}: nothing to shorten",
            where=name,
            fix="start from a model that repeats itself, or leave length shaping out",
        )
