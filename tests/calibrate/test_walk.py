"""One walk, three sources: the same sums of the original, and the same again behind layers that were changed."""

import pytest
import torch

from burnish.arch import matrices
from burnish.calibrate import Calibration, FromDisk, LayerByLayer, WholeModel, collected
from burnish.core.checkpoint import load
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.errors import NumericalError
from small_models import small_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("walk") / "model"
    small_llama(num_hidden_layers=3).save_pretrained(directory)
    return directory


@pytest.fixture
def text():
    tokens = torch.randint(3, 384, (6, 24), generator=torch.Generator().manual_seed(0))
    return Calibration(tokens, num_folds=2)


def in_layers(module, without=()):
    return [view for view in matrices(module) if view.layer is not None and view.layer not in without]


def walks(checkpoint, changed, without=()):
    """Over a copy of its own each."""
    module, on_disk = load(checkpoint).module, OnDisk(load(checkpoint))
    yield LayerByLayer(module, in_layers(module, without), changed=changed)
    yield FromDisk(on_disk, in_layers(on_disk.module, without), changed=changed)
    if not changed:
        module = load(checkpoint).module
        yield WholeModel(module, in_layers(module, without))


def sums_of(walk, text, directory, change=lambda weight: weight):
    """{name: covariance}, with every matrix changed as soon as the walk allows it."""
    found = {}
    for views, statistics in collected(walk, text, directory, key={}):
        for view in views:
            found[view.name] = statistics.read(view, statistics.folds).covariance
        for piece in walk.pieces(views):
            for view in piece:
                view.write_(change(view.tensor))
    return found


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, covariance in theirs.items():
        assert torch.equal(ours[name], covariance), name


@pytest.mark.parametrize("without", [(), (1,)], ids=["every layer", "a layer that nobody asks for"])
def test_three_sources_see_the_same_of_the_original(checkpoint, text, tmp_path, without):
    first, *others = [
        sums_of(walk, text, tmp_path / str(number), lambda weight: weight * 0.5)
        for number, walk in enumerate(walks(checkpoint, False, without))
    ]
    assert len(others) == 2
    for other in others:
        assert_equal(other, first)


def test_behind_changed_layers_text_is_what_the_changed_network_makes_of_it(checkpoint, text, tmp_path):
    in_memory, from_disk = (
        sums_of(walk, text, tmp_path / str(number), lambda weight: weight * 0.5)
        for number, walk in enumerate(walks(checkpoint, True))
    )
    assert_equal(from_disk, in_memory)
    module = load(checkpoint).module
    for view in in_layers(module):
        if view.layer < 2:
            view.write_(view.tensor * 0.5)
    whole = sums_of(WholeModel(module, in_layers(module)), text, tmp_path / "changed")
    last = {name for name in in_memory if ".layers.2." in name and "down" not in name and "o_proj" not in name}
    assert_equal({name: in_memory[name] for name in last}, {name: whole[name] for name in last})
    original = sums_of(next(walks(checkpoint, False)), text, tmp_path / "original")
    assert all(not torch.equal(in_memory[name], original[name]) for name in last)


def test_padding_counts_for_nothing_in_any_source(checkpoint, text, tmp_path):
    padded = torch.cat([text.tokens, torch.zeros(6, 5, dtype=torch.int64)], dim=1)
    masked = Calibration(padded, num_folds=2, mask=torch.arange(29).expand(6, 29) < 24)
    for number, walk in enumerate(walks(checkpoint, False)):
        for views, statistics in collected(walk, masked, tmp_path / str(number), key={}):
            assert statistics.read(views[0], statistics.folds).num_tokens == text.tokens.numel()


def test_what_belongs_to_one_layer_at_a_time_leaves_nothing_behind(checkpoint, text, tmp_path):
    for walk in walks(checkpoint, True):
        sums_of(walk, text, tmp_path / "sums")
        assert not (tmp_path / "sums").exists()


def test_a_weight_that_is_not_finite_is_refused_before_text_is_run(checkpoint, text, tmp_path):
    for number in (0, 2):
        walk = list(walks(checkpoint, False))[number]
        walk.views[9].tensor[0, 0] = float("nan")
        with pytest.raises(NumericalError, match="weights that are not finite"):
            next(collected(walk, text, tmp_path, key={}))
