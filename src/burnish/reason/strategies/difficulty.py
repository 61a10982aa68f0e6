"""Difficulty budget: a problem may think for as long as those that looked so hard have needed before.

    B(x) = b_0 + b_1 log(letters of x) + b_2 H(x),        H = mean of -log p over the first tokens that were written
    b    = argmin sum_i rho_q(length_i - b f_i),          rho_q(u) = max(q u, (q - 1) u)

over the plain samples of a recorded run: quantile regression (Koenker and Bassett, 1978), so that a share q of such
samples would have ended within B. At temperature 1 the expectation of H is the entropy. The first tokens are written,
B follows from them, the thinking goes on to B tokens in all, and what is then unfinished is forced to answer. A length
is no statement about right or wrong, but problems of the recorded run are not those to report on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from burnish.core.errors import DataError
from burnish.reason.calls import BudgetSpent, Conversation, digest
from burnish.reason.confidence import mean_logprob
from burnish.reason.journal import JournalReader
from burnish.reason.session import Result, Session
from burnish.reason.strategies.base import Strategy
from burnish.reason.strategies.continuing import continued, finished, forced, raw

LEAST = 30
"""Recorded samples below which nothing is fitted."""
Recorded = tuple[str, float, float, int, bool]
"""Of a sample its model, log(letters), H, tokens, and whether it was cut."""


class Difficulty(Strategy):
    """At most three calls.

    Attributes:
        run: directory of a finished run with plain samples and their log-probabilities.
        quantile: share of samples that would end within their budget.
        first: tokens by which the difficulty is told.
        answer: tokens of a forced answer.
    """

    name: ClassVar[str] = "difficulty"
    reads_files: ClassVar[bool] = True
    run: str = ""
    quantile: float = Field(0.9, gt=0, lt=1)
    first: int = Field(64, ge=1)
    answer: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.run:
            raise ValueError("name a recorded run: difficulty(run=DIR), a directory of burnish reason run")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return ("limit", "prefill", "logprobs")

    @cached_property
    def recorded(self) -> list[Recorded]:
        return recorded(self.run, self.first)

    @cached_property
    def _lines(self) -> dict[str, Float[np.ndarray, " 3"]]:
        return {}

    @property
    def label(self) -> str:
        """Names the run by what it holds, so that a copy of the directory is the same strategy."""
        facts = f"quantile={self.quantile},first={self.first},answer={self.answer}"
        return f"{self.name}(run={digest(self.recorded)},{facts})"

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        line = self.line(session.pool.endpoint(session.model).called)
        reply, text = None, ""
        try:
            reply = await session.own(conversation, "first", max_tokens=self.first, logprobs=True)
            text = raw(reply)
            if reply.cut:
                budget = math.ceil(line @ [1.0, letters(conversation), -mean_logprob(reply)])
                if budget > self.first:
                    reply = await continued(session, conversation, text, "on", max_tokens=budget - self.first)
                    text = raw(reply, text)
            reply, text = await forced(session, conversation, reply, text, most=self.answer)
        except BudgetSpent:
            return session.result(finished(reply, text) if reply else None, stopped="budget")
        return session.result(finished(reply, text))

    def line(self, model: str) -> Float[np.ndarray, " 3"]:
        """The coefficients for a model.

        Raises:
            DataError: the run has too few of its samples, or so many were cut that the quantile is not known.
        """
        if model not in self._lines:
            self._lines[model] = self._fitted(model)
        return self._lines[model]

    def _fitted(self, model: str) -> Float[np.ndarray, " 3"]:
        rows = [row for row in self.recorded if row[0] == model]
        if len(rows) < LEAST:
            what = f"has {len(rows)} samples of {model!r} with log-probabilities, but {LEAST} are needed"
            raise DataError(what, where=self.run, fix="record more of them, with --strategy direct --top-logprobs 1")
        cut = sum(row[4] for row in rows) / len(rows)
        if cut > 1 - self.quantile:
            what = f"cut {cut:.0%} of the samples of {model!r}, so that quantile {self.quantile:g} is not known"
            raise DataError(what, where=self.run, fix="record it with more --max-tokens, or ask for a lower quantile")
        features = np.array([[1.0, *row[1:3]] for row in rows])
        return quantile_line(features, np.array([row[3] for row in rows], float), self.quantile)


def recorded(run: str, first: int) -> list[Recorded]:
    """Plain samples of a run of which a difficulty and a length are known."""
    reader, found = JournalReader(run), []
    try:
        for call in reader.calls():
            reply, used = call["reply"], call["reply"]["usage"]
            if "/sample/" not in call["path"] or not reply["logprobs"] or used["unknown"]:
                continue
            surprise = -float(np.mean([token[0] for token in reply["logprobs"][:first]]))
            messages = call["request"]["messages"]
            row = (call["endpoint"], letters(messages), surprise, used["completion"], reply["finish"] == "length")
            found.append(row)
    finally:
        reader.close()
    return sorted(found)


def letters(conversation: Conversation) -> float:
    """log of how much there is to read."""
    texts: list[Any] = [message.get("content") or "" for message in conversation]
    parts = [[text] if isinstance(text, str) else [str(part.get("text", "")) for part in text] for text in texts]
    return math.log(1 + sum(len(one) for part in parts for one in part))


def quantile_line(
    features: Float[np.ndarray, "num 3"], values: Float[np.ndarray, " num"], quantile: float
) -> Float[np.ndarray, " 3"]:
    """argmin_b sum_i rho_q(values_i - features_i b), as the linear programme that it is."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack

    num, width = features.shape
    cost = np.concatenate([np.zeros(width), np.full(num, quantile), np.full(num, 1 - quantile)])
    equal = hstack([csr_array(features), eye_array(num), -eye_array(num)])
    bounds: Sequence[tuple[float | None, None]] = [(None, None)] * width + [(0.0, None)] * (2 * num)
    found = linprog(cost, A_eq=equal, b_eq=values, bounds=bounds, method="highs")
    return np.asarray(found.x[:width])
