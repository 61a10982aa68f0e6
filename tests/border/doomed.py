"""Recipes that cannot end well, each with the sentence that must come before any node starts.

An entry is (what is doomed: (nodes or a whole recipe, the sentence, what is done to the input before)). `tiny` is a
Llama of two layers, 64 wide, 256 positions; beside it stand `text.txt`, `short.txt`, `chats.jsonl`, `pairs.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import malformed

Spoil = Callable[[Path], None]

QUICK = "{stage: quantize, method: rtn, group_size: 32}"
LONG = "{name: long, stage: train, data: text.txt, steps: 1000000, context: 32}"


def behind(node: str) -> str:
    """A node behind a long one, which must not have begun."""
    return f"{LONG}, {node}"


def start(**changes: object) -> Spoil:
    return malformed.config(**changes)


DOOMED: dict[str, tuple[str, str] | tuple[str, str, Spoil]] = {
    # -- settings that no stage takes
    "9 bits": (behind("{stage: quantize, bits: 9}"), "bits is 9"),
    "a fraction of bits": (behind("{stage: quantize, bits: 3.5}"), "bits is 3.5"),
    "a misspelt setting": (behind("{stage: quantize, bit: 3}"), "did you mean 'bits'?"),
    "a misspelt stage": (behind("{stage: quantise}"), "did you mean 'quantize'?"),
    "a group that does not divide": (behind("{stage: quantize, method: rtn, group_size: 48}"), "group_size 48"),
    "octal numbers": (behind("{stage: quantize, method: rtn, group_size: 040}"), "040 is 40 to some"),
    "sexagesimal numbers": (behind("{stage: quantize, method: rtn, tokens: 1:30}"), "tokens is '1:30'"),
    "infinite damping": (behind("{stage: quantize, method: gptq, damping: .inf}"), "damping is inf"),
    "a learning rate of nan": (behind("{stage: train, data: text.txt, lr: .nan}"), "lr is nan"),
    "an infinite decay": (behind("{stage: train, data: text.txt, weight_decay: .inf}"), "weight_decay is inf"),
    "infinite epochs": (behind("{stage: train, data: text.txt, epochs: .inf}"), "epochs is inf"),
    "an infinite temperature": (
        behind("{stage: distill, teacher: start, data: text.txt, temperature: .inf}"),
        "temperature is inf",
    ),
    "infinity inside options": (
        behind("{stage: train, data: text.txt, optimizer: adamw, optimizer_options: {eps: .inf}}"),
        "numbers must be finite",
    ),
    "an option that no optimizer has": (
        behind("{stage: train, data: text.txt, context: 32, optimizer_options: {speed: 3}}"),
        "has no option 'speed'",
    ),
    "a micro-batch that does not divide": (
        behind("{stage: train, data: text.txt, batch: 4, micro_batch: 3}"),
        "which micro_batch 3 does not divide",
    ),
    "adapters of no rank with a start": (
        behind("{stage: train, data: text.txt, lora_init: pissa}"),
        "lora_init and lora_matrix need a lora_rank",
    ),
    "an engine without a kernel": (behind("{stage: quantize, bits: 3, engine: vllm}"), "no built-in kernel for 3-bit"),
    "streamed yaqa": (behind("{stage: quantize, method: yaqa, stream: true}"), "stream is true, but yaqa"),
    "slimming a dense model": (behind("{stage: slim, method: drop, num_experts: 2}"), "slim"),
    "a cut to nothing in particular": (behind("{stage: slim}"), "nothing says how small"),
    "top 9 of 4 experts": (behind("{stage: upcycle, num_experts: 4, top_k: 9}"), "top_k is 9"),
    "packed weights into training": (
        "{name: q, stage: quantize, method: rtn, group_size: 32}, {stage: train, data: text.txt}",
        "train needs dense weights, but is given packed ones",
    ),
    # -- lengths, ranks, processes
    "a context beyond the positions": (
        behind("{stage: train, data: text.txt, context: 100000}"),
        "context is 100,000, but the model was made for 256 positions",
    ),
    "calibration beyond the positions": (
        behind("{stage: quantize, method: gptq, group_size: 32, calibration: text.txt, length: 100000}"),
        "length is 100,000, but the model's positions end at 256",
    ),
    "answers beyond the positions": (
        behind("{stage: align, data: pairs.jsonl, max_length: 100000}"),
        "max_length is 100,000, but the model's positions end at 256",
    ),
    "a rank beyond all matrices": (
        behind("{stage: train, data: text.txt, context: 32, lora_rank: 100000}"),
        "lora_rank is 100,000, but no matrix",
    ),
    "adapters on modules that are not there": (
        behind("{stage: train, data: text.txt, context: 32, lora_rank: 2, lora_targets: 'q_proj,nowhere'}"),
        "the model has no modules named 'nowhere'",
    ),
    "adapters on nothing": (
        behind("{stage: train, data: text.txt, context: 32, lora_rank: 2, lora_targets: ''}"),
        "the model has no modules named ''",
    ),
    "100,000 processes": (
        behind("{stage: train, data: text.txt, launch: {processes: 100000}}"),
        "launch.processes is 100,000",
    ),
    "a GPU that is not there": (behind("{stage: train, data: text.txt, context: 32, device: 'cuda:99'}"), "cuda:99"),
    # -- data
    "data with an empty name": (behind("{stage: train, data: ''}"), "an empty name means nothing"),
    "no data": (behind("{stage: train}"), "no data is named"),
    "data that is not there": (behind("{stage: train, data: nowhere.txt}"), "no such file or text"),
    "data of an unknown kind": (behind("{stage: train, data: table.csv}"), "is of no kind that can be read"),
    "an empty text": (behind("{stage: train, data: empty.txt}"), "holds no text"),
    "a text that is binary": (behind("{stage: train, data: binary.txt}"), "is a binary file"),
    "lines that are not JSON": (
        behind("{stage: train, data: broken.jsonl, context: 64}"),
        "broken.jsonl:2: is not valid JSON",
    ),
    "calibration that is too short": (
        behind("{stage: quantize, method: gptq, group_size: 32, calibration: short.txt, length: 64}"),
        "use a longer text",
    ),
    "too few calibration tokens": (
        behind("{stage: quantize, method: gptq, group_size: 32, calibration: text.txt, tokens: 10, length: 64}"),
        "tokens is 10, but",
    ),
    "chats without a template": (
        behind("{stage: train, data: chats.jsonl, context: 32}"),
        "the tokenizer has no chat template",
    ),
    "a chat template that raises": (
        behind("{stage: train, data: chats.jsonl, context: 32}"),
        "the tokenizer's chat template cannot write it out",
        malformed.edited("tokenizer_config.json", chat_template="{{ raise_exception('only cats') }}"),
    ),
    "a chat template that is no template": (
        behind("{stage: train, data: chats.jsonl, context: 32}"),
        "the tokenizer's chat template cannot write it out",
        malformed.edited("tokenizer_config.json", chat_template="{% for %}"),
    ),
    "problems in place of preferences": (
        behind("{stage: align, data: problems.jsonl}"),
        "problems.jsonl:1: has no column 'chosen'; name the two answers 'chosen' and 'rejected', or pass --columns",
    ),
    "problems in place of texts": (
        behind("{stage: train, data: problems.jsonl, context: 32}"),
        "problems.jsonl:1: has neither `text` (a string) nor `messages`",
    ),
    "problems that are all left out": (
        behind("{stage: train, data: problems.jsonl, context: 32, bad_rows: skip}"),
        "problems.jsonl: none of the first rows can be used; the first: problems.jsonl:1: has neither `text`",
    ),
    "problems to calibrate on": (
        behind("{stage: quantize, method: gptq, group_size: 32, calibration: problems.jsonl, length: 64}"),
        "problems.jsonl:1: has neither `text`",
    ),
    "problems to measure on": (
        f"evaluate: {{text: problems.jsonl, context: 64, num_windows: 2, speed: false}}\nnodes: [{LONG}]",
        "problems.jsonl:1: has neither `text`",
    ),
    "conversations to prefer without a template": (
        behind("{stage: align, data: talks.jsonl}"),
        "is a conversation, but the tokenizer has no chat template",
    ),
    "a pair without a preference": (behind("{stage: align, data: same.jsonl}"), "are identical"),
    "evaluation on too short a text": (
        f"evaluate: {{text: short.txt, context: 64, num_windows: 40, speed: false}}\nnodes: [{LONG}]",
        "but 40 windows of 64 need",
    ),
    "evaluation beyond the positions": (
        f"evaluate: {{text: other.txt, context: 4096}}\nnodes: [{LONG}]",
        "context is 4,096, but the model's positions end at 256",
    ),
    "measuring on what was trained on": (
        f"evaluate: {{text: text.txt, context: 64, num_windows: 2, speed: false}}\nnodes: [{LONG}]",
        "is the text that everything is measured on",
    ),
    # -- checkpoints
    "a teacher that is not there": (
        behind("{stage: distill, teacher: ./nowhere, data: text.txt, context: 32}"),
        "no such checkpoint directory",
    ),
    "a teacher without a name": (
        behind("{stage: distill, teacher: '', data: text.txt, context: 32}"),
        "an empty name means nothing",
    ),
    "a teacher with a weight missing": (
        behind("{stage: distill, teacher: ./teacher, data: text.txt, context: 32}"),
        "weights are missing, the first is model.norm.weight",
    ),
    "a circle": ("{name: a, from: b, stage: train}, {name: b, from: a, stage: train}", "circle: a -> b -> a"),
    "a parent that is no node": (behind("{stage: train, from: lnog}"), "did you mean 'long'?"),
    "two nodes of one name": (f"{LONG}, {LONG}", "two nodes are called 'long'"),
    "no tokenizer": (
        behind(QUICK),
        "has no tokenizer",
        lambda directory: (directory / "tokenizer.json").unlink(),
    ),
    "a tokenizer of another model": (
        behind(QUICK),
        "but the model has 50 embeddings",
        lambda directory: (
            malformed.config(vocab_size=50)(directory),
            malformed.tensors(lambda s: s | {EMBEDDING: s[EMBEDDING][:50]})(directory),
        )[0],
    ),
    "settings of generation that are a list": (
        behind(QUICK),
        "generation_config.json: holds a list",
        malformed.written("generation_config.json", "[]"),
    ),
    "settings of generation of wrong types": (
        behind(QUICK),
        "is no generation configuration",
        malformed.written("generation_config.json", '{"watermarking_config": 3}'),
    ),
    "weights that another config describes": (behind(QUICK), "but config.json asks for", start(intermediate_size=96)),
    "a layer too many": (behind(QUICK), "weights are missing", start(num_hidden_layers=3)),
    "an activation that nobody knows": (behind(QUICK), "hidden_act is 'sing'", start(hidden_act="sing")),
    "a quantization that nobody knows": (
        behind(QUICK),
        "needs dense weights",
        start(quantization_config={"quant_method": "nonsense"}),
    ),
    "an output that is a link": (behind(QUICK), "is a link, to nowhere", lambda directory: None),
}

EMBEDDING = "model.embed_tokens.weight"
