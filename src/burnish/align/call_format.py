"""How a model's chat template writes calls of tools, and how what it writes is read back.

Templates differ (`<tool_call>{"name": ...}</tool_call>`, `call NAME {...}`, ...), and none says how to read what it
writes. So the template is asked to write a call that is known, and what stands around its name and arguments is the
form:

    opening NAME middle {ARGUMENTS}

What an environment answers is written by the template too, after a turn that is known, so that nothing which the model
wrote is ever turned into tokens a second time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.core.errors import DataError
from burnish.data.chat import assistant_end, check_template, written_out
from burnish.data.forms import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.align.tools import Tool

KEY, VALUE = "burnish_key", "burnish_value"
"""Of the call that a template is asked to write."""
QUESTION = {"role": "user", "content": "?"}
_FIX = "use a model whose chat template writes calls as JSON"


@dataclass(frozen=True)
class Call:
    """What a model asks for; `arguments` is None where they are no JSON object."""

    name: str
    arguments: Mapping[str, Any] | None


@dataclass(frozen=True)
class CallFormat:
    """The form of one tokenizer for one set of tools.

    Attributes:
        tokenizer: with a chat template.
        tools: that may be called.
        opening, middle: what stands before the name of a call, and between it and the arguments.
    """

    tokenizer: PreTrainedTokenizerBase
    tools: tuple[Tool, ...]
    opening: str
    middle: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Tool]) -> CallFormat:
        """Asks the chat template.

        Raises:
            DataError: no chat template, one that writes no calls, or one that rewrites a turn once it is answered.
        """
        check_template(tokenizer, where="episodes with tools")
        name = tools[0].name
        before = _written(tokenizer, [QUESTION], tools, answering=True)
        through = _written(tokenizer, [QUESTION, _calling(name, {KEY: VALUE})], tools)
        if not through.startswith(before):
            raise DataError("writes the opening of an answer otherwise once it is there", where=_WHERE, fix=_FIX)
        written = through[len(before) : assistant_end(tokenizer, through, len(before))]
        arguments = re.search(rf'\{{\s*"{KEY}"\s*:\s*"{VALUE}"\s*\}}', written)
        start = written.rfind(name, 0, arguments.start()) if arguments else -1
        if arguments is None or start < 0:
            raise DataError(
                "does not write calls of tools out, name first and arguments as JSON", where=_WHERE, fix=_FIX
            )
        middle = written[start + len(name) : arguments.start()]
        found = cls(tokenizer, tuple(tools), opening=written[:start], middle=middle)
        found.answer_text(name, ["?"])
        return found

    def calls(self, text: str) -> list[Call]:
        """The calls in what a model wrote, in their order."""
        found, place = list[Call](), 0
        while match := self._begin.search(text, place):
            try:
                arguments, place = json.JSONDecoder().raw_decode(text, match.end())
            except (ValueError, RecursionError):
                arguments, place = None, match.end()
            found.append(Call(match["name"], arguments if isinstance(arguments, dict) else None))
        return found

    def before_calls(self, text: str) -> str:
        """What a model wrote before its first call; all of it where there is none."""
        match = self._begin.search(text)
        return text if match is None else text[: match.start()]

    @property
    def _begin(self) -> re.Pattern[str]:
        return re.compile(_loosely(self.opening) + r"(?P<name>[\w.-]+)" + _loosely(self.middle))

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of what a model is asked."""
        return self._ids(_written(self.tokenizer, list(messages), self.tools, answering=True))

    def answer(self, name: str, contents: Sequence[str]) -> list[int]:
        """Token ids that follow the end of a turn which called: what was answered, and the next turn's opening."""
        return self._ids(self.answer_text(name, contents))

    def answer_text(self, name: str, contents: Sequence[str]) -> str:
        """The same as text.

        Args:
            name: of the tool that was called first; some templates write it above the answer.
            contents: of the answers.

        Raises:
            DataError: the template writes the turn otherwise once it is answered.
        """
        calling = _calling(name, {})
        through = _written(self.tokenizer, [QUESTION, calling], self.tools)
        told = [{"role": "tool", "name": name, "tool_call_id": _ID, "content": content} for content in contents]
        whole = _written(self.tokenizer, [QUESTION, calling, *told], self.tools, answering=True)
        end = assistant_end(self.tokenizer, through, 0)
        if not whole.startswith(through[:end]):
            raise DataError("writes a turn otherwise once it is answered, so none could be trained on", where=_WHERE)
        return whole[end:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


_WHERE = "the tokenizer's chat template"
_ID = "call00001"
"""Some templates ask for nine letters and digits."""


def _calling(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    call = {"id": _ID, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _written(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Any],
    tools: Sequence[Tool],
    *,
    answering: bool = False,
) -> str:
    chat = Chat(messages, [tool.schema for tool in tools])
    return written_out(tokenizer, chat, where="episodes with tools", add_generation_prompt=answering)


def _loosely(text: str) -> str:
    """A pattern for a text in which white space may be more or less."""
    parts = re.split(r"(\s+)", text)
    return "".join(r"\s*" if part.isspace() else re.escape(part) for part in parts)
