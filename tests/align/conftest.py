"""A two-layer Llama, a byte tokenizer with a chat template, and small preference data."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

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
    from transformers import LlamaConfig

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**settings | changes)


@pytest.fixture(scope="session")
def other_vocabulary(tokenizer, tmp_path_factory):
    """A checkpoint whose tokenizer knows one more token."""
    import copy

    from transformers import LlamaForCausalLM

    directory = tmp_path_factory.mktemp("other")
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<|extra|>"])
    LlamaForCausalLM(tiny_config(larger)).save_pretrained(directory)
    larger.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A directory with the tiny model and its tokenizer."""
    from transformers import LlamaForCausalLM

    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def reference_checkpoint(tokenizer, tmp_path_factory):
    """The same architecture with other weights."""
    from transformers import LlamaForCausalLM

    directory = tmp_path_factory.mktemp("reference")
    torch.manual_seed(1)
    LlamaForCausalLM(tiny_config(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


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
