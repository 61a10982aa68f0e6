"""A draft as a checkpoint directory of kind `speculator`, in the form that vLLM loads (method `eagle3`).

    DRAFT/config.json         of the layer, with draft_vocab_size and eagle_aux_hidden_state_layer_ids
    DRAFT/model.safetensors   fc, midlayer, norm, lm_head (draft vocabulary by hidden size), d2t, t2d
    DRAFT/burnish.json        lineage

Embeddings are the model's and in no file. It serves every model of the same shape and tokenizer, quantized ones too:
what a draft proposes decides how fast texts come, not which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core.checkpoint import (
    CARD_FILE,
    Lineage,
    Model,
    check_target,
    hash_directory,
    library_versions,
    saving,
    tokenizer_digest,
)
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind
from burnish.core.outside import read_object
from burnish.distill.maths.draft_vocabulary import known, offsets, tokens_of
from burnish.distill.speculator.network import DraftNetwork

if TYPE_CHECKING:
    from transformers import LlamaConfig

CONFIG, TENSORS = "config.json", "model.safetensors"
LAYERS, TOKENIZER = "eagle_aux_hidden_state_layer_ids", "tokenizer_digest"
"""Keys of the configuration; vLLM reads the first."""


@dataclass
class EagleDraft:
    """
    Attributes:
        network: of the draft.
        config: of its layer.
        tokens: of the model that it can propose, ascending, in the order of its logits.
        lineage: where it comes from.
        measured: on answers that were held out: coverage, and acceptance by the number of the token in a row.
    """

    network: DraftNetwork
    config: LlamaConfig
    tokens: Int[Tensor, " size"]
    lineage: Lineage
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def hidden_layers(self) -> list[int]:
        """Layers of the model whose output is read, from 1."""
        return list(getattr(self.config, LAYERS))

    def with_head(self, tokens: Int[Tensor, " size"], rows: Float[Tensor, "size hidden"]) -> EagleDraft:
        """A draft with the same layer that proposes other tokens.

        Args:
            tokens: ascending.
            rows: of the head, one for each of them.
        """
        facts: dict[str, Any] = self.config.to_dict() | {"draft_vocab_size": len(tokens)}
        config = type(self.config)(**facts)
        network = DraftNetwork(config, len(self.hidden_layers))
        network.load_state_dict(self.network.state_dict() | {"lm_head.weight": rows})
        return EagleDraft(network.eval(), config, tokens, self.lineage)

    def check(self, model: Model) -> None:
        """Refuses a model that this is no draft of.

        Raises:
            CheckpointError: another width, vocabulary or tokenizer, too few layers, or an end of the model's texts that
                the draft does not have: it would never propose to stop.
        """
        text, where = model.config.get_text_config(), "draft"
        for name, what in (("hidden_size", "is as wide as"), ("vocab_size", "has as many tokens as")):
            if getattr(self.config, name) != getattr(text, name):
                raise CheckpointError(
                    f"{what} a model whose {name} is {getattr(self.config, name):,}, and this one's is "
                    f"{getattr(text, name):,}",
                    where=where,
                )
        last = text.num_hidden_layers - 1
        if wrong := [layer for layer in self.hidden_layers if type(layer) is not int or not 1 <= layer <= last]:
            what = f"reads layer {wrong[0]!r} of a model that has {text.num_hidden_layers}: from 1 to {last} it could"
            raise CheckpointError(what, where=where)
        said = getattr(self.config, TOKENIZER, None)
        if said is not None and said != tokenizer_digest(model.tokenizer, chats=False):
            raise CheckpointError("was made for another tokenizer", where=where, fix="burnish speculator makes one")
        named = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        ends = {token for token in [*named, model.tokenizer.eos_token_id] if isinstance(token, int)}
        if missing := sorted(ends - set(self.tokens.tolist())):
            names = ", ".join(map(repr, model.tokenizer.convert_ids_to_tokens(missing)))
            raise CheckpointError(
                f"its vocabulary misses what ends a text ({names})", where=where, fix="make the draft again with it"
            )

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes it atomically.

        Raises:
            OutputError: the place is taken, or there is no room.
        """
        from safetensors.torch import save_file

        target = Path(directory)
        check_target(target, overwrite=overwrite)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        tensors |= {"d2t": offsets(self.tokens), "t2d": known(self.tokens, self.config.vocab_size)}
        lineage = self.lineage
        with saving(target, replace=overwrite) as staging:
            save_file(tensors, staging / TENSORS, metadata={"format": "pt"})
            (staging / CONFIG).write_text(json.dumps(self.config.to_dict(), indent=2, default=str))
            lineage.kind, lineage.files, lineage.versions = Kind.SPECULATOR, hash_directory(staging), library_versions()
            lineage.write(staging)
            (staging / CARD_FILE).write_text(_card(self))
        return target


def read_draft(directory: str | Path) -> EagleDraft:
    """A draft that `burnish speculator` has written, or another one of the same form.

    Raises:
        CheckpointError: not there, damaged, or of another form.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import LlamaConfig

    place = Path(directory)
    if not (place / CONFIG).is_file():
        raise CheckpointError(
            f"has no {CONFIG}, so it is no draft", where=str(place), fix="burnish speculator makes one"
        )
    facts = read_object(place / CONFIG)
    if not facts.get(LAYERS) or not facts.get("draft_vocab_size"):
        what = f"has no {LAYERS} or no draft_vocab_size in its {CONFIG}, so it is no EAGLE-3 draft"
        raise CheckpointError(what, where=str(place), fix="burnish speculator makes one")
    try:
        config = LlamaConfig(**{key: value for key, value in facts.items() if key != "model_type"})
        network, tensors = DraftNetwork(config, len(facts[LAYERS])), load_file(place / TENSORS)
        tokens, has = tokens_of(tensors.pop("d2t")), tensors.pop("t2d")
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        agree = bool((tokens[1:] > tokens[:-1]).all()) and int(tokens[0]) >= 0
        agree = agree and torch.equal(known(tokens, config.vocab_size), has)
    except (LookupError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        raise CheckpointError(
            f"is damaged ({said})", where=str(place), fix="burnish speculator makes it anew"
        ) from None
    if len(tokens) != config.draft_vocab_size or not agree:
        raise CheckpointError("its maps d2t and t2d name different tokens", where=str(place))
    if broken := [name for name, tensor in network.state_dict().items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(f"{broken[0]} holds numbers that are not finite", where=str(place))
    return EagleDraft(network.eval(), config, tokens, Lineage.read(place) or Lineage(kind=Kind.SPECULATOR))


def _card(draft: EagleDraft) -> str:
    rows = [f"| {name} | {value:.3f} |" for name, value in sorted(draft.measured.items())]
    measured = ["| on held-out answers | |", "| --- | ---: |", *rows, ""] if rows else []
    config: Any = draft.config
    return "\n".join(
        [
            f"# A draft of {draft.lineage.base_model or 'a model'}",
            "",
            f"EAGLE-3, one layer, {config.draft_vocab_size:,} of {config.vocab_size:,} tokens. In vLLM:",
            "",
            '    LLM(MODEL, speculative_config={"method": "eagle3", "model": DIRECTORY, "num_speculative_tokens": 3})',
            "",
            *measured,
        ]
    )
