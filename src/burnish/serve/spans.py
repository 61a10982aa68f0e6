"""Requests in traces of OpenTelemetry: the lines of OTLP JSON that a collector's file exporter writes.

A request is a span with both counts of tokens, by the names of the conventions for generative AI
(`gen_ai.usage.input_tokens`, `gen_ai.usage.output_tokens`) or by those that vLLM writes (`prompt_tokens`,
`completion_tokens`). Spans of other operations than chat and completion, such as those of a whole agent, sum up those
of its requests and are left out. Requests of one `gen_ai.conversation.id` are turns of a workflow as long as one
follows the end of the other and its prompt can hold that one's prompt and answer; else a new workflow begins. The
conventions know no tenant, and none is made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import shown

FIELD = "resourceSpans"
OPERATIONS = ("chat", "text_completion", "generate_content")
_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")


@dataclass(frozen=True, slots=True)
class Span:
    """A request; times are nanoseconds since 1970.

    Attributes:
        line: of the file.
        begin, end: times.
        prompt, output: tokens.
        conversation: empty where it is of none.
    """

    line: int
    begin: int
    end: int
    prompt: int
    output: int
    conversation: str


def as_rows(
    lines: Iterator[tuple[int, dict[str, Any]]], path: str, dropped: dict[str, int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of our own format, in order of time.

    Args:
        lines: (line, what it holds).
        path: for messages.
        dropped: counts requests without a token of a prompt or an answer.

    Raises:
        DataError: a line is no such trace; the message has it.
    """
    spans = [span for number, content in lines for span in _requests(content, number, f"{path}:{number}")]
    whole = [span for span in spans if span.prompt and span.output]
    if len(whole) < len(spans):
        dropped["no tokens"] = len(spans) - len(whole)
    spans = sorted(whole, key=lambda span: span.begin)
    last: dict[str, tuple[Span, str]] = {}
    for place, span in enumerate(spans):
        row: dict[str, Any] = {"prompt_tokens": span.prompt, "output_tokens": span.output}
        before, program = last.get(span.conversation, (None, "")) if span.conversation else (None, "")
        if before and span.begin >= before.end and span.prompt >= before.prompt + before.output:
            row |= {"program": program, "pause_s": (span.begin - before.end) / 1e9}
        else:
            program = f"{span.conversation[:400]} {place}" if span.conversation else ""
            row |= {"program": program, "arrival_s": (span.begin - spans[0].begin) / 1e9}
        last[span.conversation] = span, program
        yield span.line, row


def _requests(content: dict[str, Any], number: int, where: str) -> Iterator[Span]:
    for resource in _list(content, FIELD, where):
        for scope in _list(resource, "scopeSpans", where):
            for span in _list(scope, "spans", where):
                said = {str(one.get("key")): _value(one.get("value")) for one in _list(span, "attributes", where)}
                names = [next((name for name in several if name in said), "") for several in (_PROMPT, _OUTPUT)]
                if not all(names) or said.get("gen_ai.operation.name", OPERATIONS[0]) not in OPERATIONS:
                    continue
                begin, end = (_whole(span, field, where) for field in ("startTimeUnixNano", "endTimeUnixNano"))
                prompt, output = (_whole(said, name, where) for name in names)
                yield Span(number, begin, end, prompt, output, str(said.get("gen_ai.conversation.id", "")))


def _list(content: dict[str, Any], field: str, where: str) -> list[dict[str, Any]]:
    found = content.get(field, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{field} is {shown(found)}", where=where, fix="give lines of OTLP JSON")
    return found


def _value(value: Any) -> Any:
    """Of {"intValue": "12"} and its like."""
    return next(iter(value.values()), None) if isinstance(value, dict) else None


def _whole(content: dict[str, Any], field: str, where: str) -> int:
    """Numbers of 64 bits are texts in JSON by the rules of protobuf; both are taken."""
    value = content.get(field)
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise DataError(f"{field} is {shown(value)}", where=where, fix="give a whole number")
    return int(text)
