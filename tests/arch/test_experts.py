"""What a token uses of a mixture; and that the ground floor names neither model types nor experts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish import core
from burnish.arch import known_model_types, num_active_parameters, num_experts
from burnish.core.checkpoint import plan_config
from burnish.core.kinds import Kind, Plan, Weights
from small_models import small_config

EXPERTS = re.compile(r"\b(num|n)_(\w+_)?experts\b|num_experts_per_tok|\.experts\.")


def test_a_mixture_of_experts_counts_only_the_experts_a_token_uses():
    plan = plan_config(small_config("mixtral", num_local_experts=8))
    one_expert = 3 * 64 * 96
    assert plan.num_parameters - num_active_parameters(plan) == 2 * 6 * one_expert


def test_a_dense_network_uses_every_parameter():
    plan = plan_config(small_config("llama"))
    assert num_active_parameters(plan) == plan.num_parameters
    assert num_experts(plan.config) is None


def test_what_has_no_configuration_uses_all_that_it_has():
    plan = Plan(None, Kind.ADAPTER, Weights.DENSE, {"layers.0.lora_A": (4, 64)}, num_bytes=512)
    assert (plan.num_parameters, num_active_parameters(plan)) == (256, 256)
    assert num_active_parameters(plan.of_data()) == 0


STOCK_LOADING = {"reading": {"mistral", "ministral"}}
"""Stock loading turns this type into another where its layers differ; who reads a config as it does must too."""


COMMON = {"seed", "flex"}
"""First words of model types that mean something else everywhere (`seed_oss`, `flex_olmo`)."""


def words(source: str) -> Iterator[str]:
    """Names and strings of a module, apart from what is only told to the reader."""
    tree = ast.parse(source)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def known_only_to_arch(source: str) -> set[str]:
    """Words that name a model type, or the experts of one."""
    families = {re.findall("[a-z]+", name)[0] for name in known_model_types()} - COMMON

    def parts(word: str) -> set[str]:
        return {part.lower() for part in re.findall("[A-Z]?[a-z]+", word)}

    return {word for word in words(source) if parts(word) & families or EXPERTS.search(word)}


@pytest.mark.parametrize(
    "line",
    [
        'if config.model_type == "mixtral": ...',
        "count = config.num_local_experts",
        'routed = ".experts." in name',
        "def of_Llama(): ...",
        'getattr(config, "n_routed_experts")',
    ],
)
def test_a_line_that_knows_a_model_type_is_found(line: str):
    assert known_only_to_arch(f'"""mixtral may be told of."""\n{line}')


@pytest.mark.parametrize("file", sorted(Path(core.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_core_knows_no_model_type_and_no_experts(file: Path):
    allowed = STOCK_LOADING.get(file.stem, set())
    assert known_only_to_arch(file.read_text(encoding="utf-8")) == allowed
