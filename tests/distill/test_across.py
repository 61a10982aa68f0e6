"""Distillation between tokenizers: values are TRL's, stretches end where both cut, and the student learns."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.checkpoint import Model
from burnish.core.errors import CheckpointError, SettingsError
from burnish.distill.across import AcrossTokenizers, text_ends, token_ends
from burnish.distill.maths.universal import likelihood, ranked, shared_and_ranked, stretches
from burnish.distill.on_policy import OnPolicy
from burnish.distill.stage import Distill
from burnish.train.stage import Train
from small_models import PROSE, make, small_tokenizer

TEXT = PROSE.read_text()[:3000]
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}


@cache
def both():
    """Bytes and a few pairs of them, and a thousand pieces of words."""
    return small_tokenizer(300), small_tokenizer(900)


@pytest.fixture
def tokenizers():
    return both()


@pytest.fixture(scope="module")
def models():
    return make("llama", seed=0, vocab_size=300, **SMALL).float(), make(
        "llama", seed=1, vocab_size=900, **SMALL
    ).float()


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2, 5, 7], [2, 5, 7], [([0], [0]), ([1], [1]), ([2], [2])]),
        ([2, 5, 7], [1, 5, 6], [([0, 1], [0, 1])]),
        ([1, 2, 3], [3], [([0, 1, 2], [0])]),
        ([1, 1, 2], [1, 2], [([0], [0]), ([1, 2], [1])]),  # the second is half a character
        ([4], [], []),
    ],
)
def test_a_stretch_ends_where_both_cut(ours, theirs, expected):
    assert [(list(one), list(other)) for one, other in stretches(ours, theirs)] == expected


@settings(deadline=None)
@given(st.text(alphabet="ab é漢🙂\n", max_size=30))
def test_stretches_of_two_tokenizers_say_the_same(text):
    one, other = both()
    written, ends = text_ends(one, one(text)["input_ids"])
    assert written == text
    tokens, their_ends = token_ends(other, text)
    place = 0
    for ours, theirs in stretches(ends, their_ends):
        assert other.decode(tokens[theirs[0] : theirs[-1] + 1]) == text[place : ends[ours[-1]]]
        place = ends[ours[-1]]


def test_the_likelihood_of_a_text_is_a_divergence():
    log_p = torch.tensor([-0.01, -1.0, -30.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(likelihood(log_p, log_p), torch.zeros(4, dtype=torch.float64))
    log_s = torch.tensor([-2.0, -0.5, -3.0, -0.1], dtype=torch.float64, requires_grad=True)
    p, s = log_p.exp(), log_s.exp().detach()
    expected = torch.special.xlogy(p, p / s) + torch.special.xlogy(1 - p, (1 - p) / (1 - s))
    found = likelihood(log_s, log_p)
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    torch.testing.assert_close(log_s.grad, -(p - s) / (1 - s))


def test_ranks_ignore_the_order_of_tokens_and_rows_of_padding():
    log_p = torch.randn(4, 7, dtype=torch.float64).log_softmax(-1)
    order = torch.randperm(7)
    assert ranked(log_p, log_p[:, order]).abs().max() < 1e-12
    padded = torch.nn.functional.pad(log_p, (0, 3), value=-torch.inf)
    assert ranked(log_p, padded).abs().max() < 1e-12
    assert (ranked(log_p, torch.randn(4, 9, dtype=torch.float64).log_softmax(-1)) <= 2).all()


@pytest.mark.slow  # imports TRL
@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_values_are_those_of_trl(hybrid, beta, tokenizers):
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer", reason="needs the extra align")
    student, teacher = tokenizers
    text = "the Licensed work"
    s_ids, s_ends = student(text)["input_ids"], token_ends(student, text)[1]
    t_ids, t_ends = token_ends(teacher, text)
    generator = torch.Generator().manual_seed(0)
    logits = [2 * torch.randn(1, 1 + len(ids), size, generator=generator) for ids, size in ((s_ids, 300), (t_ids, 900))]

    class Config:
        beta: float
        uld_crossentropy_weight, uld_distillation_weight = 0.0, 1.0
        uld_student_temperature = uld_teacher_temperature = 1.5
        uld_skip_student_eos = uld_skip_teacher_eos = False
        use_extended_uld, uld_token_merge_strategy = True, "bayesian"
        uld_use_hybrid_loss, uld_hybrid_matched_weight, uld_hybrid_unmatched_weight = hybrid, None, None

    Config.beta = beta
    theirs = gold.ULDLoss(Config(), student, teacher)
    inputs = [torch.tensor([[0, *ids]]) for ids in (s_ids, t_ids)]
    labels = [torch.tensor([[-100, *ids]]) for ids in (s_ids, t_ids)]
    offsets = [torch.tensor([[[0, 0], *([0, end] for end in ends)]]) for ends in (s_ends, t_ends)]
    expected = theirs(*logits, *labels, *inputs, *offsets)

    log_s, log_p = ((values[0] / 1.5).log_softmax(-1) for values in logits)
    found = list(stretches(s_ends, t_ends))
    assert max(len(ours) for ours, _ in found) > 1
    rows = []
    for log_q, ids, places in ((log_s, s_ids, [o for o, _ in found]), (log_p, t_ids, [t for _, t in found])):
        before = [sum(log_q[place, ids[place]] for place in one[:-1]) for one in places]
        rows.append(torch.stack([log_q[one[-1]] + said for one, said in zip(places, before, strict=True)]))
    if hybrid:
        numbers = student.get_vocab(), teacher.get_vocab()
        names = numbers[0].keys() & numbers[1].keys()
        mine, other = torch.tensor([(numbers[0][name], numbers[1][name]) for name in names]).T
        ours = shared_and_ranked(rows[0], rows[1], mine, other, beta)
    else:
        ours = ranked(rows[0], rows[1])
    torch.testing.assert_close(ours.mean(), expected, rtol=1e-5, atol=1e-6)


def batch_of(tokenizer, texts):
    ids = [tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, ids)) - 1
    inputs, targets = torch.zeros(len(ids), length, dtype=torch.long), torch.full((len(ids), length), -100)
    for row, one in enumerate(ids):
        inputs[row, : len(one) - 1], targets[row, : len(one) - 1] = torch.tensor(one[:-1]), torch.tensor(one[1:])
    return {"input_ids": inputs, "targets": targets}


def test_with_one_tokenizer_it_is_token_by_token(models, tokenizers):
    """Then every token is a stretch, whose ranked distance is computed here from both models' logits."""
    student, tokenizer = models[0], tokenizers[0]
    teacher = make("llama", seed=2, vocab_size=300, **SMALL).float()
    batch = batch_of(tokenizer, [TEXT[:60], TEXT[100:130]])
    loss = AcrossTokenizers(teacher, tokenizer, tokenizer, "uld", alpha=1.0)(student, batch)
    log_s, log_p = (model(input_ids=batch["input_ids"]).logits.log_softmax(-1) for model in (student, teacher))
    counts = batch["targets"] != -100
    torch.testing.assert_close(loss.total, ranked(log_s[counts], log_p[counts]).sum())
    assert loss.metrics["aligned"] == loss.weight == counts.sum()


@pytest.mark.parametrize("comparison", ["alm", "uld"])
def test_the_loss_is_the_same_in_any_cut_of_a_step_and_packed(models, tokenizers, comparison):
    student, teacher = models
    made = AcrossTokenizers(teacher, *tokenizers, comparison=comparison, alpha=0.7)
    texts = [TEXT[:80], TEXT[90:140]]
    whole, *parts = (made(student, batch_of(tokenizers[0], some)) for some in (texts, texts[:1], texts[1:]))
    torch.testing.assert_close(whole.total, sum(part.total for part in parts))
    single = [batch_of(tokenizers[0], [text]) for text in texts]
    packed = {name: torch.cat([batch[name] for batch in single], 1) for name in single[0]}
    places = torch.cat([torch.arange(batch["targets"].shape[1]) for batch in single])
    torch.testing.assert_close(made(student, packed | {"position_ids": places[None]}).total, whole.total)


def test_a_token_that_does_not_count_is_in_no_stretch(models, tokenizers):
    batch = batch_of(tokenizers[0], [TEXT[:80]])
    made = AcrossTokenizers(models[1], *tokenizers)
    _, all_of_it = made.cut_anew(batch)
    batch["targets"][0, :20] = -100
    _, found = made.cut_anew(batch)
    assert found == [pair for pair in all_of_it if all(position >= 20 for _, position, _ in pair[0])]


def test_the_student_can_write_the_texts(models, tokenizers):
    student, teacher = models
    loss = OnPolicy(AcrossTokenizers(teacher, *tokenizers), student.train(), tokenizers[0], prompt_tokens=4)
    found = loss(student, batch_of(tokenizers[0], [TEXT[:80]]))
    found.total.backward()
    assert found.total.isfinite() and found.metrics["sampled"] > 0


@pytest.mark.slow
def test_the_student_learns_the_text_from_a_teacher_with_another_tokenizer(models, tokenizers, tmp_path):
    """From the comparison alone, by the likelihood of the text; ranks do not say which token it is."""
    student, teacher = (Model(module=module, tokenizer=t) for module, t in zip(models, tokenizers, strict=True))
    settings = {"context": 32, "batch": 8, "lr": 0.02, "optimizer": "adamw"}
    teacher = Train(steps=100, **settings)(teacher, data=[TEXT])
    fallen = {}
    for divergence in ("uld", "alm"):
        stage = Distill(steps=60, alpha=1.0, divergence=divergence, **settings)
        stage(student, data=[TEXT], teacher=teacher, work_dir=tmp_path / divergence)
        rows = [json.loads(line) for line in (tmp_path / divergence / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
        fallen[divergence] = rows[0]["cross_entropy"] - rows[-1]["cross_entropy"]
    assert fallen["alm"] > 0.5  # nats a token, of 5.7
    assert fallen["uld"] < 0


def test_a_teacher_with_other_tokens_is_named_with_the_way_out(models, tokenizers):
    student, teacher = (Model(module=module, tokenizer=t) for module, t in zip(models, tokenizers, strict=True))
    with pytest.raises(CheckpointError, match="or set divergence to alm"):
        Distill(steps=1, context=32)(student, data=[TEXT], teacher=teacher)


def test_names_need_a_shared_token(models, tokenizers, monkeypatch):
    student, teacher = (Model(module=module, tokenizer=t) for module, t in zip(models, tokenizers, strict=True))
    monkeypatch.setattr(teacher.tokenizer, "get_vocab", lambda: {"<nobody has this>": 0})
    with pytest.raises(SettingsError, match="use divergence alm"):
        Distill(steps=1, context=32, divergence="gold")(student, data=[TEXT], teacher=teacher)


@pytest.mark.parametrize("changes", [{"hidden": 1.0}, {"router": 1.0}, {"weighting": "focus"}])
def test_what_compares_token_by_token_is_refused(changes):
    with pytest.raises(SettingsError, match="compares stretches of text"):
        Distill.parse({"divergence": "uld", "teacher": "t", "data": "d"} | changes, where="recipe.yaml")
