"""Collection: the sums of a real backward pass, in parts, resumed, padded, and for experts."""

import pytest
import torch
import torch.nn.functional as F

from burnish.arch import matrices
from burnish.calibrate import Calibration, collect
from burnish.calibrate.labels import draw_labels
from burnish.calibrate.maths.kronecker import pack_triangle, unpack_triangle
from burnish.calibrate.sums import layer_groups, sums_bytes
from burnish.core.errors import CheckpointError, DataError, NumericalError
from small_models import make

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(scope="module")
def llama():
    return make("llama", dtype=torch.float64, **SHAPE)


@pytest.fixture(scope="module")
def mixtral():
    return make("mixtral", dtype=torch.float64, **SHAPE)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 64, (6, 12), generator=torch.Generator().manual_seed(0))


def in_layers(module):
    return [view for view in matrices(module) if view.layer is not None and view.role != "router"]


def weight_gradients(module, tokens, seed):
    """Per window, the gradients of the summed cross-entropy to the same labels, by ordinary back-propagation."""
    found = []
    for number, row in enumerate(tokens):
        module.zero_grad()
        logits = module(input_ids=row[None]).logits[0]
        labels = draw_labels(logits.detach(), seed, number)
        F.cross_entropy(logits, labels, reduction="sum").backward()
        found.append({name: parameter.grad.clone() for name, parameter in module.named_parameters()})
    module.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_sketch_b_is_the_second_moment_of_weight_gradients(kind, tokens, tmp_path, request):
    module = request.getfixturevalue(kind)
    views = in_layers(module)
    statistics = collect(module, views, Calibration(tokens, seed=3, num_folds=2), tmp_path, key={}, sketches=("b",))
    gradients = weight_gradients(module, tokens, 3)
    for view in views:
        of_view = [view.of(window[view.parameter]) for window in gradients]
        sums = statistics.read(view, [0, 1])
        input_side, output_side = sums.sketches["b"]
        torch.testing.assert_close(input_side, sum(g.T @ g for g in of_view), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(output_side, sum(g @ g.T for g in of_view), rtol=1e-9, atol=1e-12)


def test_padding_changes_nothing(llama, tokens, tmp_path):
    views = in_layers(llama)
    whole = collect(llama, views, Calibration(tokens, num_folds=2), tmp_path / "whole", key={}, sketches=("b",))
    padded = torch.cat([tokens, torch.zeros(6, 5, dtype=torch.int64)], dim=1)
    mask = torch.arange(17).expand(6, 17) < 12
    with pytest.MonkeyPatch.context() as patch:  # labels are drawn for as many positions as there are
        patch.setattr(
            "burnish.calibrate.labels.draw_labels",
            lambda logits, seed, window: F.pad(draw_labels(logits[:12], seed, window), (0, len(logits) - 12)),
        )
        calibration = Calibration(padded, num_folds=2, mask=mask)
        other = collect(llama, views, calibration, tmp_path / "padded", key={}, sketches=("b",))
    for view in views:
        first, second = whole.read(view, [0, 1]), other.read(view, [0, 1])
        assert first.num_tokens == second.num_tokens == 72
        torch.testing.assert_close(first.covariance, second.covariance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(first.sketches, second.sketches, rtol=1e-9, atol=1e-12)


def test_passes_and_batches_do_not_change_the_sums(llama, tokens, tmp_path):
    views = in_layers(llama)
    calibration = Calibration(tokens, num_folds=2)
    at_once = collect(llama, views, calibration, tmp_path / "one", key={}, sketches=("b",))
    in_parts = collect(
        llama, views, calibration, tmp_path / "two", key={}, sketches=("b",), memory_bytes=1, batch_tokens=12
    )
    for view in views:
        first, second = at_once.read(view, [0, 1]), in_parts.read(view, [0, 1])
        torch.testing.assert_close(first.sketches, second.sketches, rtol=1e-9, atol=1e-12)


def test_both_sketches_in_one_pass_are_those_of_a_pass_each(llama, tokens, tmp_path):
    views = in_layers(llama)
    calibration = Calibration(tokens, num_folds=2)
    both = collect(llama, views, calibration, tmp_path / "both", key={}, sketches=("a", "b"))
    apart = [collect(llama, views, calibration, tmp_path / one, key={}, sketches=(one,)) for one in ("a", "b")]
    for view in views:
        expected = apart[0].read(view, [0, 1]).sketches | apart[1].read(view, [0, 1]).sketches
        torch.testing.assert_close(both.read(view, [0, 1]).sketches, expected, rtol=1e-12, atol=0)


def test_an_interrupted_collection_goes_on_where_it_stopped(llama, tokens, tmp_path):
    views = in_layers(llama)
    calibration = Calibration(tokens, num_folds=3)
    collect(llama, views, calibration, tmp_path, key={}, sketches=("b",), only_folds=[0, 1])
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    collect(llama, views, calibration, tmp_path, key={}, sketches=("b",))
    assert len(kept) == 4 and len(list(tmp_path.iterdir())) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_factors_of_another_model_are_refused(llama, tokens, tmp_path):
    calibration = Calibration(tokens, num_folds=2)
    collect(llama, in_layers(llama), calibration, tmp_path, key={"model": "one"})
    with pytest.raises(CheckpointError, match="model was one, now two"):
        collect(llama, in_layers(llama), calibration, tmp_path, key={"model": "two"})


def test_factors_of_another_text_are_refused(llama, tokens, tmp_path):
    collect(llama, in_layers(llama), Calibration(tokens, num_folds=2), tmp_path, key={})
    with pytest.raises(CheckpointError, match="calibration text: not the same"):
        collect(llama, in_layers(llama), Calibration(tokens.flip(0), num_folds=2), tmp_path, key={})


def test_factors_of_another_sketch_are_refused(llama, tokens, tmp_path):
    calibration = Calibration(tokens, num_folds=2)
    collect(llama, in_layers(llama), calibration, tmp_path, key={}, sketches=("a",))
    with pytest.raises(CheckpointError, match=r"sketches was \['a'\], now \['b'\]"):
        collect(llama, in_layers(llama), calibration, tmp_path, key={}, sketches=("b",))


def test_a_gradient_that_is_not_finite_is_refused_by_name(tokens, tmp_path):
    module = make("llama", **SHAPE)
    module.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="layers"):
        collect(module, in_layers(module), Calibration(tokens, num_folds=2), tmp_path, key={}, sketches=("b",))
    assert not list(tmp_path.iterdir())


def test_a_matrix_that_no_token_reaches_is_refused_by_name(llama, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(llama.model.layers[1].mlp, "forward", lambda hidden: hidden)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.gate_proj.*not reached"):
        collect(llama, in_layers(llama), Calibration(tokens, num_folds=2), tmp_path, key={})


def test_fewer_windows_than_folds_are_refused(llama, tokens, tmp_path):
    with pytest.raises(DataError, match="at least 4 are needed"):
        collect(llama, in_layers(llama), Calibration(tokens[:3], num_folds=4), tmp_path, key={})


def test_folds_share_out_every_window(tokens):
    calibration = Calibration(tokens, num_folds=4)
    assert [number for fold in range(4) for number in calibration.fold(fold)] == list(range(6))
    unequal = Calibration(tokens, num_folds=3, fold_ends=(1, 2, 6))
    assert [list(unequal.fold(fold)) for fold in range(3)] == [[0], [1], [2, 3, 4, 5]]


def test_layer_groups_keep_to_the_memory(llama):
    views = in_layers(llama)
    one_layer = sums_bytes([view for view in views if view.layer == 0], ("b",))
    assert [
        len({v.layer for v in group}) for group in layer_groups(views, sketches=("b",), memory_bytes=one_layer)
    ] == [
        1,
        1,
    ]
    assert len(layer_groups(views, sketches=("b",), memory_bytes=2 * one_layer)) == 1


def test_labels_depend_on_seed_and_window_alone():
    logits = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_labels(logits, 1, 7), draw_labels(logits, 1, 7))
    assert not torch.equal(draw_labels(logits, 1, 7), draw_labels(logits, 1, 8))
    assert not torch.equal(draw_labels(logits, 1, 7), draw_labels(logits, 2, 7))


def test_labels_follow_the_models_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = draw_labels(logits.expand(20_000, 4), 0, 0)
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.015)  # four standard errors


def test_triangles_round_trip():
    matrix = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T
    assert torch.equal(unpack_triangle(pack_triangle(matrix)), matrix)
