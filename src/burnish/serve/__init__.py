"""Fair serving: policies that run in a simulator and in vLLM alike, traces, and what a policy would change

from burnish.serve import PolicySettings, EngineSettings, read_trace, simulate

workload = read_trace("conversation.jsonl.gz")
engine, fair = EngineSettings(), PolicySettings(order="vtc")
costs = engine.costs()
found = simulate(workload, lambda: fair.objects(costs), engine.shape(), costs)
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.serve.balance import TailBalancer as TailBalancer
    from burnish.serve.endpoint_ensemble import EndpointSchemble as EndpointSchemble
    from burnish.serve.ensemble import Schemble as Schemble
    from burnish.serve.members import EnsembleMember as EnsembleMember
    from burnish.serve.settings import EngineSettings as EngineSettings
    from burnish.serve.settings import PolicySettings as PolicySettings
    from burnish.serve.settings import read_engine as read_engine
    from burnish.serve.settings import read_policy as read_policy
    from burnish.serve.simulate import Simulation as Simulation
    from burnish.serve.traces import read_trace as read_trace
    from burnish.serve.workload import Turn as Turn
    from burnish.serve.workload import Workflow as Workflow
    from burnish.serve.workload import Workload as Workload

_PUBLIC = {
    "EndpointSchemble": ".endpoint_ensemble",
    "EngineSettings": ".settings",
    "EnsembleMember": ".members",
    "PolicySettings": ".settings",
    "Schemble": ".ensemble",
    "Simulation": ".simulate",
    "TailBalancer": ".balance",
    "Turn": ".workload",
    "Workflow": ".workload",
    "Workload": ".workload",
    "read_engine": ".settings",
    "read_policy": ".settings",
    "read_trace": ".traces",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
