"""A model that is asked by many at a time: requests join the running batch between two tokens.

A thread of its own draws a token for every row, tells each who asked, and lets new prompts in. Nobody waits for another
one's end, and 32 who ask at a time share every forward pass.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from burnish.core.errors import DataError, SettingsError
from burnish.generate.batch import Batch, Continuation, Given, Noted, Wish, end_tokens
from burnish.generate.speculation import Proposer, check_trees
from burnish.generate.speech import Speech
from burnish.generate.warp import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Piece:
    """What has come of one continuation since the last piece.

    Attributes:
        place: its number among the n.
        text: that no later token changes.
        tokens: drawn since.
        noted: of each token, where that was asked for.
        finish: "stop" or "length" in the last piece, else empty.
        given: of each token of the prompt but its first, in the last piece and where that was asked for.
    """

    place: int
    text: str
    tokens: list[int]
    noted: list[Noted]
    finish: str = ""
    given: Sequence[Given] = ()


@dataclass(eq=False)
class Drawing:
    """Continuations of one prompt that were asked for.

    Attributes:
        told: is called from the engine's thread with each piece, or with the error that ended all.
        gradual: whether pieces come token by token, or each continuation in one.
    """

    prompt: list[int]
    n: int
    wish: Wish
    seed: int
    told: Callable[[Piece | Exception], None]
    gradual: bool
    num_given: int | None = None
    cancelled: bool = False
    _given: Sequence[Given] = ()
    _speeches: list[Speech] = field(default_factory=list)
    _told: list[int] = field(default_factory=list)

    def cancel(self) -> None:
        """Its rows leave the batch before the next token; nothing more is told."""
        self.cancelled = True


class Engine:
    """A model, its tokenizer and the thread that draws.

    Args:
        model: a causal model, as it is (its device, dtype, mode).
        tokenizer: its tokenizer.
        name: as it is called.
        identity: of its content, for those who keep answers.
        rows: most continuations under way; others wait in their order.
        proposer: of tokens, for a continuation that is alone.

    Raises:
        SettingsError: layers keep something else than all keys and values, or there is a proposer and the model cannot
            read trees.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "local",
        identity: str = "",
        rows: int = 64,
        proposer: Proposer | None = None,
    ) -> None:
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

        from burnish.generate.cache import roomy

        wanted = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if not wanted <= {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in wanted))
            raise SettingsError(
                f"keeps a state that requests cannot share ({names})", where=name, fix="serve it by vLLM"
            )
        if proposer is not None:
            check_trees(model)
        self.name, self.identity = name, identity
        self.context = int(getattr(model.config, "max_position_embeddings", None) or 2**20)
        self._tokenizer, self._ends, self._most = tokenizer, end_tokens(model, tokenizer), rows
        self._vocabulary = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
        self._words: dict[tuple[int, bool], str] = {}
        # Sliding layers keep everything as well: where rows join, a column means another place in each of them.
        self._batch = Batch(model, tokenizer, roomy, proposer)
        self._asked: queue.SimpleQueue[Drawing | None] = queue.SimpleQueue()
        self._waiting: list[Drawing] = []
        self._joining: list[Drawing] = []
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    # -- texts and tokens -----------------------------------------------------------------------------------------

    def chat(self, messages: Sequence[dict[str, Any]], *, continued: bool = False, **options: Any) -> list[int]:
        """Tokens of a conversation by the tokenizer's chat template, with the assistant's opening, or `continued` in
        its last message. Without a template: the contents one after the other, a blank line between two.

        Raises:
            DataError: the template refuses the conversation.
        """
        if not self._tokenizer.chat_template:
            return self.encode("\n\n".join(str(message["content"]) for message in messages))
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **options,
            )
        except Exception as error:  # noqa: BLE001 - a template is a program of the checkpoint and fails in its own ways
            raise DataError(f"the chat template cannot write it out ({error})", where="messages") from None
        return list(self._tokenizer(str(text), add_special_tokens=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with the special ones that the tokenizer begins a text with."""
        return list(self._tokenizer(text)["input_ids"])

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens; that of a single one is remembered, since it is asked for with every log-probability."""
        if len(tokens) != 1:
            return self._decoded(tokens, special)
        known = (tokens[0], special)
        if known not in self._words:
            self._words[known] = self._decoded(tokens, special)
        return self._words[known]

    def _decoded(self, tokens: Sequence[int], special: bool) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))

    # -- asking ---------------------------------------------------------------------------------------------------

    def draw(
        self,
        prompt: Sequence[int],
        told: Callable[[Piece | Exception], None],
        *,
        max_new_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        num_tops: int | None = None,
        num_given: int | None = None,
        gradual: bool = False,
    ) -> Drawing:
        """Asks for n continuations; `told` hears of them. Settings are those of `burnish.generate.generate`.

        With `num_given` the log-probability of every token of the prompt is told as well, with so many alternatives,
        for a reading of the prompt of its own.

        Raises:
            SettingsError: a setting out of its range, or a prompt that is empty or too long.
        """
        _check(len(prompt), n, max_new_tokens, stop, self.context)
        if not all(0 <= token < self._vocabulary for token in prompt):
            raise SettingsError(f"holds a token that is none of the {self._vocabulary:,}", where="prompt")
        wish = Wish(Sampling(temperature, top_k, top_p), max_new_tokens, self._ends, tuple(stop), num_tops)
        drawing = Drawing(list(prompt), n, wish, seed, told, gradual, num_given)
        if gradual:
            drawing._speeches, drawing._told = [Speech(self.decode, wish.stop) for _ in range(n)], [0] * n
        self._asked.put(drawing)
        return drawing

    def close(self) -> None:
        """Ends the thread; who still waits is told so."""
        if not self._ended:
            self._ended = True
            self._asked.put(None)
            self._thread.join()

    # -- the thread -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        while self._listen():
            self._batch.drop(lambda row: row.owner.cancelled)
            try:
                self._admit()
                self._draw()
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the next request is served
                self._fail(error)
        self._fail(SettingsError("the engine has ended", where=self.name))

    def _listen(self) -> bool:
        """Takes what was asked for, waiting only where there is nothing to do; false at the end."""
        idle = not self._batch.rows and not self._waiting
        while idle or not self._asked.empty():
            asked = self._asked.get()
            idle = False
            if asked is None:
                return False
            self._waiting.append(asked)
        return True

    def _admit(self) -> None:
        """Lets those in who came first, as far as there is room; who asks for more rows than there are has them all."""
        self._waiting = [one for one in self._waiting if not one.cancelled]
        while self._waiting and (not self._batch.rows or len(self._batch.rows) + self._waiting[0].n <= self._most):
            one = self._waiting[0]
            together = [other for other in self._waiting if other.n == one.n]
            room = max(1, (self._most - len(self._batch.rows)) // one.n)
            together = together[:room]
            rows = [
                Continuation(place, random.Random(f"{each.seed} {place}"), each.wish, each)
                for each in together
                for place in range(each.n)
            ]
            self._waiting = [other for other in self._waiting if other not in together]
            self._joining = together
            for each in together:
                if each.num_given is not None:
                    each._given = self._batch.scored(each.prompt, each.num_given)
            self._batch.join([each.prompt for each in together], one.n, rows)
            self._joining = []

    def _draw(self) -> None:
        if not self._batch.rows:
            return
        before = self._batch.rows
        ended = {id(row): sample for row, sample in self._batch.step()}
        for row in before:
            one: Drawing = row.owner
            sample = ended.get(id(row))
            if one.gradual:
                text = one._speeches[row.place].add(row.tokens[-1:], last=sample is not None)
                finish = sample.finish_reason if sample else ""
                if text or finish:
                    start, one._told[row.place] = one._told[row.place], len(row.tokens)
                    given = one._given if finish else ()
                    one.told(Piece(row.place, text, row.tokens[start:], row.noted[start:], finish, given))
            elif sample is not None:
                one.told(Piece(row.place, sample.text, row.tokens, row.noted, sample.finish_reason, one._given))

    def _fail(self, error: Exception) -> None:
        hearing = {id(row.owner): row.owner for row in self._batch.rows}
        hearing |= {id(one): one for one in [*self._joining, *self._waiting]}
        self._batch.drop(lambda row: True)
        self._waiting, self._joining = [], []
        for one in hearing.values():
            one.told(error)


def _check(length: int, n: int, max_new_tokens: int, stop: Sequence[str], context: int) -> None:
    for name, number in (("n", n), ("max_tokens", max_new_tokens)):
        if number < 1:
            raise SettingsError(f"is {number}, but 1 or more is needed", where=name)
    if isinstance(stop, str) or not all(stop):
        raise SettingsError("is no list of strings that hold something", where="stop")
    if not length:
        raise SettingsError("has no token", where="prompt")
    if length + max_new_tokens > context:
        raise SettingsError(
            f"has {length:,} tokens, and with {max_new_tokens:,} new ones passes the maximum context of {context:,}",
            where="prompt",
            fix="lower max_tokens, or shorten the prompt",
        )
