"""Every recipe that ships runs: planned as it is, and run small with the tiny model in place of its own."""

from __future__ import annotations

import json
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import warm
from burnish.cli import main
from burnish.core.checkpoint import Lineage, load
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.recipe import read_recipe
from burnish.core.runner import Run
from burnish.report import write
from burnish.stages import ROOMS
from burnish.steer import read_vectors
from burnish.train.scratch import initialise

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

SMALL = {"context": 64, "num_windows": 4, "prompt_tokens": 32, "decode_tokens": 4, "repeats": 2, "engine": None}
SMALL_STAGE = {"quantize": {"tokens": 2048, "length": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem == "quickstart"], ids=lambda path: path.stem)
def test_a_recipe_runs_small_end_to_end(path: Path, tiny_llama: Path, tmp_path: Path):
    content = yaml.safe_load(path.read_text())
    content["start"] = str(tiny_llama)
    content["evaluate"] = content.get("evaluate", {}) | SMALL
    content["nodes"] = [node | SMALL_STAGE[node["stage"]] for node in content["nodes"]]
    small = tmp_path / path.name
    small.write_text(yaml.safe_dump(content))
    run = Run(read_recipe(small), tmp_path / "run", ROOMS)
    decisions = run.execute()
    assert {decision.action for decision in decisions} == {"run"}
    rows = [row for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "measurement"]
    assert {row["node"] for row in rows} == {"start", *(node.name for node in run.recipe.nodes)}
    for node in run.recipe.nodes:
        assert load(run.target(node.name)).module.config.vocab_size == 384
    page = write(tmp_path / "run")
    assert page.stat().st_size < 1_000_000
    assert {d.action for d in Run(read_recipe(small), tmp_path / "run", ROOMS).execute()} == {"skip"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_slimming_recipe_runs_small_end_to_end(tmp_path: Path):
    """On a mixture of the recipe's own shape, with random weights and a hundredth of the tokens,
    of which an expert may see none."""
    text = (ROOT / "LICENSE").read_text()
    start = initialise(ROOT / "examples" / "moe_1m.json", tokenizer="bpe:257", texts=[text], seed=0)
    content = yaml.safe_load((ROOT / "recipes" / "slim_moe.yaml").read_text())
    content["start"] = str(start.save(tmp_path / "start"))
    content["evaluate"] |= {"num_windows": 2, "context": 64, "prompt_tokens": 32, "decode_tokens": 4, "repeats": 2}
    content["nodes"] = [node | {"tokens": 1024, "budgets": [1024], "allow_unseen": True} for node in content["nodes"]]
    small = tmp_path / "slim_moe.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    rows = [row for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "measurement"]
    names = ["narrow.cut1", "narrow.distill1", "narrow.cut2", "narrow", "drop.cut1", "drop"]
    assert {row["node"] for row in rows} == {"start", *names}
    for row in rows:
        assert {"perplexity", "bytes_on_disk", "decode_speed"} <= set(row["metrics"])
    page = write(tmp_path / "run").read_text()
    assert all(name in page for name in names)
    sizes = [load(tmp_path / "run" / "nodes" / name).config for name in ("narrow", "drop")]
    assert (sizes[0].intermediate_size, sizes[0].num_experts) == (48, 8)
    assert (sizes[1].intermediate_size, sizes[1].num_experts) == (128, 3)


@pytest.mark.slow
def test_the_recipe_that_trains_routers_changes_nothing_else(tmp_path: Path):
    text = (ROOT / "LICENSE").read_text()
    start = initialise(ROOT / "examples" / "moe_1m.json", tokenizer="bpe:257", texts=[text], seed=0)
    content = yaml.safe_load((ROOT / "recipes" / "slim_router.yaml").read_text()) | {
        "start": str(start.save(tmp_path / "start")),
        "evaluate": None,
    }
    del content["evaluate"]
    cut, trained = {"tokens": 1024, "allow_unseen": True}, {"steps": 2}
    content["nodes"] = [node | (cut if node["stage"] == "slim" else trained) for node in content["nodes"]]
    small = tmp_path / "slim_router.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    for name in ("narrow", "drop"):
        before, after = (load(tmp_path / "run" / "nodes" / n).module.state_dict() for n in (name, f"{name}_routed"))
        changed = {key for key in before if not before[key].equal(after[key])}
        assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize("example", ["mixtral_1m", "moe_1m", "qwen3_moe_1m"])
def test_the_recipe_of_forms_makes_three_stock_checkpoints_of_one_size(example: str, tmp_path: Path):
    text = (ROOT / "LICENSE").read_text()
    start = initialise(ROOT / "examples" / f"{example}.json", tokenizer="bpe:257", texts=[text], seed=0)
    content = yaml.safe_load((ROOT / "recipes" / "slim_forms.yaml").read_text())
    content["start"] = str(start.save(tmp_path / "start"))
    content["evaluate"] |= {"num_windows": 2, "context": 64}
    content["nodes"] = [node | {"tokens": 1024, "allow_unseen": True} for node in content["nodes"]]
    small = tmp_path / "slim_forms.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    allowed = start.plan().num_parameters * 6 // 10
    made = {name: load(tmp_path / "run" / "nodes" / name).plan() for name in ("narrow", "split", "best")}
    assert all(0.95 * allowed <= plan.num_parameters <= allowed for plan in made.values())  # widths come in eights
    assert made["split"].config.num_experts_per_tok > start.config.num_experts_per_tok
    (forms,) = [
        row["rows"]
        for row in read_rows(tmp_path / "run" / LEDGER_FILE)
        if row["row"] == "table" and row["name"] == "slim forms"
    ]
    (chosen,) = [row for row in forms if row["chosen"]]
    assert chosen["parameters"] == made["best"].num_parameters
    assert chosen["nats per token"] == min(row["nats per token"] for row in forms)


@pytest.mark.slow
def test_a_tree_with_a_teacher_is_killed_twice_continues_and_reports(tiny_llama: Path, tmp_path: Path):
    content = yaml.safe_load((ROOT / "recipes" / "teacher_tree.yaml").read_text()) | {"start": str(tiny_llama)}
    content["evaluate"] |= SMALL | {"speed": False}
    content["nodes"][-1] |= SMALL_STAGE["quantize"]
    small, run, log = tmp_path / "teacher_tree.yaml", tmp_path / "run", tmp_path / "log"
    small.write_text(yaml.safe_dump(content))
    for line in ("taught: distill starts", "taught-4bit: quantize starts"):
        command = warm.Command(log, "run", small, "-o", run)
        assert command.wait_until(lambda line=line, command=command: line in command.output), command.output
        command.end(signal.SIGKILL)
    output = warm.run(log, "run", small, "-o", run)
    assert "teacher: skipped" in output and "taught: skipped" in output
    assert {path.name for path in (run / "nodes").iterdir()} == {"taught", "taught-4bit"}  # as `keep` says
    rows = [row for row in read_rows(run / LEDGER_FILE) if row["row"] == "measurement"]
    assert sorted(row["node"] for row in rows) == ["start", "taught", "taught-4bit", "teacher", "untaught"]
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("teacher", "taught", "untaught", "taught-4bit"))
    again = [sys.executable, "-X", "importtime", "-m", "burnish", "run", str(small), "-o", str(run)]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert done.stderr.count(": skipped, ") == 4
    assert not any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())  # it starts quickly


def on_mixed_text(recipe: str, directory: Path, pieces: int = 60) -> dict[str, Any]:
    """A recipe that reads a little of its mixed text, half of it programs."""
    runpy.run_path(str(ROOT / "examples" / "mixed_text.py"))["main"](str(directory / "mixed-text"))
    (text,) = (directory / "mixed-text").iterdir()
    rows = text.read_text().splitlines(keepends=True)
    prose, programs = ("".join(json.loads(row)["text"] for row in rows[kind::2]) for kind in (0, 1))
    assert 0.8 < len(prose) / len(programs) < 1.25
    assert prose.count("\ndef ") < programs.count("\ndef ") / 100
    text.write_text("".join(rows[:pieces]))
    return yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text().replace("runs/mixed-text", str(text)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_latent_attention_is_killed_twice_continues_and_tells_its_parts_apart(tiny_llama: Path, tmp_path: Path):
    content = on_mixed_text("convert_mla", tmp_path) | {"start": str(tiny_llama)}
    content["evaluate"] |= {
        "context": 64,
        "num_windows": 4,
        "second_text": str(ROOT / "examples" / "data" / "coriolanus.txt.gz"),
    }
    ranks = {"rope": 49, "rank": 25}
    for node in content["nodes"]:
        if node["stage"] == "mla":
            node |= {"rank": ranks.get(node["name"], 24), "rope_dim": 16, "tokens": 2048, "length": 64}
            node |= {"heal_tokens": 4096} if "heal_tokens" in node else {}
        elif node["stage"] == "distill":
            node |= {"context": 64, "steps": 4, "eval_every": 2, "save_every": 2, "keep_best": False}
        else:
            node |= {"group_size": 32}
    small, run, log = tmp_path / "convert_mla.yaml", tmp_path / "run", tmp_path / "log"
    small.write_text(yaml.safe_dump(content))
    for line in ("healed: mla starts", "distilled: distill starts"):
        command = warm.Command(log, "run", small, "-o", run)
        assert command.wait_until(lambda line=line, command=command: line in command.output), command.output
        command.end(signal.SIGKILL)
    output = warm.run(log, "run", small, "-o", run)
    assert "converted: skipped" in output and "healed: skipped" in output
    rows = [row for row in read_rows(run / LEDGER_FILE) if row["row"] == "measurement"]
    kl = {row["node"]: row["metrics"]["kl_divergence_second"]["value"] for row in rows}
    assert set(kl) == {"start", *(node["name"] for node in content["nodes"])}
    assert 0 == kl["start"] < kl["rope"] < kl["rank"]
    page = (run / "report.html").read_text()
    assert "KL divergence, second text" in page and "output error, healed" in page
    assert load(run / "nodes" / "packed").config.model_type == "deepseek_v3"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ladder_is_healed_measured_and_told_apart_from_stock_models(tiny_llama: Path, tmp_path: Path):
    content = on_mixed_text("convert_ladder", tmp_path) | {"start": str(tiny_llama)}
    second = str(ROOT / "examples" / "data" / "coriolanus.txt.gz")
    content["evaluate"] |= {"context": 64, "num_windows": 4, "second_text": second}
    ladder, healed = content["nodes"]
    ladder |= {"layers": "auto:1", "tokens": 256, "length": 64}
    healed |= {"context": 64, "steps": 4, "save_every": 2, "eval_every": 2, "keep_best": False, "only": "*.layers.1.*"}
    small, run = tmp_path / "convert_ladder.yaml", tmp_path / "run"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), run, ROOMS).execute()
    rows = read_rows(run / LEDGER_FILE)
    kl = {row["node"]: row["metrics"]["kl_divergence_second"]["value"] for row in rows if row["row"] == "measurement"}
    assert kl["start"] == 0 < kl["ladder"] and set(kl) == {"start", "ladder", "healed"}
    tables = {row["name"]: row["rows"] for row in rows if row["row"] == "table"}
    assert sum(row["chosen"] for row in tables["ladder_places"]) == len(tables["ladder_layers"]) == 1
    assert Lineage.read(run / "nodes" / "healed").kind == "custom-causal-lm"
    assert (run / "nodes" / "healed" / "modeling_ladder.py").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_whose_prompts_skip_layers_is_distilled_and_measured(tiny_llama: Path, tmp_path: Path):
    content = yaml.safe_load((ROOT / "recipes" / "convert_swiftkv.yaml").read_text()) | {"start": str(tiny_llama)}
    second = str(ROOT / "examples" / "data" / "coriolanus.txt.gz")
    content["evaluate"] |= {"context": 64, "num_windows": 4, "second_text": second}
    content["evaluate"] |= {"prompt_tokens": 64, "decode_tokens": 4}
    swiftkv, distilled = content["nodes"]
    swiftkv |= {"from_layer": 1}
    distilled |= {"only": "*.self_attn.[qkv]_proj.*", "context": 64, "steps": 4, "save_every": 2, "eval_every": 2}
    small, run = tmp_path / "convert_swiftkv.yaml", tmp_path / "run"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), run, ROOMS).execute()
    rows = [row for row in read_rows(run / LEDGER_FILE) if row["row"] == "measurement"]
    metrics = {row["node"]: row["metrics"] for row in rows}
    # Behind one of two layers nothing is lost, so that the best weights are the first ones, which are measured once.
    assert set(metrics) >= {"start", "swiftkv"} and all("prefill_speed" in one for one in metrics.values())
    assert Lineage.read(run / "nodes" / "distilled").kind == "custom-causal-lm"
    assert (run / "nodes" / "distilled" / "modeling_swiftkv.py").is_file()


@pytest.mark.slow
def test_the_bounded_recipe_shows_bound_multiplier_and_both_losses(tiny_llama: Path, tmp_path: Path):
    content = yaml.safe_load((ROOT / "recipes" / "loss_bound.yaml").read_text()) | {"start": str(tiny_llama)}
    content["evaluate"] |= {"num_windows": 2, "context": 64, "speed": False}
    old = tmp_path / "old.txt"
    old.write_text((ROOT / "LICENSE").read_text()[:6000])
    content["nodes"] = [node | {"context": 64, "steps": 16, "lr": 0.01} for node in content["nodes"]]
    bound = content["nodes"][1]["constraints"][0]["loss_bound"]
    bound |= {"data": str(old), "holdout": 0.2}
    small = tmp_path / "loss_bound.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    tables = {row["name"]: row["rows"] for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "table"}
    (found,) = tables["bound"]
    assert found["level"] == pytest.approx(found["held_out_before"] + bound["rise"], rel=1e-12)
    assert len(tables["constraints"]) == 16 / bound["every"]
    page = write(tmp_path / "run").read_text()
    for drawn in ("Multiplier</", "Violation</", "bounded, bound loss", "bounded, loss bound"):
        assert drawn in page, drawn


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sharded_recipe_has_the_same_losses_on_one_process_and_on_two(tiny_llama: Path, tmp_path: Path):
    content = yaml.safe_load((ROOT / "recipes" / "train_sharded.yaml").read_text())
    content["start"] = str(tiny_llama)
    content["evaluate"] |= {"num_windows": 2, "context": 64}
    content["nodes"] = [node | {"context": 64, "steps": 6, "lr": 0.003} for node in content["nodes"]]
    small = tmp_path / "train_sharded.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    rows = list(read_rows(tmp_path / "run" / LEDGER_FILE))
    tables = {row["node"]: row["rows"] for row in rows if row["row"] == "table" and row["name"] == "loss"}
    losses = {node: [row["loss"] for row in table] for node, table in tables.items()}
    assert losses["one"][-1] < losses["one"][0]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)  # float32: the order of sums
    measured = {row["node"]: row["metrics"]["perplexity"]["value"] for row in rows if row["row"] == "measurement"}
    assert measured["two"] == pytest.approx(measured["one"], rel=1e-4)
    assert measured["one"] < measured["start"]
    page = write(tmp_path / "run").read_text()
    assert "processes" in page


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_its_settings_are_known(path: Path):
    recipe = read_recipe(path, start="anything")
    for node in recipe.nodes:
        stage = ROOMS.stage_class(node.stage, where=node.where).parse(node.settings, where=node.where)
        assert stage.name == node.stage


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_reasoner_is_made_from_a_configuration_and_reads_its_own_answers(tmp_path: Path):
    """Two steps of each training on two dozen chains; what is learned is for the benchmark to say."""
    words = ["--tokenizer", "bpe:400", "--data", ROOT / "src" / "burnish" / "reason" / "prompts"]
    words += ["--chat-template", ROOT / "examples" / "reasoner.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "reasoner_small.json", *words])))
    smaller = {"chain": {"number": 24}, "train": {"steps": 2, "holdout": 0.2}}
    smaller["aggregate"] = {"k": 2, "max_new_tokens": 8}

    def run_of(name: str) -> Run:
        text = (ROOT / "recipes" / f"{name}.yaml").read_text().replace("runs/reasoner", str(tmp_path / "tiny_reasoner"))
        content = yaml.safe_load(text) | {"start": str(tmp_path / "start")}
        content["nodes"] = [node | smaller[node["stage"]] for node in content["nodes"]]
        small = tmp_path / f"{name}.yaml"
        small.write_text(yaml.safe_dump(content))
        return Run(read_recipe(small), tmp_path / name, ROOMS)

    run = run_of("tiny_reasoner")
    run.execute()
    partner = run_of("tiny_reasoner_small")  # which reads what the other has made
    partner.execute()
    chats = [json.loads(line)["messages"] for line in (run.target("mixed") / "rows.jsonl").read_text().splitlines()]
    plain = [json.loads(line)["messages"] for line in (run.target("second") / "rows.jsonl").read_text().splitlines()]
    shown = [chat for chat, given in zip(chats, plain, strict=True) if chat != given]
    assert 0 < len(shown) < len(chats)
    assert all("Attempt 2:\n" in chat[0]["content"] for chat in shown)
    for target in (run.target("aggregating"), run.target("plain"), partner.target("aggregating")):
        assert load(target).tokenizer.chat_template
    assert {decision.action for decision in run_of("tiny_reasoner").execute()} == {"skip"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipe_of_shorter_answers_goes_from_a_configuration_to_both_rewards(tmp_path: Path):
    """Two steps of everything, from a start that would be refused; what is learned is for the benchmark to say."""
    words = ["--tokenizer", "bpe:257", "--data", ROOT / "src" / "burnish" / "reason" / "prompts"]
    words += ["--chat-template", ROOT / "examples" / "reasoner.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "chain_reasoner.json", *words])))
    smaller: dict[str, dict[str, object]] = {"chain": {"number": 60}, "train": {"steps": 2, "holdout": 0.2}}
    smaller["grpo"] = {"updates": 2, "prompts": 2, "rollouts": 2, "problems": 4, "max_new_tokens": 12}
    smaller["grpo"] |= {"floor": 0.0, "redundant": 0.0, "held_out": 8}
    content = yaml.safe_load((ROOT / "recipes" / "short_arc.yaml").read_text()) | {"start": str(tmp_path / "start")}
    content["nodes"] = [node | smaller[node["stage"]] for node in content["nodes"]]
    small = tmp_path / "short_arc.yaml"
    small.write_text(yaml.safe_dump(content))
    run = Run(read_recipe(small), tmp_path / "run", ROOMS)
    run.execute()
    tables = [row for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "table"]
    measured = {row["node"] for row in tables if row["name"] == "rl_difficulty"}
    assert measured == {"correct", "shorter"}
    assert all(load(run.target(name)).tokenizer.chat_template for name in measured)


@pytest.mark.slow
def test_a_model_is_taught_by_a_script_and_rewarded_for_episodes_with_a_calculator(tmp_path: Path):
    """Two steps of everything; what is learned is for the benchmark to say."""
    runpy.run_path(str(ROOT / "examples" / "calculator_episodes.py"))["main"](str(tmp_path / "episodes"), 40)
    words = ["--tokenizer", "bpe:257", "--data", tmp_path / "episodes"]
    words += ["--chat-template", ROOT / "examples" / "agent.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "chain_reasoner.json", *words])))
    smaller: dict[str, dict[str, object]] = {
        "train": {"data": str(tmp_path / "episodes" / "episodes.jsonl"), "steps": 2, "holdout": 0.2},
        "grpo": {"updates": 2, "prompts": 2, "rollouts": 2, "problems": 4, "max_new_tokens": 64, "floor": 0.0},
    }
    content = yaml.safe_load((ROOT / "recipes" / "calculator.yaml").read_text()) | {"start": str(tmp_path / "start")}
    content["nodes"] = [node | smaller[node["stage"]] | {"seed": 1} for node in content["nodes"]]
    content["nodes"][1]["held_out"] = 4
    small = tmp_path / "calculator.yaml"
    small.write_text(yaml.safe_dump(content))
    Run(read_recipe(small), tmp_path / "run", ROOMS).execute()
    page = write(tmp_path / "run").read_text()
    assert 'href="drawn/rewarded/episodes.html"' in page and "Training by rewards, rewarded" in page


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_doubter_is_trained_calibrated_and_tried_at_several_strengths(tmp_path: Path):
    """Two steps of training, which answer nothing, so that written solutions are read; the rest is the recipe's."""
    words = ["--tokenizer", "bpe:257", "--data", ROOT / "src" / "burnish" / "reason" / "prompts"]
    words += ["--chat-template", ROOT / "examples" / "reasoner.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "reasoner.json", *words])))
    content = yaml.safe_load((ROOT / "recipes" / "steer_tiny.yaml").read_text()) | {"start": str(tmp_path / "start")}
    smaller: dict[str, dict[str, object]] = {"chain": {"number": 24}, "train": {"steps": 2, "holdout": 0.2}}
    smaller["steer"] = {"traces": "asked", "problems": None, "force": True, "max_new_tokens": 6}
    content["nodes"] = [node | smaller[node["stage"]] for node in content["nodes"]]
    small = tmp_path / "steer_tiny.yaml"
    small.write_text(yaml.safe_dump(content))
    run = Run(read_recipe(small), tmp_path / "run", ROOMS)
    run.execute()
    vectors = read_vectors(run.target("vectors"))
    assert vectors.model == load(run.target("doubter")).identity
    lineage = Lineage.read(run.target("vectors"))
    assert lineage is not None and lineage.kind == "steering"
    tables = {row["name"]: row["rows"] for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "table"}
    assert len(tables["steering, tuning"]) == 1 + 2 * 3
    assert "steering heads" in write(tmp_path / "run").read_text()
    assert {decision.action for decision in Run(read_recipe(small), tmp_path / "run", ROOMS).execute()} == {"skip"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_raw_episodes_become_a_model_with_a_loss_for_each_kind_through_two_kills(tmp_path: Path):
    """200 episodes of the scripted agent and ten steps, killed among the rows and among the steps."""
    runpy.run_path(str(ROOT / "examples" / "scripted_agent.py"))["main"](str(tmp_path / "episodes"), 200)
    words = ["--tokenizer", "bpe:400", "--data", tmp_path / "episodes"]
    words += ["--chat-template", ROOT / "examples" / "agent.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "reasoner_small.json", *words])))
    content = yaml.safe_load((ROOT / "recipes" / "trajectories.yaml").read_text()) | {"start": str(tmp_path / "start")}
    content["nodes"][0]["episodes"] = str(tmp_path / "episodes")
    content["nodes"][1] |= {"steps": 10, "save_every": 2}
    small, log = tmp_path / "trajectories.yaml", tmp_path / "log"
    small.write_text(yaml.safe_dump(content))

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for kept in ("parts/*", "states/step-*"):
        command = warm.Command(log, "run", small, "-o", killed)
        assert command.wait_until(lambda kept=kept: any(killed.rglob(kept))), command.output
        command.end(signal.SIGKILL)
    output = warm.run(log, "run", small, "-o", killed)
    assert "curated: skipped" in output
    Run(read_recipe(small), whole, ROOMS).execute()

    for name in ("nodes/curated/rows.jsonl", "nodes/curated/episodes-01.html", "nodes/trained/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    tables = {row["name"]: row["rows"] for row in read_rows(whole / LEDGER_FILE) if row["row"] == "table"}
    left = {step["filter"]: step["left"] for step in tables["funnel"]}
    dropped = {step["filter"].partition("=")[0] for step in tables["funnel"] if step["dropped"]}
    assert dropped >= {"verified", "budget", "finished", "repeats", "tests", "duplicates"}
    kept = [json.loads(line)["id"] for line in (whole / "nodes/curated/rows.jsonl").read_text().splitlines()]
    assert left["all"] == 200 and left["masks"] == len(kept) == len(set(kept)) > 20
    kinds = {f"loss_{kind}" for kind in ("reasoning", "action", "arguments", "edit", "final", "first_token")}
    assert kinds <= tables["loss"][0].keys()
    assert all(tables["loss"][-1][kind] < tables["loss"][0][kind] for kind in kinds)
    listed = (whole / "nodes/curated/episodes.html").read_text()
    assert all(f">{name}</a>" in listed for name in kept)
    page = write(whole).read_text()
    assert 'href="nodes/curated/episodes.html"' in page and "Loss by kind of token, trained" in page
    raw = (tmp_path / "episodes" / "episodes.jsonl").read_text()
    secrets = set(re.findall(r"token=(\w{24})", raw))
    assert len(secrets) > 50
    for path in [*whole.rglob("*.html"), *whole.rglob("*.jsonl")]:
        assert not any(secret in path.read_text() for secret in secrets), path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_learns_from_its_own_shortest_right_answers(tmp_path: Path):
    """On sums of two digits modulo 5, which sixty steps teach; what it is worth is for a benchmark to say."""
    words = ["--tokenizer", "bpe:257", "--data", ROOT / "src" / "burnish" / "reason" / "prompts"]
    words += ["--chat-template", ROOT / "examples" / "reasoner.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "reasoner_small.json", *words])))
    kind = {"modulus": 5, "steps": [1, 1], "operations": "+", "repeat": 0.5, "direct": 0.3}
    smaller: dict[str, dict[str, object]] = {
        "worked": {"number": 400, "kind": kind},
        "single": {"steps": 60, "batch": 16},
        "fresh": {"number": 20, "kind": kind},
        "own": {"k": 4, "max_new_tokens": 40},
        "shorter": {"steps": 2},
    }
    content = yaml.safe_load((ROOT / "recipes" / "own_answers.yaml").read_text()) | {"start": str(tmp_path / "start")}
    content["nodes"] = [node | smaller[node["name"]] for node in content["nodes"]]
    small = tmp_path / "own_answers.yaml"
    small.write_text(yaml.safe_dump(content))
    run = Run(read_recipe(small), tmp_path / "run", ROOMS)
    run.execute()
    rows = [json.loads(line) for line in (run.target("own") / "rows.jsonl").read_text().splitlines()]
    tables = {row["name"]: row["rows"] for row in read_rows(tmp_path / "run" / LEDGER_FILE) if row["row"] == "table"}
    (counts,) = tables["selection"]
    assert counts["problems"] == 20 and counts["rows"] == len(rows) > 0
    assert counts["tokens_kept"] <= counts["tokens_right"]
    assert sum(row["problems"] for row in tables["difficulty"]) == 20
    before, after = (load(run.target(name)).module.state_dict() for name in ("single", "shorter"))
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_phases_go_on_after_a_kill_and_are_in_one_picture(tmp_path: Path):
    words = ["--tokenizer", "bpe:257", "--data", ROOT / "src" / "burnish" / "reason" / "prompts"]
    words += ["--chat-template", ROOT / "examples" / "reasoner.jinja", "-o", tmp_path / "start"]
    main(list(map(str, ["init", ROOT / "examples" / "reasoner_small.json", *words])))
    content = yaml.safe_load((ROOT / "recipes" / "curriculum.yaml").read_text()) | {"start": str(tmp_path / "start")}
    for node in content["nodes"][:-1]:
        node["number"] = 12 if node["name"].endswith("asked") else 60
    taught = content["nodes"][-1]
    taught |= {"every": 3, "train": taught["train"] | {"save_every": 1}}
    for phase in taught["phases"]:
        phase["steps"] = 6
    small, log = tmp_path / "curriculum.yaml", tmp_path / "log"
    small.write_text(yaml.safe_dump(content))

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = warm.Command(log, "run", small, "-o", killed)
    assert command.wait_until(lambda: any(killed.rglob("training/02-middle-*/states/step-*"))), command.output
    command.end(signal.SIGKILL)
    assert "short: from step 0" not in warm.run(log, "run", small, "-o", killed)
    Run(read_recipe(small), whole, ROOMS).execute()
    assert (killed / "nodes/taught/model.safetensors").read_bytes() == (
        whole / "nodes/taught/model.safetensors"
    ).read_bytes()
    of = [
        {row["name"]: row["rows"] for row in read_rows(run / LEDGER_FILE) if row["row"] == "table"}
        for run in (killed, whole)
    ]
    assert of[0]["held out"] == of[1]["held out"] and of[0]["phases"] == of[1]["phases"]
    assert [row["to_step"] for row in of[0]["phases"]] == [6, 12, 18]
    page = write(killed).read_text()
    assert "Held-out sets over the phases, taught" in page and "middle ends" in page


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ways_for_long_contexts_come_of_one_parent(tmp_path: Path):
    """On a few rows; every way ends elsewhere, and is asked by depth."""
    start, data = tmp_path / "start", tmp_path / "rows"
    words = ["--tokenizer", "bpe:257", "--data", ROOT / "src" / "burnish" / "reason" / "prompts", "-o", start]
    main(list(map(str, ["init", ROOT / "examples" / "retriever.json", *words])))
    script = runpy.run_path(str(ROOT / "examples" / "retrieval_rows.py"))
    script["ROWS"].update(dict.fromkeys(script["ROWS"], 40))
    script["main"](str(start), str(data))
    assert sorted(path.stem for path in data.iterdir()) == ["copies", "long", "short", "six", "three"]
    content = yaml.safe_load((ROOT / "recipes" / "long_context.yaml").read_text()) | {"start": str(start)}
    content["nodes"] = [
        node | {"data": str(data / Path(node["data"]).name), "steps": 30 if "from" in node else 2, "batch": 4}
        for node in content["nodes"][3:]  # the last phase of the parent, and what comes of it
    ]
    small = tmp_path / "long_context.yaml"
    small.write_text(yaml.safe_dump(content))
    run = Run(read_recipe(small), tmp_path / "run", ROOMS)
    run.execute()
    ways = [load(run.target(name)).module.lm_head.weight for name in ("parent", "plain", "skip", "cyclic", "weights")]
    assert all(not one.equal(other) for place, one in enumerate(ways) for other in ways[:place])
    asked = ["--task", "ruler:letters", "--lengths", "53", "--depths", "2", "--samples", "2", "-o", tmp_path / "asked"]
    main(list(map(str, ["evaluate", run.target("skip"), *asked])))
    (row,) = [row for row in read_rows(tmp_path / "asked" / LEDGER_FILE) if row.get("name") == "ruler_depths"]
    assert [one["depth"] for one in row["rows"]] == [0.0, 1.0]
