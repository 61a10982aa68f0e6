"""The one place that decides what is sent: template, answer prefix, and the token that begins a text.

Scores of one model on RULER differ by 7 to 20 points between programs that differ in nothing but these. Here the chat
template, where there is one, is written around the question once; the answer prefix stands behind it, where the
assistant speaks; and what begins a text stands there once, from the template or from the tokenizer.

Each of the three can be got wrong on purpose (`Slip`), so that a user sees what it would cost.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from burnish.core.errors import SettingsError
from burnish.data.chat import written_out
from burnish.evaluate.ruler.tasks import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["none", "chat"]
Slip = Literal["template", "bos", "prefix"]
"""The template written twice, the beginning token sent twice, the answer prefix left out."""


def template_of(tokenizer: PreTrainedTokenizerBase, asked: Literal["auto", "none", "chat"]) -> Template:
    """Whether prompts go through the chat template.

    Raises:
        SettingsError: they shall, and there is none.
    """
    if asked == "chat" and not tokenizer.chat_template:
        raise SettingsError("the tokenizer has no chat template", where="template", fix="use --template none")
    return "chat" if tokenizer.chat_template and asked != "none" else "none"


def check_slip(tokenizer: PreTrainedTokenizerBase, template: Template, slip: Slip | None) -> None:
    """
    Raises:
        SettingsError: a slip that this tokenizer or this template cannot have.
    """
    if slip == "template" and template == "none":
        raise SettingsError("no template is used that could be written twice", where="slip", fix="use another slip")
    if slip == "bos" and tokenizer.bos_token_id is None:
        raise SettingsError("the tokenizer has no token that begins a text", where="slip", fix="use another slip")


def added_tokens(tokenizer: PreTrainedTokenizerBase, template: Template, slip: Slip | None) -> int:
    """How many tokens a slip sends more, by an empty prompt."""
    empty = Prompt("", "", ())
    return len(sent(tokenizer, empty, template, slip)) - len(sent(tokenizer, empty, template))


def sent(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template, slip: Slip | None = None) -> list[int]:
    """The tokens that a model is given.

    Args:
        tokenizer: of the model.
        prompt: what is asked.
        template: as `template_of` says.
        slip: what is got wrong on purpose.

    Raises:
        SettingsError: the tokenizer begins texts twice.
        DataError: the chat template fails.
    """
    text = prompt.text
    for _ in range((template == "chat") * (2 if slip == "template" else 1)):
        question = [{"role": "user", "content": text}]
        text = written_out(tokenizer, question, where="template", add_generation_prompt=True)
    text += "" if slip == "prefix" else prompt.prefix
    # A template writes the beginning itself; without one the tokenizer does.
    ids: list[int] = tokenizer(text, add_special_tokens=template == "none", verbose=False)["input_ids"]
    if slip == "bos":
        begins: Any = [tokenizer.bos_token_id]
        return begins * (1 if ids[:1] == begins else 2) + ids
    if ids[:2] == [tokenizer.bos_token_id] * 2:
        raise SettingsError(
            "what is sent begins with two beginning tokens: the chat template and the tokenizer both write one",
            where="template",
            fix="mend the chat template, or use --template none",
        )
    return ids


def context_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> int:
    """How many of the tokens that are sent stand before the question."""
    pairs = zip(sent(tokenizer, prompt, template), sent(tokenizer, prompt.context, template), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def audit(tokenizer: PreTrainedTokenizerBase, ids: list[int], num: int = 40) -> tuple[str, str]:
    """The first and the last tokens as text, with a bar between tokens."""
    first, last = ("|".join(str(tokenizer.decode([token])) for token in part) for part in (ids[:num], ids[-num:]))
    return first, last
