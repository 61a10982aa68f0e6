"""`burnish reason`: strategies over a server, and the journal of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from burnish.cli.options import Options
from burnish.cli.reason_serve import read_prompts, serve
from burnish.reason.strategies.population_generations import Evolution

if TYPE_CHECKING:
    from burnish.reason import Endpoint
    from burnish.reason.journal import Paid
    from burnish.reason.probe import Probe
    from burnish.reason.tally import Found
    from burnish.verify import Verifier

__all__ = ["evolve", "journal", "probe", "report", "run", "serve"]

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
DEFAULTS = Evolution()
Calls = Annotated[int | None, Parameter(validator=Number(gte=1))]
OptionalOut = Annotated[Path | None, Parameter(name=["--out", "-o"])]


def run(
    data: Path,
    /,
    *,
    strategy: list[str],
    out: Out,
    base_url: str | None = None,
    model: str | None = None,
    endpoint: list[str] | None = None,
    endpoints: Path | None = None,
    verifier: str = "math",
    limit: int | None = None,
    temperature: float = 1.0,
    max_tokens: int = 2048,
    top_logprobs: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    seed: int = 0,
    seeds: int = 1,
    concurrency: int = 64,
    max_calls: Calls = None,
    max_cost: Annotated[float | None, Parameter(validator=Number(gt=0, lt=math.inf))] = None,
    price_in: float | None = None,
    price_out: float | None = None,
    probe: list[Path] | None = None,
    prompts: Path | None = None,
    curves: bool = True,
    unsafe_code: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Ask a server for answers by several strategies, grade them, and say what each used.

    Strategies share their plain samples, which are paid once. A run that is ended, or killed, goes on where it stopped
    when the same command is given again; strategies and seeds may be added. The key is read from OPENAI_API_KEY.

    Parameters
    ----------
    data:
        A .jsonl file of problems, such as {"id": "1", "question": "...", "answer": "42"}.
    strategy:
        direct, self-consistency:8, gsa:4, "rsa(n=8,k=4,loops=3)" and so on; give it several times to compare.
    out:
        Directory of the run.
    base_url:
        Address of an OpenAI-like server, up to /v1.
    model:
        As the server calls it.
    endpoint:
        A further model as NAME=URL,MODEL; strategies call it by its name. The first model is that of plain samples.
    endpoints:
        A .toml file of models, a table for each with url, model, price_in, price_out and others.
    verifier:
        What grades: math, number, exact, last-integer, code (HumanEval, LiveCodeBench) and others.
    limit:
        Take so many problems only.
    temperature:
        Of the samples.
    max_tokens:
        Of one answer, at most.
    top_logprobs:
        Ask for log-probabilities with so many alternatives; best-of-n and routed-rsa need 2 or more.
    seed:
        Of the run.
    seeds:
        Times that every problem is repeated, each with a seed of its own.
    concurrency:
        Calls at a time, at most.
    max_calls:
        Stop after so many requests; strategies then answer with what they have.
    max_cost:
        Stop when so much money is spent; needs the prices of all models.
    price_in:
        Money for a million tokens read, of every model that has no price of its own.
    price_out:
        Money for a million tokens written.
    probe:
        A file from `burnish reason probe`: what the server does not do is refused; OUT/probe.json is read as well.
    prompts:
        A .toml file of texts by name (gsa, rsa, refine, cue and others) in place of the package's own.
    curves:
        Grade every sample and every member of a population, for the curves of the report.
    unsafe_code:
        Run programs of --verifier code even where this machine cannot isolate them.
    """
    from burnish.core.progress import Progress
    from burnish.reason import Budget
    from burnish.reason.endpoints import price, priced
    from burnish.reason.harness import run as run_all
    from burnish.verify import read_problems

    texts, sampling = read_prompts(prompts), _sampling(temperature, max_tokens)
    if top_logprobs:
        sampling |= {"logprobs": True, "top_logprobs": top_logprobs}
    models = priced(
        _models(base_url, model, endpoint or [], endpoints, sampling, concurrency), price(price_in, price_out)
    )
    with _grader(verifier, unsafe_code=unsafe_code) as grader:
        problems = read_problems(data, grader, limit=limit)
        found = _probes(probe or [], out, models)
        budget = Budget(calls=max_calls, cost=max_cost)
        with Progress().task("asking", total=len(problems) * seeds * len(strategy), unit="answers") as task:
            run_all(
                problems,
                grader,
                strategy,
                models,
                out,
                seed=seed,
                seeds=seeds,
                budget=budget,
                probes=found,
                curves=curves,
                prompts=texts,
                progress=task.advance,
            )
    report(out)


def _models(
    base_url: str | None,
    model: str | None,
    named: list[str],
    file: Path | None,
    sampling: dict[str, object],
    concurrency: int,
) -> list[Endpoint]:
    """That of --base-url, those of --endpoint, those of the file."""
    from burnish.core.errors import SettingsError
    from burnish.core.outside import read_bytes
    from burnish.reason import Endpoint
    from burnish.reason.endpoints import named as made
    from burnish.reason.endpoints import read_endpoints

    if (base_url is None) != (model is None):
        raise SettingsError("an address and a model belong together", fix="give both --base-url and --model")
    models = []
    if base_url is not None and model is not None:
        models.append(Endpoint(base_url, model, concurrency=concurrency, sampling=sampling))
    models += [made(one, sampling, concurrency=concurrency) for one in named]
    if file is not None:
        text = read_bytes(file, error=SettingsError).decode("utf-8", "replace")
        models += read_endpoints(text, sampling, where=str(file))
    if not models:
        raise SettingsError("no model is named", fix="give --base-url URL --model NAME, or --endpoint NAME=URL,MODEL")
    return models


def probe(base_url: str, /, *, model: str, out: OptionalOut = None, key_variable: str = "OPENAI_API_KEY") -> None:
    """Ask a server some thirty short questions and print what it really does.

    Parameters
    ----------
    base_url:
        Address of an OpenAI-like server, up to /v1.
    model:
        As the server calls it.
    out:
        A file to keep it in; `burnish reason run` refuses by it what the server cannot do.
    key_variable:
        The variable of the environment that holds the key.
    """
    from burnish.core import interrupts
    from burnish.core.page.frame import write
    from burnish.reason import Endpoint
    from burnish.reason.probe import WORDS
    from burnish.reason.probe import probe as asked

    found = interrupts.run(asked(Endpoint(base_url, model, key_variable=key_variable)))
    said = {True: "yes", False: "no", None: "unclear"}
    for name, finding in found.findings.items():
        print(f"{name:13} {said[finding.does]:8} {WORDS[name]}: {finding.seen}")
    if out is not None:
        print(f"probe: {write(out, found.text())}")


def _probes(files: list[Path], run: Path, endpoints: list[Endpoint]) -> list[Probe]:
    """Those that are named, each of which must be of a model of the run, and the one beside the run."""
    from burnish.core.errors import DataError
    from burnish.core.outside import read_bytes
    from burnish.reason.probe import read_probe

    beside = [run / "probe.json"] if (run / "probe.json").is_file() else []
    found = []
    for file in [*files, *beside]:
        if not file.is_file():
            raise DataError("no such file", where=str(file), fix="write one with burnish reason probe URL -o FILE")
        one = read_probe(read_bytes(file).decode("utf-8", "replace"), where=str(file))
        if file in files and not any(one.fits(endpoint) for endpoint in endpoints):
            what = f"is the probe of {one.model!r} at {one.address}, which the run does not ask"
            raise DataError(what, where=str(file), fix="leave it out")
        found.append(one)
    return found


def evolve(
    learn: Path,
    /,
    *,
    unseen: Path,
    base_url: str,
    model: str,
    out: Out,
    settings: Options[Evolution] = DEFAULTS,
    verifier: str = "math",
    unsafe_code: Annotated[bool, Parameter(negative="")] = False,
    limit: int | None = None,
    temperature: float = 1.0,
    max_tokens: int = 2048,
    seed: int = 0,
    concurrency: int = 64,
    max_calls: Calls = None,
    prompts: Path | None = None,
) -> None:
    """Evolve a population with skills on some problems, and let unseen ones say who of it is best.

    What is found answers further problems as the strategy "population(run=OUT)" of `burnish reason run`. A run that is
    ended, or killed, goes on where it stopped when the same command is given again.

    Parameters
    ----------
    learn:
        A .jsonl file of problems whose rewards the population sees.
    unseen:
        A .jsonl file of other problems, which decide who is best and nothing else.
    base_url:
        Address of an OpenAI-like server, up to /v1.
    model:
        As the server calls it.
    out:
        Directory of the run.
    verifier:
        What grades, as in `burnish reason run`.
    unsafe_code:
        Run programs of --verifier code even where this machine cannot isolate them.
    limit:
        Take so many problems of each file only.
    temperature:
        Of the answers.
    max_tokens:
        Of one answer, at most.
    seed:
        Of the run.
    concurrency:
        Calls at a time, at most.
    max_calls:
        Of the whole run; evolution leaves enough of them to decide.
    prompts:
        A .toml file of texts by name (member, skill, reskill) in place of the package's own.
    """
    from burnish.reason import Budget, Endpoint
    from burnish.reason.evolve import evolve as run_all
    from burnish.verify import read_problems

    texts, sampling = read_prompts(prompts), _sampling(temperature, max_tokens)
    with _grader(verifier, unsafe_code=unsafe_code) as grader:
        first, second = (read_problems(path, grader, limit=limit) for path in (learn, unseen))
        endpoint = Endpoint(base_url, model, concurrency=concurrency, sampling=sampling)
        budget = Budget(calls=max_calls)
        found = run_all(first, second, grader, settings, [endpoint], out, seed=seed, budget=budget, prompts=texts)
    for row in found.history:
        told = f"best {row['best']:.3f}, mean {row['mean']:.3f}, {max(0.0, row['bits']):.2f} bits of division of labour"
        print(f"generation {row['generation']}: {told}")
    if found.shortened:
        print("the budget ended the evolution early; the same command with more continues it")
    print(f"unseen problems chose {found.team.name} ({found.scores[found.team.name]:.3f}; see below for the others)")
    for skill in dict.fromkeys(skill for one in found.team.specialists.values() for skill in one.skills):
        print(f"    {' '.join(skill.trigger.split())}: {' '.join(skill.text.split())}")
    report(out)


def _grader(name: str, *, unsafe_code: bool) -> Verifier:
    from burnish.core.errors import SettingsError
    from burnish.verify import verifier

    if unsafe_code and name != "code":
        raise SettingsError(f"is of no use to the verifier {name!r}", where="--unsafe-code", fix="leave it out")
    return verifier(name, **({"unsafe": True} if unsafe_code else {}))


def report(run: Path, /, *, prices: Path | None = None) -> None:
    """Print accuracy and cost of every strategy of a run, and what was paid; write RUN/report.html.

    Parameters
    ----------
    run:
        Directory from `burnish reason run`.
    prices:
        A .toml file of models as for `burnish reason run --endpoints`, whose prices take the place of the run's.
    """
    from burnish.core.errors import SettingsError
    from burnish.core.outside import read_bytes
    from burnish.reason.endpoints import read_endpoints
    from burnish.reason.page import write_page
    from burnish.reason.tally import read

    given = []
    if prices is not None:
        text = read_bytes(prices, error=SettingsError).decode("utf-8", "replace")
        given = read_endpoints(text, {}, where=str(prices))
    found = read(run, {one.called: one.price for one in given})
    for line in _lines(found):
        print(line)
    print(f"report: {write_page(run, found)}")


def journal(run: Path, /, *, out: OptionalOut = None) -> None:
    """Check the journal of a run, say what was paid, and export its calls as JSON Lines.

    Parameters
    ----------
    run:
        Directory of a run.
    out:
        A file for one line per finished call.
    """
    import json

    from burnish.core.apart import check_apart
    from burnish.core.checkpoint import write_atomically
    from burnish.core.errors import DataError
    from burnish.reason import JournalReader
    from burnish.reason.journal import FILE

    check_apart([out], [run / FILE])
    reader = JournalReader(run)
    if problems := reader.problems():
        raise DataError(f"is damaged ({problems[0]})", where=str(reader.path), fix="start the run anew")
    for line in _paid(reader.paid()):
        print(line)
    if out is not None:
        lines = [json.dumps(call, ensure_ascii=False) for call in reader.calls()]
        write_atomically(out, "".join(f"{line}\n" for line in lines))
        print(f"calls: {out} ({len(lines):,})")


def _lines(found: Found) -> list[str]:
    from burnish.core.page.numbers import decimal, significant, span
    from burnish.reason import Usage

    lines = []
    for one in found.tallies:
        used = sum(one.used.values(), Usage())
        within = span(one.accuracy.low, one.accuracy.high)
        said = f"{one.strategy}: {decimal(one.accuracy.value, 3)} ({within}) of {one.num} problems"
        if one.against and one.against.difference:
            within = span(one.against.difference.low, one.against.difference.high)
            said += f", {decimal(one.against.difference.value, 3)} ({within}) against a vote of equal cost"
        elif one.against:
            said += f", no vote of equal cost ({one.against.why})"
        said += f"; {used.calls:,} calls, {used.prompt:,} tokens read, {used.completion:,} written"
        cost = "an unknown amount" if one.cost is None else significant(one.cost)
        said += f", {cost} of money for a problem" if found.unit == "money" else ", prices unknown"
        unknown = f", {used.unknown:,} calls of unknown size" if used.unknown else ""
        unfinished = f", {one.unfinished} problems unfinished" if one.unfinished else ""
        lines.append(said + unknown + unfinished)
    return lines + _paid(found.paid)


def _paid(paid: Mapping[str, Paid]) -> list[str]:
    return [
        f"paid to {name}: {one.usage.calls:,} requests, {one.usage.prompt:,} tokens read, "
        f"{one.usage.completion:,} written; {one.retried:,} retried, {one.lost:,} lost"
        for name, one in paid.items()
    ]


def _sampling(temperature: float, max_tokens: int) -> dict[str, object]:
    """What every request asks of the server, which would answer nonsense with an error or not at all."""
    from burnish.core.errors import SettingsError

    if not 0 <= temperature < math.inf:
        raise SettingsError(f"is {temperature}", where="--temperature", fix="give a number from 0 on")
    if max_tokens < 1:
        raise SettingsError(f"is {max_tokens}", where="--max-tokens", fix="give at least 1")
    return {"temperature": temperature, "max_tokens": max_tokens}
