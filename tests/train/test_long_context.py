"""Views and weights of tokens over the training loop: what is minimised, and what is refused before the first step."""

import errno
import json
import math
from dataclasses import replace

import pytest
import torch

import burnish
import small_models
from burnish.arch import head_of
from burnish.core.errors import CheckpointError, OutputError, SettingsError
from burnish.core.ledger import Ledger
from burnish.data.packing import IGNORED, documents, pack
from burnish.optim import NorMuon
from burnish.train import Loop, fit
from burnish.train.kept_weights import KeptWeights
from burnish.train.long_context import LongContext
from burnish.train.losses import ROWS, STEP, HeadLoss, causal_lm_loss
from burnish.train.mask_proof import prove
from burnish.train.maths.masks import document_numbers, visible
from burnish.train.maths.step_cost import Decoder, mean_keys, overhead
from burnish.train.objective import Objective
from burnish.train.stage import Train
from burnish.train.views import drawn, has_view, longest_document, mask_rule

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 20
BOTH = "view=skip,weights=kl,window=5,sinks=1"
OBJECTIVES = (
    "view=skip",
    "view=cyclic",
    "view=skip,view_only=true",
    "weights=kl,window=5,sinks=1",
    "weights=sparse,window=5,keep=0.5",
    BOTH,
)


@pytest.fixture
def rows(tokenizer):
    """Rows with different numbers of tokens that count, some with several documents."""
    texts = [TEXT[start : start + 13 * (1 + start % 5)] for start in range(0, 600, 17)]
    return pack(documents(tokenizer, texts), 24)


def loss_of(model, objective, seed=0):
    return LongContext(Objective.of(objective), HeadLoss(head_of(model)), seed=seed)


def batch_of(rows, numbers, step=0):
    return rows.take(numbers) | {STEP: torch.tensor(step), ROWS: torch.tensor(numbers)}


def gradient(model, loss):
    parts = torch.autograd.grad(loss.total, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


def train(model, rows, context, loss_fn, **loop):
    settings = {"steps": 6, "batch_size": 4, "save_every": 0} | loop
    return fit(model, rows, loss_fn, NorMuon.for_model(model, lr=0.01), context, Loop(**settings))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- what is minimised -------------------------------------------------------------------------------------------------


def test_a_step_without_its_view_has_the_plain_loss_bit_for_bit(model_of, rows):
    model, batch = model_of(), batch_of(rows, [0, 1, 2])
    plain, ours = HeadLoss(head_of(model))(model, batch), loss_of(model, "view=skip,view_prob=1e-12")(model, batch)
    assert torch.equal(plain.total, ours.total) and plain.weight == ours.weight
    assert torch.equal(gradient(model, plain), gradient(model, ours))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_held_out_rows_have_the_plain_loss(model_of, rows, objective):
    model, batch = model_of().eval(), rows.take([0, 1, 2])
    assert torch.equal(loss_of(model, objective)(model, batch).total, HeadLoss(head_of(model))(model, batch).total)


def test_a_view_adds_the_mean_divergence_behind_its_gap(model_of, all_float64):
    """Written out for one document, with the logits of two ordinary forward passes."""
    model = model_of(dtype=torch.float64)
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), STEP: torch.tensor(3), ROWS: torch.tensor([7])}
    batch["targets"][0, -1] = IGNORED
    loss = loss_of(model, "view=skip,view_weight=0.7")(model, batch)
    view = drawn(Objective.of("view=skip"), batch, batch["targets"] != IGNORED, 0)
    steps = view.position_ids[0].diff()
    assert (steps > 1).sum() == 1 and view.position_ids.max() <= 2 * 19
    start = int(steps.argmax()) + 1
    mask = visible(torch.zeros(1, 20, dtype=torch.long))[:, None]
    standard = model(input_ids=ids).logits.log_softmax(-1).detach()[0, :19]
    other = model(input_ids=ids, position_ids=view.position_ids, attention_mask=mask).logits.log_softmax(-1)[0, :19]
    divergence = (other.exp() * (other - standard)).sum(-1)
    assert divergence[:start].abs().max() < 1e-14  # what stands before the gap sees nothing of it
    plain = causal_lm_loss(model, batch)
    expected = plain.total + 0.7 * 19 * divergence[start:].mean()
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    assert loss.weight == 19
    gradients = [
        torch.cat([p.flatten() for p in torch.autograd.grad(t, list(model.parameters()))])
        for t in (loss.total, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_weights_are_those_of_two_ordinary_forward_passes(model_of, all_float64):
    model = model_of(dtype=torch.float64)
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), STEP: torch.tensor(0), ROWS: torch.tensor([0])}
    batch["targets"][0, -1] = IGNORED
    loss = loss_of(model, "weights=kl,window=5,sinks=1,floor=0.2")(model, batch)
    mask = visible(torch.zeros(1, 20, dtype=torch.long), 5, 1)[:, None]
    p = model(input_ids=ids).logits.log_softmax(-1)[0, :19]
    q = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[0, :19]
    signal = (p.exp() * (p - q)).sum(-1).detach()[6:]
    factors = torch.ones(19, dtype=torch.float64)
    factors[6:] = 0.2 + 0.8 * signal / signal.mean()
    losses = -p.gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(loss.total, (factors * losses).sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.metrics["unweighted"], losses.detach().sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.metrics["context_divergence"], signal.sum(), rtol=1e-8, atol=0)
    assert signal.min() > 0 and loss.weight == 19


def test_a_view_alone_is_the_next_token_loss_at_its_positions(model_of, all_float64):
    """Written out with one ordinary forward pass, whose mask is that of the order of tokens."""
    model = model_of(dtype=torch.float64)
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), STEP: torch.tensor(3), ROWS: torch.tensor([7])}
    batch["targets"][0, -1] = IGNORED
    objective = "view=skip,view_only=true"
    found = loss_of(model, objective, seed=5)(model, batch)
    view = drawn(Objective.of(objective), batch, batch["targets"] != IGNORED, 5)
    mask = visible(torch.zeros_like(ids))[:, None]
    logits = model(input_ids=ids, position_ids=view.position_ids, attention_mask=mask).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    torch.testing.assert_close(found.total, expected)
    assert found.weight == 19 and (view.position_ids[0].diff() > 1).any()


def test_a_view_stops_the_gradient_of_the_standard_one(model_of, all_float64):
    """The gradient of a view is added to the plain one, in proportion to its weight."""
    model = model_of(dtype=torch.float64)
    rows = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": rows, "targets": rows.roll(-1, 1), STEP: torch.tensor(0), ROWS: torch.tensor([0, 1])}
    one, twice = (gradient(model, loss_of(model, f"view=skip,view_weight={x}")(model, batch)) for x in (1, 2))
    plain = gradient(model, HeadLoss(head_of(model))(model, batch))
    torch.testing.assert_close(twice - one, one - plain, rtol=1e-8, atol=1e-12)
    assert (one - plain).abs().max() > 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro", [1, 3])
def test_cutting_a_step_up_changes_nothing(model_of, rows, context, all_float64, objective, micro):
    trained = {}
    for name, size in (("whole", None), ("cut", micro)):
        model = model_of(dtype=torch.float64)
        train(model, rows, context(name), loss_of(model, objective), steps=3, batch_size=6, micro_batch_size=size)
        trained[name] = weights(model)
    torch.testing.assert_close(trained["whole"], trained["cut"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_document_knows_nothing_of_its_neighbours(model_of, all_float64, objective):
    """Other tokens in another document of the row leave the gradient of this one as it was."""
    model = model_of(dtype=torch.float64)
    ids = torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(14), torch.arange(10)])[None]
    found = []
    for change in (0, 11):
        tokens = ids.clone()
        tokens[0, 14:] = (tokens[0, 14:] + change) % 300
        targets = tokens.roll(-1, 1)
        targets[0, 13:] = IGNORED
        batch = {"input_ids": tokens, "targets": targets, "position_ids": positions}
        found.append(
            gradient(model, loss_of(model, objective)(model, batch | {STEP: torch.tensor(1), ROWS: torch.tensor([5])}))
        )
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_that_is_resumed_ends_with_the_same_bits(model_of, rows, context, objective):
    straight = model_of()
    train(straight, rows, context("straight"), loss_of(straight, objective), steps=5)

    class Died(Exception):
        pass

    died = model_of()
    inner, calls = loss_of(died, objective), []

    def dying(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise Died
        return inner(model, batch)

    with pytest.raises(Died):
        train(died, rows, context("work"), dying, steps=5, save_every=2)
    resumed = model_of()
    assert train(resumed, rows, context("work"), loss_of(resumed, objective), steps=5, save_every=2).resumed_from == 2
    assert torch.equal(weights(straight), weights(resumed))


def test_the_pass_without_a_gradient_leaves_the_generator_as_it_was(model_of, rows):
    model, batch = model_of(), batch_of(rows, [0, 1])
    loss_fn, documents = (
        loss_of(model, BOTH),
        document_numbers(rows.take([0, 1]).get("position_ids", torch.arange(24)[None])),
    )
    state = torch.get_rng_state()
    short = loss_fn._short(model, batch, documents.expand_as(batch["input_ids"]))
    assert torch.equal(torch.get_rng_state(), state) and not short.requires_grad


def test_activation_checkpointing_and_adapters_change_what_they_should(tiny_llama, tmp_path):
    start = burnish.load(tiny_llama)
    settings = {"context": 32, "batch": 4, "steps": 3, "lr": 0.01, "objective": BOTH}
    made = {}
    for name, more in (("plain", {}), ("again", {"activation_checkpointing": True}), ("lora", {"lora_rank": 2})):
        made[name] = Train(**settings, **more)(start, data=[TEXT], work_dir=tmp_path / name).module.state_dict()
    before = start.module.state_dict()
    for name, weight in made["plain"].items():
        torch.testing.assert_close(made["again"][name], weight, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(made["lora"][name], weight) for name, weight in before.items())


CACHED = "weights=kl,window=5,sinks=1,cache=true"


def test_kept_weights_are_those_of_the_first_pass_and_cost_no_second_one(model_of, rows, tmp_path, monkeypatch):
    model, passes = model_of(), []
    kept = KeptWeights.opened(tmp_path, {"of": "a test"}, (len(rows), rows.length), first_pass=2)
    cached = replace(loss_of(model, CACHED), kept=kept)
    anew = loss_of(model, "weights=kl,window=5,sinks=1")
    short = LongContext._short
    monkeypatch.setattr(LongContext, "_short", lambda self, *given: passes.append(1) or short(self, *given))
    first = cached(model, batch_of(rows, [0, 1, 2], step=1))
    assert first.total == anew(model, batch_of(rows, [0, 1, 2], step=1)).total
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    passes.clear()
    later = cached(model, batch_of(rows, [2, 0], step=2))
    assert not passes
    counts = rows.take([2, 0])["targets"] != IGNORED
    plain = HeadLoss(head_of(model))
    output, hidden = plain.run(model, batch_of(rows, [2, 0]))
    assert later.total == plain.of(output, hidden, batch_of(rows, [2, 0]), kept.read([2, 0], counts)).total
    assert later.total != anew(model, batch_of(rows, [2, 0], step=2)).total
    with pytest.raises(CheckpointError, match="a row that the first pass should have seen"):
        cached(model, batch_of(rows, [5], step=2))


def test_rows_of_any_length_are_kept(rows, tmp_path):
    """A batch is as wide as its longest row, so that a short row is written narrow and read wide."""
    kept = KeptWeights.opened(tmp_path, {"of": "a test"}, (len(rows), rows.length), first_pass=1)
    counts = {number: rows.take([number])["targets"] != IGNORED for number in range(len(rows))}
    assert len({one.shape[1] for one in counts.values()}) > 1
    for number, one in counts.items():
        kept.write([number], one, number + torch.arange(int(one.sum())) / 100)
    numbers = list(counts)[::-1]
    together = rows.take(numbers)["targets"] != IGNORED
    expected = [number + torch.arange(int(counts[number].sum())) / 100 for number in numbers]
    assert torch.equal(kept.read(numbers, together), torch.cat(expected))


def test_a_full_disk_is_told_before_the_first_step(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("burnish.train.kept_weights._write_empty", full)
    with pytest.raises(OutputError, match=r"no place for the weights of 1,000 rows.*free some space, or leave cache"):
        KeptWeights.opened(tmp_path, {"of": "a test"}, (1000, 24), first_pass=2)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_training_with_kept_weights_that_is_killed_ends_with_the_same_bits(tiny_llama, tmp_path):
    """It stops in the second pass, whose weights are those that the first one wrote."""
    settings = {"context": 24, "batch": 4, "lr": 0.01, "objective": CACHED, "save_every": 3, "seed": 3}
    texts = [TEXT[:700]]
    num_rows = len(pack(documents(burnish.load(tiny_llama).tokenizer, texts), 24))
    steps = 2 * math.ceil(num_rows / 4) + 2

    def trained(place, **changes):
        model = burnish.Train(**(settings | {"steps": steps} | changes))(
            burnish.load(tiny_llama), data=texts, work_dir=tmp_path / place
        )
        return weights(model.module)

    class Stopped(Exception):
        pass

    whole = trained("whole")
    step = LongContext.__call__

    def stops(self, model, batch):
        if int(batch[STEP]) == steps - 2:
            raise Stopped
        return step(self, model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LongContext, "__call__", stops)
        with pytest.raises(Stopped):
            trained("killed")
    assert torch.equal(trained("killed"), whole)
    assert not torch.equal(trained("anew", objective=CACHED.removesuffix(",cache=true")), whole)


def test_weights_that_are_kept_for_no_second_pass_are_refused(tiny_llama):
    with pytest.raises(SettingsError, match="cache begins with the second pass"):
        burnish.Train(context=24, batch=1, steps=2, objective=CACHED)(burnish.load(tiny_llama), data=[TEXT])


def test_kept_weights_are_priced_by_the_share_of_the_first_pass(tiny_llama):
    plan = burnish.load(tiny_llama).plan()
    train = Train(context=24, batch=4, epochs=4, objective=CACHED, data="wikitext2-valid")
    whole = train.model_copy(update={"objective": CACHED.removesuffix(",cache=true")}).added(plan)
    assert train.added(plan) == pytest.approx(whole / 4)
    assert train.added(plan, num_rows=10) == pytest.approx(whole * 3 / 10)  # 3 of 10 steps
    assert train.model_copy(update={"steps": 2}).added(plan, num_rows=10) == pytest.approx(whole)


def test_a_long_training_tells_what_its_objective_costs(tiny_llama, monkeypatch):
    """Measured and expected stand side by side, and measuring changes no weight."""
    settings = {"context": 24, "batch": 4, "steps": 6, "lr": 1e-3, "objective": "view=skip,view_prob=0.3," + CACHED}
    told, found = [], []
    monkeypatch.setattr(Ledger, "table", lambda self, name, rows: told.append((name, rows)))
    for fewest in (7, 6):
        monkeypatch.setattr("burnish.train.objective_cost.FEWEST_STEPS", fewest)
        found.append(burnish.Train(**settings)(burnish.load(tiny_llama), data=[TEXT[:200]]))
    ((_, (row,)),) = [one for one in told if one[0] == "objective_cost"]
    assert row["low"] <= row["measured"] <= row["high"] and row["context"] == 24 and row["rows"] == 4
    whole = burnish.Train(**settings | {"objective": "view=skip,weights=kl,window=5,sinks=1"})
    assert row["expected"] == whole.added(burnish.load(tiny_llama).plan())
    assert torch.equal(*(weights(model.module) for model in found))


def test_a_recipe_and_the_loss_table_have_the_objective(tiny_llama, tmp_path):
    stage = Train.parse({"context": 32, "batch": 4, "steps": 2, "objective": BOTH}, where="recipe.yaml")
    start = burnish.load(tiny_llama)
    assert any(
        "its objective takes" in note for note in stage.model_copy(update={"data": "x"}).plan(start.plan()).notes
    )
    stage(start, data=[TEXT], work_dir=tmp_path)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["view_divergence"] > 0 and last["context_divergence"] > 0 and last["unweighted"] > 0


# -- draws -------------------------------------------------------------------------------------------------------------


def test_draws_follow_from_seed_step_and_row_alone(rows):
    objective = Objective.of("view=skip")
    both, one = batch_of(rows, [3, 4]), batch_of(rows, [4])
    first, second = (drawn(objective, batch, batch["targets"] != IGNORED, 0).position_ids[-1] for batch in (both, one))
    assert torch.equal(first[: len(second)], second)
    other = batch_of(rows, [4], step=1)
    assert not torch.equal(drawn(objective, other, other["targets"] != IGNORED, 0).position_ids[0], second)


def test_every_document_has_a_draw_of_its_own_and_gaps_stay_inside_it():
    positions = torch.cat([torch.arange(9), torch.arange(7), torch.arange(8)])[None]
    batch = {"input_ids": torch.zeros(1, 24, dtype=torch.long), "targets": torch.ones(1, 24, dtype=torch.long)}
    batch |= {"position_ids": positions, STEP: torch.tensor(0), ROWS: torch.tensor([0])}
    counts = batch["targets"] != IGNORED
    for seed in range(30):
        view = drawn(Objective.of("view=skip,max_skip=4"), batch, counts, seed)
        added = (view.position_ids - positions)[0]
        for piece, length in ((slice(0, 9), 9), (slice(9, 16), 7), (slice(16, 24), 8)):
            gap = int(added[piece].max())
            start = int((added[piece] > 0).nonzero()[0])
            assert 1 <= gap <= 4 and added[piece].tolist() == [0] * start + [gap] * (length - start)
            torch.testing.assert_close(
                view.shares[0, piece], torch.tensor([0.0] * start + [length / (length - start)] * (length - start))
            )


def test_a_share_of_the_steps_has_views():
    objective = Objective.of("view=skip,view_prob=0.3")
    share = sum(has_view(objective, 0, step) for step in range(2000)) / 2000
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_the_rule_of_flex_attention_is_the_dense_mask():
    from torch.nn.attention.flex_attention import create_mask

    documents = torch.tensor([[0] * 9 + [1] * 11, [0] * 20])
    for window, sinks in ((None, 0), (4, 0), (3, 2)):
        found = create_mask(mask_rule(documents, window, sinks), 2, None, 20, 20, device="cpu")
        assert torch.equal(found[:, 0], visible(documents, window, sinks))


def test_the_longest_document_is_that_of_tokens_that_count(rows):
    counts = rows.targets != IGNORED
    assert longest_document(rows.position_ids, counts) == 24
    counts[rows.position_ids > 6] = False
    assert longest_document(rows.position_ids, counts) == 7


# -- what a model must do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral", "gpt_neox", "deepseek_v2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_models_with_rotary_positions_and_masks_are_proven(kind, attention):
    model = small_models.make(kind)
    model.set_attn_implementation(attention)
    prove(model, Objective.of(BOTH), attention)
    assert not model.training


@pytest.mark.parametrize(
    "kind, objective, told, settings",
    [
        ("gpt2", "view=skip", "all positions are shifted", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("bloom", "view=skip", "a mask of every pair of tokens cannot be given", {}),
        ("falcon_h1", "weights=kl,window=4,sinks=1", "a packed document|is hidden by window", {}),
        ("mamba", "weights=kl,window=4,sinks=1", "a mask of every pair of tokens cannot be given", {}),
    ],
)
def test_a_model_that_does_not_do_what_masks_and_positions_say_is_refused(kind, objective, told, settings):
    model = small_models.make(kind, **settings)
    with pytest.raises(SettingsError, match=told):
        prove(model, Objective.of(objective), "eager")


def test_a_gap_that_is_taken_for_a_border_is_refused(model_of, monkeypatch):
    """Without a mask transformers reads one out of the positions; an implementation that drops ours does so too."""
    model = model_of()
    monkeypatch.setattr("burnish.train.mask_proof.attention_mask", lambda *arguments, **more: None)
    with pytest.raises(SettingsError, match="the gap is taken for a border"):
        prove(model, Objective.of("view=skip"), "sdpa")
    with pytest.raises(SettingsError, match="is hidden by window and sinks changes"):
        prove(model, Objective.of("weights=kl,window=4,sinks=1"), "sdpa")


def test_dropout_is_refused(model_of):
    with pytest.raises(SettingsError, match=r"drops 0\.1 of its values"):
        prove(model_of(attention_dropout=0.1), Objective.of(BOTH), "sdpa")


# -- what is refused before ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, told",
    [
        ("view", "'view' is no setting; write view=skip"),
        ("view=skp", "view is 'skp', but input should be"),
        ("veiw=skip", "did you mean 'view'"),
        ("view=skip,view=skip", "stands there twice"),
        ("weights=none", "nothing is asked for"),
        ("view=skip,window=4", "window counts for nothing without weights"),
        ("weights=kl,max_skip=4", "max_skip counts for nothing without view"),
        ("view=cyclic,max_skip=4", "the cyclic view has no gap"),
        ("weights=kl,window=4,sinks=4", "not below the window"),
        ("weights=sparse,keep=0", "keep is '0'"),
        ("weights=kl,keep=0.1", "keep counts for nothing with weights=kl, but with sparse"),
        ("weights=dense,shift=2", "shift counts for nothing with weights=dense, but with ppmi, npmi"),
        ("weights=longce,floor=0.1", "floor counts for nothing with weights=longce"),
        ("weights=longce,prefix=formula", "prefix counts for nothing with weights=longce"),
        ("view=skip,view_prob=1.5", "view_prob is '1.5'"),
        ("view=skip,view_only=true,weights=kl", "weights does not go with view_only"),
        ("view=skip,view_only=true,view_weight=2", "view_weight does not go with view_only"),
        ("weights=kl,view_only=true", "view_only counts for nothing without view"),
        ("focal=11", "focal is .11."),
    ],
)
def test_an_objective_that_means_nothing_is_one_sentence(text, told):
    with pytest.raises(SettingsError, match=told):
        Objective.of(text)
    with pytest.raises(SettingsError, match=told):
        Train.parse({"objective": text}, where="recipe.yaml")


def test_distillation_has_a_loss_of_its_own():
    with pytest.raises(SettingsError, match="distillation has its own"):
        burnish.Distill.parse({"teacher": "start", "objective": BOTH}, where="recipe.yaml")


@pytest.mark.parametrize("setting", [{"compile": True}, {"attention": "flash"}, {"sequence_parallel": 2}])
def test_what_takes_no_masks_is_refused(setting):
    with pytest.raises(SettingsError, match="does not go with"):
        Train.parse({"objective": BOTH} | setting, where="recipe.yaml")


@pytest.mark.parametrize(
    "kind, changes, objective, told",
    [
        ("llama", {}, "view=skip", "reaches position 399, but the model's end at 255; use max_skip=56"),
        ("llama", {}, "weights=kl,window=199", "hides nothing of a context of 200"),
        ("mistral", {"sliding_window": 64}, "weights=kl,window=20", "see 64 tokens"),
        ("gpt2", {}, "view=skip", "no rotary positions"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "view=cyclic",
            "largest position",
        ),
    ],
)
def test_a_model_that_it_does_not_fit_is_refused_by_its_configuration(kind, changes, objective, told):
    config = small_models.make(kind, **changes).config
    with pytest.raises(SettingsError, match=told):
        Objective.of(objective).check(config, 200)


def test_documents_within_the_window_are_said_once_and_cost_nothing(tiny_llama, tmp_path, capsys):
    stage = Train(context=32, batch=2, steps=2, lr=0.01, objective="weights=kl,window=20")
    texts = [TEXT[start : start + 20] for start in range(0, 200, 10)]
    weighted = stage(burnish.load(tiny_llama), data=texts, work_dir=tmp_path / "a", progress=True)
    plain = Train(context=32, batch=2, steps=2, lr=0.01)(burnish.load(tiny_llama), data=texts, work_dir=tmp_path / "b")
    assert capsys.readouterr().err.count("every weight is one") == 1
    for name, weight in plain.module.state_dict().items():
        assert torch.equal(weighted.module.state_dict()[name], weight)


# -- what it costs -----------------------------------------------------------------------------------------------------

LLAMA_8B = Decoder(layer_weights=32 * 218_100_000, head_weights=128256 * 4096, attention_width=32 * 4096)


@pytest.mark.parametrize(
    "context, plain, again", [(8192, 31, 24), (16384, 28, 21), (32768, 23, 17), (65536, 17, 13), (131072, 11, 8)]
)
def test_the_cost_of_weights_is_that_of_one_pass_of_a_window(context, plain, again):
    """Shares of a step of an 8 B model with a window of 2,048, which are the method's published arithmetic."""
    for expected, checkpointing in ((plain, False), (again, True)):
        found = overhead(LLAMA_8B, context, window=2048, sinks=4, checkpointing=checkpointing)
        assert abs(100 * found - expected) < 2.6


def test_a_second_view_doubles_a_step_and_a_dense_mask_saves_nothing():
    assert 0.97 < overhead(LLAMA_8B, 8192, view_share=1.0) < 1.0
    assert overhead(LLAMA_8B, 8192, view_share=0.5) == pytest.approx(overhead(LLAMA_8B, 8192, view_share=1.0) / 2)
    assert overhead(LLAMA_8B, 65536, window=2048, skips=False) > 2 * overhead(LLAMA_8B, 65536, window=2048)
    assert mean_keys(4) == 2.5 and mean_keys(4, window=1, sinks=1) == 1.75
