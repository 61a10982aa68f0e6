"""A checkpoint in an engine of its own process: started, asked, stopped; `worker.py` is what runs there."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from burnish.core.engines import HOST, EngineProcess
from burnish.core.errors import EngineError

WORKER = Path(__file__).with_name("worker.py")
_KERNEL = re.compile(r"(?:Using|Selected) (\w*Kernel\w*) for")
_AVX512_ONLY = "CPUWNA16LinearKernel"
"""vLLM's for packed 4 bits; its build for AVX2 lacks the product, and it is chosen all the same."""


@dataclass(frozen=True)
class Load:
    """What all engines of a comparison are started with.

    Attributes:
        dtype: to compute in, as the engine names it; `auto` is the checkpoint's.
        compiled: whether vLLM compiles the model.
        threads: that compute.
        max_length: tokens of a prompt with its answer, at most.
        max_batch: prompts at a time.
        max_tokens: of all prompts and answers at a time.
        cache_gib: memory for their keys and values.
    """

    dtype: str
    compiled: bool
    threads: int
    max_length: int
    max_batch: int
    max_tokens: int
    cache_gib: int


@dataclass(frozen=True)
class Answer:
    """To a batch: samples as `worker.py` describes them, and the bytes that the process has held at most."""

    samples: list[list[float]]
    peak_memory: int


class EngineWorker:
    """An engine that answers, from `start` to `stop`.

    Args:
        engine: its name.
        python: interpreter of its environment.
        model: what it loads.
        load: how.
        log: file for what it says.
        within: seconds until it must be ready.

    Attributes:
        facts: what it says of itself: engine, version, dtype, instructions, peak_memory (bytes, once it was ready).
        start_up: seconds until it was ready.
    """

    def __init__(
        self,
        engine: str,
        python: Path,
        model: Path,
        load: Load,
        *,
        log: Path,
        within: float = 1800.0,
    ) -> None:
        settings = json.dumps({"model": str(model)} | vars(load))
        self._process = EngineProcess(
            [str(python), str(WORKER), engine, "{port}", settings],
            log=log,
            health="/ready",
            environment=engine_environment(
                python, threads=load.threads, compiled=load.compiled, cache_gib=load.cache_gib
            ),
            within=within,
        )
        self.facts: dict[str, Any] = {}
        self.start_up = 0.0

    def start(self) -> Self:
        """
        Raises:
            EngineError: it ends, or is not ready in time; the end of its log is in the message.
        """
        begun = time.monotonic()
        self._process.start()
        self.start_up = time.monotonic() - begun
        self.facts = self._reply("ready", None)
        if self.facts["instructions"] == "AVX2" and _AVX512_ONLY in self.kernels():
            self.stop()
            raise EngineError(f"{self.facts['engine']} has no kernel for packed 4 bits on a processor without AVX-512")
        return self

    def stop(self) -> None:
        self._process.stop()

    def kernels(self) -> list[str]:
        """Those that the engine says it has chosen; none for dense weights."""
        return list(dict.fromkeys(_KERNEL.findall(self._process.log.read_text(encoding="utf-8", errors="replace"))))

    def ask(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Answer:
        """
        Raises:
            EngineError: it ended, or could not answer.
        """
        body = json.dumps({"prompts": prompts, "num_tokens": num_tokens}).encode()
        return Answer(**self._reply("ask", body))

    def _reply(self, route: str, body: bytes | None) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self._process.port}/{route}", body) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise EngineError(f"could not answer ({error.read().decode(errors='replace')})") from None
        except OSError:
            time.sleep(0.5)  # its end is seen a moment after the connection's
            self._process.check()
            raise


def engine_environment(python: Path, *, threads: int, compiled: bool, cache_gib: int) -> dict[str, str]:
    """Variables of an engine beside those of this process: so many threads, nothing from the network."""
    found = {
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in the process whose time is taken
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines share the first cores
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
    }
    if not compiled:
        found["TORCHDYNAMO_DISABLE"] = "1"
    preloaded = python.parent.parent / "lib" / "libiomp5.so"  # as vLLM's documentation asks
    return found | ({"LD_PRELOAD": str(preloaded)} if preloaded.is_file() else {})
