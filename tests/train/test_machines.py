"""Several machines: two agents of torchrun, that meet over the loopback interface, train as one machine does."""

import json
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
import burnish

model, data, work, out = sys.argv[1:]
stage = burnish.Train(context=32, batch=8, micro_batch=2, steps=5, lr=0.003, save_every=2)
trained = stage(burnish.load(model), data=data, work_dir=work)
if os.environ.get("RANK", "0") == "0":
    trained.save(out)
"""


@pytest.mark.long
@pytest.mark.real_process
def test_two_agents_train_as_one_process_does(tiny_llama, tmp_path):
    script, data = tmp_path / "train.py", tmp_path / "text.txt"
    script.write_text(SCRIPT)
    data.write_text("The quick brown fox jumps over the lazy dog. " * 90)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "one"]
    agent += ["--local-addr", "127.0.0.1"]
    agents, logs = [], []
    for number in (1, 2):
        arguments = [str(script), str(tiny_llama), str(data), str(tmp_path / "work"), str(tmp_path / "out")]
        logs.append(tmp_path / f"log{number}")
        agents.append(subprocess.Popen([*agent, *arguments], stdout=logs[-1].open("w"), stderr=subprocess.STDOUT))
    ends = [process.wait() for process in agents]
    assert ends == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    alone = [sys.executable, str(script), str(tiny_llama), str(data), str(tmp_path / "alone"), str(tmp_path / "one")]
    subprocess.run(alone, check=True)
    found, expected = (losses(tmp_path / work) for work in ("work", "alone"))
    assert found == pytest.approx(expected, rel=1e-5)  # float32: the order of sums
    assert (tmp_path / "out" / "model.safetensors").is_file()


def losses(work):
    return [json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()]
