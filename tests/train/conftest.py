"""A small language model, its tokenizer and a context to train in."""

import pytest
import torch

from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.train.scratch import learn_tokenizer
from small_models import make

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 20

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    return learn_tokenizer([TEXT], 280)


@pytest.fixture
def chat_tokenizer():
    words = learn_tokenizer([TEXT], 280)
    words.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    words.chat_template = CHATML
    return words


SHAPE = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}


def make_model(kind="llama", dtype=torch.float32, **settings):
    return make(kind, dtype=dtype, **SHAPE | {"pad_token_id": None} | settings).train()


@pytest.fixture
def model_of():
    return make_model


@pytest.fixture
def context(tmp_path):
    def make(name="work"):
        return Context({}, tmp_path / name, "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))

    return make
