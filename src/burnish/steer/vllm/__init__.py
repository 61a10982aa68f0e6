"""Steering inside vLLM, request by request, compiled: a plug-in of the group `vllm.general_plugins`.

    BURNISH_STEER=careful=VECTORS python -m vllm.entrypoints.openai.api_server --model MODEL
    curl ... -d '{"model": "MODEL", "messages": [...], "vllm_xargs": {"steer": "careful:-1"}}'

Without BURNISH_STEER nothing of vLLM is touched. With it, behind every output projection of attention stands one
custom op, opaque to the compiler, that asks which tokens of the pass are flagged, how strongly and for whom: no Python
hook, no branch and no shape of a batch gets into the graph. On a GPU that stands in static buffers (`buffers`), so that
what is captured once is right for every later batch; on a CPU in lists (`host`). Before a pass, when the model runner
has token ids and positions of the whole batch, it is made of them: a token is flagged where its request asked, it
stands behind the prompt, ends a step, and no end of thinking stands before it. That is a statement on tokens, not on
passes, so that chunked prefill, mixed batches, asynchronous scheduling and a context that is computed again after
preemption give the same flags.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module

from burnish.core.errors import EngineError
from burnish.serve.vllm import installed

VARIABLE = "BURNISH_STEER"
ADAPTERS = {"0.32": "v0_32"}
"""Of versions of vLLM, by the first two of their numbers."""


@cache  # a second call in the same process would wrap what is wrapped
def register() -> None:
    """What vLLM calls in each of its processes.

    Raises:
        EngineError: a version of vLLM that is not known.
        SettingsError: a mistake in BURNISH_STEER.
        CheckpointError: what it names are no vectors.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return
    found = installed() or "?"
    name = ".".join(found.split(".")[:2])
    if name not in ADAPTERS:
        known = ", ".join(ADAPTERS)
        raise EngineError(f"vLLM {found} is none of those that steering knows ({known})", fix=f"install vLLM {known}")
    from burnish.steer.vllm.asked import read_sets

    import_module(f"{__name__}.{ADAPTERS[name]}").activate(read_sets(text))
