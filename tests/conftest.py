"""Models and texts that the whole suite uses: real classes, made small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Shapes and dtypes in the signatures of the mathematics are checked at every call of the suite.
MATHS = [f"burnish.{room}.maths" for room in ("align", "distill", "evaluate", "events", "optim", "quantize", "slim")]
install_import_hook(MATHS, "beartype.beartype")

torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent
PROSE = REPOSITORY / "LICENSE"  # some 11 kB of English that every clone has


@pytest.fixture(scope="session", autouse=True)
def _children_find_the_package() -> None:
    """Stages run in processes of their own, which must find the package as this one does."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(REPOSITORY / "src"), str(REPOSITORY / "tests" / "core"), os.environ.get("PYTHONPATH", "")]
    )


def small_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the licence text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE.read_text()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def small_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """Two layers, hidden 64, grouped-query attention, tied embeddings."""
    settings: dict[str, object] = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of `small_llama` with its tokenizer, as a hub would hold it."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    small_llama().save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded real model, converted once by `make test` or by hand."""
    directory = REPOSITORY / "models" / "smollm2"
    if not (directory / "burnish.json").is_file():
        pytest.skip("the embedded model is not here; run `burnish fetch smollm2 --out models/smollm2`")
    return directory
