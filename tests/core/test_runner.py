"""The runner on real stages in real processes (`small_stages.py`)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_stages import Judge, Scale

import warm
from burnish.core.checkpoint import Lineage, load
from burnish.core.errors import (
    CheckpointError,
    DataError,
    NumericalError,
    OutputError,
    RecipeError,
    SettingsError,
    StageError,
)
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Rooms, Run
from burnish.core.runner.directory import locked


def file_hash(reference: str) -> str:
    if not Path(reference).is_file():
        raise DataError("no such file", where=reference)
    return hashlib.sha256(Path(reference).read_bytes()).hexdigest()


STAGES = {"scale": Scale, "judge": Judge}
ROOMS = Rooms(lambda name, where: STAGES[name], lambda: Scale, file_hash)


def run(nodes: str, start: Path, directory: Path, **options: object) -> Run:
    recipe = parse_recipe(f"start: {start}\n{nodes}", source="r.yaml")
    return Run(recipe, directory, ROOMS, log=lambda message: None, **options)  # type: ignore[arg-type]


def actions(work: Run) -> dict[str, str]:
    return {decision.node.name: decision.action for decision in work.execute()}


CHAIN = "nodes: [{name: a, stage: scale}, {name: b, stage: scale, factor: 0.25}]"


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "chain"
    run(CHAIN, tiny_llama, directory).execute()
    return directory


@pytest.fixture
def chain(finished: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(finished, tmp_path / "chain"))


def test_each_node_makes_a_checkpoint_from_its_parent(finished: Path, tiny_llama: Path):
    before, after = load(tiny_llama).module, load(finished / "nodes" / "b").module
    assert torch.equal(after.lm_head.weight, before.lm_head.weight * 0.125)


def test_the_lineage_says_stage_settings_and_parents(finished: Path):
    a, b = (Lineage.read(finished / "nodes" / name) for name in "ab")
    assert a is not None
    assert b is not None
    assert (b.stage, b.settings["factor"]) == ("scale", 0.25)
    assert b.parents == {"model": a.hash}


def test_the_ledger_has_one_row_per_node_with_cost(finished: Path):
    rows = [row for row in read_rows(finished / LEDGER_FILE) if row["row"] == "stage"]
    assert [row["node"] for row in rows] == ["a", "b"]
    assert all(row["seconds"] > 0 and row["peak_memory_bytes"] > 10_000_000 for row in rows)


def test_a_finished_run_does_nothing(chain: Path, tiny_llama: Path):
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "skip", "b": "skip"}


def test_deciding_a_finished_run_loads_no_torch(finished: Path, tiny_llama: Path):
    """Restarting a finished run must be quick, so it must not import the libraries of the stages."""
    script = f"""
import sys
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Rooms, Run
from burnish.core.runner.directory import locked
from small_stages import Scale
rooms = Rooms(lambda name, where: Scale, lambda: Scale, lambda reference: "")
recipe = parse_recipe("start: {tiny_llama}\\n{CHAIN}", source="r")
print([d.action for d in Run(recipe, __import__("pathlib").Path("{finished}"), rooms).decide()])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['skip', 'skip']", "[]"]


@pytest.mark.slow
def test_a_changed_setting_reruns_that_node_and_what_follows(chain: Path, tiny_llama: Path):
    changed = CHAIN.replace("stage: scale}", "stage: scale, factor: 0.125}", 1)
    work = run(changed, tiny_llama, chain)
    assert work.decide()[0].reason == "factor was 0.5, now 0.125"
    assert actions(work) == {"a": "run", "b": "run"}


def test_a_volatile_setting_reruns_nothing(chain: Path, tiny_llama: Path):
    assert actions(run(CHAIN.replace("{name: a,", "{name: a, pause: 0.01,"), tiny_llama, chain))["a"] == "skip"


@pytest.mark.slow
def test_a_changed_later_node_leaves_the_earlier_one_alone(chain: Path, tiny_llama: Path):
    assert actions(run(CHAIN.replace("0.25", "0.75"), tiny_llama, chain)) == {"a": "skip", "b": "run"}


@pytest.mark.slow
def test_a_changed_start_reruns_everything(chain: Path, tiny_llama: Path, tmp_path: Path):
    other = tmp_path / "other"
    model = load(tiny_llama)
    with torch.no_grad():
        model.module.model.norm.weight.mul_(2)
    model.save(other)
    work = run(CHAIN, other, chain)
    assert work.decide()[0].reason == "its input 'start' has changed"
    assert actions(work) == {"a": "run", "b": "run"}


@pytest.mark.slow
def test_an_edited_data_file_reruns_exactly_what_reads_it(tiny_llama: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("one")
    nodes = f"nodes: [{{name: a, stage: scale, text: {text}}}, {{name: b, from: start, stage: scale}}]"
    run(nodes, tiny_llama, tmp_path / "run").execute()
    text.write_text("two")
    work = run(nodes, tiny_llama, tmp_path / "run")
    assert work.decide()[0].reason == "the content of 'text' has changed"
    assert actions(work) == {"a": "run", "b": "skip"}


def test_data_that_many_nodes_read_is_hashed_once_until_it_changes(tiny_llama: Path, tmp_path: Path):
    text, read = tmp_path / "text.txt", []

    def counted(reference: str) -> str:
        read.append(reference)
        return file_hash(reference)

    text.write_text("one")
    nodes = ", ".join(f"{{name: n{number}, stage: scale, text: {text}}}" for number in range(5))
    recipe = parse_recipe(f"start: {tiny_llama}\nnodes: [{nodes}]", source="r.yaml")
    work = Run(recipe, tmp_path / "run", Rooms(ROOMS.stage_class, ROOMS.evaluate, counted))
    before = work.decide()
    work.plan(before)
    assert read == [str(text)]
    text.write_text("another")
    assert work.decide()[0].key != before[0].key
    assert read == [str(text)] * 2


def test_a_node_that_a_reference_names_comes_first_whatever_the_order_in_the_file(tiny_llama: Path, tmp_path: Path):
    nodes = "nodes: [{name: s, from: start, stage: scale, teacher: t}, {name: t, from: start, stage: scale}]"
    assert [node.name for node in run(nodes, tiny_llama, tmp_path / "run").recipe.nodes] == ["t", "s"]


def test_nodes_that_refer_to_each_other_form_a_circle(tiny_llama: Path, tmp_path: Path):
    nodes = "nodes: [{name: a, stage: scale, teacher: b}, {name: b, from: start, stage: scale, teacher: a}]"
    with pytest.raises(RecipeError, match="circle: a -> b -> a"):
        run(nodes, tiny_llama, tmp_path / "run")


@pytest.mark.slow
def test_a_reference_may_name_a_node(tiny_llama: Path, tmp_path: Path):
    nodes = "nodes: [{name: t, stage: scale}, {name: s, from: start, stage: scale, teacher: t}]"
    run(nodes, tiny_llama, tmp_path / "run").execute()
    before = load(tiny_llama).module.lm_head.weight
    after = load(tmp_path / "run" / "nodes" / "s").module.lm_head.weight
    assert torch.equal(after, before * 0.5 + before * 0.5)


@pytest.mark.slow
def test_keep_leaves_drops_the_inner_checkpoints_and_still_skips(tiny_llama: Path, tmp_path: Path):
    nodes = CHAIN + "\nkeep: leaves"
    run(nodes, tiny_llama, tmp_path / "run").execute()
    assert sorted(path.name for path in (tmp_path / "run" / "nodes").iterdir()) == ["b"]
    assert actions(run(nodes, tiny_llama, tmp_path / "run")) == {"a": "skip", "b": "skip"}


@pytest.mark.slow
def test_a_dropped_checkpoint_is_made_again_for_a_new_child(tiny_llama: Path, tmp_path: Path):
    run(CHAIN + "\nkeep: leaves", tiny_llama, tmp_path / "run").execute()
    work = run(CHAIN.replace("0.25", "0.75") + "\nkeep: leaves", tiny_llama, tmp_path / "run")
    assert actions(work) == {"a": "run", "b": "run"}


def test_an_edited_checkpoint_is_noticed(chain: Path, tiny_llama: Path):
    config = chain / "nodes" / "a" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"config\.json is not what the lineage file says"):
        run(CHAIN, tiny_llama, chain).execute()


def test_a_file_that_is_gone_or_new_is_said_to_be_that_and_not_damaged(chain: Path, tiny_llama: Path):
    made = chain / "nodes" / "a"
    (made / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"mine\.txt is none of the files .*; move it to another place"):
        run(CHAIN, tiny_llama, chain).execute()
    (made / "mine.txt").unlink()
    (made / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is gone, .*; copy it too"):
        run(CHAIN, tiny_llama, chain).execute()


def test_verify_notices_a_change_that_kept_size_and_time(chain: Path, tiny_llama: Path):
    run(CHAIN, tiny_llama, chain).execute()
    weights = chain / "nodes" / "a" / "model.safetensors"
    stat = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(CHAIN, tiny_llama, chain).execute()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what"):
        run(CHAIN, tiny_llama, chain, verify=True).execute()


# -- failures --------------------------------------------------------------------------------------------------------


def failing(fault: str) -> str:
    return f"nodes: [{{name: b, stage: scale, fault: {fault}}}]"


def test_an_error_in_a_stage_comes_out_as_the_same_sentence(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(NumericalError, match=r"r\.yaml:2, node 'b': the gradient of layer 3 is not finite; lower"):
        run(failing("error"), tiny_llama, tmp_path / "run").execute()


def test_exhausted_memory_says_what_to_lower(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(StageError, match="ran out of memory; lower --factor"):
        run(failing("memory"), tiny_llama, tmp_path / "run").execute()


def test_a_killed_stage_says_so_and_leaves_nothing_half_made(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(StageError, match=r"killed by signal 9 .*lower --factor"):
        run(failing("kill"), tiny_llama, tmp_path / "run").execute()
    assert not list((tmp_path / "run").glob("nodes/*"))


def test_a_bug_in_a_stage_points_to_the_log(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(StageError, match=r"failed with status 1; the traceback is in .*b\.log"):
        run(failing("crash"), tiny_llama, tmp_path / "run").execute()
    assert "ZeroDivisionError: a bug" in (tmp_path / "run" / "logs" / "b.log").read_text()


def test_a_stage_that_cannot_take_its_input_is_refused_before_anything_runs(tiny_llama: Path, tmp_path: Path):
    nodes = "nodes: [{name: a, stage: scale}, {name: j, stage: judge}]"
    with pytest.raises(RecipeError, match="node 'j': judge needs a sequence-classifier checkpoint"):
        run(nodes, tiny_llama, tmp_path / "run").execute()
    assert not (tmp_path / "run" / "nodes").exists()


def test_a_wrong_setting_names_file_line_and_the_nearest_key(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match=r"r\.yaml:2, node 'a': there is no setting 'facter'.*'factor'"):
        run("nodes: [{name: a, stage: scale, facter: 2}]", tiny_llama, tmp_path / "run")


def test_a_wrong_type_says_what_was_given(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="factor is 'much', but input should be a valid number"):
        run("nodes: [{name: a, stage: scale, factor: much}]", tiny_llama, tmp_path / "run")


def test_a_missing_data_file_is_found_before_anything_runs(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        run(
            "nodes: [{name: a, stage: scale}, {name: b, stage: scale, text: gone}]", tiny_llama, tmp_path / "run"
        ).execute()
    assert not (tmp_path / "run" / "nodes").exists()


def test_a_run_that_was_refused_may_be_corrected_in_the_same_place(tiny_llama: Path, tmp_path: Path):
    bad = CHAIN.replace("{name: a,", "{name: a, text: gone,")
    with pytest.raises(DataError):
        run(bad, tiny_llama, tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()
    assert run(CHAIN, tiny_llama, tmp_path / "run").decide()[0].action == "run"


def test_a_device_that_is_not_there_is_found_before_anything_runs(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CheckpointError, match="sees no GPU"):
        run(CHAIN.replace("{name: a,", "{name: a, device: cuda,"), tiny_llama, tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_an_unknown_device(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="device is 'banana', but known devices are auto, cpu, cuda and cuda:N"):
        run(CHAIN.replace("{name: a,", "{name: a, device: banana,"), tiny_llama, tmp_path / "run")


def test_a_directory_of_something_else_is_no_run_directory(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(OutputError, match="is not a run directory"):
        run(CHAIN, tiny_llama, tmp_path)


def test_a_run_of_a_newer_version_is_refused(chain: Path, tiny_llama: Path):
    state = json.loads((chain / "run.json").read_text()) | {"format": 99}
    (chain / "run.json").write_text(json.dumps(state))
    with pytest.raises(OutputError, match="written by a newer burnish"):
        run(CHAIN, tiny_llama, chain)


def test_measuring_on_the_text_that_a_node_reads_is_refused(tiny_llama: Path, tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same words")
    nodes = f"evaluate: {{text: {tmp_path}/a.txt}}\nnodes: [{{name: a, stage: scale, text: {tmp_path}/b.txt}}]"
    with pytest.raises(RecipeError, match="node 'a': text is the text that everything is measured on"):
        run(nodes, tiny_llama, tmp_path / "run").decide()


def test_a_path_outside_the_working_directory_is_never_read_silently(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    [note] = run(CHAIN, tiny_llama, tmp_path / "run").reads_outside()
    assert note == f"r.yaml:1 reads {tiny_llama.resolve()}, outside the working directory"


def test_a_configuration_without_weights_is_planned_but_not_run(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "config").mkdir()
    shutil.copy(tiny_llama / "config.json", tmp_path / "config")
    work = run(CHAIN, tmp_path / "config", tmp_path / "run")
    assert work.plan(work.decide()).num_parameters == load(tiny_llama).plan().num_parameters
    with pytest.raises(CheckpointError, match="no weights"):
        work.execute()


SCRIPT = """
import sys
from pathlib import Path
from burnish.core.recipe import parse_recipe
from burnish.core.runner import Rooms, Run
from burnish.core.runner.directory import locked
from small_stages import Scale
rooms = Rooms(lambda name, where: Scale, lambda: Scale, lambda reference: "")
recipe = parse_recipe(sys.argv[1], source="r")
Run(recipe, Path(sys.argv[2]), rooms).execute()
"""


@contextmanager
def started(nodes: str, start: Path, directory: Path) -> Iterator[warm.Script]:
    """A runner in a process of its own, ended in any case."""
    script = warm.Script(directory.with_suffix(".log"), SCRIPT, f"start: {start}\n{nodes}", directory)
    try:
        yield script
    finally:
        script.end(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_stopped_leaves_no_process_and_can_continue(tiny_llama: Path, tmp_path: Path, signum: int):
    slow = CHAIN.replace("factor: 0.25}", "factor: 0.25, pause: 60}")
    with started(slow, tiny_llama, tmp_path / "run") as script:
        assert script.wait_until(lambda: (tmp_path / "run" / "work" / "b").is_dir() and warm.children_of(script.pid))
        assert script.end(signum) != 0  # and its children are gone
    assert actions(run(CHAIN, tiny_llama, tmp_path / "run")) == {"a": "skip", "b": "run"}


@pytest.mark.slow
def test_two_runs_in_one_directory_are_refused(tiny_llama: Path, tmp_path: Path):
    slow = CHAIN.replace("factor: 0.25}", "factor: 0.25, pause: 60}")
    with started(slow, tiny_llama, tmp_path / "run") as script:
        assert script.wait_until((tmp_path / "run" / "work" / "b").is_dir), script.output
        with pytest.raises(OutputError, match="another burnish is running here"):
            run(CHAIN, tiny_llama, tmp_path / "run").execute()


def test_a_reference_to_a_checkpoint_of_another_kind_is_refused_before_anything_runs(tiny_llama: Path, tmp_path: Path):
    shutil.copytree(tiny_llama, tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (tmp_path / "reward" / "config.json").write_text(json.dumps(config))
    nodes = f"nodes: [{{name: a, stage: scale}}, {{name: b, stage: scale, teacher: {tmp_path}/reward}}]"
    with pytest.raises(RecipeError, match="node 'b': teacher must be a causal-lm checkpoint, but is a sequence-class"):
        run(nodes, tiny_llama, tmp_path / "run").execute()
    assert not (tmp_path / "run" / "nodes").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_of_several_that_dies_is_one_sentence(tiny_llama: Path, tmp_path: Path):
    nodes = failing("kill").replace("name: b,", "name: b, launch: {processes: 2},")
    with pytest.raises(StageError, match=r"node 'b': process \d of 2 was killed by signal 9 .*memory ran out"):
        run(nodes, tiny_llama, tmp_path / "run").execute()


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "null", '{"format": 1}', '{"format": 1, "nodes": {}, "files": {"a": 5}}', "\udcff"),
        '{"format": 1, "nodes": {"a": {"status": 1}}, "files": {}}',
        '{"format": 1, "nodes": {}, "files": {"text.txt": {"stamps": {}}}}',
        '{"format": 1, "nodes": {}, "files": {}, "tree": [{"name": "a"}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_state_can_be_deleted_as_is_advised(chain: Path, tiny_llama: Path, content: str):
    (chain / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(OutputError, match=r"run\.json") as caught:
        run(CHAIN, tiny_llama, chain)
    assert "damaged" in str(caught.value) and str(caught.value).endswith("delete it; finished nodes are kept")
    (chain / "run.json").unlink()
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "skip", "b": "skip"}


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"format": 2}', "\udcff"])
def test_a_damaged_lineage_says_what_to_do_and_that_works(chain: Path, tiny_llama: Path, content: str):
    file = chain / "nodes" / "b" / "burnish.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="delete this checkpoint and make it again"):
        run(CHAIN, tiny_llama, chain).execute()
    shutil.rmtree(file.parent)
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "skip", "b": "run"}


def test_a_run_that_is_killed_early_pairs_no_new_settings_with_an_old_result(chain: Path, tiny_llama: Path):
    with pytest.raises(StageError):
        run(CHAIN.replace("scale}", "scale, seed: 3, fault: kill}", 1), tiny_llama, chain).execute()
    first, second = json.loads((chain / "run.json").read_text())["tree"]
    assert (first["settings"]["seed"], first["status"]) == (3, "running")
    assert second["status"] == "waiting"
    assert "hash" not in first and "hash" not in second
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "skip", "b": "skip"}, "and nothing finished is lost"


def test_a_lock_does_not_make_a_strangers_directory_ours(tmp_path: Path, tiny_llama: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="exists and is not a run directory"):
        run(CHAIN, tiny_llama, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"stage_version": 99},
        {"settings": {}},
        {"parents": {}},
        {"stage": "judge"},
        {"key": "0"},
        {"kind": "adapter"},
        {"weights": "packed"},
    ],
)
def test_a_lineage_that_was_changed_by_hand_is_noticed(chain: Path, tiny_llama: Path, change: dict[str, object]):
    file = chain / "nodes" / "a" / "burnish.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"changed by hand .*delete this checkpoint and make it again"):
        run(CHAIN, tiny_llama, chain).decide()
    shutil.rmtree(file.parent)
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "run", "b": "skip"}


def test_a_node_that_was_renamed_keeps_its_checkpoint(chain: Path, tiny_llama: Path):
    made = (chain / "nodes" / "b" / "model.safetensors").stat().st_mtime_ns
    work = run(CHAIN.replace("name: b", "name: better"), tiny_llama, chain)
    assert [decision.reason for decision in work.decide()][1] == "was called 'b' before"
    assert actions(work) == {"a": "skip", "better": "skip"}
    assert (chain / "nodes" / "better" / "model.safetensors").stat().st_mtime_ns == made
    assert not (chain / "nodes" / "b").exists()
    assert set(json.loads((chain / "run.json").read_text())["nodes"]) == {"a", "better"}
    assert actions(run(CHAIN.replace("name: b", "name: better"), tiny_llama, chain)) == {"a": "skip", "better": "skip"}


def test_another_seed_is_another_key_and_runs_again(chain: Path, tiny_llama: Path):
    assert Scale(seed=1).key("parent", {}) != Scale(seed=0).key("parent", {})
    decisions = run(CHAIN.replace("factor: 0.25", "factor: 0.25, seed: 1"), tiny_llama, chain).decide()
    assert [(decision.action, decision.reason) for decision in decisions][1] == ("run", "seed was 0, now 1")


def test_a_run_takes_its_lock_and_gives_it_back(chain: Path, tiny_llama: Path):
    with locked(chain), pytest.raises(OutputError, match="another burnish is running here"):
        run(CHAIN, tiny_llama, chain).execute()
    run(CHAIN, tiny_llama, chain).execute()


def test_an_edited_checkpoint_can_be_deleted_and_made_again_as_advised(chain: Path, tiny_llama: Path):
    weights = chain / "nodes" / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(CheckpointError, match="delete the directory and make it again") as caught:
        run(CHAIN, tiny_llama, chain).execute()
    shutil.rmtree(str(caught.value.where))
    assert actions(run(CHAIN, tiny_llama, chain)) == {"a": "skip", "b": "run"}
