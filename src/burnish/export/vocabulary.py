"""A tokenizer as GGUF has it: byte-level BPE whose way of cutting text into words llama.cpp knows by a name.

llama.cpp does not read how text is cut; it has a program for each known tokenizer and finds it by
`tokenizer.ggml.pre`. So the cutting of tokenizer.json is compared with those that are known here, and what is unknown
is refused: a wrong name gives other tokens without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.outside import read_object

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: dict[tuple[str, ...], str] = {
    ("bytes and words",): "gpt-2",
    ("digits", "bytes and words"): "smollm",
    (_WORDS % "{1,3}", "bytes"): "llama-bpe",
    (_WORDS % "", "bytes"): "qwen2",
}
"""{what tokenizer.json does to text, step by step: its name in llama.cpp}."""


@dataclass
class Vocabulary:
    """What goes into the file.

    Attributes:
        pre: the way of cutting.
        tokens: text of every token; `[PAD5]` for an id that no token has.
        types: normal, special, added by a user, unused, as GGUF counts them.
        merges: "a b", the first one first.
        special: {name in GGUF: id}.
        starts, ends: whether text is given a token before it, and after it.
        chat_template: of the tokenizer.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int] = field(default_factory=dict)
    starts: bool = False
    ends: bool = False
    chat_template: str | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.add_add_bos_token(self.starts)
        writer.add_add_eos_token(self.ends)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary(directory: Path, tokenizer: PreTrainedTokenizerBase, rows: int, pre: str | None = None) -> Vocabulary:
    """Reads tokenizer.json.

    Args:
        directory: of the checkpoint.
        tokenizer: of it, asked for what it puts around text.
        rows: of the embedding.
        pre: the name of the cutting, where the caller knows it.

    Raises:
        CheckpointError: there is no tokenizer.json, or it has more tokens than the embedding has rows.
        SettingsError: it is no byte-level BPE, or cuts text in a way that is not known here.
    """
    from gguf import TokenType

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("has no tokenizer.json", where=str(directory), fix="save its tokenizer with transformers")
    content = read_object(path)
    model = content.get("model") or {}
    bytewise = any(step.get("type") == "ByteLevel" for step in _steps(content, "pre_tokenizer", "pretokenizers"))
    if model.get("type") != "BPE" or not bytewise:
        what = "BPE over characters" if model.get("type") == "BPE" else str(model.get("type"))
        raise SettingsError(f"the tokenizer is {what}, and byte-level BPE can be written", where=str(path))
    changes = [step["type"] for step in _steps(content, "normalizer", "normalizers") if step.get("type") != "NFC"]
    if changes:
        raise SettingsError(
            f"the tokenizer changes text first ({changes[0]}), which llama.cpp does not", where=str(path)
        )
    pre = pre or name_of_cut(content, where=str(path))
    names = {number: text for text, number in model["vocab"].items()}
    kinds = dict.fromkeys(names, TokenType.NORMAL)
    for added in content.get("added_tokens") or ():
        names[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if names and max(names) >= rows:
        raise CheckpointError(
            f"has token {max(names)}, and the embedding has {rows} rows", where=str(path), fix="use its own tokenizer"
        )
    return Vocabulary(
        pre=pre,
        tokens=[names.get(number, f"[PAD{number}]") for number in range(rows)],
        types=[int(kinds.get(number, TokenType.UNUSED)) for number in range(rows)],
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()],
        special=_special(directory, tokenizer),
        starts=_around(tokenizer)[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None,
        ends=_around(tokenizer)[-1:] == [tokenizer.eos_token_id] and tokenizer.eos_token_id is not None,
        chat_template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def name_of_cut(content: dict[str, Any], *, where: str) -> str:
    """The name in llama.cpp of how a tokenizer.json cuts text into words.

    Raises:
        SettingsError: it is not known here.
    """
    cut = tuple(_step(step) for step in _steps(content, "pre_tokenizer", "pretokenizers"))
    if cut not in CUTS:
        shown = json.dumps(content.get("pre_tokenizer"), ensure_ascii=False)
        raise SettingsError(
            f"text is cut into words by {shown[:200]}, for which no name in llama.cpp is known here",
            where=where,
            fix=f"give it with --pre, if you know it; known are {', '.join(CUTS.values())}",
        )
    return CUTS[cut]


def _steps(content: dict[str, Any], part: str, inside: str) -> list[dict[str, Any]]:
    """What a part of tokenizer.json does, one after the other."""
    whole = content.get(part)
    return whole.get(inside, [whole]) if whole else []


def _step(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return "bytes and words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str((step.get("pattern") or {}).get("Regex"))
    return f"{kind}, otherwise set"


def _special(directory: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    wanted = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {ours: getattr(tokenizer, f"{theirs}_token_id") for ours, theirs in wanted.items()}
    settings = directory / "generation_config.json"
    ends = read_object(settings).get("eos_token_id") if settings.is_file() else None
    others = [number for number in ends if number != found["eos"]] if isinstance(ends, list) else []
    found["eot"] = others[0] if others else None
    return {name: number for name, number in found.items() if isinstance(number, int)}


def _around(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts around text, in order."""
    return list(tokenizer("", add_special_tokens=True)["input_ids"])
