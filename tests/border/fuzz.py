"""Mutants of everything that comes from outside, each read in a forked child with bounded memory.

A mutant is a good file with a few wounds: bytes flipped, cut or doubled, or values of its JSON replaced by what a
damaged or hostile file may hold. The child reads it as burnish does; what it must not do is end with anything but a
`BurnishError`, open a file outside the places it was given, or need more memory than is allowed. Every tenth rounds
an odd model or network instead, under settings that are each allowed by themselves.

    python tests/border/fuzz.py 17 18                           # repeats mutants and shows what happens
    python tests/border/fuzz.py 500 10500 tests/border/fuzzed.json   # the newest long run; it rounded nothing yet
"""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

SECONDS = 60
MEMORY_BYTES = 3 << 30
"""More than the warm process has, which holds torch and transformers."""

SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/etc/ssl")

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e308, float("inf"), float("nan")),
    *(
        "",
        " ",
        "a",
        "a" * 300,
        "../secret/x.safetensors",
        "/etc/passwd",
        "../secret/tokenizer.1.json",
        "\0",
        "é",
        "\ud800",
    ),
    *("owner/name", "__class__", "{{ 1/0 }}", "{% for x in y %}", "float32", "none", "auto", "[[", "(a+)+$"),
    *([], {}, [None], [[]], {"": None}, [1, 2, 3], {"a": {"b": {}}}, [{}], "secret", "../secret"),
]
GARBAGE = [b"", b"\0", b"\xff\xfe", b"[" * 3000, b"{" * 3000, b'"', b"9" * 5000, b"\xed\xa0\x80", b"\n", b"null", b"{}"]

Attempt = Callable[[Path], None]


def wounded_bytes(content: bytes, dice: random.Random) -> bytes:
    """One to three wounds in the bytes."""
    for _ in range(dice.randint(1, 3)):
        place, length = dice.randrange(len(content) + 1), dice.choice([1, 2, 8, 64])
        kind = dice.randrange(5)
        if kind == 0:
            content = content[:place] + bytes(dice.randrange(256) for _ in range(length)) + content[place + length :]
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content = content[:place] + dice.choice(GARBAGE) + content[place:]
        elif kind == 3:
            content = content[:place] + content[place + length :]
        else:
            content = content[:place] + content[max(0, place - 20 * length) :]
    return content


def wounded_value(value: Any, dice: random.Random) -> Any:
    """The value with one wound somewhere inside."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        kind = dice.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return value | {str(dice.choice(NASTY)): value[key]}
        return value | {key: wounded_value(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [*value[:place], wounded_value(value[place], dice), *value[place + 1 :]]
    if isinstance(value, int) and dice.random() < 0.4:
        return value + dice.choice([-1, 1, 7, 10**6])
    return dice.choice(NASTY)


def wounded_json(content: bytes, dice: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(dice.randint(1, 3)):
        value = wounded_value(value, dice)
    return json.dumps(value).encode()


def wounded_header(content: bytes, dice: random.Random) -> bytes:
    """A safetensors file with another header over the same bytes."""
    length = int.from_bytes(content[:8], "little")
    header = wounded_json(content[8 : 8 + length], dice)
    size = dice.choice([len(header)] * 8 + [0, 2**40])
    return size.to_bytes(8, "little") + header + content[8 + length :]


# -- what is wounded, and how it is read -----------------------------------------------------------------------------


def read_checkpoint(place: Path) -> None:
    from burnish.core.checkpoint import check_fits, load
    from burnish.core.runner.preflight import dry_save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(place / "model")
        model.plan()
        check_fits(place / "model")
        if model.lineage.weights == "dense":
            dry_save(model)
        model.module.generation_config.to_dict()
        model.tokenizer("a b c")


def plan_recipe(place: Path) -> None:
    from burnish.cli import main

    os.chdir(place)
    try:
        main(["plan", "r.yaml"])
    except SystemExit as end:
        assert end.code in (0, 1), end.code


def read_data(place: Path) -> None:
    from burnish.data import data_hash

    (path,) = (place / "data").iterdir()
    data_hash(str(path))


def pack_data(place: Path) -> None:
    """Rows as training reads them, chats through the template."""
    from burnish.data import read_rows
    from burnish.data.packing import documents
    from small_models import small_tokenizer

    (path,) = (place / "data").iterdir()
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    list(documents(tokenizer, read_rows(str(path)), where=str(path)))


def read_preferences(place: Path) -> None:
    from burnish.data.preferences import read_pairs

    (path,) = (place / "data").iterdir()
    read_pairs(path)


def read_events(place: Path) -> None:
    from burnish.events.columns import from_table
    from burnish.events.reading import read_any

    (path,) = (place / "data").iterdir()
    from_table(read_any(path, sequence="sequence_id", time="time"), where=str(path))


def file_of(place: Path, name: str, content: bytes) -> Path:
    (place / "data").mkdir()
    (place / "data" / name).write_bytes(content)
    return place / "data" / name


LINES = b"".join(
    json.dumps(row).encode() + b"\n"
    for row in (
        {"text": "It was the best of times."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {"text": "é, ü and 漢字", "id": 3},
    )
)
PAIRS = b"".join(
    json.dumps(row).encode() + b"\n"
    for row in (
        {"prompt": "Why? ", "chosen": "Because.", "rejected": "No."},
        {"prompt": "How? ", "chosen": "So.", "rejected": "Not."},
    )
)
EVENTS = b"sequence_id,time,mark\n0,0.5,a\n0,1.25,b\n1,0.1,a\n1,2.5,b\n1,3.5,a\n"
EVENT_LINES = (
    b'{"sequence_id": 0, "time": [0.5, 1.5], "mark": ["a", "b"]}\n{"sequence_id": 1, "time": 2, "mark": "a"}\n'
)
RECIPE = b"""\
name: mutant
start: model
evaluate: {text: wikitext2-test, num_windows: 2, context: 64, speed: false}
keep: all
nodes:
  - {name: four, stage: quantize, method: rtn, bits: 4, group_size: 32, seed: 1}
  - {name: eight, from: start, stage: quantize, method: rtn, bits: 8, group_size: 32}
  - stage: train
    from: start
    data: data.jsonl
    context: 32
    steps: 2
    batch: 2
    optimizer_options: {betas: [0.9, 0.95]}
"""


def wounded_lines(content: bytes, dice: random.Random) -> bytes:
    lines = content.splitlines()
    place = dice.randrange(len(lines))
    return b"\n".join([*lines[:place], wounded_json(lines[place], dice), *lines[place + 1 :]])


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def mutate(place: Path, good: Path, dice: random.Random) -> tuple[str, Attempt]:
    """Writes a mutant into a place and says what it is and how it is read."""
    kind = dice.choice(
        ["json"] * 6 + ["bytes"] * 2 + ["header"] * 3 + ["index", "recipe", "recipe", "lines", "pairs"] + ["table"] * 3
    )
    if kind in ("json", "bytes", "header", "index", "recipe"):
        good = dice.choice(sorted(good.iterdir()))
        shutil.copytree(good, place / "model")
    if kind == "json":
        name = dice.choice(
            ["config.json"] * 3 + ["tokenizer_config.json", "tokenizer.json", "generation_config.json", "burnish.json"]
        )
        path = place / "model" / (name if (good / name).is_file() else "config.json")
        path.write_bytes(wounded_json(path.read_bytes(), dice))
        return path.name, read_checkpoint
    if kind == "bytes":
        path = place / "model" / dice.choice(sorted(path.name for path in good.iterdir()))
        path.write_bytes(wounded_bytes(path.read_bytes(), dice))
        return f"bytes of {path.name}", read_checkpoint
    if kind == "header":
        path = place / "model" / "model.safetensors"
        path.write_bytes(wounded_header(path.read_bytes(), dice))
        return "header", read_checkpoint
    if kind == "index":
        (place / "model" / "model.safetensors").rename(place / "model" / "part.safetensors")
        content = json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "part.safetensors"}}).encode()
        (place / "model" / "model.safetensors.index.json").write_bytes(wounded_json(content, dice))
        return "index", read_checkpoint
    if kind == "recipe":
        (place / "data.jsonl").write_bytes(LINES)
        if dice.random() < 0.5:
            (place / "r.yaml").write_bytes(wounded_bytes(RECIPE, dice))
        else:
            import yaml

            value = wounded_value(yaml.safe_load(RECIPE), dice)
            (place / "r.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8", errors="replace")
        return "recipe", plan_recipe
    wound = dice.choice([wounded_bytes, wounded_lines])
    if kind == "lines":
        content = wound(LINES, dice)
        name = dice.choice(["a.jsonl", "a.jsonl.gz", "a.txt"])
        file_of(place, name, gzip.compress(content) if name.endswith(".gz") and dice.random() < 0.5 else content)
        return name, dice.choice([read_data, pack_data])
    if kind == "pairs":
        file_of(place, "a.jsonl", wound(PAIRS, dice))
        return "pairs", read_preferences
    name = dice.choice(["a.parquet", "a.txt.gz", "a.csv", "a.events.jsonl", "p.parquet", "e.parquet"])
    if name == "a.parquet":
        file_of(place, name, wounded_bytes(parquet([{"text": "a text"}] * 50), dice))
        return name, read_data
    if name == "a.txt.gz":
        file_of(place, name, wounded_bytes(gzip.compress(b"a text " * 50), dice))
        return name, read_data
    if name == "p.parquet":
        file_of(place, name, wounded_bytes(parquet([json.loads(line) for line in PAIRS.splitlines()]), dice))
        return name, read_preferences
    if name == "e.parquet":
        rows = [{"sequence_id": i // 3, "time": float(i), "mark": "ab"[i % 2]} for i in range(12)]
        file_of(place, name, wounded_bytes(parquet(rows), dice))
        return name, read_events
    if name == "a.csv":
        file_of(place, name, wounded_bytes(EVENTS, dice))
    else:
        file_of(place, name, wound(EVENT_LINES, dice))
    return name, read_events


# -- what is rounded, under settings and content at the edge of what is allowed -------------------------------------


def rounding(place: Path, good: Path, dice: random.Random) -> tuple[str, Attempt]:
    """A model or a network with odd weights, and settings that are each allowed; how it is rounded."""
    return dice.choice([odd_quantization, odd_network])(place, good, dice)


def odd_quantization(place: Path, good: Path, dice: random.Random) -> tuple[str, Attempt]:
    shutil.copytree(good / "a-llama", place / "model")
    settings = {
        "method": dice.choice(["rtn", "gptq", "yaqa", "learned"]),
        "bits": dice.randint(2, 8),
        "group_size": dice.choice([None, 1, 16, 32, 64]),
        "symmetric": dice.random() < 0.8,
        "damping": dice.choice([None, 1e-4, 1e-4, 1e-3, 0.1, 1e30]),
        "sketch": dice.choice([None, "a", "b"]),
        "refit": dice.choice([None, 0, 1, 3]),
        "scale_search": dice.random() < 0.2,
        "target": dice.choice([None, None, None, "2bits", "3.3bits", "8bits", "90kB", "35%"]),
        "quantize_embedding": dice.choice([None, None, 2, 8, "auto"]),
        "propagate": dice.random() < 0.1,
        "tokens": dice.choice([256, 512]),
        "length": dice.choice([8, 16, 32]),
        "folds": dice.choice([2, 4]),
        "iterations": 2,
        "seed": dice.randint(0, 9),
    }
    if settings["method"] != "learned":
        del settings["iterations"]
    text = dice.choice(["a " * 2000, "a", " ".join(str(dice.random()) for _ in range(300)), str(dice.random()) * 60])
    wound, number = dice.choice(WOUNDS), dice.randrange(2**30)
    return f"quantize {settings} after {wound}", lambda where: quantize(where, settings, text, wound, number)


WOUNDS = ("nothing", "zeros", "a row of zeros", "one row everywhere", "1e30", "1e-30", "nan")


def quantize(place: Path, settings: dict[str, Any], text: str, wound: str, number: int) -> None:
    from burnish.core.checkpoint import load
    from burnish.quantize.stage import Quantize

    os.chdir(place)  # directories that are removed are opened by names relative to their parent
    model = load(place / "model")
    weights = [weight for _, weight in model.module.named_parameters() if weight.ndim == 2]
    wound_weight(weights[number % len(weights)], wound)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Quantize(**settings)(model, calibration=[text]).save(place / "out")
        _ = load(place / "out").module


def wound_weight(weight: Any, wound: str) -> None:
    import torch

    with torch.no_grad():
        if wound == "zeros":
            weight.zero_()
        elif wound == "a row of zeros":
            weight[0] = 0
        elif wound == "one row everywhere":
            weight.copy_(weight[:1].expand_as(weight))
        elif wound in ("1e30", "1e-30"):
            weight.mul_(float(wound))
        elif wound == "nan":
            weight.flatten()[0] = float("nan")


def odd_network(place: Path, good: Path, dice: random.Random) -> tuple[str, Attempt]:
    given = {
        "kernel": dice.choice([1, 2, 3]),
        "stride": dice.choice([1, 2, 5]),
        "padding": dice.choice([0, 1, 2, "same"]),
        "padding_mode": dice.choice(["zeros", "reflect", "circular"]),
        "dilation": dice.choice([1, 1, 1, 2]),
        "groups": dice.choice([1, 2, 4]),
        "side": dice.choice([1, 3, 8]),
        "examples": dice.choice([0, 1, 3]),
        "content": dice.choice([0.0, 1.0, 1e-30, 1e30, float("nan")]),
        "bits": dice.choice([1.0, 2.0, 2.5, 3.0, 8.0, 9.0, float("nan")]),
        "by": dice.choice(["layer", "stride"]),
        "batched": dice.random() < 0.9,
    }
    wound = dice.choice(WOUNDS)
    return f"strides {given} after {wound}", lambda _: round_by_strides(given, wound)


def round_by_strides(given: dict[str, Any], wound: str) -> None:
    import torch
    from torch import nn

    from burnish.quantize.strides import bit_map, patch_sums, round_network

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        shape = {name: given[name] for name in ("padding_mode", "dilation", "groups")}
        try:
            first = nn.Conv2d(4, 8, given["kernel"], given["stride"], given["padding"], **shape)
            network = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
            sizes = (given["examples"], 4, given["side"], given["side"])
            batch = given["content"] * torch.randn(sizes if given["batched"] else sizes[1:])
            network(batch)
        except (ValueError, RuntimeError, IndexError):  # torch cannot make or run it either
            return
        wound_weight(first.weight, wound)
        sums = patch_sums(network, [batch])
        round_network(network, sums, bit_map(network, sums, bits=given["bits"], by=given["by"]))


# -- one mutant in a child -------------------------------------------------------------------------------------------


def try_mutant(seed: int, good: Path) -> str | None:
    """Reads one mutant in a forked child; what it did wrong, or None."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        place = Path(scratch) / "place"
        place.mkdir()
        (Path(scratch) / "secret").mkdir()
        for name in ("x.safetensors", "tokenizer.1.json"):
            (Path(scratch) / "secret" / name).write_text("secret")
        what, attempt = (rounding if seed % 10 == 9 else mutate)(place, good, dice)
        said = Path(scratch) / "said"
        child = os.fork()
        if child == 0:
            _read(attempt, place, said)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        report = said.read_text(errors="replace") if said.exists() else ""
        if code == 0 and not report:
            return None
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return f"mutant {seed} ({what}): {cause}\n{report}"


def _read(attempt: Attempt, place: Path, said: Path) -> None:
    """In the child: never returns."""
    import torch
    from huggingface_hub.constants import HF_HOME  # where a name that is no directory is looked for

    from burnish.core.errors import BurnishError

    status = 0
    with said.open("w", errors="backslashreplace") as log, Path(os.devnull).open("w", errors="strict") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        sys.stdout = sys.stderr = nothing
        tempfile.tempdir = str(place)
        resource.setrlimit(resource.RLIMIT_AS, (_memory_in_use() + MEMORY_BYTES,) * 2)
        signal.alarm(SECONDS)
        named = (place, sys.prefix, sys.base_prefix, *SYSTEM, *_sources(), HF_HOME)
        roots = [os.path.realpath(root) for root in named]
        sys.addaudithook(lambda event, arguments: _watch(event, arguments, roots, log))
        torch.set_num_threads(1)  # a forked child has none of its parent's
        try:
            attempt(place)
        except BurnishError as error:
            if "\n" in str(error):
                log.write(f"more than one line: {error}\n")
        except BaseException:  # noqa: BLE001 (that is what is looked for)
            traceback.print_exc(file=log)
            status = 1
        log.flush()
        os._exit(status)


def _watch(event: str, arguments: tuple[Any, ...], roots: list[str], log: Any) -> None:
    """Notes every file that is opened outside the named places."""
    if event != "open" or not isinstance(arguments[0], str | bytes):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    if not any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots):
        log.write(f"opened {path}\n")


def _sources() -> list[Path]:
    repository = Path(__file__).resolve().parents[2]
    return [repository / "src", repository / "tests", repository / "LICENSE"]


def _memory_in_use() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def warm_up(good: Path) -> None:
    """Imports everything and reads everything once, so that children only have to fork."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-warm-"))
    for checkpoint in sorted(good.iterdir(), reverse=True):
        shutil.rmtree(place / "model", ignore_errors=True)
        shutil.copytree(checkpoint, place / "model")
        read_checkpoint(place)
    (place / "r.yaml").write_bytes(RECIPE)
    (place / "data.jsonl").write_bytes(LINES)
    here = Path.cwd()
    plan_recipe(place)
    os.chdir(here)
    for name, content, attempt in (
        ("a.jsonl", LINES, pack_data),
        ("a.jsonl", PAIRS, read_preferences),
        ("a.csv", EVENTS, read_events),
        ("a.parquet", parquet([{"text": "a"}]), read_data),
    ):
        file_of(place, name, content)
        attempt(place)
        shutil.rmtree(place / "data")
    shutil.rmtree(place)


def good_checkpoints(directory: Path) -> Path:
    """What mutants are made of: a small Llama as burnish saves it, and mixtures as hubs hold them."""
    from published import DEEPSEEK_V3, QWEN_3_MOE, publish

    from burnish.core.checkpoint import Model
    from small_models import small_llama, small_tokenizer

    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    Model(module=small_llama(), tokenizer=tokenizer).save(directory / "a-llama")
    for name, raw in (("b-deepseek", DEEPSEEK_V3), ("c-qwen", QWEN_3_MOE)):
        publish(directory / name, raw)
        (directory / name / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    return directory


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as scratch:
        good = good_checkpoints(Path(scratch) / "good")
        warm_up(good)
        first, last = int(sys.argv[1]), int(sys.argv[2])
        faults = [fault for seed in range(first, last) if (fault := try_mutant(seed, good)) is not None]
        print("\n".join(faults))
        found = {
            "first_seed": first,
            "mutants": last - first,
            "faults": len(faults),
            "tracebacks": sum("Traceback" in fault for fault in faults),
            "opened_outside": sum("opened /" in fault for fault in faults),
            "killed": sum(": killed by" in fault for fault in faults),
            "most_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        }
        if len(sys.argv) > 3:
            Path(sys.argv[3]).write_text(json.dumps(found, indent=2) + "\n")
        print(f"{len(faults)} of {last - first} mutants")
