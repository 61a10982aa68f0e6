"""Two processes collect what one does."""

from pathlib import Path

import pytest
import torch
import torch.distributed

from burnish.arch import matrices
from burnish.calibrate import Calibration, collect
from small_models import make

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}


def gather(directory: Path):
    module = make("llama", dtype=torch.float64, **SHAPE)
    views = [view for view in matrices(module) if view.layer is not None]
    tokens = torch.randint(1, 64, (9, 16), generator=torch.Generator().manual_seed(0))
    return views, collect(module, views, Calibration(tokens, num_folds=2), directory, key={}, sketches=("b",))


def one_of_two(rank: int, directory: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    gather(Path(directory) / "two")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_collect_the_same_factors(tmp_path):
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    views, alone = gather(tmp_path / "one")
    _, together = gather(tmp_path / "two")  # the files are there: nothing is collected again
    for view in views:
        ours, theirs = together.read(view, alone.folds), alone.read(view, alone.folds)
        assert ours.num_tokens == theirs.num_tokens == 9 * 16
        torch.testing.assert_close(ours.covariance, theirs.covariance, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(ours.sketches, theirs.sketches, rtol=1e-10, atol=1e-14)
