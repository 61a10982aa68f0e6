"""Trajectories of the authors' own code; see tests/reference/optim/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.optim import AGD, COSMOS, SOAP, AdamW, Muon, NorMuon

REFERENCE = Path(__file__).parents[1] / "reference" / "optim"
EXACT = 1e-12  # float64 against float64: a few rounding errors


def worst_difference(optimizer_class, file, names, steps, *, dtype=torch.float64, **options):
    numbers = np.load(REFERENCE / file, allow_pickle=False)
    parameters = [torch.nn.Parameter(torch.tensor(numbers[f"{name}/w0"], dtype=dtype)) for name in names]
    optimizer = optimizer_class(parameters, **options)
    worst = 0.0
    for step in range(steps):
        for name, parameter in zip(names, parameters, strict=True):
            parameter.grad = torch.tensor(numbers[f"{name}/g{step}"], dtype=dtype)
        optimizer.step()
        for name, parameter in zip(names, parameters, strict=True):
            difference = parameter.detach() - torch.tensor(numbers[f"{name}/w{step + 1}"])
            worst = max(worst, difference.abs().max().item())
    return worst


def test_normuon_follows_the_authors_code():
    options = {"lr": 0.02, "weight_decay": 0.1, "scale": "reference"}
    assert worst_difference(NorMuon, "normuon_auxadam_f64_exact.npz", ["w"], 5, **options) < EXACT


def test_normuon_follows_the_authors_code_after_a_zero_gradient():
    options = {"lr": 0.02, "weight_decay": 0.1, "scale": "reference"}
    assert worst_difference(NorMuon, "normuon_official_zerograd_f64_exact.npz", ["tall", "wide"], 3, **options) < EXACT


def test_muon_follows_keller_jordans_code():
    names = ["square", "tall", "wide", "vtall", "vwide"]
    options = {"lr": 0.02, "weight_decay": 0.1, "scale": "reference"}
    assert worst_difference(Muon, "muon_kellerjordan_f64_exact.npz", names, 6, **options) < EXACT


def test_adamw_follows_the_auxiliary_adam_of_normuon():
    options = {"lr": 0.003, "weight_decay": 0.05, "eps": 1e-10}
    # torch's kernel takes the root of the second moment before the bias correction, which moves eps by 1e-10.
    assert worst_difference(AdamW, "normuon_auxadam_f64_exact.npz", ["emb", "bias"], 5, **options) < 1e-9


@pytest.mark.parametrize(
    "name, options",
    [
        ("plain", {"lr": 0.02, "weight_decay": 0.1, "delta": 1e-5}),
        ("switch", {"lr": 1e-3, "weight_decay": 0.0, "delta": 0.05}),
        ("amsgrad", {"lr": 0.02, "weight_decay": 0.1, "delta": 1e-3, "amsgrad": True}),
    ],
)
def test_agd_follows_atorch(name, options):
    names = [f"{name}/w", f"{name}/b"]
    assert worst_difference(AGD, "agd_atorch_f64.npz", names, 8, betas=(0.9, 0.99), **options) < EXACT


COSMOS_OPTIONS = {"lr": 2e-3, "betas": (0.95, 0.9), "rank": 4, "weight_decay": 0.1, "gamma": 0.25, "lr_ratio": 0.2}


def test_cosmos_legacy_follows_the_published_code():
    names = [f"nesterov/{name}" for name in ("square", "tall", "wide")]
    difference = worst_difference(COSMOS, "cosmos_official_f64_exact.npz", names, 10, legacy=True, **COSMOS_OPTIONS)
    assert difference < EXACT


def test_cosmos_legacy_without_nesterov_has_no_momentum_as_published():
    names = [f"plain/{name}" for name in ("square", "tall", "wide")]
    difference = worst_difference(
        COSMOS, "cosmos_official_f64_exact.npz", names, 6, legacy=True, nesterov=False, **COSMOS_OPTIONS
    )
    assert difference < EXACT


def test_cosmos_with_nesterov_equals_the_published_code_on_ordinary_gradients():
    names = [f"nesterov/{name}" for name in ("square", "tall", "wide")]
    assert worst_difference(COSMOS, "cosmos_official_f64_exact.npz", names, 10, **COSMOS_OPTIONS) < EXACT


@pytest.mark.parametrize("file, name, steps", [("cosmos_official_f64_exact.npz", "nesterov/bias", 10)])
def test_cosmos_legacy_adam_follows_the_published_code(file, name, steps):
    def optimizer(parameters, **options):
        groups = [{"params": parameters, "algorithm": "adamw"}]
        return COSMOS(groups, **options)

    options = {key: value for key, value in COSMOS_OPTIONS.items() if key != "rank"}
    assert worst_difference(optimizer, file, [name], steps, legacy=True, **options) < EXACT


def test_soap_follows_the_authors_code_in_float32():
    # The tall and the wide matrix of the file are left out: their first covariance has a null space, whose basis is
    # whatever LAPACK returns on that machine, and later steps see it.
    options = {"lr": 3e-3, "weight_decay": 0.01, "precondition_frequency": 2}
    difference = worst_difference(SOAP, "soap_official_f32.npz", ["square"], 8, dtype=torch.float32, **options)
    # Eight float32 steps of about lr, through eigenvectors that are known to about 1e-4 where eigenvalues are close.
    assert difference < 8 * 3e-3 * 1e-3
