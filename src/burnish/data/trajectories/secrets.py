"""Keys and tokens in what tools have answered, taken out of an episode before anything else sees it.

A secret is found in observations alone, by the forms that its issuers publish, and then replaced wherever the same
text stands in the episode: an agent that reads a key may write it down. Words that merely sound secret are left, for
code is full of them: a value beside `password` or `token` counts from 16 letters on, with letters and digits mixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REDACTED = "[REDACTED]"
OBSERVED = frozenset({"tool", "user", "function"})
"""Roles whose messages a model has not written."""

FORMS = (
    r"AKIA[0-9A-Z]{16}",
    r"gh[pousr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"sk-[A-Za-z0-9_-]{20,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"xox[abprs]-[A-Za-z0-9-]{10,}",
    r"AIza[0-9A-Za-z_-]{35}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{40,}",
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
)
"""Of AWS, GitHub (two), GitLab, OpenAI and the like, Hugging Face, Slack, Google, npm, PyPI, and web tokens."""

SECRET = re.compile(
    r"(?P<known>(?<![A-Za-z0-9_-])(?:" + "|".join(FORMS) + r"))"
    r"|(?P<block>-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----)"
    r"|(?i:(?:password|passwd|secret|token|api_?key|access_?key|credentials?)['\"]?\s*[:=]\s*['\"]?)"
    r"(?P<value>(?=[^\s'\"]*[0-9])(?=[^\s'\"]*[A-Za-z])[A-Za-z0-9+/_=-]{16,})(?![A-Za-z0-9+/_=.(\[-])"
    r"|://[^\s/:@'\"]+:(?P<login>[^\s/@'\"]{8,})@",
    re.DOTALL,
)


def secrets_in(text: str) -> set[str]:
    """The secrets of a text."""
    return {match[match.lastgroup] for match in SECRET.finditer(text) if match.lastgroup}


@dataclass(frozen=True)
class Redaction:
    """The secrets of an episode, and how they leave it.

    Attributes:
        found: the secrets, which go nowhere from here.
    """

    found: tuple[str, ...]

    def __repr__(self) -> str:
        """Without the secrets: a message of an error must not show them."""
        return f"Redaction({len(self.found)} secrets)"

    def __len__(self) -> int:
        return len(self.found)

    @classmethod
    def of(cls, messages: Iterable[dict[str, Any]]) -> Redaction:
        """Of the observations among messages."""
        texts = (message["content"] for message in messages if message["role"] in OBSERVED)
        found = {secret for text in texts for secret in secrets_in(text)} - {REDACTED}
        return cls(tuple(sorted(found, key=lambda secret: (-len(secret), secret))))  # the longest first

    def text(self, text: str) -> str:
        """Without the secrets."""
        for secret in self.found:
            text = text.replace(secret, REDACTED)
        return text

    def value(self, value: Any) -> Any:
        """A JSON value whose texts are without the secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(inner) for key, inner in value.items()}
        return [self.value(inner) for inner in value] if isinstance(value, list) else value

    def messages(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages without the secrets, in all that they hold."""
        return [self.value(message) if self.found else message for message in messages]
