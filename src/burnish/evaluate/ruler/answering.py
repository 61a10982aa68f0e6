"""Greedy answers of a model in this process, with the attention that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.evaluate.ruler.prompt import Template, context_tokens, template_of
from burnish.evaluate.ruler.settings import RulerMeasurement
from burnish.evaluate.ruler.tasks import Prompt
from burnish.evaluate.sparse.attention import SparseAttention, sparse
from burnish.evaluate.sparse.channels import measured_channels
from burnish.evaluate.sparse.spec import DoubleSparsity, parts_of
from burnish.verify.ruler import share_found

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class RulerAnswer:
    """What was said, and what sparse attention read for it (`SparseAttention.cost`)."""

    text: str
    cost: dict[str, Any] = field(default_factory=dict)


class RulerAnswering:
    """Greedy answers, which end where nothing that is still to come can change the score.

    Of the checkpoint's generation_config only the tokens that end an answer count: its penalties of repetition would
    keep a model from writing the number that stands in its prompt.
    """

    def __init__(self, module: Any, tokenizer: Any, settings: RulerMeasurement) -> None:
        from transformers import GenerationConfig

        self.module, self.tokenizer, self.settings = module, tokenizer, settings
        self.template: Template = template_of(tokenizer, settings.template)
        ends = module.generation_config.eos_token_id
        self.greedy = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.eos_token_id or 0, do_sample=False)
        self.parts = {} if settings.attention is None else parts_of(settings.attention)
        double = self.parts.get("doublesparsity")
        self.channels: list[Tensor] | None = None
        if isinstance(double, DoubleSparsity):
            self.channels = measured_channels(module, tokenizer, double.channels)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> DynamicCache:
        """Keys and values of tokens that several answers begin with; all mechanisms read a context densely."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.module.config)
        self.module(input_ids=torch.tensor([ids], device=self.module.device), past_key_values=cache, logits_to_keep=1)
        return cache

    @torch.inference_mode()
    def __call__(
        self, prompt: Prompt, ids: list[int], num_generated: int, read: DynamicCache | None = None
    ) -> RulerAnswer:
        """An answer.

        Args:
            prompt: what is asked.
            ids: its tokens.
            num_generated: tokens of an answer, at most.
            read: of the first of `ids`, left as it is; of the context no more than what stands before the last queries
                that SnapKV looks at.
        """
        from transformers import StoppingCriteriaList

        given = torch.tensor([ids], device=self.module.device)

        def found(tokens: Tensor, scores: Any, **others: Any) -> Tensor:
            text = self.tokenizer.decode(tokens[0, len(ids) :], skip_special_tokens=True)
            done = share_found(text, prompt.answers) == 1
            return torch.full((len(tokens),), done, device=tokens.device)

        own = self.module.generation_config
        self.module.generation_config = self.greedy  # what is left open in one that is passed is taken from the model's
        try:
            with self._sparse(prompt, ids) as attention:
                made = self.module.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=num_generated,
                    past_key_values=copy.deepcopy(read),
                    stopping_criteria=StoppingCriteriaList([found]),
                )
        finally:
            self.module.generation_config = own
        text = self.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
        return RulerAnswer(text, attention.cost() if attention else {})

    @contextmanager
    def _sparse(self, prompt: Prompt, ids: list[int]) -> Iterator[SparseAttention | None]:
        """Sparse attention behind the context, or behind the whole prompt; None without any."""
        if not self.parts:
            yield None
            return
        settings = self.settings
        of_layers = {"dense_layers": settings.dense_layers, "seed": settings.seed, "channels": self.channels}
        with sparse(self.module, self.parts, **of_layers) as attention:
            alone = settings.attention_protocol == "A"
            attention.begin(len(ids) if alone else context_tokens(self.tokenizer, prompt, self.template))
            yield attention
            attention.check_called(self.module.config.get_text_config().num_hidden_layers)
