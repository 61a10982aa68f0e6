import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from burnish.core.checkpoint import load
from burnish.core.errors import EngineError, SettingsError
from burnish.core.progress import Progress
from burnish.evaluate import Evaluate
from burnish.evaluate.engines import measure
from burnish.evaluate.engines.process import Answer
from burnish.evaluate.engines.rounds import Shape, TokenSeconds, batch_of, disturbance, in_turns, shapes
from burnish.quantize.stage import Quantize
from burnish.report.engine_speed import SLOWER, SpeedComparison, SpeedEntry
from burnish.report.run import values_of
from engine_double import environment

QUICK: dict[str, Any] = {
    "engine": "vllm",
    "engine_batches": (1, 2),
    "engine_contexts": (8, 16),
    "engine_rounds": 3,
    "decode_tokens": 4,
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def packed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Quantize(method="rtn", group_size=32)(load(tiny_llama)).save(tmp_path_factory.mktemp("packed") / "packed")


def linked(place: Path, name: str, to: Path) -> Path:
    (place / name).symlink_to(to, target_is_directory=True)
    return place / name


# -- what a round is ---------------------------------------------------------------------------------------------------


def test_decoding_is_timed_while_all_answers_are_under_way():
    taken = TokenSeconds()
    samples = [  # wall, processor, prompt, tokens so far; the second prompt is read later and the first ends sooner
        [1.0, 0.5, 0, 1],
        [2.0, 1.0, 0, 2],
        [2.0, 1.0, 1, 1],
        [3.0, 1.5, 0, 3],
        [3.0, 1.5, 1, 2],
        [4.5, 2.0, 0, 4],
        [4.5, 2.0, 1, 3],
        [9.0, 2.5, 1, 4],
    ]
    taken.add(samples, Shape(2, 5))
    assert taken.prefill == [2.0 / 10]
    assert taken.prefill_cpu == [1.0 / 10]
    # From the second's first token (both have 1 and 2) to the first's last one: 3 more tokens by then, 2.5 s.
    assert taken.decode == [2.5 / 3]
    assert taken.decode_cpu == [1.0 / 3]


def test_answers_that_never_run_side_by_side_are_no_measurement():
    with pytest.raises(EngineError, match=r"all 2 answers were under way; raise decode_tokens"):
        TokenSeconds().add([[1.0, 1.0, 0, 1], [2.0, 2.0, 0, 2], [3.0, 3.0, 1, 1], [4.0, 4.0, 1, 2]], Shape(2, 5))


def test_every_batch_is_asked_at_the_shortest_context_and_longer_ones_alone():
    assert [str(shape) for shape in shapes((4, 1), (2048, 128))] == ["1x128", "4x128", "1x2048"]


def test_prompts_begin_again_where_the_text_ends():
    assert batch_of(range(7), Shape(3, 3)) == [[0, 1, 2], [3, 4, 5], [1, 2, 3]]
    assert batch_of([5, 6], Shape(1, 5)) == [[5, 6, 5, 6, 5]]


def test_half_of_the_wall_time_without_a_processor_is_a_disturbance_of_two():
    assert disturbance(TokenSeconds([2.0], [1.0], [4.0], [2.0]), threads=1) == 2.0
    assert disturbance(TokenSeconds([2.0], [4.0], [4.0], [8.0]), threads=2) == 1.0


class Counting:
    """Answers at once, and remembers when."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def ask(self, prompts: Any, num_tokens: int) -> Answer:
        self.said.append(self.name)
        moments = range(1, num_tokens + 1)
        samples = [[float(m), float(m), prompt, m] for m in moments for prompt in range(len(prompts))]
        return Answer(samples, len(self.said))


def test_who_is_first_in_a_round_is_last_in_the_next_and_the_first_round_does_not_count():
    said: list[str] = []
    engines = {name: Counting(name, said) for name in "ab"}
    prompts = {name: list(range(9)) for name in engines}
    found = in_turns(engines, prompts, [Shape(1, 2)], num_tokens=3, rounds=2, progress=Progress(enabled=False))
    assert said == ["a", "b", "b", "a", "a", "b"]
    assert len(found["a"].taken[Shape(1, 2)].decode) == 2
    assert found["b"].peak_memory == 6


# -- engines -----------------------------------------------------------------------------------------------------------


def test_a_slower_engine_is_found_slower_with_its_kernel_named(tiny_llama: Path, packed: Path, python: Path):
    found = Evaluate(engine_python=str(python), **QUICK).together({"start": tiny_llama, "4 bits": packed})
    start, ours = found["start"], found["4 bits"]
    assert start.protocol == ours.protocol
    assert start.protocol["engine"] == "vLLM 0.32.0"
    assert start.protocol["batches"] == ["1x8", "2x8", "1x16"]
    assert (start.facts["kernels"], ours.facts["kernels"]) == ([], ["CPUWNA16LinearKernel"])
    assert len(ours.sequences["decode@1x8"]) == 3
    entries = [SpeedEntry(name, values_of(one.metrics), one.sequences, one.facts or {}) for name, one in found.items()]
    compared = SpeedComparison(start.protocol, entries).ratio(entries[1], "prefill_cpu@1x16")
    assert compared is not None
    assert compared.value == pytest.approx(0.5, rel=0.4)  # twice the processor time for a token
    rate = ours.metrics["prefill_cpu_speed@1x16"]["value"]
    assert rate == pytest.approx(1 / 0.0004, rel=0.4)
    waited = start.metrics["time_to_first_token@1x16"]["value"]
    assert waited == pytest.approx(16 / start.metrics["prefill_speed@1x16"]["value"])


def test_an_engine_that_refuses_a_checkpoint_is_a_note_beside_the_others(
    tiny_llama: Path, packed: Path, python: Path, tmp_path: Path
):
    broken = linked(tmp_path, "broken", packed)
    found = Evaluate(engine_python=str(python), **QUICK).together({"start": tiny_llama, "3 bits": broken})
    note = found["3 bits"].metrics["decode_speed@1x8"]
    assert note["value"] is None
    assert "no kernel for packed 3 bits" in note["note"]
    assert found["start"].metrics["decode_speed@1x8"]["value"] > 0


def test_an_engine_that_dies_over_a_long_prompt_is_a_note_beside_the_others(
    tiny_llama: Path, python: Path, tmp_path: Path
):
    dies = linked(tmp_path, "dies", tiny_llama)  # over more than ten tokens
    found = Evaluate(engine_python=str(python), **QUICK).together({"start": tiny_llama, "other": dies})
    note = found["other"].metrics["decode_speed@1x8"]
    assert note["value"] is None and "has no more memory" in note["note"]
    assert found["start"].metrics["decode_speed@1x16"]["value"] > 0


def test_where_no_checkpoint_runs_the_error_has_the_last_words_and_nothing_is_left_running(
    tiny_llama: Path, python: Path, tmp_path: Path
):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    dies = linked(tmp_path, "dies", tiny_llama)
    with pytest.raises(EngineError, match=r"dies.*ended with status.*has no more memory.*see .*\.log"):
        Evaluate(engine_python=str(python), **QUICK).together({"dies": dies}, logs=tmp_path / "logs")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_where_memory_holds_one_engine_they_run_one_after_another_and_no_ratio_is_claimed(
    tiny_llama: Path, packed: Path, python: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure._Measurement, "fits", lambda *_: False)
    found = Evaluate(engine_python=str(python), **QUICK).together({"start": tiny_llama, "4 bits": packed})
    entries = [SpeedEntry(name, values_of(one.metrics), one.sequences, one.facts or {}) for name, one in found.items()]
    assert found["start"].protocol["in_turns"] is False
    assert entries[1].rounds["decode@1x8"]
    assert SpeedComparison(found["start"].protocol, entries).ratio(entries[1], "decode@1x8") is None


# -- what is refused before an engine is started -----------------------------------------------------------------------


def test_without_an_environment_one_sentence_says_how_to_make_one(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    with pytest.raises(EngineError, match=r"no environment with vLLM .*VLLM_PYTHON; .*scripts/vllm-env"):
        Evaluate(**QUICK).check_engine(load(tiny_llama))


def test_another_version_is_refused(tiny_llama: Path, tmp_path: Path):
    old = environment(tmp_path, version="0.11.1")
    with pytest.raises(EngineError, match=r"has vLLM 0\.11\.1, and speed is measured with 0\.32\.x"):
        Evaluate(engine_python=str(old), **QUICK).check_engine(load(tiny_llama))


def test_an_environment_without_the_engine_is_refused(tiny_llama: Path):
    with pytest.raises(EngineError, match=r"has no llama\.cpp"):
        Evaluate(engine_python=sys.executable, engine="llama.cpp").check_engine(load(tiny_llama))


def test_what_is_no_interpreter_is_refused(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(EngineError, match="is no Python that runs"):
        Evaluate(engine_python=str(tmp_path / "python"), **QUICK).check_engine(load(tiny_llama))


def test_prompts_longer_than_the_model_reads_are_refused(tiny_llama: Path, python: Path):
    settings = Evaluate(engine_python=str(python), **QUICK | {"engine_contexts": (8, 100_000)})
    with pytest.raises(SettingsError, match=r"engine_contexts and decode_tokens add up to 100,005 .*positions end at"):
        settings.check_engine(load(tiny_llama))


def test_auto_measures_nothing_without_an_environment(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("VLLM_PYTHON", "LLAMA_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    settings = Evaluate(engine="auto")
    settings.check_engine(load(tiny_llama))
    assert settings.measured_together() is None
    assert settings.together({"start": tiny_llama}) == {}


def test_the_engine_changes_nothing_about_the_quality_that_is_asked_for():
    assert Evaluate(**QUICK).canonical() == Evaluate(decode_tokens=4).canonical()


def test_the_command_shows_speed_after_quality_and_keeps_both(
    tiny_llama: Path, packed: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from burnish.cli import main
    from burnish.core.ledger import Ledger

    command = ["evaluate", str(packed), "--against", str(tiny_llama), "--num-windows", "2", "--context", "64"]
    command += ["--max-chars", "4000", "--no-speed", "--engine", "vllm", "--engine-python", str(python)]
    command += ["--engine-batches", "1", "--engine-contexts", "8", "--engine-rounds", "3", "--decode-tokens", "4"]
    main([*command, "-o", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert "Speed in vLLM 0.32.0 (eager, 1 thread, AVX512)" in text
    assert f"- packed: slower than {tiny_llama.name} in" in text
    rows = Ledger(tmp_path / "run").rows
    assert [row["row"] for row in rows] == ["measurement", "speed", "speed"]


def test_speed_in_an_engine_is_not_that_of_pairs(tiny_llama: Path, capsys: pytest.CaptureFixture[str]):
    from burnish.cli import main

    with pytest.raises(SystemExit):
        main(["evaluate", str(tiny_llama), "--pairs", "pairs.jsonl", "--engine", "vllm"])
    assert "--engine: is for a measurement on text; leave out --engine or --pairs" in capsys.readouterr().err


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five processes, on a machine that may do other things
def test_all_checkpoints_of_a_run_are_measured_together_and_once(tiny_llama: Path, python: Path, tmp_path: Path):
    from burnish.core.ledger import Ledger
    from burnish.report import render

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: run\nstart: {tiny_llama}\nevaluate: {{num_windows: 2, context: 64, max_chars: 4000, speed: false, "
        "engine: auto, engine_batches: [1], engine_contexts: [8], engine_rounds: 3, decode_tokens: 4}\n"
        "nodes:\n- {name: nearest, stage: quantize, method: rtn, group_size: 32}\n"
    )
    variables = os.environ | {"VLLM_PYTHON": str(python)}
    command = [sys.executable, "-m", "burnish", "run", str(recipe), "-o", str(tmp_path / "run")]
    for _ in range(2):
        subprocess.run(command, env=variables, check=True, capture_output=True)
        speeds = [row for row in Ledger(tmp_path / "run").rows if row["row"] == "speed"]
        assert [row["node"] for row in speeds] == ["start", "nearest"]
        assert speeds[1]["facts"]["kernels"] == ["CPUWNA16LinearKernel"]
    page = render([tmp_path / "run"])
    assert "Speed in vLLM 0.32.0 (eager, 1 thread, AVX512)" in page
    assert f"nearest: {SLOWER} than start in" in page
    assert "not measured" not in page


def test_what_is_said_of_an_engine_needs_one():
    with pytest.raises(SettingsError, match="engine_rounds counts for nothing without an engine"):
        Evaluate.parse({"engine_rounds": 3}, where="evaluate")
    assert Evaluate.parse({"engine_rounds": 3, "engine": "auto"}, where="evaluate").engine_rounds == 3
