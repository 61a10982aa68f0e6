"""Does llama.cpp read an exported file as the checkpoint is meant: the same tokens, the same answers, at what speed?

    python benchmarks/gguf_export.py --model models/smollm2 --engine PEER_PYTHON --work WORK

Files are made by `burnish export gguf` of the model in float32, as it is stored (bfloat16), of its 4-bit and 8-bit
roundings (nearest, groups of 64 and rows), and of the model with dense matrices at 8 bits. llama.cpp runs through
xllamacpp in an environment of its own (benchmarks/env/llama_cpp.txt), with one thread.

tokens: how many of 400 texts (paragraphs of WikiText-2 test, each with characters that are hard to cut) llama.cpp cuts
    into the tokens of tokenizer.json; for the model's tokenizer and for one small tokenizer of every way of cutting
    that is known, trained on WikiText-2 valid, in a model of two layers.
answers: how many of 20 greedy continuations (32 tokens) of WikiText prompts are those of stock transformers in float32
    of the same checkpoint, and after how many tokens the others part. llama.cpp rounds activations to 8 bits before it
    multiplies packed weights, so only dense files can be expected to agree.
speed: processor seconds for a prompt of 480 tokens and for 48 tokens after a short one, all files asked in turns.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, PreTrainedTokenizerFast

from burnish.core.checkpoint import load
from burnish.data import read_texts
from burnish.export import write_gguf
from burnish.export.vocabulary import CUTS
from burnish.quantize.stage import Quantize

TEXTS, PROMPTS, NUM_TOKENS, ROUNDS = (8, 2, 4, 1) if experiment.SMOKE else (400, 20, 32, 7)
HARD = (" 12345 1987", "\n\n  it's don't WE'LL", " naïve — 数字 😀", "\tx=3;//ok  \r\n", " ½²३ e\u0301", "<|im_end|>")
"""What tokenizers differ in, one at the end of every text."""


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--engine", type=Path, required=True, help="the peer's Python")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints and files are made")
    arguments = parser.read()
    torch.set_num_threads(1)
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    texts = paragraphs(TEXTS)
    checkpoints = quantized(arguments.model, work)
    files = {
        "float32": write_gguf(arguments.model, work / "f32.gguf", dense="f32", overwrite=True),
        **{name: write_gguf(place, work / f"{name}.gguf", overwrite=True) for name, place in checkpoints.items()},
        "dense at 8 bits": write_gguf(arguments.model, work / "q8.gguf", dense="q8_0", overwrite=True),
    }
    tokenizer: Any = load(arguments.model).tokenizer
    prompts = [tokenizer.decode(tokenizer(text)["input_ids"][:40]) for text in paragraphs(PROMPTS, hard=False)]
    long = tokenizer.decode(tokenizer(" ".join(paragraphs(60, hard=False)))["input_ids"][:480])
    asked = {"texts": texts, "prompts": prompts, "num_tokens": NUM_TOKENS, "long": long, "rounds": ROUNDS}
    answers = ask(arguments.engine, work, {name: str(file.path) for name, file in files.items()}, asked)
    cut = [{"tokenizer": "the model's"} | same_tokens(tokenizer, texts, answers["float32"]["cut"])]
    cut += [{"tokenizer": name} | row for name, row in small_tokenizers(arguments.engine, work, texts).items()]
    experiment.record(
        arguments.out,
        __doc__,
        {
            "model": load(arguments.model).lineage.base_model,
            "engine": answers["version"],
            "tokens": cut,
            "files": [
                {
                    "file": name,
                    "types": dict(file.types),
                    "megabytes": file.num_bytes / 1e6,
                    "prefill": answers[name]["prefill"],
                    "decode": answers[name]["decode"],
                }
                | parted(checkpoints.get(name) or arguments.model, prompts, answers[name])
                for name, file in files.items()
            ],
        },
        note="one thread, processor seconds",
    )


def paragraphs(count: int, *, hard: bool = True) -> list[str]:
    found = [text.strip() for text in read_texts("wikitext2-test") for text in text.split("\n") if len(text) > 200]
    picked = [found[round(i)] for i in np.linspace(0, len(found) - 1, count)]
    return [text[:600] + (HARD[i % len(HARD)] if hard else "") for i, text in enumerate(picked)]


def quantized(model: Path, work: Path) -> dict[str, Path]:
    """The checkpoint as it is, and rounded to nearest; kept in `work`."""
    places = {"as stored": model}
    for name, settings in {
        "4 bits": {"bits": 4, "group_size": 64},
        "8 bits": {"scheme": "w8a8-int8", "bits": 8, "group_size": None},
    }.items():
        places[name] = work / name.replace(" ", "-")
        if not places[name].is_dir():
            Quantize(method="rtn", **settings)(load(model)).save(places[name])
    return places


def ask(python: Path, work: Path, files: dict[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    questions, answers = work / "questions.json", work / "answers.json"
    questions.write_text(json.dumps({"files": files} | asked))
    peer = Path(__file__).parent / "peers" / "llama_cpp.py"
    subprocess.run([python, peer, questions, answers], check=True, capture_output=True)
    return json.loads(answers.read_text())


def same_tokens(tokenizer: Any, texts: list[str], cut: list[list[int]]) -> dict[str, int]:
    ours = [list(tokenizer(text)["input_ids"]) for text in texts]
    return {"texts": len(texts), "the same": sum(a == b for a, b in zip(ours, cut, strict=True))}


def parted(place: Path, prompts: list[str], answers: dict[str, Any]) -> dict[str, Any]:
    """How many tokens of each answer are those of stock transformers in float32."""
    packed = load(place).lineage.weights == "packed"
    settings = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
    module: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **settings)
    tokenizer: Any = load(place).tokenizer
    alike = []
    for prompt, theirs in zip(prompts, answers["answers"], strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = module.generate(ids, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0)
        ours = made[0, ids.shape[1] :].tolist()
        shared = [a == b for a, b in zip(ours, theirs, strict=False)]
        alike.append(shared.index(False) if False in shared else len(ours))
    return {"tokens alike": alike}


def small_tokenizers(python: Path, work: Path, texts: list[str]) -> dict[str, dict[str, int]]:
    """One byte-level tokenizer for every way of cutting, in a model of two layers."""
    steps = {"digits": pre_tokenizers.Digits(individual_digits=True)}
    steps |= {"bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)}
    steps |= {"bytes and words": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)}
    found = {}
    for cut, name in CUTS.items():
        place = work / f"cut-{name}"
        bare = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
        bare.pre_tokenizer = pre_tokenizers.Sequence([steps.get(step) or split(step) for step in cut])
        bare.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, special_tokens=["<|im_end|>"])
        bare.train_from_iterator(read_texts("wikitext2-valid"), trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>")
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, eos_token_id=0, bos_token_id=None,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
        file = write_gguf(place, work / f"cut-{name}.gguf", overwrite=True)
        nothing: dict[str, Any] = {"prompts": ["a"], "num_tokens": 1, "long": "a", "rounds": 0}
        answers = ask(python, work, {name: str(file.path)}, {"texts": texts} | nothing)
        found[name] = same_tokens(load(place).tokenizer, texts, answers[name]["cut"])
    return found


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    stored = next(row for row in results["files"] if row["file"] == "as stored")
    rows = []
    for row in results["files"]:
        alike = row["tokens alike"]
        whole = sum(count == max(alike) for count in alike)
        types = ", ".join(f"{count} {name}" for name, count in sorted(row["types"].items()))
        speeds = [experiment.cell(experiment.ratio(stored[what], row[what]), ".2f") for what in ("prefill", "decode")]
        if row is stored:
            speeds = ["1", "1"]
        rates = [480 / np.median(row["prefill"]), 48 / np.median(row["decode"])]
        rows.append(
            [row["file"], types, f"{row['megabytes']:.0f}", f"{whole} of {len(alike)}", f"{np.mean(alike):.1f}"]
            + [f"{rate:.0f}" for rate in rates]
            + speeds
        )
    header = (
        "file | tensors | MB | answers of 32 tokens as transformers' | tokens alike, mean | prompt tokens a processor "
        "second | answer tokens a processor second | prompt, times as stored (95 %) | answer, times as stored (95 %)"
    )
    return {
        "files": experiment.table(header, rows),
        "tokens": experiment.table(
            "tokenizer | texts | cut into the same tokens",
            [[row["tokenizer"], row["texts"], row["the same"]] for row in results["tokens"]],
        ),
    }


if __name__ == "__main__":
    main()
