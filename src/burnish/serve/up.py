"""What vLLM's server is started with."""

from __future__ import annotations

import json
from pathlib import Path

SCHEDULER = "burnish.serve.vllm.Scheduler"


def server_options(policy: str, *, trust_client_tenant: bool) -> list[str]:
    """Options of vLLM's server for a policy file, or the name of an order."""
    place = str(Path(policy).resolve()) if Path(policy).is_file() else policy
    plugin = {"policy": place, "trust_client_tenant": trust_client_tenant}
    return ["--scheduler-cls", SCHEDULER, "--additional-config", json.dumps({"burnish": plugin})]
