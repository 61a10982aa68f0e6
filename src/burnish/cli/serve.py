"""`burnish serve`: what a scheduling policy would change, and a server that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.core.outside import MAX_SEED
from burnish.serve.workload import RouterName

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Many = Annotated[list[str], Parameter(negative=())]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=1e9))]


def sim(
    trace: Path,
    /,
    *,
    policy: Many | None = None,
    engine: Path | None = None,
    instances: Count = 1,
    router: RouterName = "least-loaded",
    tenants: Annotated[int, Parameter(validator=Number(gte=0, lte=100_000))] = 0,
    limit: Count | None = None,
    ttft: Seconds = 10.0,
    tpot: Seconds = 0.1,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))] = 0,
    step_by_step: Annotated[bool, Parameter(negative=())] = False,
    check: Annotated[bool, Parameter(negative=())] = False,
    out: Out = Path("runs/serve"),
) -> None:
    """Simulate engines with vLLM's scheduling on a trace, under one or more policies, and write a report.

    Parameters
    ----------
    trace:
        A Mooncake .jsonl, an Azure or BurstGPT .csv, or a .jsonl of arrival_s, prompt_tokens, output_tokens; or .gz.
    policy:
        A YAML file, or fcfs, vtc, shares, dlpm, programs or least-service; of several, the first is the baseline.
    engine:
        A YAML file with the limits of an engine and what its steps take.
    instances:
        Engines, each with its own policy.
    router:
        How requests are spread over engines.
    tenants:
        Draw so many tenants for the requests, of sizes 1, 1/2, 1/3 and so on; the report says that they are drawn.
    limit:
        Take so many rows of the trace only.
    ttft:
        Seconds to the first token that are good service.
    tpot:
        Seconds for each further token that are good service.
    seed:
        Of the draw of tenants.
    step_by_step:
        Take every step of the engine for itself: slow, and the same result.
    check:
        Do both, and compare.
    out:
        Directory of results.json and report.html.
    """
    from burnish.core.apart import check_apart
    from burnish.serve.compare import FILE, check_place, compare, write_results
    from burnish.serve.settings import EngineSettings, read_engine, read_policy
    from burnish.serve.traces import read_trace, with_tenants

    check_apart([out / FILE, out / "report.html"], [trace, engine])
    policies = [read_policy(one) for one in policy or ["fcfs"]]
    machine = read_engine(engine) if engine else EngineSettings()
    workload = read_trace(trace, limit=limit)
    if tenants:
        workload = with_tenants(workload, {f"tenant{place}": 1 / place for place in range(1, tenants + 1)}, seed)
    check_place(out)
    results = compare(
        workload,
        policies,
        machine,
        instances=instances,
        router=router,
        ttft=ttft,
        tpot=tpot,
        step_by_step=step_by_step,
        check=check,
    )
    _print(results)
    print(f"report: {write_results(out, results)}")


def up(
    model: Path,
    /,
    *,
    policy: str,
    python: Path | None = None,
    name: str | None = None,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 0,
    trust_client_tenant: Annotated[bool, Parameter(negative=())] = False,
    dtype: str = "auto",
    max_model_len: Count = 2048,
    option: Many | None = None,
    log: Path | None = None,
) -> None:
    """Start vLLM's server with a policy, on the loopback, until Ctrl-C.

    The server is a small one for CPUs: no compilation, 1 GiB of keys and values. Clients name themselves in the field
    vllm_xargs: tenant (organisation/team/tenant), program (the workflow), turn, tool (what the answer will call) and
    last (true on the last turn).

    Parameters
    ----------
    model:
        A checkpoint directory.
    policy:
        The file that `burnish serve sim` takes, or the name of an order.
    python:
        Interpreter of an environment with vLLM; without it the one that VLLM_PYTHON names.
    name:
        By which clients call the model; the directory's where nothing is said.
    port:
        0 takes a free one, which is printed.
    trust_client_tenant:
        Believe a client which tenant it is of; without it all are of one.
    dtype:
        Of the weights.
    max_model_len:
        Tokens of a conversation, at most.
    option:
        One more option of vLLM's server as it is written there, value included; several times for several.
    log:
        File for what vLLM says.
    """
    import os
    import tempfile
    import time

    from burnish.core.apart import check_apart
    from burnish.core.engines import vllm
    from burnish.core.errors import SettingsError
    from burnish.serve.settings import read_policy
    from burnish.serve.up import server_options

    interpreter = python or os.environ.get("VLLM_PYTHON")
    if not interpreter:
        fix = "give --python, or set VLLM_PYTHON to what scripts/vllm-env prints"
        raise SettingsError("no environment with vLLM is named", fix=fix)
    chosen = read_policy(policy)
    check_apart([log], [model, Path(policy)])
    place = log or Path(tempfile.mkstemp(prefix="vllm-", suffix=".log")[1])
    options = [*server_options(policy, trust_client_tenant=trust_client_tenant), *(option or [])]
    server = vllm(
        interpreter, model, *options, log=place, name=name, dtype=dtype, max_model_len=max_model_len, port=port
    )
    if chosen.warning:
        print(chosen.warning)
    print(f"starting; its log: {place}", flush=True)
    with server as engine:
        print(f"serving {name or model.resolve().name} under {chosen.called} at {engine.url}", flush=True)
        while True:
            time.sleep(1)
            engine.check()


def _print(results: dict[str, Any]) -> None:
    import sys

    from rich.console import Console

    from burnish.core.page.console import console_table
    from burnish.serve.page import cache_table, policy_table, sentences

    if results["trace"]["synthetic"]:
        print(f"synthetic: {', '.join(results['trace']['synthetic'])}")
    console = Console(width=None if sys.stdout.isatty() else 130)
    for made in (policy_table(results["policies"], brief=True), cache_table(results["policies"])):
        console.print(console_table(made))
    for sentence in [*sentences(results["policies"]), *results["notes"]]:
        print(sentence)
