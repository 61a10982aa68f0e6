"""The one place that decides what is sent: template, answer prefix, and the token that begins a text.

Scores of one model on RULER differ by 7 to 20 points between programs that differ in nothing but these. Here the chat
template, where there is one, is written around the question once; the answer prefix stands behind it, where the
assistant speaks; and what begins a text stands there once, from the template or from the tokenizer.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from burnish.core.errors import SettingsError
from burnish.data.chat import written_out
from burnish.evaluate.ruler.tasks import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["none", "chat"]


def template_of(tokenizer: PreTrainedTokenizerBase, asked: Literal["auto", "none", "chat"]) -> Template:
    """Whether prompts go through the chat template.

    Raises:
        SettingsError: they shall, and there is none.
    """
    if asked == "chat" and not tokenizer.chat_template:
        raise SettingsError("the tokenizer has no chat template", where="template", fix="use --template none")
    return "chat" if tokenizer.chat_template and asked != "none" else "none"


def sent(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> list[int]:
    """The tokens that a model is given.

    Raises:
        SettingsError: the tokenizer begins texts twice.
        DataError: the chat template fails.
    """
    if template == "chat":
        question = [{"role": "user", "content": prompt.text}]
        text = written_out(tokenizer, question, where="template", add_generation_prompt=True) + prompt.prefix
    else:
        text = prompt.text + prompt.prefix
    # A template writes the beginning itself; without one the tokenizer does.
    ids: list[int] = tokenizer(text, add_special_tokens=template == "none", verbose=False)["input_ids"]
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
