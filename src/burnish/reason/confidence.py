"""How sure a model was of what it wrote, from the log-probabilities that came with it.

    logprob      mean over tokens of log p(token)
    confidence   mean over tokens of the mean over the k alternatives returned of -log p

The second is large where the distribution is peaked, because the other alternatives are tiny; with the token alone it
would mean the opposite, so at least one alternative is needed. Both need no further call. A value that is not there is
an error and never 0.
"""

from __future__ import annotations

from burnish.core.errors import SettingsError
from burnish.reason.calls import Reply


def mean_logprob(reply: Reply) -> float:
    tokens = _tokens(reply)
    return sum(token[0] for token in tokens) / len(tokens)


def peakedness(reply: Reply) -> float:
    tokens = _tokens(reply)
    if any(len(token) < 2 for token in tokens):
        raise SettingsError(
            "confidence needs alternatives to the tokens, and the server gave none",
            where=f"model '{reply.endpoint}'",
            fix="ask for top_logprobs=20, or use another score",
        )
    return -sum(sum(token) / len(token) for token in tokens) / len(tokens)


SCORES = {"logprob": mean_logprob, "confidence": peakedness}


def _tokens(reply: Reply) -> tuple[tuple[float, ...], ...]:
    if not reply.logprobs:
        raise SettingsError(
            "the reply has no log-probabilities, which the score needs",
            where=f"model '{reply.endpoint}'",
            fix="use a server that gives them (burnish reason probe URL), or a strategy without scores",
        )
    return reply.logprobs
