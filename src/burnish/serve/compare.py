"""Several policies on one trace: simulated, measured, and kept as `results.json` and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from burnish.core.checkpoint import write_atomically
from burnish.core.errors import DataError, SettingsError
from burnish.core.outside import check_kind
from burnish.serve.measures import measure
from burnish.serve.recorded import Recording
from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import Simulation, simulate
from burnish.serve.workload import RouterName, Workload

FILE = "results.json"


def compare(
    workload: Workload,
    policies: Sequence[PolicySettings],
    engine: EngineSettings,
    *,
    instances: int = 1,
    router: RouterName = "least-loaded",
    ttft: float = 10.0,
    tpot: float = 0.1,
    step_by_step: bool = False,
    check: bool = False,
    recorded: Recording | None = None,
) -> dict[str, Any]:
    """The results of every policy, as JSON.

    Args:
        workload: what is asked.
        policies: the first is what the others are compared with.
        engine: every engine.
        instances, router: see `simulate`.
        ttft, tpot: limits of good service, seconds.
        step_by_step: takes every step for itself.
        check: simulates twice, taking steps together and step by step, and compares.
        recorded: what really happened to this workload, for a row of its own.

    Raises:
        SettingsError: two policies of one name; one that leaves nobody a place; one whose order is not what it says of
            itself (`check`).
        DataError: no request fits into the pool.
    """
    results, notes, costs = {}, [policy.warning for policy in policies if policy.warning], engine.costs()
    for policy in policies:
        if policy.called in results:
            raise SettingsError(f"two policies are called {policy.called!r}", fix="give one of them another name")
        policy.check_places(engine.max_num_seqs)
        serve = partial(simulate, workload, partial(policy.objects, costs), engine.shape(), costs)
        serve = partial(serve, instances=instances, router=router)
        found = serve(fleet=policy.fleet(instances), step_by_step=step_by_step)
        if check:
            other = serve(fleet=policy.fleet(instances), step_by_step=not step_by_step)
            compare_schedules(policy.called, found, other)
        notes += _notes(policy, found)
        results[policy.called] = measure(found, ttft=ttft, tpot=tpot, weight=policy.weight) | {
            "settings": _said(policy)
        }
    if recorded:
        notes += recorded.notes
        policy = recorded.policy
        results[f"{policy.called}, live"] = measure(recorded.found, ttft=ttft, tpot=tpot, weight=policy.weight) | {
            "settings": _said(policy),
            "live": {"policy": policy.called, "mode": recorded.mode},
        }
    return {
        "trace": _about(workload),
        "engine": engine.model_dump(mode="json", exclude_defaults=True) or {"num_blocks": engine.num_blocks},
        "instances": instances,
        "router": router,
        "notes": notes,
        "policies": results,
    }


def _about(workload: Workload) -> dict[str, Any]:
    return {
        "source": workload.source,
        "requests": workload.num_requests,
        "workflows": len(workload.workflows),
        "synthetic": list(workload.synthetic),
        "dropped": workload.dropped,
    }


def _notes(policy: PolicySettings, found: Simulation) -> list[str]:
    """What has to be said of a simulation."""
    notes = []
    if not found.jobs:
        raise DataError("no request fits into the pool of the engine", fix="give the engine more blocks")
    if found.strangers:
        names = ", ".join(sorted(found.strangers)[:5])
        notes.append(f"{policy.called}: tenants without a weight are under `default`: {names}")
    if found.refused:
        notes.append(f"{policy.called}: {len(found.refused):,} requests fit into no empty pool and were refused")
    return notes


def _said(policy: PolicySettings) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude_defaults=True)


def compare_schedules(name: str, one: Simulation, other: Simulation) -> None:
    """
    Raises:
        SettingsError: two simulations that must be equal are not.
    """
    if one.schedule == other.schedule and replace(one.counters, calls=0) == replace(other.counters, calls=0):
        return
    raise SettingsError(
        "steps that were taken together are not what they are step by step",
        where=name,
        fix="the order says that it is stable and is not: set stable = False in it",
    )


def check_place(directory: Path) -> None:
    """Refuses a directory with files of other kinds under our names, before anything is computed.

    Raises:
        OutputError: what `write_results` would write over is no older result.
    """
    from burnish.core.page.frame import check_page
    from burnish.serve import page

    check_page(directory / page.FILE)
    begin = _text({"trace": {}})[:11].encode()
    check_kind(directory / FILE, lambda head: head.startswith(begin))


def _text(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=1, allow_nan=False) + "\n"


def write_results(directory: Path, results: dict[str, Any]) -> Path:
    """Writes `results.json` and the page; returns where that is."""
    from burnish.serve.page import write_page

    check_place(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / FILE, _text(results))
    return write_page(directory, results)
