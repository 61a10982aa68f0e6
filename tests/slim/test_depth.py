"""Fewer layers: which go, and what is left loads by the stock class and computes the same without them."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from burnish.arch import layers, matrices
from burnish.core.checkpoint import Model, load
from burnish.core.errors import SettingsError
from burnish.core.progress import Progress
from burnish.slim.depth import by_divergence, influences, shallower, skipping
from burnish.slim.stage import Slim
from small_models import make

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "max_position_embeddings": 64,
}
FEW: dict[str, Any] = {"tokens": 256, "length": 32}


def model_of(kind, tiny_llama, **changes):
    return Model(module=make(kind, disturbed=True, **SHAPE | changes), tokenizer=load(tiny_llama).tokenizer)


def parts(module):
    return [layer for _, layer in layers(module)]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "olmoe"])
def test_what_is_left_computes_what_the_model_does_without_the_layers(kind, tiny_llama, texts, token_ids, tmp_path):
    model = model_of(kind, tiny_llama)
    small = Slim(method="depth", num_layers=2, score="random", seed=3)(model, calibration=texts, work_dir=tmp_path)
    saved = load(small.save(tmp_path / "out")).module.eval()
    # Which ones stayed, told by what is in them.
    new, old = (matrices_by_layer(one) for one in (saved, model.module))
    stayed = [next(i for i in old if torch.equal(old[i], new[layer])) for layer in new]
    assert stayed == sorted(stayed) and len(stayed) == 2
    with skipping(part for i, part in enumerate(parts(model.module)) if i not in stayed):
        expected = model.module.eval()(input_ids=token_ids, use_cache=False).logits
    assert torch.equal(saved(input_ids=token_ids, use_cache=False).logits, expected)


def matrices_by_layer(module):
    views = matrices(module)
    return {view.layer: view.tensor for view in views if view.role in ("down", "o") and view.layer is not None}


def test_a_checkpoint_on_disk_is_cut_as_one_in_memory(tiny_llama, texts, tmp_path):
    model = model_of("llama", tiny_llama)
    stage = Slim(method="depth", num_layers=3, **FEW)
    here = stage(model, calibration=texts).module.state_dict()
    there = load(stage(load(model.save(tmp_path / "in")), calibration=texts).save(tmp_path / "out")).module.state_dict()
    assert here.keys() == there.keys()
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_a_layer_that_does_nothing_goes_first_by_both_scores():
    module = make("llama", disturbed=True, **SHAPE).eval()
    with torch.no_grad():
        for view in matrices(module):
            if view.layer == 2 and view.role in ("o", "down"):
                view.tensor.zero_()
    tokens = torch.randint(3, 384, (4, 32), generator=torch.Generator().manual_seed(0))
    values = influences(module, tokens)
    assert values[2] < 1e-12 < values.sort().values[1]
    (first, distance), _ = by_divergence(module, tokens, 2, Progress(enabled=False))
    assert first == 2 and abs(distance) < 1e-6


def test_influence_is_one_minus_the_cosine_of_the_hidden_states():
    module = make("llama", disturbed=True, **SHAPE).eval()
    tokens = torch.randint(3, 384, (2, 16), generator=torch.Generator().manual_seed(0))
    states = module(input_ids=tokens, output_hidden_states=True).hidden_states  # the last one behind the final norm
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(states[:-1])]
    torch.testing.assert_close(influences(module, tokens)[:3], 1 - torch.stack(cosines).double(), atol=1e-6, rtol=1e-5)


def test_a_target_becomes_the_most_layers_that_fit(tiny_llama):
    plan = model_of("llama", tiny_llama).plan()
    cut = Slim(method="depth", target="85%").plan(plan)
    assert cut.num_parameters <= 0.85 * plan.num_parameters
    larger = Slim(method="depth", num_layers=cut.config.num_hidden_layers + 1).plan(plan)
    assert larger.num_parameters > 0.85 * plan.num_parameters
    assert any("the sizes nearest to the target" in note for note in cut.notes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"] * 2}, "not all alike"),
        ("deepseek_v3", {}, "not all alike"),
        ("llama", {"num_hidden_layers": 2}, "num_layers is 3, but the llama model has 2"),
    ],
)
def test_layers_that_differ_or_are_not_there_are_refused(kind, changes, message):
    config = make(kind, **{"num_hidden_layers": 4} | changes).config
    with pytest.raises(SettingsError, match=message):
        shallower(config, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "depth", "num_layers": 2, "refit": "alone"}, "refit does not go with method: depth"),
        ({"method": "depth", "num_layers": 2, "target": "50%"}, "all say how small"),
        ({"method": "depth", "target": "50%", "score": "fisher"}, "to depth it is one of influence"),
        ({"num_layers": 2}, "num_layers is a setting of method: depth"),
        ({"method": "depth"}, "nothing says how small"),
    ],
)
def test_settings_that_do_not_go_with_depth_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim.parse(settings, where="recipe.yaml")
