"""A small model in float64 and its tokenizer, shared by the tests of one file."""

from __future__ import annotations

from typing import Any

import pytest

from small_models import small_llama, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return small_llama(initializer_range=0.4).double()
