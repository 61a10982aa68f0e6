"""What a model has unlearned: counted rightly, located, paired, and learned again by its scales."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import burnish
from burnish import Diagnose, Quantize, Train, Tune
from burnish.core.checkpoint import Model
from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.core.errors import BurnishError, CheckpointError, DataError, SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.made_data import Data
from burnish.core.recipe import read_recipe
from burnish.core.runner import Run
from burnish.core.statistics import mcnemar
from burnish.data.chain import Chains, chain_rows
from burnish.data.forms import as_row
from burnish.diagnose import run as diagnose_run
from burnish.diagnose.run import modulus_of, told
from burnish.generate import generate
from burnish.generate.problems import is_right, prompt_of
from burnish.stages import ROOMS
from burnish.train.scratch import initialise
from burnish.verify import verifier
from small_models import untaught_reasoner

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import small_and_right  # noqa: E402

KIND = Chains(modulus=5, steps=(1, 1), operations="+", repeat=0, direct=0)
"""Twenty questions, which a hundred steps teach."""
QUICK: dict[str, Any] = {"verifier": "chain", "k": 4, "max_new_tokens": 40, "seed": 5}


@pytest.fixture(scope="module")
def original() -> Model:
    """Trained until it is right always."""
    start = untaught_reasoner()
    rows = [row["messages"] for row in chain_rows(KIND, 1200, seed=0)]
    return Train(context=64, batch=16, steps=100, lr=0.01, save_every=0)(start, data=rows)


@pytest.fixture(scope="module")
def packed(original: Model) -> Model:
    """Rounded to two bits, which this model does not survive whole."""
    return Quantize(method="rtn", bits=2, group_size=16)(original)


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    return [
        {"id": f"p{number}", **{key: row[key] for key in ("question", "answer", "modulus")}}
        for number, row in enumerate(chain_rows(KIND, 20, seed=1, distinct=True))
    ]


def made(model: Model, original: Any, problems: Any, work: Path, **settings: Any) -> Data:
    return Diagnose(**QUICK | settings)(model, original=original, data=problems, work_dir=work)


@pytest.fixture(scope="module")
def diagnosed(packed, original, problems, tmp_path_factory: pytest.TempPathFactory) -> Data:
    return made(packed, original, problems, tmp_path_factory.mktemp("work"))


def test_without_a_judge_rows_are_both_answers_and_nothing_lost_is_no_error(packed, original, problems, tmp_path):
    told_of = made(packed, original, problems, tmp_path / "packed", judge="none")
    rows = list(told_of.rows)
    assert [row["id"] for row in rows] == [problem["id"] for problem in problems]
    assert [row["model_right"] for row in rows] == right(packed, problems)
    assert [row["original_right"] for row in rows] == right(original, problems)
    (answers,) = told_of.about["answers"]
    assert answers["lost"] == sum(row["original_right"] and not row["model_right"] for row in rows) > 0
    (same,) = made(original, original, problems, tmp_path / "original", judge="none").about["answers"]
    assert (same["lost"], same["gained"], same["mcnemar_p"]) == (0, 0, 1.0)


def right(model: Model, problems: list[dict[str, Any]]) -> list[bool]:
    """Which problems a model answers rightly, asked beside the product's own loop."""
    grader = verifier("chain")
    found = []
    for problem in problems:
        ids = model.tokenizer(prompt_of(model.tokenizer, grader, problem), add_special_tokens=False)["input_ids"]
        [one] = generate(model.module, model.tokenizer, [ids], max_new_tokens=40, temperature=0)
        found.append(is_right(one, grader, problem))
    return found


def test_who_is_right_where_is_counted(packed, original, problems, diagnosed):
    [row] = diagnosed.about["answers"]
    first, own = right(original, problems), right(packed, problems)
    lost = sum(a and not b for a, b in zip(first, own, strict=True))
    gained = sum(b and not a for a, b in zip(first, own, strict=True))
    assert lost >= 2  # else this fixture says little
    assert (row["lost"], row["gained"], row["both"]) == (lost, gained, sum(first) - lost)
    assert row["original"] == pytest.approx(sum(first) / 20) and row["model"] == pytest.approx(sum(own) / 20)
    assert row["change"] == pytest.approx((gained - lost) / 20) and row["mcnemar_p"] == mcnemar(lost, gained)
    assert row["change_low"] <= row["change"] <= row["change_high"]


def test_every_pair_is_right_over_wrong_behind_one_beginning(problems, diagnosed):
    grader, by_id = verifier("chain"), {problem["id"]: problem for problem in problems}
    rows: list[Any] = list(diagnosed.rows)
    funnel = diagnosed.about["pairs"]
    assert 0 < len(rows) == funnel["pairs"]
    assert funnel["lost"] == funnel["pairs"] + sum(funnel[name] for name in funnel if name not in ("lost", "pairs"))
    for row in rows:
        problem = by_id[row["id"]]
        assert row["prompt"] == [{"role": "user", "content": problem["question"]}]
        [[chosen], [rejected]] = row["chosen"], row["rejected"]
        assert grader.score(chosen["content"], problem) == 1 and grader.score(rejected["content"], problem) == 0
        assert 1 <= row["step"] <= row["steps"] and row["kind"] in ("execution", "method", "unread")
        chat: Any = as_row(row, where="row")
        assert chat.first == 1 and list(chat) == [*row["prompt"], chosen]  # what training reads


def test_neither_order_nor_batch_changes_what_is_found(packed, original, problems, diagnosed, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose_run, "PART", 7)
    turned = made(packed, original, problems[::-1], tmp_path, batch_size=5)
    assert sorted(map(str, turned.rows)) == sorted(map(str, diagnosed.rows))
    [one], [other] = turned.about["answers"], diagnosed.about["answers"]
    assert one == pytest.approx(other)


def test_what_was_asked_before_a_kill_is_not_asked_again(packed, original, problems, diagnosed, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose_run, "PART", 8)
    asked: list[int] = []

    def counting(*given: Any, **settings: Any) -> Any:
        if settings["temperature"] == 0:
            asked.append(len(given[2]))
            if len(asked) == 4:
                raise KeyboardInterrupt
        return generate(*given, **settings)

    monkeypatch.setattr(diagnose_run, "generate", counting)
    with pytest.raises(KeyboardInterrupt):
        made(packed, original, problems, tmp_path)
    again = made(packed, original, problems, tmp_path)
    assert asked == [8, 8, 8, 8, 8, 8, 4, 4]  # both models; the second part again
    assert list(again.rows) == list(diagnosed.rows)


def test_scales_learn_it_again_and_codes_stay(packed, original, problems, diagnosed, tmp_path):
    tuned = Tune(context=64, batch=4, steps=60, lr=3e-3, holdout=0, save_every=0, keep_best=False)(
        packed, data=list(diagnosed.rows), teacher=original
    )
    lost = [problem for problem in problems if problem["id"] in {row["id"] for row in diagnosed.rows}]
    assert sum(right(tuned, lost)) >= len(lost) / 2
    codes = {name: weight.levels for name, weight in packed_weights(packed)}
    assert all((weight.levels == codes[name]).all() for name, weight in packed_weights(tuned))


def test_arithmetic_asks_the_original_once_a_problem(packed, original, problems, diagnosed, tmp_path, monkeypatch):
    drawn: list[int] = []

    def counting(*given: Any, **settings: Any) -> Any:
        drawn.append(len(given[2]) if settings["temperature"] else 0)
        return generate(*given, **settings)

    monkeypatch.setattr(diagnose_run, "generate", counting)
    found = made(packed, original, problems, tmp_path, judge="arithmetic")
    assert found.about["answers"] == diagnosed.about["answers"]
    assert sum(drawn) == found.about["answers"][0]["lost"]


def test_what_leaves_nothing_to_learn_is_refused_in_numbers(packed, original, problems, diagnosed, tmp_path):
    with pytest.raises(DataError, match=r"has lost nothing on these: .* all \d+ problems that the original"):
        made(original, original, problems, tmp_path / "same")
    wrong = [problem | {"answer": "7"} for problem in problems[:10]]  # modulo 5 it is no answer
    with pytest.raises(DataError, match=r"the original answers 0.0% of 10 problems rightly"):
        made(packed, original, wrong, tmp_path / "wrong")
    stage = Diagnose(**QUICK)
    with pytest.raises(DataError, match=r"none of \d+ lost problems makes a pair: .*\d+ held out"):
        stage(packed, original=original, data=problems, held_out=problems, work_dir=tmp_path / "held")


def test_all_right_of_few_problems_is_no_certainty():
    found = [{"original": {"right": True}, "own": {"right": False}} for _ in range(6)]
    (row,) = told(found)
    assert row["original_low"] == pytest.approx(0.025 ** (1 / 6)) and row["original_high"] == 1
    assert row["model_low"] == 0 and row["model_high"] == pytest.approx(1 - 0.025 ** (1 / 6))
    (row,) = told(found[:1])
    assert row["change"] == -1 and row["change_low"] is None and row["change_high"] is None


def test_a_problem_may_say_that_it_has_no_modulus():
    assert [modulus_of({} if given is ... else {"modulus": given}) for given in (..., None, 5, "5", 5.0)] == [
        None,
        None,
        5,
        5,
        5,
    ]


def test_wrong_inputs(packed, original, problems, tmp_path):
    with pytest.raises(SettingsError, match="original: no original is named"):
        made(packed, None, problems, tmp_path)
    other = initialise(
        ROOT / "examples" / "reasoner_small.json", tokenizer="bpe:300", texts=[(ROOT / "LICENSE").read_text()], seed=0
    )
    with pytest.raises(CheckpointError, match="number their tokens differently"):
        made(packed, other, problems, tmp_path)
    with pytest.raises(DataError, match=r"has no `answer`"):
        made(packed, original, [{"question": "3a+4"}], tmp_path)
    for modulus in ("ten", 0, 2.5, [5]):
        with pytest.raises(DataError, match=r"problem 'p0': has the modulus .* no whole number above 0"):
            made(packed, original, [problems[0] | {"modulus": modulus}], tmp_path)
    for settings, words in (
        ({"verifier": "chains"}, "did you mean 'chain'"),
        ({"k": 0}, "k"),
        ({"judge": "llm"}, "judge"),
    ):
        with pytest.raises(BurnishError, match=words):
            Diagnose.parse({"data": "problems.jsonl", **settings}, where="recipe")


def kl_of(metrics: dict[str, Any]) -> float:
    return metrics["kl_divergence"]["value"]


@pytest.mark.slow
def test_the_recipe_runs_small_and_once(original: Model, tmp_path: Path, monkeypatch):
    """With few steps, and rounded so far that something is lost."""
    monkeypatch.chdir(ROOT)
    files = tmp_path / "small"
    (files / "worked").mkdir(parents=True)
    for number, name in enumerate(("worked/chains", "fresh", "unseen", "chains", "tables")):
        distinct = name in ("fresh", "unseen")
        rows = chain_rows(KIND, 20 if distinct else 200, seed=number, distinct=distinct)
        (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (ROOT / "recipes" / "small_and_right.yaml").read_text().replace("runs/small/", f"{files}/")
    content = yaml.safe_load(text.replace(f"{files}/worked", str(files / "worked")))
    few = {"steps": 2, "context": 64, "batch": 4, "holdout": 0.0, "keep_best": False}
    changes: dict[str, dict[str, Any]] = {
        "small": {"group_size": 16},
        "lost": {"k": 4, "held_out": None},
        "adapted": {"max_steps": 2, "batch": 4, "max_length": 64},
        **dict.fromkeys(("tuned", "text_alone", "repaired", "longer", "by_layer"), few),
    }
    asked = {"max_new_tokens": 40}
    content["nodes"] = [
        node | changes.get(node["name"], {}) | (asked if node["stage"] == "diagnose" else {})
        for node in content["nodes"]
    ]
    content["evaluate"] |= {"context": 48, "num_windows": 2}
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(content | {"start": str(original.save(tmp_path / "start"))}))
    Run(read_recipe(recipe), tmp_path / "run", ROOMS).execute()
    ledger = read_rows(tmp_path / "run" / LEDGER_FILE)
    tables = {row["name"] for row in ledger if row["row"] == "table"}
    assert tables >= {"answers", "faults", "pairs", "scales"}
    asked_of = {row["node"] for row in ledger if row["row"] == "table" and row["name"] == "answers"}
    steps = ("small", "tuned", "repaired", "longer", "by_layer")
    assert asked_of == {"lost", "adapted_asked", *(f"{name}_asked" for name in steps)}
    measured = {row["node"]: row["metrics"] for row in ledger if row["row"] == "measurement"}
    assert measured.keys() == {"start", "text_alone", "adapted", *steps}
    sizes = {name: metrics["bytes_on_disk"]["value"] for name, metrics in measured.items()}
    assert len({sizes[name] for name in steps}) == 1 and sizes["adapted"] > sizes["tuned"]
    assert all(f"kl_divergence{text}" in measured["repaired"] for text in ("", "_second", "_third"))
    rows = [json.loads(line) for line in (tmp_path / "run/nodes/lost/rows.jsonl").read_text().splitlines()]
    assert rows and all(row["chosen"] != row["rejected"] for row in rows)
    assert dict(packed_weights(burnish.load(tmp_path / "run/nodes/repaired")))
    assert {d.action for d in Run(read_recipe(recipe), tmp_path / "run", ROOMS).execute()} == {"skip"}
    told_of = small_and_right.summary(small_and_right.read_run(tmp_path / "run"))
    assert told_of["rows"].keys() == measured.keys() and told_of["problems"] == 20
    assert all(told_of["rows"][name]["kl"]["text"] == pytest.approx(kl_of(measured[name])) for name in measured)
