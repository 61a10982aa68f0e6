"""What the stage `speculator` does: the model answers, its states are kept, the draft learns over the one loop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from burnish.arch import Head, head_of
from burnish.core.checkpoint import (
    Lineage,
    Model,
    compute_dtype,
    text_digest,
    tokenizer_digest,
    working_copy,
)
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.kinds import Kind
from burnish.distill.maths.draft_vocabulary import most_frequent
from burnish.distill.speculator.answers import KeptAnswers, OwnAnswer, TaughtAnswers, answered, prompts_of, taught
from burnish.distill.speculator.draft import LAYERS, TOKENIZER, EagleDraft
from burnish.distill.speculator.network import DraftNetwork
from burnish.distill.speculator.unrolled import Unrolled
from burnish.generate.batch import end_tokens
from burnish.train.loop import Loop, fit

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

    from burnish.core.stage import Context
    from burnish.distill.stage import Speculator

SOURCES = ["EAGLE-3, 2025, arXiv:2503.01840", "FR-Spec, 2025, arXiv:2502.14856"]


def run_speculator(settings: Speculator, model: Model, ctx: Context) -> EagleDraft:
    """A draft of the model.

    Raises:
        DataError: no data, or too little.
        SettingsError: a vocabulary that does not hold the special tokens, or layers that are not there.
        CheckpointError: a model whose head is of a form that is not known.
    """
    data = ctx.inputs.get("data")
    if data is None:
        raise DataError("there is no data to answer", where="data", fix="give data: FILE, or --data FILE")
    identity, numbers = model.identity, settings.layers_of(model.config.get_text_config().num_hidden_layers)
    prompts = prompts_of(settings, model.tokenizer, data)
    module = working_copy(model, compute_dtype(ctx.device), ctx.device)
    head = head_of(module)
    if head is None or head.cap is not None or head.linear.bias is not None:
        raise CheckpointError("its head is no matrix alone, which a draft could take rows of", where=model.name)
    key = {"model": identity, "dtype": str(module.dtype)}
    answers = answered(
        settings, module, model.tokenizer, prompts, KeptAnswers(ctx.work_dir / "answers", key), ctx.progress
    )
    held_out = min(max(1, round(settings.holdout * len(answers))), len(answers) - 1)
    tokens = vocabulary_of(settings, module, model.tokenizer, answers[: len(answers) - held_out])
    rows, measuring = taught(module, head, answers, numbers, ctx.progress).split(held_out)
    draft = started(settings, model, head, tokens, numbers, Lineage(Kind.SPECULATOR, methods=SOURCES))
    draft.lineage.parents, draft.lineage.base_model = {"model": identity}, model.name
    draft.network.to(module.device)
    draft.measured = _trained(settings, draft, module, rows, measuring, identity, ctx)
    ctx.ledger.table("speculator", [{"vocabulary": len(tokens)} | draft.measured])
    draft.network.eval()
    return draft


def vocabulary_of(
    settings: Speculator, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answers: list[OwnAnswer]
) -> torch.Tensor:
    """The tokens that the model says most often, with all special ones and what ends a text.

    Raises:
        SettingsError: more special tokens than there is room for.
    """
    total = module.config.get_text_config().vocab_size
    size = settings.vocabulary or max(1, total // 4)
    always = {token for token in tokenizer.all_special_ids if token < total} | end_tokens(module, tokenizer)
    if len(always) > size:
        what = f"is {size:,}, and the tokenizer has {len(always):,} special tokens, which a draft must have"
        raise SettingsError(what, where="vocabulary", fix="raise it")
    said = Counter(token for answer in answers for token in answer.tokens[answer.start :])
    counts = torch.zeros(total, dtype=torch.long)
    counts[list(said)] = torch.tensor(list(said.values()), dtype=torch.long)
    return most_frequent(counts, size, always)


def started(
    settings: Speculator, model: Model, head: Head, tokens: torch.Tensor, numbers: list[int], lineage: Lineage
) -> EagleDraft:
    """A draft whose layer begins as the model's width and rotary positions say, and whose head is the model's."""
    config = layer_config(model, len(tokens), numbers)
    generator = torch.Generator().manual_seed(settings.seed)
    network = DraftNetwork(config, len(numbers))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2 and name != "lm_head.weight":
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        # What the last of the states says passes through, and the layer adds to it.
        network.fc.weight[:, -config.hidden_size :] += torch.eye(config.hidden_size)
        for small in (network.midlayer.self_attn.o_proj, network.midlayer.mlp.down_proj):
            small.weight.mul_(0.1)
        network.lm_head.weight.copy_(head_rows(head, tokens))
    return EagleDraft(network, config, tokens, lineage)


@torch.no_grad()
def head_rows(head: Head, tokens: torch.Tensor) -> torch.Tensor:
    """(tokens, hidden) of the model's head, in float32 on the CPU."""
    return head.linear.weight[tokens.to(head.linear.weight.device)].float().cpu() * head.scale


def layer_config(model: Model, size: int, numbers: list[int]) -> LlamaConfig:
    """Of a Llama layer as wide as the model, with its positions where they turn in the plain way."""
    from transformers import LlamaConfig

    text = model.config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    theta = rotary.get("rope_theta", 10_000.0) if rotary.get("rope_type", "default") == "default" else 10_000.0
    heads = text.num_attention_heads
    facts: dict[str, Any] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "hidden_size": text.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "intermediate_size": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        "rms_norm_eps": getattr(text, "rms_norm_eps", 1e-6),
        "max_position_embeddings": text.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": text.vocab_size,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "draft_vocab_size": size,
        "num_aux_hidden_states": len(numbers),
        LAYERS: numbers,
        TOKENIZER: tokenizer_digest(model.tokenizer, chats=False),
    }
    return LlamaConfig(**facts)


def _trained(
    settings: Speculator,
    draft: EagleDraft,
    module: Any,
    rows: TaughtAnswers,
    measuring: TaughtAnswers,
    identity: str,
    ctx: Context,
) -> dict[str, float]:
    """Trains the draft in place; what held-out answers say."""
    steps = max(1, round(settings.epochs * len(rows) / settings.batch))
    trained = [parameter for parameter in draft.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0)
    loop = Loop(
        steps=steps,
        batch_size=min(settings.batch, len(rows)),
        precision=settings.precision,
        seed=settings.seed,
    )
    loss = Unrolled(module.get_input_embeddings(), draft.tokens.to(module.device), settings.unroll)
    key = settings.canonical() | {"model": identity, "tokens": text_digest(draft.tokens.tolist())}
    fitted = fit(draft.network, rows, loss, optimizer, ctx, loop, validation=measuring, key=key)
    return {name: value for name, value in fitted.validation.items() if name != "loss"}
