"""What OpenAI's clients expect to see: objects, errors, events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.reason.calls import ContextExceeded, UpstreamError, Usage
from burnish.reason.replies import json_of

DONE = b"data: [DONE]\n\n"


class Refusal(BurnishError):
    """A request that is not served.

    Attributes:
        status: of the reply.
        code: for programs, such as "model_not_found".
        param: the field that is wrong.
    """

    def __init__(self, what: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(what)
        self.status, self.code, self.param = status, code, param


def read_body(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise Refusal(f"the body is no JSON ({error})") from None
    except RecursionError:
        raise Refusal("the body is nested too deeply") from None
    if not isinstance(body, dict):
        raise Refusal("the body must be an object")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Refusal("the name of a model is missing", param="model")
    return body


def error_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and error object. What an upstream said, if it is such an object, is given on as it is."""
    if isinstance(error, Refusal):
        return error.status, error_object(str(error), error.status, error.code, error.param)
    if isinstance(error, UpstreamError):
        status = error.status or (504 if "did not answer within" in error.what else 502)
        said = json_of(error.body)
        if isinstance(said, dict):
            return status, said
        code = "context_length_exceeded" if isinstance(error, ContextExceeded) else "upstream_error"
        return status, error_object(str(error), status, code)
    if isinstance(error, SettingsError | DataError):
        return 400, error_object(str(error), 400, None, error.where)
    return 500, error_object(f"the server failed ({type(error).__name__}); its log says more", 500)


def error_object(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def comment(text: str) -> bytes:
    """What keeps a stream alive, and is read by people alone."""
    return f": {' '.join(text.split())}\n\n".encode()


def head(name: str, kind: str, model: str) -> dict[str, Any]:
    """What all objects of one answer begin with."""
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def usage_object(used: Usage) -> dict[str, Any] | None:
    """Tokens as OpenAI counts them; None where a server did not say, which is not 0."""
    if used.unknown:
        return None
    return {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning},
    }


def model_list(names: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        {"id": name, "object": "model", "created": 0, "owned_by": "burnish", **more} for name, more in names.items()
    ]
    return {"object": "list", "data": rows}
