"""Episodes that SWE-agent has written, `TASK.traj`: the history of its main agent, and how it ended.

    {"history": [{role, content, agent, action, tool_calls, tool_call_ids}], "info": {exit_status, submission},
     "replay_config": ..., "environment": ...}

Results of calls carry `tool_call_ids`, a list of one, and content may be a list of parts. A `.traj` has no reward: its
program is judged afterwards, and the verdicts lie beside it (`burnish.data.trajectories.read.REWARDS_FILE`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import parse_json

KEPT = ("role", "content", "tool_calls")
"""Of a message; the rest is bookkeeping, which a chat template might take for something else."""


def from_swe_agent(row: Mapping[str, Any], stem: str, where: str) -> tuple[list[Any], dict[str, Any]]:
    """Messages and facts.

    Args:
        row: the content of the file.
        stem: name of the file without `.traj`, which is that of the task.
        where: of the file.

    Raises:
        DataError: no history.
    """
    history, info = row.get("history"), row.get("info")
    if not isinstance(history, list) or not history or not isinstance(info, Mapping):
        raise DataError("is a .traj without `history` and `info`", where=where)
    said = [_message(message) for message in history if _is_main(message)]
    instance = _instance(row, where)
    task = str(row.get("instance_id") or instance.get("id") or stem)
    return said, {
        "id": row.get("id") or task,
        "task": task,
        "repository": row.get("repo") or _repository(instance, task),
        "commit": row.get("base_commit") or instance.get("commit"),
        "patch": info.get("submission") or "",
        "ending": info.get("exit_status"),
        "reward": row.get("reward", info.get("reward", info.get("resolved"))),
    }


def _is_main(message: Any) -> bool:
    """Demonstrations are shown to the model, not made by it; other agents are other episodes."""
    return isinstance(message, Mapping) and not message.get("is_demo") and message.get("agent", "main") == "main"


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: message[key] for key in KEPT if message.get(key)}
    kept.setdefault("content", "")
    answered = message.get("tool_call_ids")
    if message.get("role") == "tool" and isinstance(answered, list) and answered:
        kept["tool_call_id"] = answered[0]
    return kept


def _instance(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{id, repository, commit} out of the settings of the run, which are JSON in a text."""
    config = row.get("replay_config")
    if isinstance(config, str):
        config = parse_json(config, where=f"{where}, replay_config", error=DataError)
    problem = config.get("problem_statement") if isinstance(config, dict) else None
    env = config.get("env") if isinstance(config, dict) else None
    repo = env.get("repo") if isinstance(env, dict) else None
    found = {"id": problem.get("id")} if isinstance(problem, dict) else {}
    if isinstance(repo, dict):
        found |= {"repository": repo.get("github_url") or repo.get("repo_name"), "commit": repo.get("base_commit")}
    return json.loads(json.dumps(found))


def _repository(instance: dict[str, Any], task: str) -> str:
    """Of a task of SWE-bench, `owner__name-number`, the name tells it."""
    if instance.get("repository") not in (None, "testbed"):
        return str(instance["repository"])
    return task.rpartition("-")[0].replace("__", "/") if "__" in task else ""
