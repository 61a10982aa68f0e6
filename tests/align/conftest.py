"""A two-layer Llama, a byte tokenizer with a chat template, and small preference data."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

from small_models import small_config

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = CHAT
    return fast


def tiny_config(tokenizer, **changes):
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return small_config(**{"vocab_size": len(tokenizer), "tie_word_embeddings": True} | special | changes)


@pytest.fixture(scope="session")
def other_vocabulary(tokenizer, tmp_path_factory):
    """A checkpoint whose tokenizer knows one more token."""
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<|extra|>"])
    return written(larger, tmp_path_factory.mktemp("other"), seed=0)


def written(tokenizer, directory, seed):
    """A directory with the tiny model of a seed and its tokenizer."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    return written(tokenizer, tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="session")
def reference_checkpoint(tokenizer, tmp_path_factory):
    """The same architecture with other weights."""
    return written(tokenizer, tmp_path_factory.mktemp("reference"), seed=1)


COLOURS = ["red", "green", "blue", "white", "black", "brown"]


@pytest.fixture(scope="session")
def rows():
    """Twelve pairs in which the right answer names the colour that was asked for."""
    return [
        {
            "prompt": f"Name a colour like {colour}. ",
            "chosen": f"{colour} it is",
            "rejected": f"no idea about number {index}",
        }
        for index, colour in enumerate(COLOURS * 2)
    ]


@pytest.fixture(scope="session")
def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def chat_rows(rows):
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
