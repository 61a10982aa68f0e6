"""Whether two models mean the same by a token.

Logits are compared one by one, so both models must number their tokens alike. What lies beyond the last token is
padding up to a round number of rows, and is a matter of each model: of Qwen2.5 the small models have 151,936 rows and
the large ones 152,064, for the same 151,665 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from burnish.core.checkpoint.model import Model


def common_vocabulary(model: Model, other: Model, *, role: str, otherwise: str = "") -> int:
    """How many logits, from the first on, stand for the same tokens in both models.

    Args:
        model: whose tokenizer cuts the text.
        other: what it is compared with.
        role: of the other, for messages: `teacher`, `reference`.
        otherwise: what else can be done about different tokens, for messages.

    Raises:
        CheckpointError: their tokenizers number tokens differently, or one of them has fewer rows than tokens.
    """
    ours, theirs = (part.config.get_text_config().vocab_size for part in (model, other))
    where = str(other.path or role)
    fix = f"choose a {role} with the model's own tokenizer{otherwise}"
    if not (model.has_tokenizer and other.has_tokenizer):
        if ours != theirs:
            raise CheckpointError(
                f"the model has a vocabulary of {ours:,} and the {role} one of {theirs:,}, and without a tokenizer in "
                "both nobody knows which tokens are the same",
                where=where,
                fix=fix,
            )
        return ours
    numbers, others = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if numbers != others:
        raise CheckpointError(
            f"the model and the {role} number their tokens differently ({_difference(numbers, others, role)}), so "
            "their logits cannot be compared",
            where=where,
            fix=fix,
        )
    rows, tokens = min(ours, theirs), 1 + max(numbers.values(), default=-1)
    if tokens > rows:
        raise CheckpointError(
            f"the model has a vocabulary of {ours:,} and the {role} one of {theirs:,}, and their tokenizer makes "
            f"{tokens:,} tokens",
            where=where,
            fix=fix,
        )
    return rows


def _difference(numbers: dict[str, int], others: dict[str, int], role: str) -> str:
    """The first token, in the model's order, that is not the same in both."""
    differing = [token for token in {*numbers, *others} if numbers.get(token) != others.get(token)]
    token = min(differing, key=lambda name: (numbers.get(name, len(numbers) + len(others)), name))
    ours, theirs = (
        "has none" if number is None else f"has it at {number}" for number in (numbers.get(token), others.get(token))
    )
    return f"{token!r}: the model {ours}, the {role} {theirs}"
