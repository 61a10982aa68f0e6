"""Optimizers that treat a weight matrix as a matrix, and the routing that finds the matrices of a model.

    optimizer = burnish.optim.NorMuon.for_model(model, lr=1e-3)     # matrices by NorMuon, the rest by AdamW
    print(burnish.optim.explain(model))                             # which parameter goes where, and why

They are ordinary `torch.optim.Optimizer` objects: schedulers, closures, `state_dict` and `transformers.Trainer` work.
"""

from burnish.optim.agd import AGD
from burnish.optim.cosmos import COSMOS
from burnish.optim.foreign import import_state
from burnish.optim.normuon import Muon, NorMuon
from burnish.optim.optimizer import AdamW
from burnish.optim.registry import optimizer_class
from burnish.optim.routing import Route, explain, route
from burnish.optim.soap import SOAP
from burnish.optim.wsam import WSAM

__all__ = [
    "AGD",
    "COSMOS",
    "SOAP",
    "WSAM",
    "AdamW",
    "Muon",
    "NorMuon",
    "Route",
    "explain",
    "import_state",
    "optimizer_class",
    "route",
]
