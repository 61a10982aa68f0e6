"""Policies inside vLLM's scheduler, on an engine of one narrow layer: counts, not seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from burnish import cli
from burnish.core.engines import free_port
from small_models import small_llama, small_tokenizer

pytestmark = pytest.mark.timeout(1800)
SOURCE = Path(__file__).resolve().parent.parent.parent / "src"
HELD = "order: programs\nhold: fixed\nhold_seconds: 600\n"


def found(tmp_path: Path, scenario: str, policy: str, **plugin: Any) -> Any:
    """What the engine counts under a policy: a name, or the text of a file; `plugin` are further settings."""
    if "\n" in policy:
        (tmp_path / "policy.yaml").write_text(policy)
        policy = str(tmp_path / "policy.yaml")
    script = Path(__file__).with_name("dummy_engine.py")
    done = subprocess.run(
        [os.environ["VLLM_PYTHON"], str(script), str(tmp_path / "model"), scenario, policy, json.dumps(plugin)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def test_tenants_take_turns_and_no_step_is_lost(tmp_path: Path):
    plain, fcfs, fair = (found(tmp_path, "tenants", policy) for policy in ("none", "fcfs", "vtc"))
    assert plain == fcfs  # the policy that vLLM has, by our hand
    assert fcfs["admitted"] == "AAAAAAAAAABBBB"
    assert fair["admitted"] == "ABABABABAAAAAA"
    assert fair["tokens"] / fair["steps"] >= 0.97 * fcfs["tokens"] / fcfs["steps"]


def test_all_but_enforce_leave_the_schedule_as_it_is(tmp_path: Path):
    """Every step, every token and every block of workflows in a pool that is too small."""
    policy = "order: shares\nwithin: programs\nhold: fixed\nhold_seconds: 600\n"
    plain = found(tmp_path, "mixed", "none")
    assert plain["lost"] > 0
    for mode in ("off", "telemetry", "shadow", "advise"):
        telemetry = tmp_path / f"{mode}.jsonl"
        assert found(tmp_path, "mixed", policy, mode=mode, telemetry=str(telemetry)) == plain, mode
        events = [json.loads(line)["event"] for line in telemetry.read_text().splitlines()] if mode != "off" else []
        assert events.count("request") == (0 if mode == "off" else 90)
        assert ("advice" in events) == (mode == "advise")
    assert found(tmp_path, "mixed", policy, mode="enforce") != plain


def test_a_policy_that_is_left_holds_nothing_and_goes_on_in_the_order_of_arrival(tmp_path: Path):
    counts = found(tmp_path, "leaves", "order: shares\nhold: fixed\nhold_seconds: 600\n", fall_back=False)
    assert counts["held"] > 0
    assert counts["before"] == "fABAB"
    assert counts["after"] == "AAAAAAAABB"
    assert counts["left"] == [0, 0, 0]


def test_weights_of_a_policy_file_hold(tmp_path: Path):
    fair = found(tmp_path, "tenants", "order: shares\nweights: {A: 3, B: 1}\n")
    assert fair["admitted"].index("B") < 3
    assert fair["admitted"][:8].count("A") == 6


def test_what_a_tenant_was_served_by_another_engine_counts(tmp_path: Path):
    policy = "order: shares\nexchange_seconds: 0.05\n"
    alone = found(tmp_path, "tenants", policy)
    assert alone["admitted"] == "ABABABABAAAAAA"
    beside = found(tmp_path, "elsewhere", policy, exchange=str(tmp_path / "exchange"))
    assert beside == {"admitted": "AB" + 9 * "B" + 9 * "A", "engines": 2, "left": 1}


def test_a_light_tenant_is_as_well_served_beside_a_heavy_one(tmp_path: Path):
    """In steps, where it may take a place; shares alone let it wait until somebody ends."""
    fcfs, fair = (found(tmp_path, "light", policy) for policy in ("fcfs", "vtc"))
    takes = found(tmp_path, "light", "order: shares\ncredit: 1\ntake_places: true\n")
    assert max(fcfs["beside"]) > 3 * max(fcfs["alone"])
    assert max(fair["beside"]) < max(fcfs["beside"])
    assert max(takes["beside"]) <= 1.3 * max(takes["alone"])
    assert takes["tokens a step, beside"] >= 0.97 * fcfs["tokens a step, beside"]
    assert takes["places taken, beside"] > 0


def test_a_paused_workflow_finds_its_context_again(tmp_path: Path):
    lost, kept = (found(tmp_path, "returns", policy) for policy in ("fcfs", HELD))
    assert lost == {"held": 0, "cached": 0, "in use": 0, "others": 10}
    assert kept == {"held": 5, "cached": 640, "in use": 0, "others": 10}


def test_nothing_is_left_after_a_thousand_random_aborts(tmp_path: Path):
    # A policy that is left has no holds, and whether it is left depends on times, which move on a busy machine.
    counts = found(tmp_path, "aborts", HELD, fall_back=False)
    assert counts["pinned before"] > 0
    assert counts["left"] == [0, 0, 0, 0, 0]


def test_holds_give_way_to_the_only_one_who_waits(tmp_path: Path):
    assert found(tmp_path, "pressure", HELD)["finished"]


def test_a_mistake_in_the_policy_ends_the_start_with_one_sentence(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"order is 'fair', but input should be"):
        found(tmp_path, "tenants", "order: fair\n")


def tiny(tmp_path: Path) -> Path:
    """A checkpoint of one narrow model with a tokenizer."""
    model = tmp_path / "tiny"
    small_llama(max_position_embeddings=2048, head_dim=32).save_pretrained(model)
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    return model


def test_the_policy_file_of_a_simulation_serves(tmp_path: Path):
    """`burnish serve up` with the file that `burnish serve sim` takes: tenants are served, and Ctrl-C ends all."""
    model, policy = tiny(tmp_path), tmp_path / "fair.yaml"
    policy.write_text("name: fair\norder: shares\nweights: {a: 2, b: 1}\n")
    trace = tmp_path / "trace.jsonl"
    rows = [{"arrival_s": 0, "prompt_tokens": 9, "output_tokens": 4, "tenant": name} for name in "aabb"]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["serve", "sim", str(trace), "--policy", str(policy), "-o", str(tmp_path / "sim")])
    words = [sys.executable, "-P", "-m", "burnish", "serve", "up", str(model), "--policy", str(policy)]
    words += ["--trust-client-tenant", "--option=--max-num-seqs=2", "--log", str(tmp_path / "log")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert server.stdout is not None
    try:
        said = [server.stdout.readline() for _ in range(2)]
        assert "serving tiny under fair at http://127.0.0.1:" in said[1], (tmp_path / "log").read_text()[-2000:]
        client = openai.OpenAI(base_url=said[1].split()[-1], api_key="none", max_retries=0)
        for tenant in ("a", "b", 5):
            answer = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "The licence"}],
                max_tokens=4,
                extra_body={"vllm_xargs": {"tenant": tenant, "program": "p"}},
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130


def test_keys_and_headers_decide_inside_vllm_and_labels_of_metrics_are_capped(tmp_path: Path):
    """Sixty keys of as many tenants, whatever their clients claim; a header names the workflow."""
    keys, telemetry, port = tmp_path / "keys.yaml", tmp_path / "live.jsonl", free_port(0)
    keys.write_text("".join(f"sk-{number}: org/t{number}\n" for number in range(60)))
    keys.chmod(0o600)
    words = [sys.executable, "-P", "-m", "burnish", "serve", "up", str(tiny(tmp_path)), "--policy", "vtc"]
    words += ["--keys", str(keys), "--telemetry", str(telemetry), "--metrics-port", str(port)]
    words += ["--log", str(tmp_path / "log")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert server.stdout is not None
    try:
        said = [server.stdout.readline() for _ in range(2)]
        assert "serving tiny under vtc at" in said[1], (tmp_path / "log").read_text()[-2000:]

        def ask(key: str) -> None:
            client = openai.OpenAI(base_url=said[1].split()[-1], api_key=key, max_retries=0)
            client.completions.create(
                model="tiny",
                prompt=[5, 6, 7],
                max_tokens=1,
                extra_body={"vllm_xargs": {"tenant": "boss"}},
                extra_headers={"X-Burnish-Program": "agent", "X-Burnish-Tenant": "boss"},
            )

        with pytest.raises(openai.AuthenticationError):
            ask("sk-none")
        for number in range(60):
            ask(f"sk-{number}")
        time.sleep(2)  # metrics are made anew each second
        ask("sk-0")
        shown = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    rows = [json.loads(line) for line in telemetry.read_text().splitlines()]
    asked = [(row["tenant"], row["program"]) for row in rows if row["event"] == "request"]
    assert asked == [*((f"org/t{number}", "agent") for number in range(60)), ("org/t0", "agent")]
    labels = set(re.findall(r'tenant="([^"]*)"', shown))
    assert len(labels) == 51
    assert "other" in labels
    assert "boss" not in shown
