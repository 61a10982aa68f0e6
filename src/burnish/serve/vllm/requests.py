"""What a request says of itself, and what the scheduler is told at its start: without an import of vLLM."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from burnish.core.errors import SettingsError
from burnish.core.settings import Settings
from burnish.serve.policies.protocol import Job
from burnish.serve.settings import PolicySettings, read_policy
from burnish.serve.workload import Mode

MAX_NAME = 200


class PluginSettings(Settings):
    """`additional_config["burnish"]` of vLLM.

    Attributes:
        policy: a policy file, or the name of an order.
        trust_client_tenant: whether a client's own word for its tenant counts.
        budget: share of the KV blocks that may be held for workflows that pause.
        prefill_tokens_per_second: what computing a context again takes, for `hold: learned`.
        mode: off is vLLM as it is; telemetry records; shadow forecasts and counts what the policy would do; advise also
            records what that is; enforce does it.
        telemetry: file that is appended to; none where it is empty.
        metrics_port: of the loopback, at which Prometheus finds metrics; 0 is none.
        share: of the workflows, whose contexts may be held.
        exchange: directory in which engines that share the tree of a policy tell each other what they served.
        fall_back: whether enforce becomes telemetry where forecasts are lost or others pay; see `burnish.serve.guard`.
    """

    policy: str = "fcfs"
    trust_client_tenant: bool = False
    budget: float = 0.5
    prefill_tokens_per_second: float = 10_000.0
    mode: Mode = "enforce"
    telemetry: str = ""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    share: float = Field(default=1.0, ge=0, le=1)
    exchange: str = ""
    fall_back: bool = True

    def holds(self, program: str) -> bool:
        """Whether a workflow is of the share."""
        return zlib.crc32(program.encode("utf-8", "surrogatepass")) / 2**32 < self.share


def read_plugin(additional: Any) -> tuple[PluginSettings, PolicySettings]:
    """The settings and their policy.

    Raises:
        SettingsError: a mistake in either, which it names.
    """
    given = additional.get("burnish", {}) if isinstance(additional, Mapping) else {}
    if not isinstance(given, Mapping):
        raise SettingsError("is no object", where="additional_config.burnish", fix='write {"policy": "fair.yaml"}')
    settings = PluginSettings.parse(dict(given), where="additional_config.burnish")
    if not 0 <= settings.budget <= 1:
        raise SettingsError(f"is {settings.budget}", where="additional_config.burnish.budget", fix="give a share")
    if not settings.prefill_tokens_per_second > 0:
        where = "additional_config.burnish.prefill_tokens_per_second"
        raise SettingsError(f"is {settings.prefill_tokens_per_second}", where=where, fix="give a number above 0")
    policy = read_policy(Path(settings.policy) if "." in settings.policy else settings.policy)
    policy.check_exchange(settings.exchange, where="additional_config.burnish.exchange")
    return settings, policy


def job_of(
    name: str, prompt: int, arguments: Mapping[str, Any] | None, session: str | None, now: int, *, trusted: bool
) -> Job:
    """A request as policies see it.

    Args:
        name: its id.
        prompt: tokens.
        arguments: `vllm_xargs` of the request; `tenant`, `program`, `turn`, `tool` and `last` are looked at. What is
            no short text counts as not said: a client must not be able to end the server.
        session: its session, which is its program where it names none.
        now: nanoseconds.
        trusted: whether the tenant that it names counts.
    """
    given = arguments or {}
    turn = given.get("turn", 0)
    turn = turn if isinstance(turn, int) and not isinstance(turn, bool) and turn >= 0 else 0
    program = _text(given, "program") or (session or "")[:MAX_NAME]
    last = given.get("last") in (True, "true")  # over HTTP, vLLM makes 1 of true
    tool = "" if last else _text(given, "tool") or "tool"
    tenant = _text(given, "tenant") if trusted else ""
    return Job(name, tenant, program, turn, prompt, now, now, tool if program else "")


def memory_of(arguments: Mapping[str, Any] | None) -> str:
    """The memory of answers that a request shares: that of its tenant and its `cache_salt`, both as its `vllm_xargs`
    have them. Requests with neither share one, as they share vLLM's prefix cache.

    Args:
        arguments: as above. A salt is taken whole, whatever it is: one that was not looked at would be no wall.
    """
    said = [str((arguments or {}).get(field, "")) for field in ("tenant", "cache_salt")]
    return "\0".join(said) if any(said) else ""


def _text(given: Mapping[str, Any], field: str) -> str:
    value = given.get(field)
    return value if isinstance(value, str) and len(value) <= MAX_NAME and "\0" not in value else ""
