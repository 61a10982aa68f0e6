"""Checkpoints in the formats of other engines. Today: GGUF, for llama.cpp and what is built on it.

from burnish.export import write_gguf

written = write_gguf("smollm2-4bit", "smollm2-4bit.gguf")
written.types                       # {"Q4_0": 210, "BF16": 1, "F32": 61}
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.export.gguf import GgufFile, write_gguf

__all__ = ["GgufFile", "write_gguf"]

__getattr__, __dir__ = lazy(__name__, {"write_gguf": ".gguf", "GgufFile": ".gguf"})
