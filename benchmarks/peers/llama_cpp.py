"""llama.cpp (through xllamacpp) asked about GGUF files: how it cuts text, what it answers, what that costs.

    PEER_PYTHON benchmarks/peers/llama_cpp.py QUESTIONS.json ANSWERS.json

QUESTIONS: {"files": {name: path}, "texts": [...], "prompts": [...], "num_tokens": n, "long": text, "rounds": n}. Texts
and prompts are asked of every file, and "long" in turns, with one thread; seconds are of this process's processor time.
It runs in an environment of its own (benchmarks/env/llama_cpp.txt).
"""

import json
import sys
import time
import urllib.request
from pathlib import Path

import xllamacpp


def serve(path: str) -> xllamacpp.Server:
    """On the loopback, with one thread and one slot."""
    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_ctx, settings.n_parallel = 1024, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def ask(server: xllamacpp.Server, route: str, **content: object) -> dict:
    request = urllib.request.Request(
        f"{server.listening_address}/{route}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())


def complete(server: xllamacpp.Server, prompt: str, num_tokens: int) -> list[int]:
    """Greedy, without what the server remembers of earlier prompts."""
    settings = {"n_predict": num_tokens, "temperature": 0, "top_k": 1, "cache_prompt": False, "return_tokens": True}
    return ask(server, "completion", prompt=prompt, **settings)["tokens"]


def main() -> None:
    questions = json.loads(Path(sys.argv[1]).read_text())
    servers = {name: serve(path) for name, path in questions["files"].items()}
    answers: dict = {name: {"prefill": [], "decode": []} for name in servers}
    for name, server in servers.items():
        answers[name]["cut"] = [ask(server, "tokenize", content=text)["tokens"] for text in questions["texts"]]
        answers[name]["answers"] = [
            complete(server, prompt, questions["num_tokens"]) for prompt in questions["prompts"]
        ]
    for _ in range(questions["rounds"]):
        for name, server in servers.items():
            for what, prompt, count in (("prefill", questions["long"], 1), ("decode", questions["prompts"][0], 48)):
                before = time.process_time()
                complete(server, prompt, count)
                answers[name][what].append(time.process_time() - before)
    answers["version"] = getattr(xllamacpp, "__version__", None) or "unknown"
    Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
