"""Episodes of several turns, token in and token out: what the model wrote stays the tokens that it drew.

    prompt | turn, drawn | answer of the tools, written by the template | turn, drawn | ...

A turn that calls tools is answered and the next one begins; a turn that calls none is the last. Observations have mask
0 and no log-probability. All episodes of a step go forward together, a turn at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from burnish.align.call_format import Call, CallFormat
from burnish.align.tools import FAILED, Tool
from burnish.generate import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.generate import Sample


@dataclass
class DrawnEpisode:
    """One attempt.

    Attributes:
        tokens: after the prompt, observations included.
        mask: whether the model drew each token.
        logprobs: of the drawn tokens, 0 elsewhere.
        turns: what the model wrote in each turn.
        num_calls, failed_calls: of each turn.
        end: "answered", or what was used up: "length" in the middle of a turn, "turns", or "room" for an observation.
    """

    tokens: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    num_calls: list[int] = field(default_factory=list)
    failed_calls: list[int] = field(default_factory=list)
    end: str = ""

    @property
    def final(self) -> str:
        """The answer: the last turn where it called nothing; "" where there is none."""
        return self.turns[-1] if self.end == "answered" else ""

    @property
    def num_drawn(self) -> int:
        """Tokens that the model wrote."""
        return sum(self.mask)

    def add(self, sample: Sample) -> None:
        """A turn."""
        self.tokens += sample.tokens
        self.mask += [1] * len(sample.tokens)
        self.logprobs += sample.logprobs
        self.turns.append(sample.text)

    def observe(self, ids: Sequence[int]) -> None:
        """What was answered."""
        self.tokens += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)


@dataclass(frozen=True)
class Rollouts:
    """How episodes are drawn.

    Attributes:
        form: of calls, with the tools.
        max_turns: of an episode.
        max_tokens: of an episode after its prompt, observations included.
        sampling: temperature, top_k and so on, as `burnish.generate.generate` takes them.
    """

    form: CallFormat
    max_turns: int
    max_tokens: int
    sampling: dict[str, Any] = field(default_factory=dict)

    def draw(
        self, module: PreTrainedModel, prompts: Sequence[Sequence[int]], seeds: Sequence[int | str], n: int = 1
    ) -> list[DrawnEpisode]:
        """`n` episodes of the first prompt, then of the second, and so on.

        Args:
            module: the policy, as it is.
            prompts: token ids.
            seeds: one for each prompt.
            n: episodes of each; the prompt is read once.
        """
        episodes = [DrawnEpisode() for _ in range(len(prompts) * n)]
        under_way = list(range(len(episodes)))
        for turn in range(self.max_turns):
            if turn == 0:
                samples = self._drawn(
                    module, [list(one) for one in prompts], seeds, [self.max_tokens] * len(prompts), n
                )
            else:
                texts = [[*prompts[place // n], *episodes[place].tokens] for place in under_way]
                room = [self.max_tokens - len(episodes[place].tokens) for place in under_way]
                own = [f"{seeds[place // n]} {place % n} turn {turn}" for place in under_way]
                samples = self._drawn(module, texts, own, room, 1)
            for place, sample in zip(under_way, samples, strict=True):
                self._after(episodes[place], sample, is_last=turn + 1 == self.max_turns)
            under_way = [place for place in under_way if not episodes[place].end]
            if not under_way:
                break
        return episodes

    def _drawn(
        self, module: Any, prompts: list[list[int]], seeds: Sequence[int | str], limits: list[int], n: int
    ) -> list[Sample]:
        tokenizer = self.form.tokenizer
        return generate(module, tokenizer, prompts, n=n, max_new_tokens=limits, seed=list(seeds), **self.sampling)

    def _after(self, episode: DrawnEpisode, sample: Sample, *, is_last: bool) -> None:
        """Adds a turn, and what follows it."""
        episode.add(sample)
        calls = self.form.calls(sample.text)
        episode.num_calls.append(len(calls))
        episode.failed_calls.append(0)
        if sample.finish_reason == "length":
            episode.end = "length"
        elif not calls:
            episode.end = "answered"
        elif is_last:
            episode.end = "turns"
        else:
            answers = [answered(self.form.tools, call) for call in calls]
            episode.failed_calls[-1] = sum(one.startswith(FAILED) for one in answers)
            ids = self.form.answer(calls[0].name, answers)
            if len(episode.tokens) + len(ids) >= self.max_tokens:
                episode.end = "room"
            else:
                episode.observe(ids)


def answered(tools: Sequence[Tool], call: Call) -> str:
    """What a call gives, or what is wrong with it."""
    tool = next((one for one in tools if one.name == call.name), None)
    if tool is None:
        return f"{FAILED}there is no tool {call.name!r}; there is {', '.join(one.name for one in tools)}"
    if call.arguments is None:
        return f"{FAILED}the arguments are no JSON object"
    return tool(call.arguments)
