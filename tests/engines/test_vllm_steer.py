"""Steering inside vLLM: the tokens of transformers, the bits of neighbours, and counts that are exact."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.core.checkpoint import Lineage, Model, load
from burnish.steer import steer
from burnish.steer.vectors import Vectors
from made_vectors import MARKS, some_vectors
from small_models import small_llama, small_tokenizer

pytestmark = pytest.mark.timeout(1800)
SOURCE = Path(__file__).resolve().parents[2] / "src"
MANY = dataclasses.replace(
    MARKS,
    separator_ids=tuple(range(0, 384, 3)),
    blank_ids=tuple(range(0, 384, 5)),
    think_end_ids=tuple(range(1, 384, 90)),
)
"""A third of the vocabulary separates, a fifth is blank and some tokens end the thinking: a random model writes all."""
COEF, TOP, TOKENS = -4.0, 1.0, 40
BLOCK = 32
"""Tokens of a block of keys and values."""
LENGTHS = (5, 40, 70, 9, 30, 100, 12, 17)


@dataclasses.dataclass
class Steered:
    """A random model, vectors of it, and eight prompts of which every other is steered."""

    place: Path
    model: Model
    vectors: Vectors
    preempted: int = 0
    graphs: int = 0

    @cached_property
    def prompts(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(3)
        return [torch.randint(12, 384, (length,), generator=generator).tolist() for length in LENGTHS]

    def requests(self, *asked: str, num_tokens: int = TOKENS) -> list[dict[str, Any]]:
        """A request for each prompt; what they ask for is repeated over them."""
        return [
            {"prompt": prompt, "num_tokens": num_tokens, "steer": asked[place % len(asked)]}
            for place, prompt in enumerate(self.prompts)
        ]

    def run(
        self,
        name: str,
        *rounds: list[dict[str, Any]],
        sets: bool = True,
        compiled: bool = False,
        hooks: bool = False,
        buffers: bool = False,
        **engine: Any,
    ) -> list[list[dict[str, Any]]]:
        """What vLLM answers, round by round; see `steer_engine.py`."""
        entry = {"careful": {"vectors": str(self.place / "vectors"), "top": TOP}}
        job, result = self.place / f"{name}.json", self.place / f"{name}.result.json"
        job.write_text(
            json.dumps(
                {
                    "model": str(self.place / "model"),
                    "sets": json.dumps(entry) if sets else "",
                    "compile": compiled,
                    "hooks": hooks,
                    "buffers": buffers,
                    "engine": engine,
                    "rounds": rounds,
                }
            )
        )
        script = Path(__file__).with_name("steer_engine.py")
        done = subprocess.run(
            [os.environ["VLLM_PYTHON"], str(script), str(job), str(result)],
            env=os.environ | {"PYTHONPATH": str(SOURCE), "VLLM_CACHE_ROOT": str(self.place / "cache")},
            capture_output=True,
            text=True,
        )
        assert result.exists(), done.stderr[-4000:]
        found = json.loads(result.read_text())
        self.preempted, self.graphs = found["preempted"], found["graphs"]
        return found["rounds"]

    def written(self, prompt: list[int], coef: float | None) -> tuple[list[int], dict[str, int] | None]:
        """By transformers, with its counts."""
        ids = torch.tensor([prompt])
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}

        def answer() -> list[int]:
            mask = torch.ones_like(ids)
            made = self.model.module.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)
            return made[0, len(prompt) :].tolist()

        if coef is None:
            return answer(), None
        with steer(self.model, self.vectors, coef=coef, top=TOP) as steering:
            tokens = answer()
        return tokens, vars(steering.counts)

    @cached_property
    def expected(self) -> list[tuple[list[int], dict[str, int] | None]]:
        return [self.written(prompt, COEF if place % 2 else None) for place, prompt in enumerate(self.prompts)]

    @cached_property
    def plain(self) -> list[dict[str, Any]]:
        """Of an engine without the plug-in."""
        return self.run("plain", self.requests(""), sets=False)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Steered:
    place = tmp_path_factory.mktemp("steer")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "tie_word_embeddings": False}
    Model(module=small_llama(initializer_range=0.2, **shape), tokenizer=small_tokenizer()).save(place / "model")
    model = load(place / "model", dtype=torch.float32)
    vectors = some_vectors(model.module, marks=MANY, model=model.identity)
    vectors.save(place / "vectors", Lineage(stage="steer"))
    return Steered(place, model, vectors)


ENGINES: dict[str, dict[str, Any]] = {
    "eager": {},
    "in pieces": {"max_num_batched_tokens": 16, "max_num_seqs": 8, "enable_chunked_prefill": True},
    "compiled": {"compiled": True},
    "compiled with the buffers of a GPU": {"compiled": True, "buffers": True},
}


@pytest.mark.parametrize("name", ENGINES)
def test_half_of_a_batch_is_steered_as_in_transformers_and_counted_exactly(made: Steered, name: str):
    half, none = made.requests("", f"careful:{COEF:g}"), made.requests("")
    first, plain, again = made.run(name.replace(" ", "-"), half, none, half, **ENGINES[name])
    assert (made.graphs > 0) == name.startswith("compiled")
    for answers in (first, again):
        for found, (tokens, counts) in zip(answers, made.expected, strict=True):
            assert found["tokens"] == tokens
            assert found["counts"] == counts
    # A written end of thinking turns steering off, and the last token is never read.
    for found in first[1::2]:
        ends = len(MANY.spans(found["tokens"][:-1]))
        assert found["counts"]["visited"] == ends * made.model.module.config.num_hidden_layers
    assert sum(found["counts"]["moved"] for found in first[1::2]) > 10
    if name == "eager":  # the same schedule as that of the engine without the plug-in
        for answers in (first[::2], plain[::2]):
            for found, bare in zip(answers, made.plain[::2], strict=True):
                assert (found["tokens"], found["logprobs"]) == (bare["tokens"], bare["logprobs"])
        assert [found["logprobs"] for found in plain] == [bare["logprobs"] for bare in made.plain]


def test_python_hooks_in_place_of_the_op_run_eager_and_fail_the_proof_compiled(made: Steered):
    half = made.requests("", f"careful:{COEF:g}")
    eager, _ = made.run("hooks", half, half, hooks=True)
    assert [found["counts"] for found in eager] == [counts for _, counts in made.expected]
    with pytest.raises(AssertionError, match=r"steering was asked for and met 0 of \d+ outputs"):
        made.run("hooks-compiled", half, half, hooks=True, compiled=True)


def test_what_was_steered_is_found_again_by_its_own_steering_alone(made: Steered):
    """A second turn asks for the whole first one; a cache that mixed them would change what is written."""
    asked = f"careful:{COEF:g}"
    first = made.requests(asked)[1:3]
    turns = [one | {"prompt": [*one["prompt"], *made.written(one["prompt"], COEF)[0], 20]} for one in first]
    rounds = (first, [turn | {"steer": ""} for turn in turns], turns, first)
    once, plain, steered, again = made.run("prefixes", *rounds, block_size=BLOCK, enable_prefix_caching=True)
    for answers, coef in ((plain, None), (steered, COEF)):
        for found, turn in zip(answers, turns, strict=True):
            assert (found["tokens"], found["counts"]) == made.written(turn["prompt"], coef)
    assert [found["tokens"] for found in once] == [found["tokens"] for found in again]
    # Whole blocks of prompts are shared by all, steered or not, and what was written behind a prompt by nobody.
    assert [found["cached"] for found in plain] == [len(one["prompt"]) // BLOCK * BLOCK for one in first] == [32, 64]
    assert (
        [found["cached"] for found in steered] == [len(turn["prompt"]) // BLOCK * BLOCK for turn in turns] == [64, 96]
    )


def test_preempted_requests_go_on_as_they_began(made: Steered):
    """A pool of blocks that is too small for all, so that contexts are computed again, steered tokens in one pass."""
    half = made.requests("", f"careful:{COEF:g}")
    engine = {"block_size": BLOCK, "num_gpu_blocks_override": 16, "enable_prefix_caching": False}
    (found,) = made.run("preempted", half, **engine)
    assert made.preempted > 0
    for one, (tokens, counts) in zip(found, made.expected, strict=True):
        assert (one["tokens"], one["counts"]) == (tokens, counts)


def test_the_benchmark_of_its_cost_runs_small_and_counts_what_it_steers(tmp_path: Path):
    script, out = SOURCE.parent / "benchmarks" / "steer_serving.py", tmp_path / "found.json"
    command = [sys.executable, str(script), "--smoke", "--work", str(tmp_path / "work"), "--out", str(out)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    for arms in json.loads(out.read_text())["cpu"].values():
        counts = arms["38 % of the heads, all requests"]["counts"]
        assert 0 < counts["flagged"] < counts["seen"] and counts["visited"] == counts["flagged"]  # in one layer
        assert 0 < arms["loaded, nobody asks"]["own"] < 1
