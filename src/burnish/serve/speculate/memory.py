"""What is remembered across requests, and a request's view of it.

    memory = Lookahead()
    session = memory.begin(prompt)
    draft = session.draft()            # before each forward pass
    session.extend(accepted)           # after it
    session.end()                      # its answer is remembered, for requests of the same tenant

A prompt is known to its own request alone. Answers are shared within a tenant, and never between two: how long an
answer takes tells whether its words are known, so those who must not learn of each other need different names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.errors import SettingsError
from burnish.serve.speculate.draft import Draft, Tries, chain, tree
from burnish.serve.speculate.trie import Trie


@dataclass
class Counts:
    """Of a memory.

    Attributes:
        tokens: of answers, without the first of each, which the prompt's own forward pass gives.
        drafts: that were asked for, one before each further forward pass.
        drafted: tokens in them.
    """

    tokens: int = 0
    drafts: int = 0
    drafted: int = 0

    @property
    def saved(self) -> int:
        """Forward passes that one for every token would have taken more, where every draft is settled."""
        return self.tokens - self.drafts


class Lookahead:
    """A memory of answers for each tenant, with bounds.

    Not for several threads at a time.

    Args:
        budget: tokens of a tree.
        length: tokens of a chain, and how deep a tree is.
        query: longest end of a text that is looked for among the answers of others.
        depth: of tries; contexts of a request's own text may be as long.
        most_bytes: of a tenant's trie, and of a request's own.
        tenants: that are remembered; the one that was silent longest is forgotten.

    Raises:
        SettingsError: a number that is out of its range.
    """

    def __init__(
        self,
        *,
        budget: int = 64,
        length: int = 12,
        query: int = 8,
        depth: int = 16,
        most_bytes: int = 16 << 20,
        tenants: int = 16,
    ) -> None:
        for name, value in {"budget": budget, "length": length, "query": query, "tenants": tenants}.items():
            if value < 1:
                raise SettingsError(f"is {value}, but 1 or more is needed", where=name)
        if query > depth:
            raise SettingsError(f"is {query}, but tries are {depth} deep", where="query", fix="raise depth")
        self.budget, self.length, self.query, self.depth, self.most_bytes = budget, length, query, depth, most_bytes
        self._most, self._tries = tenants, OrderedDict[str, Trie]()
        self.counts = Counts()
        self.trie("")

    def trie(self, tenant: str) -> Trie:
        """The answers of a tenant."""
        if tenant not in self._tries:
            self._tries[tenant] = Trie(self.depth, self.most_bytes)
            if len(self._tries) > self._most:
                self._tries.popitem(last=False)
        self._tries.move_to_end(tenant)
        return self._tries[tenant]

    @property
    def tenants(self) -> list[str]:
        """That are remembered, the one that was silent longest first."""
        return list(self._tries)

    @property
    def nbytes(self) -> int:
        """Of all tenants' tries."""
        return sum(trie.nbytes for trie in self._tries.values())

    def begin(self, prompt: Sequence[int], tenant: str = "") -> LookaheadRequest:
        """A request, after its prompt."""
        return LookaheadRequest(self, prompt, tenant)


class LookaheadRequest:
    """A request.

    Args:
        memory: of all.
        prompt: its tokens.
        tenant: with whom it shares.
    """

    def __init__(self, memory: Lookahead, prompt: Sequence[int], tenant: str = "") -> None:
        self._memory, self._tenant = memory, tenant
        self._own = Trie(memory.depth, memory.most_bytes)
        self._own.append(prompt)
        self._text = list(prompt[-memory.query :])  # with what leads to the answer
        self._first = len(self._text)

    @property
    def tokens(self) -> list[int]:
        """Of the answer so far."""
        return self._text[self._first :]

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens of the answer that are certain."""
        if not tokens:
            return
        self._own.append(tokens)
        self._text += tokens
        self._memory.counts.tokens += len(tokens) - (len(self._text) - len(tokens) == self._first)

    def draft(self, most: int | None = None) -> Draft:
        """A tree of what may come.

        Args:
            most: tokens, where fewer than the memory's budget are wanted.
        """
        memory = self._memory
        budget = memory.budget if most is None else min(most, memory.budget)
        draft = tree(*self._contexts(), budget, memory.length) if budget > 0 else Draft()
        memory.counts.drafts += 1
        memory.counts.drafted += len(draft)
        return draft

    def chain(self, most: int | None = None) -> list[int]:
        """The likeliest continuation.

        Args:
            most: tokens, where fewer than the memory's length are wanted.
        """
        memory = self._memory
        length = memory.length if most is None else min(most, memory.length)
        tokens = chain(*self._contexts(), length) if length > 0 else []
        memory.counts.drafts += 1
        memory.counts.drafted += len(tokens)
        return tokens

    def end(self) -> None:
        """Remembers the answer for others; called once."""
        if self.tokens:
            trie = self._memory.trie(self._tenant)
            trie.append(self._text)
            trie.close()

    def _contexts(self) -> tuple[Tries, list[tuple[int, int]]]:
        """States of the ends of the text in both tries, the longest first."""
        memory = self._memory
        shared = memory.trie(self._tenant)
        own = {length: state for state, length in self._own.shared()}
        others: dict[int, int] = {}
        if shared.num_tokens:
            end = self._text[-memory.query :]
            for length in range(1, len(end) + 1):
                state = shared.find(end[-length:])
                if not state:
                    break
                others[length] = state
        lengths = sorted(own.keys() | others.keys(), reverse=True)
        return Tries(self._own, shared), [(own.get(length, 0), others.get(length, 0)) for length in lengths]
