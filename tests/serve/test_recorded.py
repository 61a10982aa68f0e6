"""Telemetry: what is written, and what is read back."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from burnish import cli
from burnish.core.errors import DataError, OutputError, SettingsError
from burnish.serve.compare import compare
from burnish.serve.export import FILES, export
from burnish.serve.policies.protocol import Job
from burnish.serve.recorded import fit_linear, is_recording, read_recording
from burnish.serve.settings import PolicySettings
from burnish.serve.simulate import simulate
from burnish.serve.telemetry import BlockNumbers, Recorder
from burnish.serve.traces import scaled
from burnish.serve.watch import StepClock, Watcher
from burnish.serve.workload import Turn, Workflow, Workload

LIMITS = {"num_blocks": 50, "block_size": 16, "max_num_batched_tokens": 256, "max_num_seqs": 4, "budget": 0.5}
SECRET = "a word of a prompt"


def record(path: Path, *, mode: Any = "telemetry", steps: int = 30) -> Watcher:
    """Two turns of a workflow, a request with the same beginning, and one that was given up."""
    watcher = Watcher(mode, 1000, recorder=Recorder(path, LIMITS | {"policy": {"order": "vtc"}, "mode": mode}))
    hashes = [f"{SECRET} {number}" for number in range(9)]

    def serve(job: Job, begin: int, num: int, *, output: int = 4, how: str = "length") -> None:
        watcher.arrived(job, begin)
        watcher.admitted(job.name, begin + 10, 16)
        for token in range(output):
            watcher.tokens(job.name, begin + 20 + token, 1)
        watcher.ended(job.name, begin + 100, how=how, computed=job.prompt + output - 1, hashes=hashes[:num])

    serve(Job("1", "a", "p", prompt=40, tool="search"), 1000, 2)
    serve(Job("2", "b", prompt=50), 1500, 3)
    serve(Job("3", "a", "p", prompt=60), 3100, 4)
    serve(Job("4", "b", prompt=10), 4000, 0, how="given up")
    for number in range(steps):
        watcher.step(
            5000, ns=1000 + 7 * number + 3 * number % 5, cpu_ns=1, prompt=number, decodes=number % 5, context=0
        )
    watcher.hold_ended("p", 6000, "returned", blocks=2, since=2000, pinned=3)
    watcher.hold_ended("p", 6000, "expired", blocks=1, since=1000, pinned=3)
    watcher.idle()
    return watcher


def test_what_was_recorded_is_read_back(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    found = read_recording(tmp_path / "live.jsonl")
    assert [(one.name, one.tenant, one.arrival) for one in found.workload.workflows] == [("p", "a", 0), ("2", "b", 500)]
    first, second = found.workload.workflows[0].turns
    assert (first.prompt, first.output, first.pause, first.tool) == (40, 4, 2000, "search")
    assert second.blocks[:2] == first.blocks
    assert found.workload.workflows[1].turns[0].blocks == second.blocks[:3]
    assert found.workload.dropped == {"given up": 1}
    jobs = {job.name: job for job in found.found.jobs}
    assert (jobs["3"].arrival, jobs["3"].admitted, jobs["3"].first_token, jobs["3"].finished) == (
        2100,
        2110,
        2120,
        2200,
    )
    assert (jobs["3"].turn, jobs["3"].program_arrival, jobs["3"].known, jobs["3"].evicted) == (1, 0, 43, 27)
    assert found.engine.num_blocks == 50
    assert found.policy.order == "vtc"
    counters = found.found.counters
    assert (counters.useful, counters.wasted, counters.expired, counters.pinned) == (8000, 5000, 1, 3)


def test_a_recording_is_its_owners_and_holds_no_text(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    assert stat.S_IMODE((tmp_path / "live.jsonl").stat().st_mode) == 0o600
    assert SECRET not in (tmp_path / "live.jsonl").read_text()
    assert is_recording(tmp_path / "live.jsonl")


def test_a_recording_is_simulated_beside_what_happened(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    found = read_recording(tmp_path / "live.jsonl")
    results = compare(found.workload, [PolicySettings(order="vtc"), PolicySettings()], found.engine, recorded=found)
    assert list(results["policies"]) == ["vtc", "fcfs", "vtc, live"]
    assert results["policies"]["vtc, live"]["ttft"]["mean"] == pytest.approx(20e-9)
    assert results["policies"]["fcfs"]["requests"] == 3


def test_a_server_that_starts_again_goes_on_in_the_same_file(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    record(tmp_path / "live.jsonl")
    found = read_recording(tmp_path / "live.jsonl")
    assert len(found.workload.workflows) == 4
    assert "2 starts" in found.notes[0]
    one, other = (workflow.turns[0].blocks for workflow in found.workload.workflows[::2])
    assert not set(one) & set(other)  # the cache was empty again


def test_the_fit_finds_the_law_of_steps():
    draw = np.random.default_rng(0)
    steps = np.column_stack([draw.integers(0, 500, 200), draw.integers(0, 50, 200), draw.integers(0, 9000, 200)])
    taken = 5e6 + 4e4 * steps[:, 0] + 2e4 * steps[:, 1] + 40 * steps[:, 2]
    table = np.column_stack([taken, taken / 2, steps])
    assert fit_linear(table) == pytest.approx((5e6, 4e4, 40, 2e4))
    assert fit_linear(table, cpu=True) == pytest.approx((2.5e6, 2e4, 20, 1e4))


def test_the_fit_is_right_in_the_sum_where_steps_vary():
    """Half a percent: 2,000 steps that vary by a quarter have a mean that is known to .6 percent."""
    draw = np.random.default_rng(1)
    steps = np.column_stack([draw.integers(0, 500, 2000), draw.integers(0, 50, 2000), draw.integers(0, 9000, 2000)])
    taken = (5e6 + 4e4 * steps[:, 0] + 2e4 * steps[:, 1] + 40 * steps[:, 2]) * draw.gamma(16, 1 / 16, 2000)
    first, prefill, context, decode = fit_linear(np.column_stack([taken, taken, steps]))
    fitted = first + steps @ np.array([prefill, decode, context])
    assert fitted.sum() / taken.sum() == pytest.approx(1, abs=0.005)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    with (tmp_path / "live.jsonl").open("a") as file:
        file.write('{"event": "requ')
    assert read_recording(tmp_path / "live.jsonl").workload.dropped["a last line that was cut off"] == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", ":2: "),
        ("[1]", ":2: is no object"),
        ('{"event": "step", "ns": -1}', ":2: ns is -1"),
        ('{"event": "request", "arrival_ns": true}', ":2: arrival_ns is True"),
        ('{"event": "request", "arrival_ns": 9, "admitted_ns": 3}', ":2: admitted_ns is before"),
        ('{"event": "start", "schema": 2}', ":2: is of schema 2"),
        ('{"event": "start", "schema": 1, "unix_ns": 0}', ":2: starts before the run above"),
        (
            '{"event": "request", "arrival_ns": 1, "t_ns": 2, "prompt_tokens": 3, "output_tokens": 1, '
            '"cached_tokens": 0, "blocks": [7, 0, 0]}',
            ":2: names a block that no row before it has",
        ),
        (
            '{"event": "request", "arrival_ns": 1, "t_ns": 2, "prompt_tokens": 3, "output_tokens": 1, '
            '"cached_tokens": 0, "blocks": [-1, 0, 1000000000]}',
            ":2: blocks are .*; give no more blocks than tokens",
        ),
        (
            '{"event": "request", "arrival_ns": 1, "t_ns": 2, "prompt_tokens": 3, "output_tokens": 1, '
            '"cached_tokens": 0, "blocks": [-1, -1, 2]}',
            ":2: numbers new blocks as older ones are",
        ),
        ('{"event": "start", "schema": 1, "unix_ns": 2000000000000000000, "policy": 7}', ":2: policy is 7"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path: Path, line: str, told: str):
    Recorder(tmp_path / "live.jsonl", {}).close()
    with (tmp_path / "live.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=told):
        read_recording(tmp_path / "live.jsonl")


def test_a_file_of_another_kind_is_not_appended_to(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="another kind of file"):
        Recorder(tmp_path / "notes.txt", {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_blocks_have_numbers_and_forgotten_ones_new_ones():
    numbers = BlockNumbers(most=4)
    assert numbers.of("abc") == (-1, 0, 3)
    assert numbers.of("abd") == (1, 3, 1)
    assert numbers.of("ab") == (1, 4, 0)
    assert numbers.of("xy") == (-1, 4, 2)  # six are more than four: a, b and c are forgotten
    assert numbers.of("ab") == (-1, 6, 2)


def test_a_step_lasts_from_the_end_of_the_one_before_it():
    clock, one, other = StepClock(), object(), object()
    clock.planned(one, (100, 10), idle=True, what={"prompt": 5})
    clock.planned(other, (110, 11), idle=False, what={"prompt": 6})  # planned before the first is over
    assert clock.ended(one, (150, 30)) == {"ns": 50, "cpu_ns": 20, "prompt": 5}
    assert clock.ended(other, (170, 33)) == {"ns": 20, "cpu_ns": 3, "prompt": 6}
    assert clock.ended(object(), (180, 34)) is None


def test_blocks_of_several_pieces_are_found_again():
    """Four pieces of 16 tokens are one block of 64; equal beginnings are equal blocks."""
    turns = [Turn(200, 2, blocks=tuple(range(13))), Turn(200, 2, blocks=(*range(8), *range(20, 25)))]
    workload = Workload(
        tuple(Workflow(str(n), "", n * 10**12, (turn,)) for n, turn in enumerate(turns)), block_tokens=16
    )
    engine = read_engine_of(64)
    policy = PolicySettings()
    jobs = simulate(workload, lambda: policy.objects(engine.costs()), engine.shape(), engine.costs()).jobs
    assert [job.cached for job in jobs] == [0, 128]


def read_engine_of(block_size: int) -> Any:
    from burnish.serve.settings import EngineSettings

    return EngineSettings(num_blocks=40, block_size=block_size)


def test_a_smaller_workload_says_so():
    turns = (Turn(1000, 100, 2 * 10**9, "t"), Turn(1101, 10))
    workload = Workload((Workflow("p", "", 10**10, turns), Workflow("q", "", 0, (Turn(9000, 1),))), block_tokens=512)
    found = scaled(workload, shrink=16, speed=2, longest=200)
    assert [(turn.prompt, turn.output, turn.pause) for turn in found.workflows[0].turns] == [(63, 7, 10**9), (70, 1, 0)]
    assert found.workflows[0].arrival == 5 * 10**9
    assert found.block_tokens == 32
    assert found.synthetic == ("lengths are divided by 16", "times are divided by 2")
    assert found.dropped == {"longer than 200 tokens": 1}
    with pytest.raises(SettingsError, match="does not divide the 512"):
        scaled(workload, shrink=3)
    with pytest.raises(DataError, match="no workflow of at most 5"):
        scaled(workload, longest=5)


def test_a_prompt_that_is_not_cut_waits_for_a_step_of_its_own():
    from burnish.serve.settings import EngineSettings

    workload = Workload(tuple(Workflow(str(n), "", 0, (Turn(60, 1),)) for n in range(2)))
    policy, steps = PolicySettings(), []
    for chunked in (True, False):
        engine = EngineSettings(num_blocks=40, block_size=16, max_num_batched_tokens=100, chunked_prefill=chunked)
        found = simulate(workload, lambda engine=engine: policy.objects(engine.costs()), engine.shape(), engine.costs())
        steps.append([job.admitted > 0 for job in found.jobs])
    assert steps == [[False, False], [False, True]]


def test_lines_are_json_that_any_tool_reads(tmp_path: Path):
    record(tmp_path / "live.jsonl", mode="shadow")
    rows = [json.loads(line) for line in (tmp_path / "live.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows[:2]] == ["start", "request"]
    assert all(type(row.get("t_ns", 0)) is int for row in rows)


def test_a_recording_becomes_tables_of_its_owner(tmp_path: Path):
    record(tmp_path / "live.jsonl")
    cli.main(["serve", "table", str(tmp_path / "live.jsonl"), "-o", str(tmp_path / "out")])
    requests, programs, pauses = (parquet.read_table(tmp_path / "out" / name).to_pylist() for name in FILES)
    assert sum(row["prompt_tokens"] for row in requests) == 150  # the one that was given up is not there
    (program,) = programs
    assert (program["program"], program["tenant"], program["turns"], program["prompt_tokens"]) == ("p", "a", 2, 100)
    assert [(row["sequence_id"], row["mark"]) for row in pauses] == [("p", "search"), ("p", "last")]
    assert pauses[0]["time"] == 0 < pauses[1]["time"]
    assert {(tmp_path / "out" / name).stat().st_mode & 0o777 for name in FILES} == {0o600}
    assert SECRET.encode() not in b"".join((tmp_path / "out" / name).read_bytes() for name in FILES)


def test_a_table_is_made_of_recordings_only_and_over_tables_only(tmp_path: Path):
    (tmp_path / "other").write_text("{}")
    with pytest.raises(DataError, match="is no recording"):
        export(tmp_path / "other", tmp_path)
    record(tmp_path / "live.jsonl")
    (tmp_path / FILES[0]).write_text("mine")
    with pytest.raises(OutputError, match="another kind of file"):
        export(tmp_path / "live.jsonl", tmp_path)
    assert (tmp_path / FILES[0]).read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export(tmp_path / "live.jsonl", tmp_path / "file")
