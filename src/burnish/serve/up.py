"""What vLLM's server is started with, and what it says of tokens that were proposed."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEDULER = "burnish.serve.vllm.Scheduler"
KEYED = ["--middleware", "burnish.serve.vllm.keys.KeyedTenants"]
IN_HEADERS = ["--middleware", "burnish.serve.vllm.keys.NamedInHeaders"]
PROPOSER = "burnish.serve.vllm.TrieProposer"
SALTS = ["--middleware", "burnish.serve.vllm.keys.SaltNamed"]
_GENERATED, _ACCEPTED = "vllm:generation_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"


def server_options(policy: str, **plugin: Any) -> list[str]:
    """Options of vLLM's server for a policy file, or the name of an order.

    Args:
        policy: as above.
        plugin: settings of the plug-in that are said; see `burnish.serve.vllm.requests.PluginSettings`.
    """
    place = str(Path(policy).resolve()) if Path(policy).is_file() else policy
    settings = {"policy": place} | plugin
    return ["--scheduler-cls", SCHEDULER, "--additional-config", json.dumps({"burnish": settings})]


def speculating_options(num_tokens: int, draft: Path | None = None) -> list[str]:
    """Options of vLLM's server for proposals of so many tokens at most: from the memory of answers, or of a draft."""
    if draft is not None:
        config = {"method": "eagle3", "model": str(draft.resolve()), "num_speculative_tokens": num_tokens}
        return ["--speculative-config", json.dumps(config)]
    config = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": num_tokens}
    return ["--speculative-config", json.dumps(config), *SALTS]


@dataclass(frozen=True)
class Foretold:
    """By vLLM's own counts.

    Attributes:
        tokens: of answers.
        accepted: of them, those that were proposed: a forward pass each that was not needed.
    """

    tokens: int = 0
    accepted: int = 0

    @classmethod
    def of_metrics(cls, text: str) -> Foretold:
        """Of what its /metrics answers."""
        found = dict.fromkeys((_GENERATED, _ACCEPTED), 0.0)
        for line in text.splitlines():
            name = line.partition("{")[0]
            if name in found:
                found[name] += float(line.rsplit(" ", 1)[1])
        return cls(int(found[_GENERATED]), int(found[_ACCEPTED]))

    def __str__(self) -> str:
        share = f" ({self.accepted / self.tokens:.0%})" if self.tokens else ""
        return f"{self.accepted:,} of {self.tokens:,} tokens{share} took no forward pass of their own"


def foretold(url: str) -> Foretold:
    """Of a server that answers.

    Args:
        url: up to and with /v1.
    """
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=10) as reply:
        return Foretold.of_metrics(reply.read().decode())
