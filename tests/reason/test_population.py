"""A population equals what its rules say, on a model whose every answer follows from what it is shown."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from burnish.cli import main
from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.reason import Budget, Endpoint, JournalReader, strategy
from burnish.reason.calls import BudgetSpent
from burnish.reason.evolve import Evolved, evolve
from burnish.reason.serve.shapes import Refusal
from burnish.reason.serve.wanted import HEADER, wanted
from burnish.reason.strategies.population_generations import Evolution, read_skill
from burnish.reason.strategies.population_rules import Bounds, Labour, bits, drawn, likeness, takes, trail, wilson
from burnish.verify import Exact
from exact_server import ExactServer, InProcess, text_of
from warm import CONTEXT

KINDS = ("alpha", "beta", "gamma", "delta")
WIDE = Bounds(0.0, math.inf)


@dataclass
class World:
    """A kind of task is solved by whoever is shown the skill of that kind; a skill is about the task it comes from."""

    luck: float = 0.0
    harm: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        text = text_of(messages)
        self.seen.append(text)
        kind = re.findall(r"Solve (\w+)", text)[0]
        if "Reply in this form" in text:
            return f"When: solve {kind}\nDo: use {kind}"
        right = draw.random() < self.luck or (f"use {kind}" in text) != self.harm
        return f"Final answer: {f'canary {kind}' if right else 'nothing'}"


def problems(num: int, kinds: int = 2, first: int = 0) -> list[dict[str, Any]]:
    names = [KINDS[i % kinds] for i in range(num)]
    return [
        {"id": f"{first + i}", "question": f"Solve {name} {first + i}", "answer": f"canary {name}", "type": name}
        for i, name in enumerate(names)
    ]


def evolved(directory: Path, world: Any = None, *, kinds: int = 2, seed: int = 0, **settings: Any) -> Evolved:
    given = {"members": 4, "children": 4, "generations": 3, "batch": 8, "skills": 2, "shown": 2} | settings
    more = {name: given.pop(name) for name in ("budget", "transport", "prompts", "first_wait") if name in given}
    url = given.pop("url", "http://127.0.0.1:1/v1")
    return evolve(
        problems(24, kinds),
        problems(8, kinds, first=100),
        Exact(),
        Evolution(**given),
        [Endpoint(url, "exact")],
        directory,
        seed=seed,
        **{"transport": InProcess(world or World()), **more},
    )


def best(found: Evolved) -> list[float]:
    return [row["best"] for row in found.history]


# -- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_life", [1, 5, 12])
def test_half_of_a_trail_is_left_after_its_half_life(half_life: int):
    rho = 1 - 2 ** (-1 / half_life)
    assert math.log(2) / -math.log(1 - rho) == pytest.approx(half_life, rel=1e-12)
    tau = 3.0
    for _ in range(half_life):
        tau = trail(tau, 0.0, rho=rho, bounds=WIDE)
    assert tau == pytest.approx(1.5, rel=1e-12)


def test_a_trail_stays_within_its_bounds():
    assert trail(1.0, 100.0, rho=0.1, bounds=Bounds(0.1, 10.0)) == 10.0
    assert trail(1.0, -100.0, rho=0.1, bounds=Bounds(0.1, 10.0)) == 0.1


@pytest.mark.parametrize("size", [0.3, 1.0, 7.0])
def test_a_member_takes_every_second_task_whose_stimulus_is_its_threshold(size: float):
    assert takes(size, size) == 0.5
    assert takes(3 * size, size) == pytest.approx(0.9)


@pytest.mark.parametrize(("successes", "uses"), [(0, 4), (3, 4), (17, 20), (50, 50)])
def test_the_bound_of_a_skill_is_the_lower_end_of_scipys_wilson_interval(successes: int, uses: int):
    level = math.erf(1 / math.sqrt(2))  # one standard deviation
    reference = binomtest(successes, uses).proportion_ci(level, method="wilson").low
    assert wilson(successes, uses) == pytest.approx(reference, abs=1e-12)


def test_choices_follow_their_weights_and_nothing_is_chosen_twice():
    draw = random.Random(1)
    firsts = [drawn(draw, {"a": 1.0, "b": 3.0}, 1)[0] for _ in range(4000)]
    assert abs(firsts.count("b") / 4000 - 0.75) < 3 * math.sqrt(0.75 * 0.25 / 4000)
    assert sorted(drawn(draw, {"a": 1.0, "b": 3.0}, 5)) == ["a", "b"]


def test_a_task_is_likest_to_itself_and_never_impossible():
    assert likeness("Add two numbers", "add TWO numbers!") == pytest.approx(1.0)
    assert 0 < likeness("add", "subtract") < 0.1


def test_bits_of_perfect_and_of_no_division():
    assert bits([("a", "x"), ("b", "y")] * 200) == pytest.approx(1.0, abs=0.005)
    assert bits([(one, other) for one in "ab" for other in "xy"] * 100) == pytest.approx(0.0, abs=0.005)


def labour(xi: float, phi: float, seed: int) -> tuple[dict[str, dict[str, float]], float]:
    """Eight members in a world of two kinds, each good at one; bits of the last 10 of 30 generations."""
    draw = random.Random(seed)
    thresholds = {f"m{i}": {"x": 1.0, "y": 1.0} for i in range(8)}
    good = {name: "xy"[int(name[1:]) % 2] for name in thresholds}
    pairs: list[tuple[str, str]] = []
    for generation in range(30):
        tasks = {kind: [f"{kind}{i}" for i in range(8)] for kind in "xy"}
        rule = Labour(xi, phi, Bounds(0.05, 5.0))
        thresholds, done = rule.divide(thresholds, tasks, lambda who, task: float(good[who] == task[0]), draw)
        assert sorted(task for _, _, task in done) == sorted(task for of in tasks.values() for task in of)
        pairs += [(who, kind) for who, kind, _ in done] if generation >= 20 else []
    return thresholds, bits(pairs)


@pytest.mark.parametrize("seed", range(3))
def test_two_kinds_of_tasks_make_two_kinds_of_members(seed: int):
    assert labour(0.3, 0.03, seed)[1] > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_without_success_and_idleness_nothing_adapts(seed: int):
    thresholds, found = labour(0.0, 0.0, seed)
    assert {theta for of in thresholds.values() for theta in of.values()} == {1.0}
    assert found < 0.1


@pytest.mark.parametrize(
    ("text", "trigger", "said"),
    [
        ("When: sums\nDo: add\nfrom the left", "sums", "add\nfrom the left"),
        ("**When:** sums\n**Do:** add", "sums", "add"),
        ("Just add.", "alpha", "Just add."),
    ],
)
def test_a_skill_is_read_in_the_forms_that_models_write(text: str, trigger: str, said: str):
    skill = read_skill("s", text, "alpha")
    assert skill is not None
    assert (skill.trigger, skill.text) == (trigger, said)
    assert read_skill("s", "  \n", "alpha") is None


# -- an evolution -------------------------------------------------------------------------------------------------


def test_with_elitism_the_best_fitness_on_fixed_problems_never_falls(tmp_path: Path):
    for seed in range(3):
        found = best(evolved(tmp_path / str(seed), kinds=4, seed=seed, batch=24, generations=6, skills=4, shown=4))
        assert found == sorted(found)
        assert found[-1] > found[0]


@pytest.mark.slow
def test_without_inheritance_it_is_slower(tmp_path: Path):
    """Four kinds, four skills: only who inherits can have more than one of them."""

    def reached(inherit: bool, seed: int) -> float:
        place = tmp_path / f"{inherit}{seed}"
        given: dict[str, Any] = {"kinds": 4, "batch": 24, "generations": 5, "skills": 4, "shown": 4, "mutate": 1.0}
        return best(evolved(place, seed=seed, inherit=inherit, **given))[-1]

    assert [reached(False, seed) for seed in range(3)] == [0.25] * 3
    assert min(reached(True, seed) for seed in range(3)) >= 0.75


def test_specialists_survive_where_a_member_can_have_one_skill(tmp_path: Path):
    found = evolved(tmp_path, members=6, children=6, generations=8, batch=16, skills=1, shown=1)
    assert found.team.name == "team"
    assert found.scores["team"] == 1.0
    assert max(score for name, score in found.scores.items() if name != "team") == 0.5
    assert sum(row["bits"] for row in found.history[-4:]) / 4 > 0.5


def test_the_same_seed_has_the_same_lineage_and_another_has_another(tmp_path: Path):
    first, again, other = (evolved(tmp_path / name, World(luck=0.3), seed=int(name[-1])) for name in ("a1", "b1", "c2"))
    assert first == again
    assert first.history != other.history


def test_a_budget_that_grows_continues_to_the_same_lineage(tmp_path: Path):
    whole = evolved(tmp_path / "whole", World(luck=0.3))
    part = evolved(tmp_path / "part", World(luck=0.3), budget=Budget(calls=48 + 6 + 32 + 50))
    assert part.shortened
    assert part.history == whole.history[:1]
    transport = InProcess(World(luck=0.3))
    assert evolved(tmp_path / "part", transport=transport) == whole
    paid = JournalReader(tmp_path / "part").paid()["exact"].usage.calls
    assert len(transport.bodies) < paid
    assert JournalReader(tmp_path / "part").problems() == []


def start(directory: Path, url: str) -> None:
    evolved(directory, url=url, transport=None, first_wait=0.01)


@pytest.mark.slow
def test_killed_again_and_again_it_has_the_lineage_of_one_that_was_not(tmp_path: Path):
    expected = evolved(tmp_path / "whole", World(luck=0.3))
    draw, deaths = random.Random(0), 0
    with ExactServer(rule=World(luck=0.3), latency=0.02, faults=((0.05, "429"),)) as server:
        for _ in range(5):
            process = CONTEXT.Process(target=start, args=(tmp_path / "killed", server.url))
            process.start()
            stop = sum(server.asked.values()) + draw.randint(1, 60)
            while sum(server.asked.values()) < stop and process.is_alive():
                time.sleep(0.002)
            assert process.pid is not None
            deaths += process.is_alive()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        again = evolved(tmp_path / "killed", url=server.url, transport=None, first_wait=0.01)
    assert deaths > 1
    assert again == expected
    reader = JournalReader(tmp_path / "killed")
    assert reader.problems() == []
    paid = reader.paid()["exact"]
    assert paid.usage.calls == len(list(reader.calls())) + paid.retried + paid.lost


def test_members_answer_the_same_problems_with_the_same_seeds(tmp_path: Path):
    evolved(tmp_path, generations=2)
    calls = [call for call in JournalReader(tmp_path).calls() if "/evolve/generation2/" in call["path"]]
    seeds: dict[str, set[int]] = {}
    members: dict[str, set[str]] = {}
    for call in calls:
        problem, _, _, member = call["path"].split("/")
        seeds.setdefault(problem, set()).add(call["request"]["seed"])
        members.setdefault(member, set()).add(problem)
    assert len(seeds) == 8
    assert {len(of) for of in seeds.values()} == {1}
    assert list(members.values()) == [set(seeds)] * 8


def test_no_prompt_holds_a_right_answer_that_no_model_wrote(tmp_path: Path):
    world = World(harm=True)  # nobody with a skill is ever right
    evolved(tmp_path, world, generations=2)
    shown = [text for text in world.seen if "canary" in text]
    assert all("A checker gave it 1 of 1" in text for text in shown)


def test_where_skills_do_harm_unseen_problems_choose_none(tmp_path: Path):
    found = evolved(tmp_path, World(harm=True))
    assert found.team.name == "bare"
    assert found.scores["bare"] == 1.0


def test_cost_is_taken_from_fitness_and_from_the_decision(tmp_path: Path):
    dear = evolved(tmp_path, World(luck=1.0), cost=1.0)
    assert dear.team.name == "bare"
    assert all(row["best"] < 1 for row in dear.history)


def test_a_problem_to_decide_with_must_not_be_one_to_learn_from(tmp_path: Path):
    with pytest.raises(DataError, match=r"'0' to decide with is the problem '0' to learn from"):
        evolve(problems(4), problems(4), Exact(), Evolution(), [Endpoint("http://127.0.0.1:1/v1", "x")], tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"shown": 3}, ValueError, "shown is 3, but a member has at most 2 skills"),
        ({"members": 1}, ValueError, "members"),
        ({"cost": math.inf}, ValueError, "cost"),
        ({"kind": "level"}, SettingsError, "has no field 'level'"),
        ({"budget": Budget(calls=40)}, SettingsError, "a budget of 40 calls is too small"),
        ({"prompts": {"member": "nothing"}}, SettingsError, "has no {skills}"),
        ({"budget": Budget(completion_tokens=20)}, BudgetSpent, "ended before the unseen problems decided"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path, settings: Any, error: Any, sentence: str):
    with pytest.raises(error, match=sentence):
        evolved(tmp_path, **settings)


# -- its use ------------------------------------------------------------------------------------------------------


def notes(directory: Path) -> set[str]:
    return {note for record in JournalReader(directory).records().values() for note in record["notes"]}


def test_what_was_evolved_answers_other_problems_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, rows in (("learn", problems(16)), ("unseen", problems(8, first=100)), ("test", problems(8, first=200))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ExactServer(rule=World()) as server:
        place = ["--base-url", server.url, "--model", "exact", "--verifier", "exact"]
        files = [str(tmp_path / "learn.jsonl"), "--unseen", str(tmp_path / "unseen.jsonl")]
        settings = ["--members", "4", "--children", "4", "--generations", "3", "--batch", "8"]
        main(["reason", "evolve", *files, *place, *settings, "-o", str(tmp_path / "evolved")])
        said = capsys.readouterr().out
        assert "generation 3: best" in said
        assert "unseen problems chose" in said
        asked = sum(server.asked.values())
        main(["reason", "evolve", *files, *place, *settings, "-o", str(tmp_path / "evolved")])
        assert capsys.readouterr().out == said
        assert sum(server.asked.values()) == asked
        spec = f"population(run={tmp_path / 'evolved'})"
        use = ["--strategy", "direct", "--strategy", spec, "-o"]
        main(["reason", "run", str(tmp_path / "test.jsonl"), *place, *use, str(tmp_path / "run")])
        said = capsys.readouterr()
        main(["reason", "run", str(tmp_path / "unseen.jsonl"), *place, *use, str(tmp_path / "again")])
    assert not notes(tmp_path / "run")
    assert notes(tmp_path / "again") == {
        "the population learned from this problem, or was chosen by it: its score says nothing"
    }
    lines = said.out.splitlines()
    assert lines[0].startswith("direct: 0.000")
    assert ",n=1): 1.000" in lines[1]


def test_a_population_that_was_not_evolved_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="burnish reason evolve"):
        strategy("population")
    with pytest.raises(BurnishError, match="holds no journal"):
        strategy(f"population(run={tmp_path})").label  # noqa: B018
    with pytest.raises(BudgetSpent):
        evolved(tmp_path, budget=Budget(completion_tokens=20))
    with pytest.raises(DataError, match="holds no population whose winner is decided"):
        strategy(f"population(run={tmp_path})").label  # noqa: B018


def test_a_winner_that_cannot_be_read_is_said(tmp_path: Path):
    evolved(tmp_path, generations=1)
    with sqlite3.connect(tmp_path / "journal.db") as database:
        database.execute("UPDATE records SET record = '{}' WHERE name = 'winner'")
    with pytest.raises(DataError, match="a population of another version"):
        strategy(f"population(run={tmp_path})").label  # noqa: B018


@pytest.mark.parametrize("where", ["model", "header"])
def test_no_client_of_a_server_names_a_directory_of_it(tmp_path: Path, where: str):
    spec = f"population(run={tmp_path})"
    body, headers = ({"model": f"{spec}@m"}, {}) if where == "model" else ({"model": "m"}, {HEADER: spec})
    with pytest.raises(Refusal, match="files of the server's machine"):
        wanted(body, headers)
