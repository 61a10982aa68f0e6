"""Steering files: read back as written, and refused where they are damaged, pickled or of another model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.core.checkpoint import Lineage, Model, load
from burnish.core.errors import CheckpointError, OutputError, SettingsError
from burnish.core.kinds import Kind
from burnish.steer import Vectors, marks_of, read_released, read_vectors, steer
from made_vectors import some_vectors
from small_models import make, small_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Model:
    made = Model(module=make("llama"), tokenizer=small_tokenizer())
    made.save(tmp_path / "model")
    return load(tmp_path / "model")


@pytest.fixture
def vectors(model: Model) -> Vectors:
    return some_vectors(model.module, model=model.identity)


def test_means_are_kept_and_without_them_the_mode_that_aims_at_them_is_refused(
    model: Model, vectors: Vectors, tmp_path: Path
):
    means = {layer: torch.randn(vectors.hidden_size) for layer in range(2)}
    again = read_vectors(replace(vectors, means=means).save(tmp_path / "vectors", Lineage()))
    assert {layer: mean.tolist() for layer, mean in again.means.items()} == {
        layer: mean.tolist() for layer, mean in means.items()
    }
    with steer(model, again, mode="mean"):
        pass
    with (
        pytest.raises(SettingsError, match="written without the means of linear steps"),
        steer(model, vectors, mode="mean"),
    ):
        pass


def test_vectors_are_read_back_as_they_were_written(vectors: Vectors, tmp_path: Path):
    place = vectors.save(tmp_path / "vectors", Lineage(base_model="mine"))
    again = read_vectors(place)
    assert torch.equal(again.probes, vectors.probes)
    assert torch.equal(again.directions, vectors.directions)
    assert replace(again, probes=vectors.probes, directions=vectors.directions) == vectors
    lineage = Lineage.read(place)
    assert lineage is not None and lineage.kind is Kind.STEERING
    assert set(load_file(place / "vectors.safetensors")) == {
        f"{kind}.{layer}.{head}" for kind in "vw" for layer in range(2) for head in range(4)
    }
    with pytest.raises(OutputError, match="exists already"):
        vectors.save(place, Lineage())


def test_the_model_they_were_made_on_is_taken_in_any_dtype_and_another_refused(
    model: Model, vectors: Vectors, tmp_path: Path
):
    for mine in (model, load(tmp_path / "model", dtype=torch.bfloat16), load(tmp_path / "model").module):
        with steer(mine, vectors):
            pass
    Model(module=make("llama", seed=1), tokenizer=small_tokenizer()).save(tmp_path / "other")
    for other in (load(tmp_path / "other"), load(tmp_path / "other").module):
        with pytest.raises(CheckpointError, match="made on another model"), steer(other, vectors):
            pass


def test_what_was_made_of_the_model_in_one_step_is_taken(model: Model, vectors: Vectors, tmp_path: Path):
    child = Model(module=make("llama", seed=1), tokenizer=small_tokenizer())
    child.lineage.parents = {"model": model.identity}
    child.save(tmp_path / "child")
    with steer(load(tmp_path / "child"), vectors):
        pass


def test_top_is_a_share_up_to_one_and_a_number_above(vectors: Vectors):
    assert [vectors.count(top) for top in (0.1, 0.38, 1, 1.0, 2, 5, 512)] == [1, 3, 8, 8, 2, 5, 8]
    assert [(head.layer, head.head) for head in vectors.best(5).heads] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


@pytest.mark.parametrize("top", [0, -1, float("nan"), float("inf")])
def test_a_top_that_is_no_number_of_heads_is_refused(vectors: Vectors, top: float):
    with pytest.raises(SettingsError, match=f"top: is {top}; give a share"):
        vectors.count(top)


def damage(place: Path, **changes: Any) -> None:
    facts = json.loads((place / "steering.json").read_text()) | changes
    (place / "steering.json").write_text(json.dumps(facts))


def tensors(place: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(place / "vectors.safetensors") | {name: tensor}, place / "vectors.safetensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda place: (place / "steering.json").unlink(), "has no steering.json"),
        (lambda place: damage(place, convention="class 1 is non-linear"), "the convention 'class 1 is non-linear'"),
        (lambda place: damage(place, heads=[{"layer": 9, "head": 0, "accuracy": 1.0}]), "is damaged"),
        (lambda place: damage(place, separator_ids=None), "is damaged"),
        (lambda place: (place / "vectors.safetensors").write_bytes(b"\x80pickle"), "is damaged"),
        (lambda place: tensors(place, "v.0.1", torch.zeros(64)), "layer 0, head 1 has no length"),
        (lambda place: tensors(place, "v.0.1", torch.ones(64)), "has the length 8, not 1"),
        (lambda place: tensors(place, "w.1.3", torch.full((64,), torch.nan)), "probes hold what is no number"),
        (lambda place: tensors(place, "w.1.3", torch.ones(63)), "is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(vectors: Vectors, tmp_path: Path, spoil: Any, said: str):
    place = vectors.save(tmp_path / "vectors", Lineage())
    spoil(place)
    with pytest.raises(CheckpointError, match=said):
        read_vectors(place)


def released(vectors: Vectors, scale: float = 2.0) -> dict[int, Any]:
    """In the form of the authors' file: probes as [1, hidden], directions of any length."""
    nested: dict[int, Any] = {}
    for place, head in enumerate(vectors.heads):
        nested.setdefault(head.layer, {})[head.head] = {
            "accuracy": head.accuracy,
            "model_dict": {"weight": vectors.probes[place : place + 1]},
            "steering_vector": scale * vectors.directions[place],
        }
    return nested


def test_the_authors_form_is_read_without_running_its_code(model: Model, vectors: Vectors, tmp_path: Path):
    torch.save(released(vectors), tmp_path / "probe_best.pt")
    found = read_released(tmp_path / "probe_best.pt", model, vectors.marks)
    assert found.heads == vectors.heads
    assert torch.equal(found.probes, vectors.probes)
    torch.testing.assert_close(found.directions, vectors.directions)
    assert found.made_of["longest"] == pytest.approx(2.0)
    assert found.model == model.identity


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({0: {0: Harmful()}}, r"probe_best\.pt: is no file of tensors and numbers alone; take the authors'"),
        ({0: {0: {"accuracy": 0.9}}}, r"is not \{layer: \{head: "),
        ([1, 2], r"is not \{layer: \{head: "),
        (
            {9: {0: {"accuracy": 1.0, "model_dict": {"weight": torch.ones(64)}, "steering_vector": torch.ones(64)}}},
            "layer 9, head 0",
        ),
        (
            {0: {0: {"accuracy": 1.0, "model_dict": {"weight": torch.ones(32)}, "steering_vector": torch.ones(32)}}},
            "width 32",
        ),
        (
            {0: {0: {"accuracy": 1.0, "model_dict": {"weight": torch.ones(64)}, "steering_vector": torch.zeros(64)}}},
            "no number",
        ),
    ],
)
def test_what_is_not_the_authors_form_is_refused(
    model: Model, vectors: Vectors, tmp_path: Path, content: Any, said: str
):
    torch.save(content, tmp_path / "probe_best.pt")
    with pytest.raises(CheckpointError, match=said):
        read_released(tmp_path / "probe_best.pt", model, vectors.marks)
    with pytest.raises(CheckpointError, match="is a pickle; burnish steer import"):
        read_vectors(tmp_path / "probe_best.pt")
    assert not Path("harmed").exists()


def test_every_token_that_holds_the_separator_counts_and_a_merged_one_is_refused():
    tokenizer = small_tokenizer()
    marks = marks_of(tokenizer, separator="\n")
    texts = [tokenizer.decode([token]) for token in marks.separator_ids]
    assert "\n" in texts and len(texts) > 1
    assert all("\n" in text for text in texts)
    assert marks.think_end_ids == ()
    assert marks_of(tokenizer, separator="\n", think_end="#").think_end_ids == (tokenizer.convert_tokens_to_ids("#"),)


def test_a_blank_line_of_two_line_ends_is_no_step_of_its_own():
    tokenizer = small_tokenizer()
    marks = marks_of(tokenizer, separator="\n")
    tokens = [tokenizer.convert_tokens_to_ids(one) for one in tokenizer.tokenize("\nx\n\nwait\n\n\nx")]
    assert sum(token in marks.separators for token in tokens) > len(marks.spans(tokens))
    steps = marks.steps(tokenizer, tokens)
    assert [label for _, label in steps] == [1, -1]
    assert [tokenizer.decode(tokens[: end + 1]) for end, _ in steps] == ["\nx\n", "\nx\n\nwait\n"]
    tokens = tokenizer("x;;wait;").input_ids
    assert [label for _, label in marks_of(tokenizer, separator=";").steps(tokenizer, tokens)] == [1, -1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"separator": "\n\n\n\n\n"}, "no token of the vocabulary holds the separator"),
        ({"separator": ""}, "separator: is empty"),
        ({"cues": ()}, "cues: is empty"),
        ({"cues": ("re:",)}, "cues: is empty"),
        ({"cues": ("re:(",)}, "no regular expression"),
        ({"think_end": "the end of it"}, "is 7 tokens|is [0-9]+ tokens"),
    ],
)
def test_marks_that_mark_nothing_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        marks_of(small_tokenizer(), **({"separator": "\n"} | options))
