"""The whole of `burnish reason` on a model made here: python scripts/reason_demo.py local|vllm [WORK]

A server is started (the checkpoint in its own process, or vLLM behind the proxy) and asked by the unchanged `openai`
client for `rsa(...)@tiny`. It is killed in the middle; the same request to the next server goes on from the journal.
Then a run over problems is killed and continued, and its report written. Whatever is not as it should be ends this with
an error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import openai

from burnish.core.engines import EngineProcess, vllm
from burnish.core.errors import DataError
from burnish.reason import JournalReader

ROOT = Path(__file__).resolve().parent.parent
START, RUN = ROOT / "models/reasoner-start", ROOT / "runs/reasoner"
MODEL = RUN / "nodes/aggregating"
STRATEGY = "rsa(n=8,k=4,loops=3)"
QUESTION = "7a+9b*3c-5"
BURNISH = [sys.executable, "-m", "burnish"]


def main(kind: str, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    model = made()
    with behind(kind, model, work) as options:
        asked_and_killed(options, work)
        problems = work / "problems.jsonl"
        if not problems.is_file():
            kind_of = ["--steps", "4", "--modulus", "20", "--repeat", "0", "--direct", "0", "--distinct"]
            run(["data", "chain", "-n", "30", "--seed", "9", *kind_of, "-o", str(problems)])
        with server(options, work / "for-run") as engine:
            run_killed_and_continued(engine.url, problems, work / "run")


def made() -> Path:
    """The tiny reasoner that TINY_REASONER names, or the one that is trained here where it is not there."""
    if kept := os.environ.get("TINY_REASONER"):
        return Path(kept)
    if not MODEL.is_dir():
        print("training the tiny reasoner: some five minutes of one core", flush=True)
        if not START.is_dir():
            words = ["examples/reasoner.json", "--tokenizer", "bpe:400", "--data", "src/burnish/reason/prompts"]
            run(["init", *words, "--chat-template", "examples/reasoner.jinja", "-o", str(START)])
        run(["run", "recipes/tiny_reasoner.yaml", "-o", str(RUN)])
    return MODEL


@contextmanager
def behind(kind: str, model: Path, work: Path) -> Iterator[list[str]]:
    """Options of `burnish reason serve` for one kind of engine."""
    if kind == "local":
        yield ["--local", str(model), "--name", "tiny"]
        return
    with vllm(os.environ["VLLM_PYTHON"], model, log=work / "vllm.log", name="tiny", max_model_len=384) as engine:
        yield ["--upstream", engine.url]


def server(options: list[str], out: Path) -> EngineProcess:
    """`burnish reason serve`, whose journal is kept."""
    command = [
        *BURNISH,
        "reason",
        "serve",
        *options,
        "--port",
        "{port}",
        "--out",
        str(out),
        "--verifier",
        "last-integer",
    ]
    return EngineProcess(command, log=out.with_suffix(".log"), health="/health")


def asked_and_killed(options: list[str], work: Path) -> None:
    kept = work / "serve"

    def ask(url: str) -> openai.types.chat.ChatCompletion:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        chat: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
        return client.chat.completions.create(
            model=f"{STRATEGY}@tiny", messages=chat, max_tokens=60, seed=seed_of(kept)
        )

    def in_vain(url: str) -> None:
        with suppress(openai.APIError):  # its server is ended below
            ask(url)

    engine = server(options, kept)
    engine.start()
    before = num_finished(kept)
    asking = threading.Thread(target=in_vain, args=(engine.url,))
    asking.start()
    until(lambda: num_finished(kept) >= before + 3 or not asking.is_alive())
    engine.stop()
    asking.join()
    kept_calls = num_finished(kept) - before
    with server(options, kept) as engine:
        reply = ask(engine.url)
    bill = reply.to_dict()["burnish"]
    assert isinstance(bill, dict) and bill["calls"] == 24, bill
    new = num_finished(kept) - before - kept_calls
    assert new == 24 - kept_calls, (new, kept_calls)
    assert JournalReader(kept).problems() == []
    print(f"{STRATEGY}@tiny: {reply.choices[0].message.content!r}, {reply.usage and reply.usage.total_tokens} tokens;")
    print(f"the server was ended after {kept_calls} of 24 calls, and the next one made the other {new}")


def run_killed_and_continued(url: str, problems: Path, out: Path) -> None:
    command = ["reason", "run", str(problems), "--base-url", url, "--model", "tiny", "--verifier", "last-integer"]
    command += ["--strategy", "direct", "--strategy", "self-consistency:8", "--strategy", "rsa(n=4,k=2,loops=2)"]
    command += ["--max-tokens", "60", "-o", str(out)]
    first = subprocess.Popen([*BURNISH, *command], stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: num_finished(out) >= 40 or first.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept_calls = num_finished(out)
    run(command)
    reader = JournalReader(out)
    assert reader.problems() == [], reader.problems()
    lost = sum(paid.lost for paid in reader.paid().values())
    print(f"the run was killed after {kept_calls} calls ({lost} under way), and continued to {num_finished(out)}")


def num_finished(directory: Path) -> int:
    with suppress(DataError):
        reader = JournalReader(directory)
        try:
            return sum(1 for _ in reader.calls())
        finally:
            reader.close()
    return 0


def seed_of(directory: Path) -> int:
    """A seed that is one for one directory: a second demonstration in it asks for something else."""
    file = directory.with_suffix(".seed")
    if not file.is_file():
        file.write_text(str(time.time_ns() % 2**31))
    return int(file.read_text())


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def run(arguments: list[str]) -> None:
    subprocess.run([*BURNISH, *arguments], check=True, cwd=ROOT)


if __name__ == "__main__":
    kind, *place = sys.argv[1:] or ["local"]
    main(kind, Path(place[0]) if place else ROOT / "runs" / f"reason-{kind}")
