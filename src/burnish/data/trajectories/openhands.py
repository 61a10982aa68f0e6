"""Episodes that OpenHands has written: events of an agent and its surroundings, in a list or in rows of `output.jsonl`.

    {"instance_id": ..., "instance": {repo, base_commit}, "history": [event ...], "test_result": {git_patch, report}}
    event: {"source": "agent", "action": "run", "args": {...}, "tool_call_metadata": {function_name, tool_call_id,
            model_response}}  or  {"observation": "run", "content": ..., "tool_call_metadata": ...}

What the model has written stands in `model_response`, once for all calls of one turn. Where it is missing, the call is
made from the action and its arguments, and what was thought from `args.thought`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from burnish.core.errors import DataError

PASSED_OVER = frozenset({"agent_state_changed", "change_agent_state", "recall", "null", "condensation", "start"})
"""Events that no model sees."""
BESIDE = frozenset({"thought", "blocking", "keep_prompt", "hidden", "confirmation_state", "is_input", "security_risk"})
"""Arguments of an action that are no arguments of a call."""
FINISHED, OVER_BUDGET = "finish", "over budget"


def is_events(value: Any) -> bool:
    """Whether a list is one of events."""
    return isinstance(value, list) and any(
        isinstance(event, Mapping) and ("action" in event or "observation" in event) for event in value
    )


def from_openhands(row: Mapping[str, Any], stem: str, where: str) -> tuple[list[Any], dict[str, Any]]:
    """Messages and facts, `tools` among these where the episode names them.

    Args:
        row: of `output.jsonl`; a list of events alone is {"history": events}.
        stem: name of the file, which stands for the task where nothing else does.
        where: of the row.

    Raises:
        DataError: no event, or one that is none.
    """
    events = row.get("history")
    if not is_events(events):
        raise DataError("is an episode of OpenHands without events in `history`", where=where)
    said, tools = _messages(events or [], where)
    instance, result = _object(row.get("instance")), _object(row.get("test_result"))
    report = _object(row.get("report")) or _object(result.get("report"))
    task = str(row.get("instance_id") or instance.get("instance_id") or stem)
    patch = result.get("git_patch", row.get("git_patch"))
    attempt = row.get("attempt")
    return said, {
        "id": row.get("id") or (task if attempt is None else f"{task}, attempt {attempt}"),
        "task": task,
        "repository": instance.get("repo"),
        "commit": instance.get("base_commit"),
        "patch": patch,
        "ending": _ending(events or [], row.get("error")),
        "reward": row.get("reward", report.get("resolved", row.get("resolved"))),
        "tools": tools,
    }


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _ending(events: Iterable[Mapping[str, Any]], error: Any) -> str:
    if error:
        words = str(error).lower()
        return (
            OVER_BUDGET if "maximum" in words or "budget" in words or "max_iter" in words else f"error: {error}"[:200]
        )
    finished = any(event.get("action") == "finish" for event in events)
    return FINISHED if finished else ""


def _messages(events: list[Any], where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    said: list[dict[str, Any]] = []
    tools: list[Any] = []
    responses: dict[str, int] = {}  # of one response of the model: the number of its message
    for number, event in enumerate(events, start=1):
        if not isinstance(event, Mapping):
            raise DataError(f"event {number} is no object", where=where)
        kind = event.get("action") or event.get("observation")
        if kind in PASSED_OVER or kind is None:
            continue
        if "observation" in event:
            said.append(_observation(event, said))
        elif kind == "system":
            args = event.get("args") or {}
            tools = args.get("tools") or []
            said.append({"role": "system", "content": args.get("content") or ""})
        elif event.get("source") == "user":
            said.append({"role": "user", "content": (event.get("args") or {}).get("content") or event.get("message")})
        else:
            _add_action(event, str(kind), said, responses)
    return said, tools


def _observation(event: Mapping[str, Any], said: list[dict[str, Any]]) -> dict[str, Any]:
    meta = event.get("tool_call_metadata") or {}
    called = bool(said) and any(message.get("tool_calls") for message in said)
    message = {"role": "tool" if called else "user", "content": event.get("content") or ""}
    if called and meta.get("tool_call_id"):
        message["tool_call_id"] = meta["tool_call_id"]
    return message


def _add_action(event: Mapping[str, Any], kind: str, said: list[dict[str, Any]], responses: dict[str, int]) -> None:
    """The turn that an action is part of; the calls of one response are one turn."""
    meta, args = event.get("tool_call_metadata") or {}, event.get("args") or {}
    response = meta.get("model_response") or {}
    key = response.get("id")
    if key is not None and key in responses:
        return  # its first action has brought all calls
    choices = response.get("choices") or []
    written = choices[0].get("message") if choices and isinstance(choices[0], Mapping) else None
    if isinstance(written, Mapping) and written.get("tool_calls"):
        if key is not None:
            responses[key] = len(said)
        kept = {name: written[name] for name in ("reasoning_content", "tool_calls") if written.get(name)}
        said.append({"role": "assistant", "content": written.get("content") or "", **kept})
    elif kind == "message":
        said.append({"role": "assistant", "content": args.get("content") or event.get("message") or ""})
    else:
        call = {"name": meta.get("function_name") or kind, "arguments": {k: args[k] for k in args if k not in BESIDE}}
        made = {"type": "function", "function": call}
        if meta.get("tool_call_id"):
            made["id"] = meta["tool_call_id"]
        said.append({"role": "assistant", "content": args.get("thought") or "", "tool_calls": [made]})
