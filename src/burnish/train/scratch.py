"""A model from nothing: a configuration, a tokenizer that is loaded or learned, and random weights.

    model = initialise("config.json", tokenizer="bpe:1024", texts=["..."], seed=0)

What comes out is an ordinary checkpoint that has learned nothing yet, so that training from scratch and training on are
the same stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from burnish.core.checkpoint import Lineage, Model, config_from, load
from burnish.core.errors import SettingsError, nearest
from burnish.core.outside import read_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 257, 1_000_000
"""Every byte, and the end-of-text token."""


def initialise(
    config: str | Path | dict[str, Any],
    *,
    tokenizer: str | Path,
    texts: Sequence[str] = (),
    chat_template: str | None = None,
    seed: int = 0,
) -> Model:
    """A checkpoint with random weights, in float32.

    Args:
        config: a config.json, a directory that has one, or its content; its weights, if there are any, are not read.
        tokenizer: a checkpoint to take it from, or `bpe:N` to learn a byte-level BPE of N tokens from the texts.
        texts: what a new tokenizer is learned from.
        chat_template: Jinja, for models that learn chats; None leaves the tokenizer as it is.
        seed: of the weights.

    Raises:
        SettingsError: a configuration that transformers does not know, or a tokenizer that cannot be learned.
    """
    from transformers import AutoModelForCausalLM

    content = config if isinstance(config, dict) else read_config_file(Path(config))
    learned = learn_tokenizer(texts, _vocabulary(str(tokenizer))) if str(tokenizer).startswith("bpe:") else None
    words = learned if learned is not None else load(tokenizer).tokenizer
    if chat_template is not None:
        words.chat_template = chat_template
    module_config = _make_config(content, words)
    with torch.random.fork_rng(devices=[]):  # initialisation can only draw from the global generator
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(module_config, dtype=torch.float32)
    module.generation_config.eos_token_id = words.eos_token_id
    name = f"{module_config.model_type}, random weights"
    return Model(module=module.eval(), tokenizer=words, lineage=Lineage(stage="init", base_model=name, seed=seed))


def read_config_file(path: Path) -> dict[str, Any]:
    """The content of a config.json, given as the file or as its directory."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise SettingsError("there is no configuration here", where=str(path), fix="give a config.json")
    content = read_object(file, error=SettingsError)
    if not isinstance(content.get("model_type"), str):
        raise SettingsError("names no model_type", where=str(file), fix='add "model_type": "llama" or another')
    return content


def _make_config(content: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = content["model_type"]
    if model_type not in CONFIG_MAPPING:
        guess = nearest(str(model_type), list(CONFIG_MAPPING))
        advice = f"did you mean {guess!r}?" if guess else "upgrade transformers, or check the name"
        raise SettingsError(f"model_type {model_type!r} is not an architecture of transformers", fix=advice)
    ours = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    rest = {key: value for key, value in content.items() if key not in ("model_type", "dtype", "torch_dtype")}
    if isinstance(rest.get("vocab_size"), int) and rest["vocab_size"] > len(tokenizer):
        ours["vocab_size"] = rest["vocab_size"]  # asked to be padded
    return config_from({"model_type": model_type} | rest | ours, where="config.json")


def _vocabulary(tokenizer: str) -> int:
    size = tokenizer.removeprefix("bpe:")
    if not size.isdecimal() or len(size) > 7 or not SMALLEST_VOCABULARY <= int(size) <= LARGEST_VOCABULARY:
        raise SettingsError(
            f"tokenizer is {tokenizer!r}, but a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens and at "
            f"most {LARGEST_VOCABULARY:,}",
            fix="use bpe:1024, or a checkpoint to take the tokenizer from",
        )
    return int(size)


def learn_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens, with one special token that ends a text.

    Raises:
        SettingsError: no text, or too little for that many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not any(texts):
        raise SettingsError("there is no text to learn a tokenizer from", fix="give --data")
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    learned.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    if learned.get_vocab_size() < vocab_size:
        raise SettingsError(
            f"the text is too short for {vocab_size:,} tokens, it gives {learned.get_vocab_size():,}",
            fix="use a smaller bpe:N or more text",
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=learned, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
