"""Drafts: what they learn, that texts stay what they are whatever they propose, and their form on disk."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import burnish
from burnish.arch import head_of
from burnish.cli.reason_serve import _local, _proposer
from burnish.core.checkpoint import Lineage, Model, load
from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.kinds import Kind
from burnish.distill.maths.draft_vocabulary import acceptance, known, most_frequent, offsets, tokens_of
from burnish.distill.speculator import Drafting, EagleDraft, read_draft
from burnish.distill.speculator.answers import states_of
from burnish.distill.speculator.network import DraftCache, DraftNetwork
from burnish.distill.speculator.prices import LOOKING_UP, proposing, verifying
from burnish.distill.speculator.run import head_rows
from burnish.generate import generate
from burnish.serve.speculate import Lookahead
from burnish.serve.speculate.controller import SpeculationController
from burnish.serve.speculate.mixture import Mixture
from joining import joined
from small_models import PROSE, make, small_llama, small_tokenizer

PROMPTS = ["The licence", "You may reproduce and distribute copies of the Work"]
SHORT: dict[str, Any] = {"answers": 12, "prompt_tokens": 4, "answer_tokens": 8, "context": 32, "batch": 4, "epochs": 2}
SHORT |= {"vocabulary": 64, "temperature": 0.5, "hidden_layers": [1, 2]}


def made() -> Model:
    return Model(module=small_llama(num_hidden_layers=3, initializer_range=0.4), tokenizer=small_tokenizer())


@pytest.fixture(scope="module")
def model() -> Model:
    return made()


@pytest.fixture(scope="module")
def draft(model: Model, tmp_path_factory: pytest.TempPathFactory) -> EagleDraft:
    return burnish.Speculator(**SHORT)(model, data=[PROSE.read_text()], work_dir=tmp_path_factory.mktemp("work"))


@pytest.fixture
def drafting(model: Model, draft: EagleDraft) -> Iterator[Drafting]:
    found = Drafting(model, draft, length=3)
    yield found
    found.close()


# -- the vocabulary ----------------------------------------------------------------------------------------------------


def test_the_most_frequent_tokens_are_taken_with_those_that_must_be_there():
    counts = torch.tensor([0, 5, 9, 1, 0, 5])
    assert most_frequent(counts, 3, [4]).tolist() == [1, 2, 4]
    assert most_frequent(counts, 6, []).tolist() == list(range(6))


def test_the_map_is_that_of_eagle_3():
    tokens = torch.tensor([1, 2, 4, 7])
    assert offsets(tokens).tolist() == [1, 1, 2, 4]
    assert torch.equal(tokens_of(offsets(tokens)), tokens)
    assert known(tokens, 8).nonzero()[:, 0].tolist() == tokens.tolist()


def test_acceptance_is_at_most_the_coverage_and_reaches_it_where_the_draft_is_right():
    p = torch.rand(50, 20, dtype=torch.float64).softmax(-1)
    part = p[:, :8]
    q = torch.rand(50, 8, dtype=torch.float64).softmax(-1)
    assert (acceptance(part, q) <= part.sum(-1) + 1e-12).all()
    torch.testing.assert_close(acceptance(part, part / part.sum(-1, keepdim=True)), part.sum(-1))


# -- the network -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_an_unrolled_pass_is_what_drafting_from_each_position_finds(draft: EagleDraft):
    torch.manual_seed(0)
    network = DraftNetwork(draft.config, 2).double()
    states, embeddings = torch.randn(1, 7, 128).double(), torch.randn(1, 7, 64).double()
    unrolled = network.unrolled(states, embeddings, 3)
    for start in range(4):
        cache = DraftCache()
        hidden = network.read(network.fc(states[:, : start + 1]), embeddings[:, 1 : start + 2], cache)[:, -1:]
        for step in range(3):
            torch.testing.assert_close(unrolled[step][:, start], hidden[:, 0], rtol=0, atol=1e-12)
            if step < 2:
                hidden = network.read(hidden, embeddings[:, start + 2 + step : start + 3 + step], cache)


@torch.inference_mode()
def test_states_are_those_behind_the_layers(model: Model):
    tokens = torch.tensor([[5, 9, 200, 31]])
    with states_of(model.module, [1, 2]) as seen:
        found = model.module(tokens, output_hidden_states=True).hidden_states
        assert torch.equal(seen[0], found[1]) and torch.equal(seen[1], found[2])


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "top_k": 20}], ids=["greedy", "drawn"])
def test_texts_are_those_without_a_draft(model: Model, drafting: Drafting, options: dict[str, Any]):
    for prompt in PROMPTS:
        settings: dict[str, Any] = {"max_new_tokens": 20, "seed": 3, **options}
        plain = generate(model.module, model.tokenizer, [prompt], **settings)[0]
        found = generate(model.module, model.tokenizer, [prompt], speculate=drafting, **settings)[0]
        assert found.tokens == plain.tokens
    counts = drafting.counts
    assert counts.tokens == counts.drafts + counts.saved and counts.drafted >= 2 * counts.drafts


@pytest.mark.slow
def test_greedy_texts_of_fifty_prompts_are_the_same_in_fewer_passes(model: Model, drafting: Drafting):
    draw = random.Random(0)
    prompts = [[draw.randrange(1, 384) for _ in range(draw.randrange(2, 20))] for _ in range(50)]
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0}
    plain = generate(model.module, model.tokenizer, prompts, **settings)
    found = generate(model.module, model.tokenizer, prompts, speculate=drafting, **settings)
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert drafting.counts.saved > 0


def test_a_draft_that_knows_what_comes_saves_all_but_every_fourth_pass(model: Model, drafting: Drafting, monkeypatch):
    """Its network put aside: what is proposed is right, so passes are as many as they must be."""
    plain = generate(model.module, model.tokenizer, PROMPTS[:1], max_new_tokens=21, temperature=0)[0].tokens
    tokens = torch.arange(384)
    coming = iter(token for at in range(1, 21, 4) for token in plain[at : at + 3])
    monkeypatch.setattr(drafting, "tokens", tokens)
    logits = lambda hidden: torch.nn.functional.one_hot(torch.tensor([next(coming)]), 384)  # noqa: E731
    monkeypatch.setattr(drafting.network, "logits", logits)
    found = generate(model.module, model.tokenizer, PROMPTS[:1], max_new_tokens=21, temperature=0, speculate=drafting)
    assert found[0].tokens == plain
    assert drafting.counts.drafts == 5


def test_a_row_that_joins_leaves_both_texts_what_they_are(model: Model, drafting: Drafting):
    prompts = [list(model.tokenizer(one)["input_ids"]) for one in PROMPTS]
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0}
    alone = [generate(model.module, model.tokenizer, [one], **options)[0].tokens for one in prompts]
    for before in (1, 4):
        found = joined(model.module, model.tokenizer, drafting, prompts, after=before, num=16)
        assert found == alone


def test_prices_are_measured_and_texts_of_a_mixture_are_those_without(
    model: Model, draft: EagleDraft, drafting: Drafting
):
    verified, proposed = verifying(model, 4), proposing(draft, 4)
    assert len(verified) == len(proposed) == 5 and min(verified) > LOOKING_UP and 0 == proposed[0] < proposed[1]
    controller = SpeculationController({"trie": [0.0] * 5, "draft": [0.0] * 5}, [1.0] * 5)
    mixture = Mixture({"trie": Lookahead(), "draft": drafting}, controller, asked_always={"trie"})
    for prompt in [*PROMPTS, PROMPTS[0]]:
        settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0}
        plain = generate(model.module, model.tokenizer, [prompt], **settings)[0]
        found = generate(model.module, model.tokenizer, [prompt], speculate=mixture, **settings)[0]
        assert found.tokens == plain.tokens
    assert mixture.counts.saved > 10


@torch.inference_mode()
def test_a_whole_vocabulary_has_the_logits_of_its_parts(model: Model, draft: EagleDraft):
    head = head_of(model.module)
    assert head is not None
    every = torch.arange(384)
    whole = draft.with_head(every, head_rows(head, every))
    hidden = torch.randn(5, 64)
    torch.testing.assert_close(whole.network.logits(hidden)[:, draft.tokens], draft.network.logits(hidden))
    assert len(whole.tokens) == 384 and whole.config.draft_vocab_size == 384


def test_a_server_takes_the_trie_a_draft_or_both(draft: EagleDraft, tmp_path: Path):
    model = made()  # whose hooks stay
    place = draft.save(tmp_path / "draft")
    kinds = {"trie": "Lookahead", str(place): "Drafting", f"trie,{place}": "Mixture"}
    for speculate, kind in kinds.items():
        assert type(_proposer(model, speculate)).__name__ == kind
    mixed = _proposer(model, f"trie,{place}")
    assert mixed.members["draft"].length == len(mixed.controller.proposing["draft"]) - 1
    for wrong in ("ngram", f"{place},trie", "trie,", ""):
        with pytest.raises(SettingsError, match="neither trie nor the directory of a draft"):
            _proposer(model, wrong)


# -- what it learns, and its form --------------------------------------------------------------------------------------


def test_a_draft_learns_and_says_what_is_accepted(model: Model, tmp_path: Path):
    stage = burnish.Speculator(**{**SHORT, "epochs": 20, "lr": 0.01, "temperature": 0.0})
    found = stage(model, data=[PROSE.read_text()[:2000]], work_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["acceptance_1"] > 2 * rows[0]["acceptance_1"]
    assert 0 < found.measured["acceptance_1"] <= found.measured["coverage"] <= 1
    assert {f"{name}_{step}" for name in ("acceptance", "agreement") for step in (1, 2, 3)} < found.measured.keys()


def test_a_draft_is_a_checkpoint_of_its_kind_and_read_as_it_was(model: Model, draft: EagleDraft, tmp_path: Path):
    draft.save(tmp_path / "draft")
    lineage = Lineage.read(tmp_path / "draft")
    assert lineage is not None and lineage.kind is Kind.SPECULATOR and lineage.parents == {"model": model.identity}
    read = read_draft(tmp_path / "draft")
    assert torch.equal(read.tokens, draft.tokens) and read.hidden_layers == [1, 2]
    for name, tensor in draft.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor)
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"fc", "midlayer", "norm", "lm_head", "d2t", "t2d"}
    assert tensors["fc.weight"].shape == (64, 128) and tensors["midlayer.self_attn.q_proj.weight"].shape[1] == 128
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["draft_vocab_size"] == 64
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2] and config["num_aux_hidden_states"] == 2
    read.check(model)


def test_the_model_stays_as_it_is(model: Model, tmp_path: Path):
    before = model.identity
    burnish.Speculator(**SHORT)(model, data=[PROSE.read_text()], work_dir=tmp_path)
    assert model.identity == before


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_draft_of_another_tokenizer_or_shape_is_refused(model: Model, draft: EagleDraft):
    other = Model(module=model.module, tokenizer=small_tokenizer(special=("<|end|>",)))
    with pytest.raises(CheckpointError, match="made for another tokenizer"):
        draft.check(other)
    with pytest.raises(CheckpointError, match="hidden_size"):
        draft.check(Model(module=make("llama", hidden_size=32), tokenizer=model.tokenizer))
    with pytest.raises(CheckpointError, match="reads layer 2 of a model that has 2"):
        draft.check(Model(module=small_llama(), tokenizer=model.tokenizer))


def test_a_map_that_misses_the_end_of_texts_is_refused(model: Model, draft: EagleDraft):
    end = model.tokenizer.eos_token_id
    kept = draft.tokens != end
    without = draft.with_head(draft.tokens[kept], draft.network.lm_head.weight[kept])
    with pytest.raises(CheckpointError, match=r"misses what ends a text \('<\|endoftext\|>'\)"):
        Drafting(model, without)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocabulary": 400}, "the model has 384 tokens"),
        ({"hidden_layers": [3]}, "layers 1 to 2"),
        ({"hidden_layers": [1, 1]}, "twice"),
        ({"context": 16, "answer_tokens": 20}, "come to 24"),
        ({"context": 100_000}, "positions"),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(model: Model, changes: dict[str, Any], told: str):
    settings = burnish.Speculator(**{"data": "texts", **SHORT, **changes})
    with pytest.raises(SettingsError, match=told):
        settings.plan(model.plan())


def test_no_data_and_too_little_of_it_are_refused(model: Model, tmp_path: Path):
    with pytest.raises(SettingsError, match="no data is named"):
        burnish.Speculator().plan(model.plan())
    with pytest.raises(DataError, match="beginnings"):
        burnish.Speculator(**SHORT)(model, data=["The"], work_dir=tmp_path)


def test_special_tokens_must_have_room(model: Model, tmp_path: Path):
    special = tuple(f"<|{number}|>" for number in range(5))
    crowded = Model(module=model.module, tokenizer=small_tokenizer(special=special))
    crowded.tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    with pytest.raises(SettingsError, match="5 special tokens"):
        burnish.Speculator(**{**SHORT, "vocabulary": 4})(crowded, data=[PROSE.read_text()], work_dir=tmp_path)


def test_a_server_with_a_draft_is_the_same_model_in_every_process(draft: EagleDraft, tmp_path: Path):
    """A journal of answers is of the model's identity, which hooks change."""
    directory = made().save(tmp_path / "model")
    place = draft.save(tmp_path / "draft")
    own = load(directory, dtype=torch.float32)
    assert _local(directory, None, 1, "float32", "cpu", str(place)).engine.identity == own.identity


def test_a_model_of_one_layer_has_none_to_read():
    one = Model(module=small_llama(num_hidden_layers=1), tokenizer=small_tokenizer())
    with pytest.raises(SettingsError, match="the model has one layer"):
        burnish.Speculator(**{"data": "texts", **SHORT}).plan(one.plan())


def test_one_answer_is_always_learned_from(model: Model, tmp_path: Path):
    made = burnish.Speculator(**SHORT, holdout=0.9)(model, data=[PROSE.read_text()], work_dir=tmp_path)
    assert made.measured


def test_a_draft_is_no_network_by_itself(draft: EagleDraft, tmp_path: Path):
    with pytest.raises(CheckpointError, match="is a speculator, which is no network by itself"):
        _ = load(draft.save(tmp_path / "draft")).module


@pytest.mark.parametrize("numbers", [[5, 2], [0, 1], ["1", 2]])
def test_layers_that_the_model_has_not_are_refused(model: Model, draft: EagleDraft, numbers: list[Any]):
    other = copy.deepcopy(draft)
    other.config.eagle_aux_hidden_state_layer_ids = numbers
    with pytest.raises(CheckpointError, match=r"reads layer .* of a model that has 3: from 1 to 2 it could"):
        other.check(model)


def _broken(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    d2t, first = tensors["d2t"], torch.zeros_like(tensors["d2t"])
    first[0] = 1
    norm = tensors["norm.weight"].clone()
    norm[0] = float("nan")
    return {
        "name different tokens": {"d2t": d2t - 1000 * first},
        "is damaged": {"d2t": d2t + 100_000},
        "norm.weight holds numbers that are not finite": {"norm.weight": norm},
    }


@pytest.mark.parametrize("told", ["name different tokens", "is damaged", "norm.weight holds numbers"])
def test_a_draft_of_wrong_numbers_is_refused(draft: EagleDraft, tmp_path: Path, told: str):
    place = draft.save(tmp_path / "draft")
    tensors = load_file(place / "model.safetensors")
    (changed,) = (one for said, one in _broken(tensors).items() if told in said)
    save_file(tensors | changed, place / "model.safetensors")
    with pytest.raises(CheckpointError, match=told):
        read_draft(place)


def test_a_damaged_draft_is_told_in_a_sentence(draft: EagleDraft, tmp_path: Path):
    place = draft.save(tmp_path / "draft")
    tensors = load_file(place / "model.safetensors")
    save_file(tensors | {"d2t": tensors["d2t"] + 1}, place / "model.safetensors")
    with pytest.raises(CheckpointError, match="d2t and t2d name different tokens"):
        read_draft(place)
    save_file({name: one for name, one in tensors.items() if name != "fc.weight"}, place / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_draft(place)
    with pytest.raises(CheckpointError, match="is no draft"):
        read_draft(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no EAGLE-3 draft"):
        read_draft(tmp_path / "other")
