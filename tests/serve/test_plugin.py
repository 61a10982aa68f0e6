"""What the plug-in for vLLM takes from outside, without vLLM."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

import burnish.serve.vllm as plugin
from burnish import cli
from burnish.core.engines import free_port
from burnish.core.errors import EngineError, SettingsError
from burnish.serve.up import server_options
from burnish.serve.vllm.requests import job_of, read_plugin


def job(arguments: Any, *, session: str | None = None, trusted: bool = True):
    return job_of("r1", 7, arguments, session, 100, trusted=trusted)


def test_a_request_says_who_it_is():
    made = job({"tenant": "org/team/anna", "program": "p", "turn": 3, "tool": "search"})
    assert (made.tenant, made.program, made.turn, made.tool, made.prompt) == ("org/team/anna", "p", 3, "search", 7)
    for last in (True, 1, 1.0, "true"):  # over HTTP, vLLM makes a number of true
        assert job({"program": "p", "tool": "search", "last": last}).tool == ""
    assert job({"program": "p", "tool": "search", "last": 0}).tool == "search"
    assert job({"program": "p"}).tool == "tool"
    assert job({}, session="s").program == "s"
    assert job(None).program == job(None).tool == ""


def test_a_clients_word_for_its_tenant_counts_only_where_it_is_trusted():
    assert job({"tenant": "boss"}, trusted=False).tenant == ""


@pytest.mark.parametrize("value", [5, None, ["a"], {"a": 1}, "x" * 201, "a\0b", True])
def test_what_is_no_short_text_counts_as_not_said(value: Any):
    made = job({"tenant": value, "program": value, "tool": value})
    assert (made.tenant, made.program, made.tool) == ("", "", "")


@pytest.mark.parametrize("turn", [-1, "2", 1.5, True, None])
def test_what_is_no_number_of_a_turn_is_the_first(turn: Any):
    assert job({"turn": turn}).turn == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"burnish": []}, "additional_config.burnish: is no object"),
        ({"burnish": {"polcy": "vtc"}}, "did you mean 'policy'"),
        ({"burnish": {"policy": "nowhere.yaml"}}, "nowhere.yaml: is no policy file"),
        ({"burnish": {"budget": 2}}, r"additional_config.burnish.budget: is 2"),
        ({"burnish": {"prefill_tokens_per_second": 0}}, "prefill_tokens_per_second: is 0"),
        ({"burnish": {"mode": "watch"}}, "mode is 'watch'"),
        ({"burnish": {"share": 2}}, "share is 2"),
    ],
)
def test_a_mistake_of_the_operator_is_one_sentence(given: Any, told: str):
    with pytest.raises(SettingsError, match=told):
        read_plugin(given)


def test_nothing_said_is_first_come_first_served():
    settings, policy = read_plugin({})
    assert policy.order == "fcfs"
    assert not settings.trust_client_tenant


def test_another_version_of_vllm_is_named_with_those_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin, "version", lambda package: "0.40.1")
    with pytest.raises(EngineError, match=r"vLLM 0.40.1 is none of those known \(0.32\)"):
        _ = plugin.Scheduler
    monkeypatch.setattr(plugin, "version", lambda package: "0.32.5")
    assert plugin.adapter() == "burnish.serve.vllm.v0_32"


def test_no_vllm_is_said(monkeypatch: pytest.MonkeyPatch):
    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(plugin, "version", none)
    with pytest.raises(EngineError, match="vLLM is not installed in this environment"):
        plugin.adapter()


def test_the_server_is_given_the_policy_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "fair.yaml").write_text("order: vtc\n")
    monkeypatch.chdir(tmp_path)
    options = server_options("fair.yaml", trust_client_tenant=True)
    given = json.loads(options[options.index("--additional-config") + 1])["burnish"]
    assert given == {"policy": str(tmp_path / "fair.yaml"), "trust_client_tenant": True}
    assert read_plugin({"burnish": given})[1].order == "vtc"
    assert '"policy": "vtc"' in server_options("vtc", trust_client_tenant=False)[-1]


def test_a_port_that_is_taken_is_said():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {number}: cannot be listened at"):
            free_port(number)
    assert free_port(number) == number


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no environment with vLLM is named"),
        (["--python", "python-that-is-not"], "python-that-is-not"),
        (["--python", "x", "--policy", "nowhere.yaml"], "nowhere.yaml: is no policy file"),
        (["--port", "70000"], "port"),
    ],
)
def test_what_keeps_the_server_from_starting_is_one_line(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    policy = [] if "--policy" in options else ["--policy", "vtc"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["serve", "up", str(tmp_path / "model"), *policy, *options, "--log", str(tmp_path / "log")])
    assert told in capsys.readouterr().err
