"""The proposer of vLLM 0.32 (speculative method `custom_class`): the likeliest chain of a memory of answers.

vLLM asks for all rows of its batch at once and says neither whose they are nor when one has ended, so both are read
from the model runner that calls: it has the batch's request names and their sampling settings. vLLM verifies a chain,
no tree, and asks only for rows that have drawn a token. Nothing here imports vLLM.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.serve.speculate import Lookahead, LookaheadRequest
from burnish.serve.vllm.requests import memory_of

logger = logging.getLogger(__name__)
APART = "burnish: requests cannot be told apart in this vLLM, so each remembers its own prompt and answer alone"


class TrieProposer:
    """As vLLM calls it.

    Args:
        vllm_config: of the engine; the number of tokens that are proposed and the longest text are read.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.longest = vllm_config.model_config.max_model_len
        self.memory = Lookahead(length=vllm_config.speculative_config.num_speculative_tokens)
        self._under_way: dict[str, tuple[LookaheadRequest, int]] = {}
        self._warned = False

    def load_model(self, *_: Any, **__: Any) -> None:
        """Nothing is loaded; vLLM calls it all the same."""

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Tokens for every row, none for one whose prompt is not read whole.

        Args:
            sampled_token_ids: that were drawn in this step.
            num_tokens_no_spec: of each row's text, those included.
            token_ids_cpu: (rows, width), the texts.
            slot_mappings: is not looked at.
        """
        runner = runner_of(sys._getframe(1), token_ids_cpu)
        if runner is None and not self._warned:
            logger.warning(APART)
            self._warned = True
        if runner is not None:
            self._forget(runner.requests)
        found: list[list[int]] = []
        for row, sampled in enumerate(sampled_token_ids):
            num = int(num_tokens_no_spec[row])
            if not sampled or num >= self.longest:
                found.append([])
                continue
            text = token_ids_cpu[row, :num]
            session = Lookahead().begin(text.tolist()) if runner is None else self._session(runner, row, text)
            found.append(session.chain(min(self.memory.length, self.longest - num)))
        return found

    def _session(self, runner: Any, row: int, text: NDArray[np.int32]) -> LookaheadRequest:
        """Of a row's request, up to its last token."""
        name = runner.input_batch.req_ids[row]
        session, known = self._under_way.get(name, (None, 0))
        if session is None or known > len(text):
            request = runner.requests[name]
            known = request.num_prompt_tokens
            session = self.memory.begin(text[:known].tolist(), memory_of(request.sampling_params.extra_args))
        session.extend(text[known:].tolist())
        self._under_way[name] = session, len(text)
        return session

    def _forget(self, living: dict[str, Any]) -> None:
        """Ends the sessions of requests that the runner has dropped."""
        for name in [name for name in self._under_way if name not in living]:
            session, _ = self._under_way.pop(name)
            session.end()


def runner_of(frame: FrameType, token_ids: NDArray[np.int32]) -> Any:
    """The model runner in whose method a frame is, where it is the one that these tokens are of; else None."""
    caller = frame.f_locals.get("self")
    batch = getattr(caller, "input_batch", None)
    return caller if batch is not None and batch.token_ids_cpu is token_ids else None
