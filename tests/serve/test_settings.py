"""Policy and engine files: what they mean, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest

from burnish.core.errors import SettingsError
from burnish.serve.costs import Linear
from burnish.serve.policies.shares import FairShares
from burnish.serve.settings import EngineSettings, PolicySettings, read_engine, read_policy

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_weights_are_paths_or_groups(tmp_path: Path):
    flat = read_policy(file(tmp_path, "order: shares\nweights: {acme: 2, acme/research: 3, other: 1}\n"))
    nested = read_policy(file(tmp_path, "order: shares\nweights:\n  acme: {weight: 2, research: 3}\n  other: 1\n"))
    assert flat.weights == nested.weights == {"acme": 2, "acme/research": 3, "other": 1}
    assert flat.weight("acme/research/anna") == 6


def test_a_plain_name_is_a_policy_of_that_order():
    assert read_policy("vtc").order == "vtc"
    assert read_policy("programs").called == "programs"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("order: fair", "order is 'fair', but input should be"),
        ("ordre: fcfs", "did you mean 'order'"),
        ("order: shares\nweights: {a: 0}", "weight of 'a' is 0, but a weight is above 0"),
        ("order: shares\nweights: {a: -1}", "weight of 'a' is -1"),
        ("order: shares\nweights: {a: .nan}", "finite|valid number|above 0"),
        ("order: shares\nweights: {a//b: 1}", "is no path of tenants"),
        ("order: shares\nweights: {a: heavy}", "weights.a is 'heavy'"),
        ("weights: {a: 1}", "weights need order: shares"),
        ("order: vtc\nprompt_price: 0\noutput_price: 0", "nothing costs anything"),
        ("order: vtc\nprompt_price: -1", "prompt_price is -1"),
        ("hold: fixed\nhold_seconds: 0", "hold_seconds is 0"),
        ("hold: fixed\nhold_seconds: 1.0e+300", "hold_seconds is 1e.300, but input should be less"),
        ("hold_seconds: 5", "hold_seconds needs hold: fixed, but hold is none"),
        ("order: shares\nquantum: 5", "quantum needs order: dlpm, but order is shares"),
        ("order: shares\nweights: {a: 1.0e+300}", "weight of 'a' is 1e.300; write weights between"),
        ("order: vtc\norder: fcfs", "the key 'order' twice"),
        ("order: shares\nweights: &a {x: *a}", "."),
        ("order: shares\nweights: {a: {b: {c: {d: {e: {f: {g: {h: {i: {j: 1}}}}}}}}}}", "nested deeper"),
        ("- fcfs", "holds no settings"),
        ("order: [", "is not YAML"),
        ("", "holds no settings"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, told: str):
    with pytest.raises(SettingsError, match=told):
        read_policy(file(tmp_path, text))


def test_a_policy_that_is_no_file_is_said():
    with pytest.raises(SettingsError, match=r"nowhere.yaml: is no policy file; give a YAML file or one of fcfs, vtc"):
        read_policy("nowhere.yaml")


def test_holding_without_an_order_is_warned_of_with_its_number():
    assert "order: programs" in PolicySettings(hold="learned").warning
    assert not PolicySettings(order="programs", hold="learned").warning
    assert not PolicySettings(order="shares", within="programs", hold="learned").warning
    assert not PolicySettings().warning


def test_the_numbers_of_the_warning_are_those_that_were_measured():
    laws = json.loads((RESULTS / "serve_programs.json").read_text())["laws"].values()

    def times(policy: str) -> str:
        """How many times sooner than with plain caching workflows end, over the laws of pauses."""
        means = []
        for law in laws:
            found = law["rates"]["1.3"]
            pairs = zip(found["cache, arrival order"]["completion"], found[policy]["completion"], strict=True)
            means.append(fmean(math.log(cache / held) for cache, held in pairs))
        return f"{math.exp(min(means)):.1f} to {math.exp(max(means)):.1f} times"

    said = PolicySettings(hold="learned").warning
    assert f"{times('learned hold, arrival order')} sooner" in said
    assert f"order: programs {times('learned hold, workflow order')})" in said


def test_the_settings_reach_the_objects():
    order, _ = PolicySettings(order="shares", weights={"a": 4.0}, output_price=5).objects(Linear())
    assert isinstance(order, FairShares)
    assert order.share(("a",)).per_token == order.share(("b",)).per_token // 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cost: table", "needs the table itself"),
        ("cost: table\ntable: {prefill: [[1, 5], [1, 6]], decode: [[1, 1]]}", "must rise"),
        ("cost: table\ntable: {prefill: [[1, -5]], decode: [[1, 1]]}", "below 0"),
        ("num_blocks: 0", "num_blocks is 0"),
        ("watermark: 1", "watermark is 1"),
        ("linear: {step: -1}", "linear.step is -1"),
        ("cost: roofline\nlinear: {step: 1}", "linear needs cost: linear, but cost is roofline"),
    ],
)
def test_mistakes_of_an_engine(tmp_path: Path, text: str, told: str):
    with pytest.raises(SettingsError, match=told):
        read_engine(file(tmp_path, text))


def test_every_cost_can_be_asked_for():
    table = {"prefill": [[1, 5.0]], "decode": [[1, 1.0]]}
    for cost in ("linear", "roofline", "dynosim", "table"):
        settings = EngineSettings.model_validate({"cost": cost} | ({"table": table} if cost == "table" else {}))
        assert float(settings.costs().nanoseconds([(5, 0)], 1, 10.0)) > 0
