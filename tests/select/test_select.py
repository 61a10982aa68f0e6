"""A model's own answers: all that are kept are right and the shortest, whatever the order, the batch and the kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from burnish import Select, Train
from burnish.cli import main
from burnish.core.checkpoint import Model
from burnish.core.errors import DataError, SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.made_data import Data
from burnish.core.recipe import read_recipe
from burnish.core.runner import Run
from burnish.data.chain import Chains, chain_rows
from burnish.generate import generate
from burnish.generate.problems import prompt_of
from burnish.select import run as select_run
from burnish.select.run import histogram
from burnish.stages import ROOMS
from burnish.verify import verifier
from small_models import untaught_reasoner

ROOT = Path(__file__).resolve().parent.parent.parent
KIND = Chains(modulus=5, steps=(1, 1), operations="+", repeat=0.5, direct=0.3)
"""Twenty-five questions, to which there are right answers of three lengths."""
QUICK: dict[str, Any] = {"verifier": "chain", "k": 6, "max_new_tokens": 40, "seed": 5}


@pytest.fixture(scope="module")
def model() -> Model:
    """Trained until it is right about half of the time."""
    rows = list(chain_rows(KIND, 400, seed=0))
    start = untaught_reasoner()
    stage = Train(context=64, batch=16, steps=60, lr=0.01, save_every=0)
    return stage(start, data=[row["messages"] for row in rows])


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    return [
        {"id": f"p{number}", **{key: row[key] for key in ("question", "answer")}}
        for number, row in enumerate(chain_rows(KIND, 20, seed=1, distinct=True))
    ]


def made(model: Model, problems: Any, work: Path, **settings: Any) -> Data:
    return Select(**QUICK | settings)(model, data=problems, work_dir=work)


@pytest.fixture(scope="module")
def selected(model: Model, problems: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Data:
    found = made(model, problems, tmp_path_factory.mktemp("work"))
    found.rows = list(found.rows)
    return found


def test_what_is_kept_is_the_shortest_of_the_right_samples_of_its_problem(model, problems, selected):
    rows: dict[str, Any] = {row["id"]: row for row in selected.rows}
    grader = verifier("chain")
    assert 0 < len(rows) < len(problems)
    by_name = {problem["id"]: problem for problem in problems}
    for name, row in rows.items():
        seed = select_run._chance(Select(**QUICK), "samples", by_name[name]["question"]).getrandbits(32)
        prompt = prompt_of(model.tokenizer, grader, by_name[name])
        ids = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        own = generate(model.module, model.tokenizer, [ids], n=6, max_new_tokens=40, seed=[seed])
        right = [one for one in own if one.finish_reason == "stop" and grader.score(one.text, by_name[name]) == 1]
        assert row["solve_rate"] == pytest.approx(len(right) / 6) and row["difficulty"] == 1 - row["solve_rate"]
        assert row["tokens"] == min(len(one.tokens) for one in right)
        asked, said = row["messages"]
        assert asked == {"role": "user", "content": by_name[name]["question"]}
        assert said["content"] in {one.text for one in right if len(one.tokens) == row["tokens"]}


def test_what_was_counted_adds_up(problems, selected):
    about: Any = selected.about
    counts = about["selection"]
    assert counts["problems"] == len(problems) == sum(row["problems"] for row in about["difficulty"])
    assert counts["samples"] == 6 * len(problems)
    never = next(row["problems"] for row in about["difficulty"] if row["solved"] == "never")
    assert counts["solved"] == counts["kept"] == counts["rows"] == len(problems) - never == len(selected.rows)
    assert counts["tokens_kept"] == pytest.approx(sum(row["tokens"] for row in selected.rows) / len(selected.rows))
    assert counts["tokens_kept"] < counts["tokens_right"]


def test_rows_depend_neither_on_the_order_nor_on_the_batch(model, problems, selected, tmp_path, monkeypatch):
    monkeypatch.setattr(select_run, "PART", 7)
    turned = made(model, problems[::-1], tmp_path, batch_size=5)
    assert sorted(map(str, turned.rows)) == sorted(map(str, selected.rows))


def test_several_answers_of_a_problem_differ_and_the_shortest_comes_first(model, problems, selected, tmp_path):
    rows = list(made(model, problems, tmp_path, keep=3).rows)
    answers: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        answers.setdefault(row["id"], []).append(row)
    assert len(rows) > len(answers)
    for found in answers.values():
        assert len({row["messages"][-1]["content"] for row in found}) == len(found) <= 3
        assert [row["tokens"] for row in found] == sorted(row["tokens"] for row in found)
    assert [found[0] for found in answers.values()] == selected.rows


def test_what_was_sampled_before_a_kill_is_not_sampled_again(model, problems, selected, tmp_path, monkeypatch):
    monkeypatch.setattr(select_run, "PART", 8)
    asked: list[int] = []

    def counting(*given: Any, **settings: Any) -> Any:
        asked.append(len(given[2]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(*given, **settings)

    monkeypatch.setattr(select_run, "generate", counting)
    with pytest.raises(KeyboardInterrupt):
        made(model, problems, tmp_path)
    again = list(made(model, problems, tmp_path).rows)
    assert asked == [8, 8, 8, 4]
    assert again == selected.rows


def test_easy_problems_are_a_share(model, problems, tmp_path):
    """With one sample each, a problem is solved never or always."""
    whole = list(made(model, problems, tmp_path / "whole", k=1).rows)
    half = list(made(model, problems, tmp_path / "half", k=1, easy=0.5).rows)
    assert len(whole) >= 4
    assert 0 < len(half) < len(whole) and [row for row in whole if row in half] == half
    mixed = made(model, problems, tmp_path / "mixed", easy=0)
    assert all(0 < row["solve_rate"] < 1 for row in mixed.rows)


def test_nothing_left_is_refused_with_what_to_change(model, problems, tmp_path):
    with pytest.raises(DataError, match=r"of 20 problems \d+ are solved by every sample and no other .*raise easy"):
        made(model, problems, tmp_path / "all", k=1, easy=0)
    wrong = [problem | {"answer": "7"} for problem in problems[:3]]  # modulo 5 it is no answer
    with pytest.raises(DataError, match=r"no sample of 3 problems is right.*use easier problems"):
        made(model, wrong, tmp_path / "none")
    with pytest.raises(
        DataError, match=r"no sample of 3 problems is right.*raise max_new_tokens: most samples were cut"
    ):
        made(model, problems[:3], tmp_path / "cut", max_new_tokens=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"verifier": "chains"}, "there is no verifier 'chains'; did you mean 'chain'"),
        ({"k": 0}, "k"),
        ({"easy": 1.5}, "easy"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(SettingsError, match=words):
        Select.parse({"data": "problems.jsonl", **settings}, where="recipe")


def test_problems_that_cannot_be_graded_are_refused(model, tmp_path):
    with pytest.raises(DataError, match=r"row 1.*has no `answer`, which the verifier 'chain' needs"):
        made(model, [{"question": "3a+4"}], tmp_path)
    with pytest.raises(DataError, match="holds no problems"):
        made(model, [], tmp_path)


def test_rates_between_none_and_all_stand_in_fifths():
    tried = [{"right": right} for right in range(9)]
    assert [row["problems"] for row in histogram(tried, 8)] == [1, 2, 1, 2, 1, 1, 1]
    assert [row["problems"] for row in histogram([{"right": 0}, {"right": 1}], 1)] == [1, 0, 0, 0, 0, 0, 1]


@pytest.mark.slow
def test_a_file_of_problems_goes_through_a_recipe_and_the_command(model, problems, selected, tmp_path, capsys):
    start = model.save(tmp_path / "start")
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    settings = {key: value for key, value in QUICK.items() if key != "seed"}
    nodes = [
        {"name": "own", "stage": "select", "data": str(file), "seed": 5, **settings},
        {"name": "taught", "from": "start", "stage": "train", "data": "own", "context": 64, "batch": 2, "steps": 2},
    ]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "own", "start": str(start), "nodes": nodes}))
    Run(read_recipe(recipe), tmp_path / "run", ROOMS).execute()
    rows = [json.loads(line) for line in (tmp_path / "run/nodes/own/rows.jsonl").read_text().splitlines()]
    assert rows == selected.rows
    tables = {row["name"] for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "table"}
    assert tables >= {"difficulty", "selection", "loss"}
    words = ["--data", str(file), "--verifier", "chain", "--k", "6", "--max-new-tokens", "40", "--seed", "5"]
    main(["data", "select", str(start), *words, "-o", str(tmp_path / "out")])
    assert (tmp_path / "out" / "rows.jsonl").read_text() == (tmp_path / "run/nodes/own/rows.jsonl").read_text()
