"""The table of algorithms: what a parameter group may name."""

from __future__ import annotations

from burnish.optim.adamw import AdamW, AdamWRule
from burnish.optim.cosmos import COSMOS, CosmosRule
from burnish.optim.normuon import Muon, MuonRule, NorMuon, NorMuonRule
from burnish.optim.optimizer import MatrixOptimizer, UpdateRule
from burnish.optim.soap import SOAP, SoapRule

RULES: dict[str, UpdateRule] = {
    "normuon": NorMuonRule(),
    "muon": MuonRule(),
    "cosmos": CosmosRule(),
    "soap": SoapRule(),
    "adamw": AdamWRule(),
}

OPTIMIZERS: dict[str, type[MatrixOptimizer]] = {
    "normuon": NorMuon,
    "muon": Muon,
    "cosmos": COSMOS,
    "soap": SOAP,
    "adamw": AdamW,
}
