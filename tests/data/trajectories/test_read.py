"""Three forms become one episode; secrets leave it; what cannot be one is refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import DataError
from burnish.data.trajectories.episode import Episode
from burnish.data.trajectories.patches import is_test_file, patch_digest, touched_tests
from burnish.data.trajectories.read import episodes, holds_episodes
from burnish.data.trajectories.secrets import Redaction, secrets_in
from made_episodes import call, made, patch, write


def test_three_forms_of_one_episode_are_the_same(tmp_path: Path):
    arguments = {"command": "ls"}
    said = [
        {"role": "system", "content": "You mend."},
        {"role": "user", "content": "Mend it."},
        *call("bash", arguments, 0, "I look."),
        {"role": "assistant", "content": "Done."},
    ]
    change = patch("a.py", "1")
    facts = {"repository": "own/er", "base_commit": "abcdef012345", "patch": change, "reward": True}
    write(tmp_path / "own__er-7.jsonl", [{"id": "own__er-7", "task": "own__er-7", "messages": said, **facts}])
    (tmp_path / "own__er-7.traj").write_text(json.dumps(in_swe_agent(said, change)))
    write(tmp_path / "output.jsonl", [in_openhands(arguments, change)])
    (tmp_path / "rewards.json").write_text('{"own__er-7": 1}')
    same = [found(tmp_path / name) for name in ("own__er-7.jsonl", "own__er-7.traj", "output.jsonl")]
    for one in same:
        assert (one.id, one.task, one.repository, one.commit) == ("own__er-7", "own__er-7", "own/er", "abcdef012345")
        assert (one.reward, one.patch, one.actions) == (1.0, change, same[0].actions)
        assert [(m["role"], m["content"]) for m in one.chat] == [(m["role"], m["content"]) for m in said]
        assert one.chat[2]["tool_calls"][0]["function"] == {"name": "bash", "arguments": arguments}
    assert same[0].actions == ('[["bash", {"command": "ls"}]]', "Done.")
    assert [one.ending for one in same] == ["", "submitted", "finish"]


def found(path: Path) -> Episode:
    (one,) = episodes([path])
    return one


def in_swe_agent(said: list[dict[str, Any]], change: str) -> dict[str, Any]:
    history = [
        {**{key: value for key, value in message.items() if key != "tool_call_id"}, "agent": "main", "action": "ls"}
        | ({"tool_call_ids": [message["tool_call_id"]]} if "tool_call_id" in message else {})
        | {"content": [{"type": "text", "text": message["content"]}]}
        for message in said
    ]
    demo = {"role": "user", "content": "a demonstration", "is_demo": True, "agent": "main"}
    config = {"env": {"repo": {"github_url": "https://github.com/own/er", "base_commit": "abcdef012345"}}}
    info = {"exit_status": "submitted", "submission": change}
    return {"history": [*history[:1], demo, *history[1:]], "info": info, "replay_config": json.dumps(config)}


def in_openhands(arguments: dict[str, Any], change: str) -> dict[str, Any]:
    written = call("bash", arguments, 0, "I look.")[0]
    meta = {
        "function_name": "bash",
        "tool_call_id": "c0",
        "model_response": {"id": "r1", "choices": [{"message": written}]},
    }
    events = [
        {"source": "agent", "action": "system", "args": {"content": "You mend."}},
        {"source": "user", "action": "message", "args": {"content": "Mend it."}},
        {"source": "environment", "observation": "agent_state_changed", "content": ""},
        {
            "source": "agent",
            "action": "run",
            "args": {"command": "ls", "thought": "I look."},
            "tool_call_metadata": meta,
        },
        {"source": "agent", "observation": "run", "content": "result 0", "tool_call_metadata": meta},
        {"source": "agent", "action": "message", "args": {"content": "Done."}},
        {"source": "agent", "action": "finish", "args": {}, "tool_call_metadata": {"model_response": {"id": "r1"}}},
    ]
    return {
        "instance_id": "own__er-7",
        "instance": {"repo": "own/er", "base_commit": "ABCDEF012345"},
        "history": events,
        "test_result": {"git_patch": change, "report": {"resolved": True}},
    }


def test_parallel_calls_of_openhands_are_one_turn_and_old_events_make_calls(tmp_path: Path):
    two = call("bash", {"n": 1}, 1)[0]["tool_calls"] + call("bash", {"n": 2}, 2)[0]["tool_calls"]
    response = {"id": "r", "choices": [{"message": {"content": "Both.", "tool_calls": two}}]}
    metas = [{"tool_call_id": f"c{n}", "model_response": response, "total_calls_in_response": 2} for n in (1, 2)]
    events = [{"source": "user", "action": "message", "args": {"content": "?"}}]
    events += [{"source": "agent", "action": "run", "args": {}, "tool_call_metadata": meta} for meta in metas]
    events += [{"source": "agent", "observation": "run", "content": "x", "tool_call_metadata": meta} for meta in metas]
    events += [{"source": "agent", "action": "edit", "args": {"path": "a", "thought": "Now.", "hidden": False}}]
    events += [{"source": "agent", "observation": "edit", "content": "ok"}]
    (tmp_path / "one.json").write_text(json.dumps(events))
    one = found(tmp_path / "one.json")
    assert [message["role"] for message in one.chat] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [made["id"] for made in one.chat[1]["tool_calls"]] == ["c1", "c2"]
    assert one.chat[4]["content"] == "Now."
    assert one.chat[4]["tool_calls"][0]["function"] == {"name": "edit", "arguments": {"path": "a"}}


SECRETS = {
    "AWS_KEY=AKIA" + "A1B2" * 4: "AKIA" + "A1B2" * 4,
    "remote https://me:Tr0ub4dor-and-3@host/x.git": "Tr0ub4dor-and-3",
    'api_key: "' + "x9" * 10 + '"': "x9" * 10,
    "Authorization: ghp_" + "a1" * 20: "ghp_" + "a1" * 20,
    "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----": (
        "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"
    ),
}


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_an_observation_leaves_the_whole_episode(text: str, tmp_path: Path):
    secret = SECRETS[text]
    row = made("one")
    row["messages"][3]["content"] = f"before {text} after"
    row["messages"][4]["tool_calls"][0]["function"]["arguments"] = json.dumps({"command": f"curl {secret}"})
    row["patch"] = patch("a.py", json.dumps(secret))
    one = found(write(tmp_path / "one.jsonl", [row]))
    assert one.num_secrets == 1
    assert secret not in repr(list(one.chat)) + str(one.patch) + repr(one.actions)
    assert one.chat[4]["tool_calls"][0]["function"]["arguments"] == {"command": "curl [REDACTED]"}
    assert secret not in repr(Redaction((secret,)))


@pytest.mark.parametrize(
    "code",
    [
        "token = tokenizer.encode(text)[0]",
        "password: str = Field(default=None)",
        "secret = os.environ['THE_SECRET_NAME_2']",
        "token: AutoTokenizerOfVersion2.from_pretrained(x)",
        "see http://host:8080/path@2",
        "sk-short",
    ],
)
def test_code_that_speaks_of_secrets_has_none(code: str):
    assert secrets_in(code) == set()


def test_changes_are_the_same_wherever_they_stand_and_another_change_is_not():
    one = patch("src/a.py", "1") + patch("src/b.py", "2")
    moved = patch("src/b.py", "2") + patch("src/a.py", "1").replace("-3,2 +3,2", "-30,2 +31,2").replace(
        " context", " other"
    )
    assert patch_digest(one) == patch_digest(moved)
    assert patch_digest(one) != patch_digest(patch("src/a.py", "2") + patch("src/b.py", "1"))
    assert patch_digest("not a diff") != patch_digest("another text")


def test_a_removed_line_that_looks_like_a_header_is_a_line():
    change = "--- a/x.sql\n+++ b/x.sql\n@@ -1,1 +1,1 @@\n--- a/tests/y.py\n+select 1\n"
    assert touched_tests(change) == []


@pytest.mark.parametrize(
    ("name", "is_test"),
    [
        ("tests/a.py", True),
        ("a/test_b.py", True),
        ("a/b_test.go", True),
        ("a/b.spec.ts", True),
        ("a/conftest.py", True),
        ("src/ParserTests.java", True),
        ("src/latest.py", False),
        ("src/contest.py", False),
        ("numpy/testing/utils.py", False),
    ],
)
def test_files_of_tests(name: str, is_test: bool):
    assert is_test_file(name) is is_test


SAID = made("one")["messages"]
BAD = {
    "is the result of a tool, but nothing was called": [*SAID[:2], {"role": "tool", "content": "x"}, SAID[-1]],
    "answers the call 'c9', which was not made": [*SAID[:3], {**SAID[3], "tool_call_id": "c9"}],
    "has no assistant message, so nothing to learn from": SAID[:2],
    "is not valid JSON": [
        *SAID[:2],
        {"role": "assistant", "tool_calls": [{"function": {"name": "bash", "arguments": "{ls"}}]},
    ],
    "has a part of type 'image_url', and only text can be trained on": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        SAID[-1],
    ],
}


@pytest.mark.parametrize("sentence", BAD)
def test_messages_that_cannot_be_an_episode(sentence: str, tmp_path: Path):
    file = write(tmp_path / "bad.jsonl", [made("good"), made("bad") | {"messages": BAD[sentence]}])
    with pytest.raises(DataError) as caught:
        list(episodes([file]))
    assert sentence in str(caught.value)
    assert "bad.jsonl:2" in str(caught.value)
    skipped: list[str] = []
    assert [one.id for one in episodes([file], skipped=skipped)] == ["good"]
    assert skipped == [str(caught.value)]


@pytest.mark.parametrize("reward", ["1", [1], float("nan")])
def test_a_reward_that_is_no_number(reward: Any, tmp_path: Path):
    file = write(tmp_path / "bad.jsonl", [made("bad") | {"reward": reward}])
    with pytest.raises(DataError, match=r"has a reward that is no number but (a string|a list|nan)"):
        list(episodes([file]))


def test_rows_of_no_form_and_files_of_no_kind(tmp_path: Path):
    with pytest.raises(DataError, match="has neither `messages`, nor `history`"):
        list(episodes([write(tmp_path / "a.jsonl", [{"text": "a"}])]))
    with pytest.raises(DataError, match="no such file"):
        list(episodes([tmp_path / "nothing.jsonl"]))
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match="is of no kind that can be read"):
        list(episodes([tmp_path / "a.csv"]))
    (tmp_path / "a.traj").write_text('{"history": []}')
    with pytest.raises(DataError, match=r"is a \.traj without `history` and `info`"):
        list(episodes([tmp_path / "a.traj"]))


def test_episodes_are_told_from_texts_and_chats(tmp_path: Path):
    assert holds_episodes(write(tmp_path / "a.jsonl", [made("one")]))
    assert holds_episodes(tmp_path)
    assert not holds_episodes(write(tmp_path / "b.jsonl", [{"text": "a"}]))
    assert not holds_episodes(write(tmp_path / "c.jsonl", [{"messages": SAID}]))
    assert not holds_episodes("wikitext2-valid")
