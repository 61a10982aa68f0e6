"""`burnish serve`: what a scheduling policy would change, and a server that has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.outside import MAX_SEED
from burnish.serve.workload import Mode, RouterName, Workload

if TYPE_CHECKING:
    from burnish.core.engines import EngineProcess

SAY_EVERY = 10.0
"""Seconds."""
TRIE, TRIE_TOKENS, DRAFT_TOKENS = "trie", 8, 3
"""What `--speculate` calls the memory of answers; tokens proposed at a time by it, and by a draft."""
Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Many = Annotated[list[str], Parameter(negative=())]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lte=1e9))]


@Parameter(name="*")
@dataclass(frozen=True)
class Taken:
    """What of a trace is asked.

    Attributes:
        tenants: Draw so many tenants for the requests, of sizes 1, 1/2, 1/3 and so on; the report says so.
        limit: Take so many rows of the trace only.
        shrink: Divide the lengths of prompts and answers, for a smaller server.
        speed: Divide the times between arrivals, and pauses.
        longest: Leave out conversations of more tokens than this, after `shrink`.
        seed: Of the draw of tenants.
    """

    tenants: Annotated[int, Parameter(validator=Number(gte=0, lte=100_000))] = 0
    limit: Count | None = None
    shrink: Count = 1
    speed: Seconds = 1.0
    longest: Count | None = None
    seed: Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))] = 0

    @property
    def is_scaled(self) -> bool:
        """Whether lengths or times are others than the trace's, or some are left out for their length."""
        return self.shrink > 1 or self.speed != 1 or self.longest is not None

    def workload(self, trace: Path) -> Workload:
        from burnish.serve.traces import read_trace, scaled, with_tenants

        found = read_trace(trace, limit=self.limit)
        if self.is_scaled:
            found = scaled(found, shrink=self.shrink, speed=self.speed, longest=self.longest)
        if self.tenants:
            sizes = {f"tenant{place}": 1 / place for place in range(1, self.tenants + 1)}
            found = with_tenants(found, sizes, self.seed)
        return found


@Parameter(name="*")
@dataclass(frozen=True)
class Service:
    """What is good service.

    Attributes:
        ttft: Seconds to the first token that are good service.
        tpot: Seconds for each further token that are good service.
    """

    ttft: Seconds = 10.0
    tpot: Seconds = 0.1


@Parameter(name="*")
@dataclass(frozen=True)
class ReplayBounds:
    """Of a replay.

    Attributes:
        at_most: Requests under way at a time; others wait, and are counted.
        patience: Seconds without a word after which a request is given up, and a server that said none to anybody.
    """

    at_most: Count = 64
    patience: Seconds = 600.0


def sim(
    trace: Path,
    /,
    *,
    policy: Many | None = None,
    engine: Path | None = None,
    instances: Count = 1,
    router: RouterName = "least-loaded",
    taken: Taken = Taken(),
    service: Service = Service(),
    step_by_step: Annotated[bool, Parameter(negative=())] = False,
    check: Annotated[bool, Parameter(negative=())] = False,
    out: Out = Path("runs/serve"),
) -> None:
    """Simulate engines with vLLM's scheduling on a trace, under one or more policies, and write a report.

    Parameters
    ----------
    trace:
        Of Mooncake, Azure, BurstGPT, OpenTelemetry or our own; a server's telemetry has the engine's limits and costs.
    policy:
        A YAML file, or fcfs, vtc, shares, dlpm, programs or least-service; of several, the first is the baseline.
    engine:
        A YAML file with the limits of an engine and what its steps take.
    instances:
        Engines, each with its own policy.
    router:
        How requests are spread over engines.
    step_by_step:
        Take every step of the engine for itself: slow, and the same result.
    check:
        Do both, and compare.
    out:
        Directory of results.json and report.html.
    """
    from burnish.core.apart import check_apart
    from burnish.serve.compare import FILE, check_place, compare
    from burnish.serve.recorded import is_recording, read_recording
    from burnish.serve.settings import EngineSettings, read_engine, read_policy

    check_apart([out / FILE, out / "report.html"], [trace, engine])
    policies = [read_policy(one) for one in policy or ["fcfs"]]
    recorded = read_recording(trace, limit=taken.limit) if is_recording(trace) else None
    machine = read_engine(engine) if engine else recorded.engine if recorded else EngineSettings()
    workload = recorded.workload if recorded else taken.workload(trace)
    if recorded and (taken.is_scaled or taken.tenants):
        raise SettingsError("a recording is taken as it is", fix="leave out --shrink, --speed, --longest and --tenants")
    check_place(out)
    results = compare(
        workload,
        policies,
        machine,
        instances=instances,
        router=router,
        ttft=service.ttft,
        tpot=service.tpot,
        step_by_step=step_by_step,
        check=check,
        recorded=recorded,
    )
    _show(out, results)


def up(
    model: Path,
    /,
    *,
    policy: str | None = None,
    speculate: str | None = None,
    num_speculative_tokens: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    steer: Many | None = None,
    python: Path | None = None,
    name: str | None = None,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 0,
    trust_client_tenant: Annotated[bool, Parameter(negative=())] = False,
    keys: Path | None = None,
    headers: Annotated[bool, Parameter(negative=())] = False,
    mode: Mode = "enforce",
    telemetry: Path | None = None,
    metrics_port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 0,
    exchange: Path | None = None,
    dtype: str = "auto",
    max_model_len: Count = 2048,
    option: Many | None = None,
    log: Path | None = None,
) -> None:
    """Start vLLM's server with a policy, a memory of answers or steering, on the loopback, until Ctrl-C.

    The server is a small one for CPUs: no compilation, 1 GiB of keys and values. Clients name themselves in the field
    vllm_xargs: tenant (organisation/team/tenant), program (the workflow), turn, tool (what the answer will call) and
    last (true on the last turn).

    Parameters
    ----------
    model:
        A checkpoint directory.
    policy:
        The file that `burnish serve sim` takes, or the name of an order.
    speculate:
        Propose tokens: trie from the prompt and earlier answers, apart for each `cache_salt`; DIR by that draft.
    num_speculative_tokens:
        Of them in a forward pass, at most; 8 of a trie and 3 of a draft where nothing is said.
    steer:
        Vectors from `burnish steer calibrate`, NAME=DIRECTORY, several times for several; requests ask for NAME:COEF.
    python:
        Interpreter of an environment with vLLM; without it the one that VLLM_PYTHON names.
    name:
        By which clients call the model; the directory's where nothing is said.
    port:
        0 takes a free one, which is printed.
    trust_client_tenant:
        Believe a client which tenant it is of; without it all are of one.
    keys:
        YAML file of mode 600 with a line `key: tenant` each; a request needs one of them, which decides its tenant.
    headers:
        Read the same from headers as well (X-Burnish-Tenant, -Program, -Turn, -Tool, -Last), over what the body says.
    mode:
        off is plain vLLM; each further one adds: records, forecasts, what the policy would do, the policy itself.
    telemetry:
        File that is appended to; `burnish serve sim` reads it as a trace.
    metrics_port:
        Show metrics for Prometheus at this port of the loopback.
    exchange:
        Directory by which servers of a policy with exchange_seconds share its tree; the same for all of them.
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

    from burnish.core.apart import check_apart
    from burnish.core.engines import check_log, vllm
    from burnish.serve.settings import read_policy
    from burnish.serve.telemetry import check_recording
    from burnish.serve.up import IN_HEADERS, KEYED, server_options
    from burnish.serve.vllm.keys import read_keys

    interpreter = python or os.environ.get("VLLM_PYTHON")
    if not interpreter:
        fix = "give --python, or set VLLM_PYTHON to what scripts/vllm-env prints"
        raise SettingsError("no environment with vLLM is named", fix=fix)
    if policy is not None and speculate is not None:
        why = "a policy stands on vLLM's asynchronous scheduler, which proposals switch off"
        raise SettingsError(
            f"policy and proposals exclude each other; {why}", fix="give either --policy or --speculate"
        )
    if steer and speculate is not None:
        why = "proposals are read before it is known whether they stand, and steering counts what stands"
        raise SettingsError(
            f"steering and proposals exclude each other; {why}", fix="give either --steer or --speculate"
        )
    if policy is None and speculate is None and not steer:
        fix = "give --policy, --speculate or --steer"
        raise SettingsError("one is needed, a policy, proposals or vectors to steer with", fix=fix)
    if policy is None and (telemetry or metrics_port or exchange or trust_client_tenant or mode != "enforce"):
        fix = "give --policy, or leave out --mode, --telemetry, --metrics-port, --exchange and --trust-client-tenant"
        raise SettingsError("some options are those of a policy, and none is given", fix=fix)
    draft = draft_at(speculate) if speculate is not None and speculate != TRIE else None
    chosen = read_policy(policy) if policy else None
    if chosen and exchange:
        chosen.check_exchange(str(exchange), where="--exchange")
    if not (model / "config.json").is_file():
        raise CheckpointError("has no config.json, so it is no checkpoint", where=str(model), fix="name its directory")
    check_apart([log, telemetry], [model, Path(policy) if policy else None, keys])
    if telemetry:
        check_apart([log], [telemetry])
        check_recording(telemetry)
    if log:
        check_log(log)
    place = log or Path(tempfile.mkstemp(prefix="vllm-", suffix=".log")[1])
    plugin = {"trust_client_tenant": trust_client_tenant, "mode": mode, "metrics_port": metrics_port}
    if telemetry:
        plugin["telemetry"] = str(telemetry.resolve())
    if exchange:
        plugin["exchange"] = str(exchange.resolve())
    if keys:
        read_keys(keys)
        plugin["trust_client_tenant"] = True  # what a client claims is overwritten before it gets there
        os.environ["BURNISH_KEYS"] = str(keys.resolve())
    names = _load_for_steering(steer) if steer else []
    options = server_options(policy, **plugin) if policy else []
    options += _proposing(draft, num_speculative_tokens, model) if speculate is not None else []
    options += [*(KEYED if keys else IN_HEADERS if headers else ()), *(option or [])]
    server = vllm(
        interpreter,
        model,
        *options,
        log=place,
        name=name,
        plugins=["burnish-steer"] if steer else [],
        dtype=dtype,
        max_model_len=max_model_len,
        port=port,
    )
    if chosen and chosen.warning:
        print(chosen.warning)
    print(f"starting; its log: {place}", flush=True)
    with _counts_in_one_place() if steer else nullcontext(), server as engine:
        proposing = f"with proposals from {'a trie' if speculate == TRIE else speculate}" if speculate else ""
        ways = [f"under {chosen.called}" if chosen else "", proposing]
        ways.append(f"steered by {', '.join(names)}" if names else "")
        how = " and ".join(way for way in ways if way)
        print(f"serving {name or model.resolve().name} {how} at {engine.url}", flush=True)
        _stay(engine, proposes=speculate is not None)


def _proposing(draft: Path | None, num_tokens: int | None, model: Path) -> list[str]:
    """Options of vLLM for proposals of a draft, or of the trie without one.

    Raises:
        CheckpointError: no draft, or one of another model.
    """
    from burnish.serve.up import speculating_options

    if draft is None:
        return speculating_options(num_tokens or TRIE_TOKENS)
    from burnish.core.checkpoint import load
    from burnish.distill.speculator import read_draft

    read_draft(draft).check(load(model))
    return speculating_options(num_tokens or DRAFT_TOKENS, draft)


def draft_at(speculate: str) -> Path:
    """The directory that `--speculate` names, where it does not say the trie.

    Raises:
        SettingsError: it is none.
    """
    place = Path(speculate)
    if not speculate or not place.is_dir():
        what = f"is {speculate!r}, neither {TRIE} nor the directory of a draft"
        raise SettingsError(what, where="--speculate", fix="burnish speculator makes one")
    return place


def _load_for_steering(sets: list[str]) -> list[str]:
    """Tells the plug-in of vLLM what to load.

    Returns:
        Names of the sets.

    Raises:
        BurnishError: a set that cannot be read.
    """
    import json
    import os

    from burnish.steer.vllm import VARIABLE
    from burnish.steer.vllm.asked import read_sets

    named = [one if "=" in one else f"{Path(one).resolve().name}={one}" for one in sets]
    places = {name: str(Path(place).resolve()) for name, _, place in (one.partition("=") for one in named)}
    if len(places) < len(named):
        raise SettingsError("names a set twice", where="--steer")
    os.environ[VARIABLE] = text = json.dumps({name: {"vectors": place} for name, place in places.items()})
    read_sets(text)
    return list(places)


@contextmanager
def _counts_in_one_place() -> Iterator[None]:
    """Makes counts of all processes of a server one metric: a directory of Prometheus's client, unless one is named."""
    import os
    import tempfile

    variable = "PROMETHEUS_MULTIPROC_DIR"
    if variable in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vllm-metrics-", ignore_cleanup_errors=True) as place:
        os.environ[variable] = place
        try:
            yield
        finally:
            del os.environ[variable]


def _stay(engine: EngineProcess, *, proposes: bool) -> None:
    """Until Ctrl-C or its end; says now and then how many tokens were foretold, where some are proposed."""
    import time
    from contextlib import suppress

    from burnish.serve.up import Foretold, foretold

    said, next_look = Foretold(), time.monotonic() + SAY_EVERY
    while True:
        time.sleep(1)
        engine.check()
        if proposes and time.monotonic() > next_look:
            next_look = time.monotonic() + SAY_EVERY
            with suppress(OSError):  # one that is too busy to say it now says it later; `check` tells its end
                found = foretold(engine.url)
                if found != said:
                    print(said := found, flush=True)


def replay(
    trace: Path,
    /,
    *,
    url: str,
    model: str | None = None,
    policy: str | None = None,
    taken: Taken = Taken(),
    bounds: ReplayBounds = ReplayBounds(),
    service: Service = Service(),
    out: Out = Path("runs/replay"),
) -> None:
    """Ask what a trace asked of a live vLLM, at its times, and write what a client sees.

    Texts are drawn. What the server itself saw is in its telemetry (burnish serve up --telemetry FILE), and burnish
    serve sim FILE puts it beside simulations.

    Parameters
    ----------
    trace:
        Of Mooncake, Azure, BurstGPT or OpenTelemetry, or of our own.
    url:
        Of the server, up to and with /v1; a key is read from VLLM_API_KEY.
    model:
        By its name there; the first that the server has where nothing is said.
    policy:
        That the server has, for the report.
    out:
        Directory of requests.jsonl, results.json and report.html.
    """
    import os

    from burnish.core.apart import check_apart
    from burnish.serve.compare import FILE, check_place, compare
    from burnish.serve.recorded import is_recording, read_recording
    from burnish.serve.replay import FILE as REQUESTS
    from burnish.serve.replay import model_of
    from burnish.serve.replay import replay as ask
    from burnish.serve.settings import EngineSettings, PolicySettings, read_policy

    check_apart([out / FILE, out / REQUESTS, out / "report.html"], [trace])
    if is_recording(trace):
        fix = "give the trace that was asked; burnish serve sim reads a recording"
        raise DataError("is a recording, which cannot be asked again", where=str(trace), fix=fix)
    workload = taken.workload(trace)
    chosen = read_policy(policy) if policy else PolicySettings(name="server")
    check_place(out)
    key = os.environ.get("VLLM_API_KEY", "")
    about = {"policy": chosen.model_dump(mode="json", exclude_defaults=True), "mode": "client"}
    name = model or model_of(url, key)
    limits = {"most": bounds.at_most, "patience": bounds.patience}
    place, made = ask(workload, url, name, out, **limits, key=key, about=about)
    for why, count in made.failed.items():
        print(f"{count:,} requests were refused or not answered whole: {why}")
    if made.late:
        print(f"{made.late:,} requests waited here because {bounds.at_most} were under way")
    results = compare(
        workload, [], EngineSettings(), ttft=service.ttft, tpot=service.tpot, recorded=read_recording(place)
    )
    _show(out, results)


def table(recording: Path, /, *, out: Out) -> None:
    """Write a recording as parquet: a row for each request that ended, one for each workflow, one for each pause.

    Parameters
    ----------
    recording:
        A server's telemetry, or the requests.jsonl of burnish serve replay.
    out:
        Directory of requests.parquet, programs.parquet, and pauses.parquet for burnish events fit.
    """
    from burnish.core.apart import check_apart
    from burnish.serve.export import FILES, export

    check_apart([out / name for name in FILES], [recording])
    for place in export(recording, out):
        print(place)


def _show(out: Path, results: dict[str, Any]) -> None:
    """Prints the results and writes them."""
    from burnish.serve.compare import write_results

    _print(results)
    print(f"report: {write_results(out, results)}")


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
