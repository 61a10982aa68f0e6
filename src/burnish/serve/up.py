"""What vLLM's server is started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEDULER = "burnish.serve.vllm.Scheduler"
KEYED = ["--middleware", "burnish.serve.vllm.keys.KeyedTenants"]
IN_HEADERS = ["--middleware", "burnish.serve.vllm.keys.NamedInHeaders"]


def server_options(policy: str, **plugin: Any) -> list[str]:
    """Options of vLLM's server for a policy file, or the name of an order.

    Args:
        policy: as above.
        plugin: settings of the plug-in that are said; see `burnish.serve.vllm.requests.PluginSettings`.
    """
    place = str(Path(policy).resolve()) if Path(policy).is_file() else policy
    settings = {"policy": place} | plugin
    return ["--scheduler-cls", SCHEDULER, "--additional-config", json.dumps({"burnish": settings})]
