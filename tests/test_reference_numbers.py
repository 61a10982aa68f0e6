"""Numbers that tests compare with have the program that made them, committed; those that came without are listed."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "reference"
WITHOUT_PROGRAM = {
    "align/aps_joint.npz",
    "align/r3m_pointwise.json",
    "events/easytpp030_thp_tiny.npz",
    "events/hawkes3_ideal_scores.json",
    "events/hawkes3_loglik_quantiles.json",
    "events/scoringrules_crps.json",
    "events/thp_official_tiny.npz",
    "optim/agd_atorch_f64.npz",
    "optim/cosmos_official_f64_exact.npz",
    "optim/cosmos_official_vocab_f64_exact.npz",
    "optim/muon_kellerjordan_f64_exact.npz",
    "optim/normuon_auxadam_f64_exact.npz",
    "optim/normuon_official_zerograd_f64_exact.npz",
    "optim/soap_official_f32.npz",
    "optim/wsam_atorch_f64.npz",
    "serve/vtc_decisions.json",
    "slim/slimmoe_toy.npz",
    "slim/slimmoe_toy_expected.json",
    "steer/released_f32.npz",
}
"""Computed by hand or by a script that nobody kept; whoever has one, commits it and strikes the line."""
FILES = sorted(path for path in REFERENCE.rglob("*") if path.suffix in (".npz", ".json"))
PROGRAMS = [*REFERENCE.rglob("*.py"), ROOT / "benchmarks" / "intervals.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REFERENCE)))
def test_what_is_compared_with_has_its_program(file):
    named = any(file.name in program.read_text(encoding="utf-8") for program in PROGRAMS)
    assert named != (str(file.relative_to(REFERENCE)) in WITHOUT_PROGRAM)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REFERENCE)))
def test_the_readme_says_what_it_is(file):
    assert file.name in (file.parent / "README.md").read_text(encoding="utf-8")
