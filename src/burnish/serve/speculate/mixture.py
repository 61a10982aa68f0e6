"""Several proposers as one: before each pass a controller says whose tokens are verified, and how many.

    controller = SpeculationController(proposing, verifying)
    mixture = Mixture({"trie": Lookahead(), "draft": drafting}, controller, asked_always={"trie"})
    generate(model, tokenizer, prompts, max_new_tokens=200, speculate=mixture)

All proposers follow every text. Those that cost next to nothing say every time what they would propose, and are known
by what came; the others are asked when it is their turn. What is proposed decides how fast a text comes, never which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from burnish.serve.speculate.controller import ProposerChoice, SpeculationController
from burnish.serve.speculate.draft import Draft
from burnish.serve.speculate.memory import Counts, Lookahead, LookaheadRequest


class Following(Protocol):
    """A text that a proposer follows."""

    def extend(self, tokens: Sequence[int]) -> None: ...
    def draft(self, most: int | None = None) -> Draft: ...
    def end(self) -> None: ...


class Mixture:
    """A proposer for `generate` and `Engine`.

    Args:
        members: by the names that the controller knows; of a `Lookahead` its chains are taken.
        controller: of all texts.
        asked_always: those who cost next to nothing.
    """

    def __init__(
        self, members: Mapping[str, Any], controller: SpeculationController, *, asked_always: Collection[str]
    ) -> None:
        assert members.keys() == controller.proposing.keys() >= set(asked_always), "prices are those of the members"
        self.members, self.controller, self.asked_always = members, controller, frozenset(asked_always)
        self.counts = Counts()

    def begin(self, prompt: Sequence[int]) -> MixtureRequest:
        """A text, after its prompt."""
        return MixtureRequest(self, prompt)


class MixtureRequest:
    """A text.

    Args:
        mixture: of all.
        prompt: its tokens.
    """

    def __init__(self, mixture: Mixture, prompt: Sequence[int]) -> None:
        self._mixture = mixture
        self._following: dict[str, Following] = {
            name: _ChainsOnly(member.begin(prompt)) if isinstance(member, Lookahead) else member.begin(prompt)
            for name, member in mixture.members.items()
        }
        self._said: dict[str, list[int]] = {}
        self._choice, self._came = ProposerChoice(None, 0), list[int]()
        self._begun = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that are certain."""
        for one in self._following.values():
            one.extend(tokens)
        begins = bool(tokens) and not self._begun  # the first one the prompt's own pass gives
        self._mixture.counts.tokens += len(tokens) - begins
        self._begun = self._begun or begins
        self._came += tokens

    def draft(self, most: int | None = None) -> Draft:
        """The tokens of whom the controller has chosen.

        Args:
            most: tokens, where fewer than that are wanted.
        """
        self._learn()
        mixture = self._mixture
        choice = mixture.controller.choose()
        found = Draft()
        for name, one in self._following.items():
            chosen = name == choice.proposer
            wanted = choice.length if chosen else self._longest(name) if name in mixture.asked_always else 0
            draft = one.draft(wanted if most is None else min(wanted, most))
            if wanted and most != 0:
                self._said[name] = draft.tokens
            found = draft if chosen else found
        mixture.counts.drafts += 1
        mixture.counts.drafted += len(found)
        return found

    def end(self) -> None:
        """The text is whole."""
        for one in self._following.values():
            one.end()

    def _longest(self, name: str) -> int:
        return len(self._mixture.controller.proposing[name]) - 1

    def _learn(self) -> None:
        """Compares what was said before the last pass with what came of it."""
        if self._said:
            self._mixture.controller.learn({name: came(said, self._came) for name, said in self._said.items()})
        self._said, self._came = {}, []


def came(said: Sequence[int], text: Sequence[int]) -> list[bool]:
    """Whether the first, second ... token came, up to the first that did not and as far as the text goes."""
    if not said:
        return [False]
    found: list[bool] = []
    for token, other in zip(said, text, strict=False):
        found.append(token == other)
        if token != other:
            break
    return found


class _ChainsOnly:
    """The chains of a memory's request, in the place of its trees."""

    def __init__(self, request: LookaheadRequest) -> None:
        self._request, self.extend, self.end = request, request.extend, request.end

    def draft(self, most: int | None = None) -> Draft:
        tokens = self._request.chain(most)
        return Draft(tokens, list(range(-1, len(tokens) - 1)))
