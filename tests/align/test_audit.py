"""The label audit: its instrument, its ranking, its page and the way back."""

import itertools
import json
import re

import numpy as np
import pytest
import torch

from burnish.align.answer_features import hidden_features, nuisance_features, word_features
from burnish.align.audit import annotators_of, audit_pairs, supported_by
from burnish.align.audit_page import render, sampling_order
from burnish.align.audit_settings import AuditSettings
from burnish.align.decisions import apply_decisions, decisions_of, flipped, labels_known, pair_key
from burnish.align.linear_reward import cross_fitted_margins, fit_linear_reward, folds_of_groups, rotated, unit_scale
from burnish.align.maths.noise import clearest
from burnish.core.checkpoint import load
from burnish.core.errors import DataError, OutputError
from burnish.core.ledger import read_rows
from burnish.core.progress import Progress
from burnish.data.preferences import Pairs, read_pairs, write_pairs
from burnish.data.prompts import question_groups, split_prompt

QUIET = Progress(enabled=False)
COLOURS = ["red", "green", "blue", "white", "black", "brown", "pink", "grey"]


@pytest.fixture(scope="module")
def pairs():
    """Forty pairs, polite answers preferred; rows 3 and 17 are labelled the wrong way."""
    rows = []
    for index in range(40):
        colour = COLOURS[index % len(COLOURS)]
        good = f"Certainly, {colour} is a fine choice, thank you."
        bad = f"{colour}. go away {index % 5}"
        row = {"prompt": f"Question {index // 2}: which colour?", "chosen": good, "rejected": bad, "id": index}
        if index in (3, 17):
            row |= {"chosen": bad, "rejected": good}
        rows.append(row)
    return Pairs(rows, list(range(1, 41)), "prefs.jsonl")


@pytest.fixture(scope="module")
def audit(pairs, checkpoint):
    return audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=2))


# -- the instrument --------------------------------------------------------------------------------------------------


def test_linear_reward_is_where_the_gradient_vanishes():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    for loss, settings in (("bt", {}), ("r3m", {"lam": 0.3}), ("aps", {"rho0": 0.1, "tau0": 0.1, "tau_max": 3.0})):
        w = fit_linear_reward(x, loss, l2=0.01, **settings)
        again = torch.tensor(w, requires_grad=True)
        from burnish.align.losses import pair_loss

        value = pair_loss(loss, torch.from_numpy(x) @ again, **settings)[0].mean() + 0.005 * again.square().sum()
        value.backward()
        assert again.grad.abs().max() < 1e-4


def test_a_label_cannot_move_the_margin_of_its_own_group():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    groups = [f"prompt {index // 3}" for index in range(60)]

    def margins(differences):
        generator = torch.Generator().manual_seed(5)
        return cross_fitted_margins(differences, groups, "bt", l2=0.1, num_folds=4, num_repeats=2, generator=generator)

    flipped = x.copy()
    flipped[30:33] *= -1  # the whole group changes its labels
    np.testing.assert_allclose(margins(flipped)[:, 30:33], -margins(x)[:, 30:33], rtol=1e-9)


def test_groups_are_never_split_between_folds():
    groups = [index % 13 for index in range(100)]
    fold = folds_of_groups(groups, 5, torch.Generator().manual_seed(0))
    assert all(len({f for f, g in zip(fold, groups, strict=True) if g == name}) == 1 for name in range(13))
    assert set(fold) == set(range(5))


def test_robust_fit_finds_confident_flips_better_than_the_plain_loss():
    # section 2.3 of the method's specification: precision among the k most suspicious, k = number of flips
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randn(20, generator=generator, dtype=torch.float64)
        x = torch.randn(800, 20, generator=generator, dtype=torch.float64)
        gap = x @ truth
        label = torch.where(torch.rand(800, generator=generator, dtype=torch.float64) < torch.sigmoid(gap), 1.0, -1.0)
        flip = clearest(gap * label, 0.1)
        differences = (x * (label * torch.where(flip, -1.0, 1.0))[:, None]).numpy()
        margins = {
            loss: cross_fitted_margins(
                differences,
                range(800),
                loss,
                l2=1e-3,
                num_folds=5,
                num_repeats=1,
                generator=torch.Generator().manual_seed(9),
                lam=0.2,
            )[0]
            for loss in ("bt", "r3m")
        }
        found.append([flip.numpy()[np.argsort(margins[loss])[: int(flip.sum())]].mean() for loss in ("bt", "r3m")])
    plain, robust = np.mean(found, axis=0)
    assert robust > plain


def test_hidden_features_do_not_depend_on_the_company_in_the_batch(checkpoint):
    model = load(checkpoint)
    texts = [("Which colour?", "red"), ("Which colour?", "a very long answer about many colours indeed")]
    both = hidden_features(model, texts, depths=(0.5, 1.0), max_length=64, progress=QUIET)
    alone = hidden_features(model, texts[:1], depths=(0.5, 1.0), max_length=64, progress=QUIET)
    np.testing.assert_allclose(both[0], alone[0], atol=1e-5)
    assert both.shape == (2, 2 * 64)


def test_word_features_have_unit_length_and_know_the_words(checkpoint):
    words = word_features(load(checkpoint), ["the red door", "the red door", "the blue door"])
    products = (words @ words.T).toarray()
    np.testing.assert_allclose(np.diag(products), 1.0)
    assert products[0, 1] == pytest.approx(1.0)
    assert 0 < products[0, 2] < 0.9


def test_rotation_leaves_every_margin_as_it_was():
    x = np.random.default_rng(0).normal(size=(40, 90))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    given = {"l2": 0.05, "num_folds": 4, "num_repeats": 1, "lam": 0.3}
    plain, turned = (
        cross_fitted_margins(features, range(40), "r3m", generator=generator, **given)
        for features, generator in zip((x, rotated(x)), generators, strict=True)
    )
    np.testing.assert_allclose(turned, plain, atol=1e-4)  # two L-BFGS runs, each stopped at a gradient of 1e-7


def test_unit_scale_makes_every_feature_count_the_same():
    x = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 100.0, 1e-4]
    np.testing.assert_allclose((unit_scale(x) ** 2).mean(axis=0), 1 / 3)


# -- the audit -------------------------------------------------------------------------------------------------------


def test_planted_wrong_labels_come_first(audit):
    assert {row["row"] for row in audit.rows[:2]} == {4, 18}
    assert audit.rows[0]["margin"] < 0 and audit.rows[0]["delta"] > 0
    assert audit.rows[0]["wrong"] > 0.5
    assert "prefer the answer labelled worse" in audit.rows[0]["reasons"][1]


def test_every_pair_appears_once_with_finite_scores(audit, pairs):
    assert sorted(row["row"] for row in audit.rows) == pairs.numbers
    assert all(
        np.isfinite([row[key] for key in ("margin", "delta", "tau", "loss", "weight")]).all() for row in audit.rows
    )


@pytest.mark.parametrize(("ranking", "margin"), [("loss", "margin_bt"), ("tau", "margin_aps"), ("delta", "margin_r3m")])
def test_rankings_sort_by_their_own_fit(ranking, margin, pairs, checkpoint):
    found = audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=1, rank_by=ranking))
    values = [row[margin] for row in found.rows]
    assert values == sorted(values)


def test_a_pair_labelled_both_ways_says_so(pairs, checkpoint):
    twin = pairs.rows[0] | {"chosen": pairs.rows[0]["rejected"], "rejected": pairs.rows[0]["chosen"]}
    both = Pairs([*pairs.rows, twin], [*pairs.numbers, 41], "prefs.jsonl")
    found = audit_pairs(both, load(checkpoint), AuditSettings(repeats=1))
    reasons = {row["row"]: row["reasons"][0] for row in found.rows}
    assert reasons[41] == "the same two answers, or nearly so, are labelled the other way in row 1"
    assert reasons[1] == "the same two answers, or nearly so, are labelled the other way in row 41"


def test_the_audit_is_the_same_twice(audit, pairs, checkpoint):
    again = audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=2))
    assert again.rows == audit.rows


def test_too_few_prompts_for_the_folds_are_refused(pairs, checkpoint):
    few = Pairs(pairs.rows[:4], pairs.numbers[:4], "prefs.jsonl")
    with pytest.raises(DataError, match="has 2 different questions, but 5 folds"):
        audit_pairs(few, load(checkpoint))


# -- the page and the way back -----------------------------------------------------------------------------------------


def test_page_holds_everything_itself(audit):
    page = render(audit)
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*""", page) == ['href="data:,']
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "default-src &#39;none&#39;" in page and "script-src &#39;sha256-" in page and "onsubmit" not in page


def test_every_beginning_of_the_sample_is_spread_over_all_ranks():
    order = sampling_order([0.5] * 1000)
    assert sorted(order) == list(range(1000))
    for size in (16, 100):
        ranks = np.flatnonzero(np.array(order) < size)
        assert np.histogram(ranks, bins=4, range=(0, 1000))[0].min() >= size // 4 - 2
    assert sampling_order([0.3]) == [0]


def test_the_sample_is_denser_where_labels_are_in_doubt():
    order = np.array(sampling_order([0.5] * 200 + [0.05] * 800))  # sqrt(p (1 - p)): 0.5 and 0.22
    assert sorted(order) == list(range(1000))
    wanted = 200 * 0.5 / (200 * 0.5 + 800 * 0.05**0.5 * 0.95**0.5)
    assert (np.flatnonzero(order < 100) < 200).mean() == pytest.approx(wanted, abs=0.05)


def test_texts_cannot_break_out_of_the_page(pairs, checkpoint):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [row | {"chosen": row["chosen"] + evil} if index == 0 else row for index, row in enumerate(pairs.rows)]
    page = render(audit_pairs(Pairs(rows, pairs.numbers, "<b>prefs</b>"), load(checkpoint), AuditSettings(repeats=1)))
    assert evil not in page and "<img" not in page and "<b>prefs" not in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    assert any(evil in text for text in json.loads(data)["texts"])


def test_written_files_agree(audit, tmp_path):
    page = audit.write(tmp_path / "audit")
    rows = [json.loads(line) for line in (page.parent / "pairs.jsonl").read_text().splitlines()]
    assert rows == audit.rows
    audit.write(tmp_path / "audit")  # again, over its own files


def test_the_verdict_stands_in_the_ledger_and_its_report(audit, tmp_path):
    from burnish.report import page

    audit.write(tmp_path / "audit")
    (table,) = read_rows(tmp_path / "audit" / "ledger.jsonl")
    found = {row["measure"]: row for row in table["rows"]}
    assert found["verdict"]["value"] == ("can judge" if audit.judged.can_judge else "cannot judge these pairs")
    assert found["agreement with the labels"]["low"] == audit.judged.agreement.low
    page.write(tmp_path / "audit")
    assert "agreement with the labels" in (tmp_path / "audit" / "report.html").read_text()
    audit.write(tmp_path / "audit")  # its own files are no reason to refuse the place


def test_a_directory_of_other_files_is_not_written_into(audit, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="holds other files"):
        audit.write(tmp_path)


def test_an_audit_gives_soft_labels_to_what_nobody_decided(audit, pairs, tmp_path):
    rows = [row | {"wrong": row["rank"] / 100} for row in audit.rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = [
        {"key": rows[place]["key"], "row": rows[place]["row"], "decision": decision}
        for place, decision in enumerate(("keep", "flip", "drop"))
    ]
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    made, counts = apply_decisions(pairs, tmp_path / "decisions.jsonl", audit=tmp_path)
    assert counts == {"keep": 1, "flip": 1, "drop": 1, "soft": 37}
    right = dict(zip(made.numbers, (row["label_probability"] for row in made.rows), strict=True))
    assert [right[row["row"]] for row in rows[:2]] == [1.0, 1.0]
    assert all(right[row["row"]] == pytest.approx(1 - row["wrong"]) for row in rows[3:])
    voted = Pairs([row | {"votes": [3, 0]} for row in pairs.rows], pairs.numbers, pairs.source)
    assert not any("votes" in row for row in apply_decisions(voted, audit=tmp_path)[0].rows)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row | {"wrong": "often"}) + "\n" for row in rows))
    with pytest.raises(DataError, match="the probability 'often'"):
        apply_decisions(pairs, audit=tmp_path)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0] | {"wrong": None}) + "\n")
    with pytest.raises(DataError, match="knows nothing of row"):
        apply_decisions(pairs, audit=tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row | {"wrong": None}) + "\n" for row in rows))
    with pytest.raises(DataError, match="holds no probabilities"):
        apply_decisions(pairs, audit=tmp_path)


def test_a_flip_turns_all_that_is_said_of_the_label():
    row = {"chosen": "a", "rejected": "b", "margin": 2.0, "votes": [2, 1], "label_probability": 0.625}
    assert flipped(row) == {
        "chosen": "b",
        "rejected": "a",
        "margin": -2.0,
        "votes": [1, 2],
        "label_probability": 0.375,
    }


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_decisions_are_carried_out(audit, pairs, tmp_path, form):
    entries = [
        {"key": audit.rows[0]["key"], "row": audit.rows[0]["row"], "decision": "flip", "note": ""},
        {"key": audit.rows[1]["key"], "row": audit.rows[1]["row"], "decision": "drop", "note": "x"},
        {"key": audit.rows[2]["key"], "row": audit.rows[2]["row"], "decision": None, "note": "only a note"},
    ]
    file = tmp_path / f"decisions.{form}"
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    file.write_text(lines if form == "jsonl" else json.dumps({"decisions": entries}))
    cleaned, counts = apply_decisions(pairs, file)
    assert counts == {"keep": 0, "flip": 1, "drop": 1}
    assert len(cleaned) == 39
    place = pairs.numbers.index(audit.rows[0]["row"])
    where = cleaned.numbers.index(audit.rows[0]["row"])
    assert cleaned.rows[where]["chosen"] == pairs.rows[place]["rejected"]
    assert cleaned.rows[where]["id"] == pairs.rows[place]["id"]
    write_pairs(cleaned, tmp_path / "cleaned.jsonl")
    assert read_pairs(tmp_path / "cleaned.jsonl").rows == cleaned.rows


def test_decided_pairs_are_read_from_an_export_and_correct_the_probabilities(audit, pairs, checkpoint, tmp_path):
    file = tmp_path / "decisions.json"
    choice = {3: "flip", 17: "flip", 5: "drop"}
    made = [
        {"key": row["key"], "row": row["row"], "decision": choice.get(row["row"] - 1, "keep")} for row in audit.rows
    ]
    file.write_text(json.dumps({"decisions": made}))
    decided = labels_known(decisions_of(pairs, file))
    assert len(decided) == 39 and {place for place, wrong in decided.items() if wrong} == {3, 17}
    again = audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=2), decided=decided)
    assert again.judged.decided == 39
    assert [row["key"] for row in again.rows] == [row["key"] for row in audit.rows]


def test_decisions_about_another_file_are_refused(pairs, tmp_path):
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"decisions": [{"key": "0" * 12, "row": 7, "decision": "drop"}]}))
    with pytest.raises(DataError, match="decides about row 7"):
        apply_decisions(pairs, file)


@pytest.mark.parametrize("verb", ["swap", 2, ["flip"]])
def test_an_unknown_decision_is_refused(verb, pairs, tmp_path):
    file = tmp_path / "decisions.json"
    file.write_text(json.dumps({"decisions": [{"key": "0" * 12, "row": 7, "decision": verb}]}))
    with pytest.raises(DataError, match="is not an export of the audit page"):
        apply_decisions(pairs, file)


def test_a_file_that_is_no_export_is_refused(pairs, tmp_path):
    file = tmp_path / "decisions.json"
    file.write_text('{"something": 1}')
    with pytest.raises(DataError, match="is not an export of the audit page"):
        apply_decisions(pairs, file)


@pytest.mark.parametrize("column", [True, False])
def test_labels_that_nothing_can_predict_are_agreed_with_by_half(column):
    """Which of a question's answers is better is drawn: only a reward that has seen the question can know it."""
    right, total = 0.0, 0
    for seed in range(4):
        draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        rows, differences = [], []
        for number in range(60):
            texts = [f"{'I am sorry, but' if i % 2 else 'Sure'} {i}" for i in range(6)]
            for i, j in itertools.combinations(draw.permutation(6).tolist(), 2):
                own = np.zeros((60, 6))  # words that no other question's answers have
                own[number, i], own[number, j] = 1, -1
                differences.append(own.ravel())
                prompt = {"prompt": f"{number}?"} if column else {}
                start = "" if column else f"\n\nHuman: {number}?\n\nAssistant: "
                rows.append(prompt | {"chosen": start + texts[i], "rejected": start + texts[j]})
        margins = cross_fitted_margins(
            np.array(differences), question_groups(rows), "bt", l2=1e-2, num_folds=5, num_repeats=1, generator=generator
        )
        right, total = right + (1 + np.sign(margins)).sum() / 2, total + margins.size
    # pairs of a question are right or wrong together: 240 questions, of which each is right by chance
    assert abs(right / total - 0.5) < 3 * 0.5 / 240**0.5


def test_a_flip_exchanges_everything_that_is_said_of_one_answer():
    row = {"prompt": "?", "chosen": "a", "rejected": "b", "chosen-rating": 5, "rejected-rating": 2, "margin": 3}
    row |= {"score_chosen": 1, "score_rejected": 0, "chosen_model": "x", "rejected_model": "y", "id": 7}
    wanted = {"prompt": "?", "chosen": "b", "rejected": "a", "chosen-rating": 2, "rejected-rating": 5, "margin": -3}
    assert flipped(row) == wanted | {
        "score_chosen": 0,
        "score_rejected": 1,
        "chosen_model": "y",
        "rejected_model": "x",
        "id": 7,
    }
    assert flipped(flipped(row)) == row


def test_each_annotator_has_the_share_of_labels_that_the_reader_supports():
    rows = [{"annotator": "ann" if place < 60 else "bob"} for place in range(100)]
    margins = np.where(np.arange(100) < 60, 1.0, np.where(np.arange(100) % 2, 1.0, -1.0))
    pairs = Pairs(rows, list(range(100)), "prefs.jsonl")
    found = supported_by(annotators_of(pairs), margins, [str(place) for place in range(100)])
    assert list(found) == ["bob", "ann"]
    assert found["bob"][0] == 40 and found["bob"][1].value == 0.5 and found["bob"][1].high < found["ann"][1].value
    assert annotators_of(Pairs(rows[:60], list(range(60)), "prefs.jsonl")) == {}


def test_an_annotator_of_one_question_tells_nothing_of_its_share():
    pairs = Pairs([{"annotator": name} for name in ("ann", "ann", "bob")], [1, 2, 3], "prefs.jsonl")
    found = supported_by(annotators_of(pairs), np.array([1.0, -1.0, 1.0]), ["q1", "q2", "q3"])
    assert (found["bob"][1].value, found["bob"][1].low, found["bob"][1].high) == (1.0, 0.0, 1.0)


def test_annotators_are_read_as_tables_have_them():
    """Numbers become floats beside empty cells, and an empty cell is nobody."""
    rows = [{"annotator": name} for name in (7.0, float("nan"), 7, "7", None, "", " ", "b")]
    found = annotators_of(Pairs(rows, list(range(8)), "prefs.jsonl"))
    assert found == {"7": [0, 2, 3], "b": [7]}


def test_a_pair_is_decided_once(pairs, tmp_path):
    key = pair_key(*split_prompt(pairs.rows[0]), pairs.numbers[0])
    entries = [{"key": key, "row": pairs.numbers[0], "decision": verb} for verb in ("keep", "keep", "drop")]
    (tmp_path / "d.json").write_text(json.dumps({"decisions": entries[:2]}))
    assert apply_decisions(pairs, tmp_path / "d.json")[1]["keep"] == 1
    (tmp_path / "d.json").write_text(json.dumps({"decisions": entries}))
    with pytest.raises(DataError, match=f"decides about row {pairs.numbers[0]} twice: keep and drop"):
        apply_decisions(pairs, tmp_path / "d.json")


@pytest.mark.parametrize("name", [["ann", "bob"], {"id": 7}, 0.5])
def test_an_annotator_has_one_name(name, checkpoint):
    rows = [{"chosen": "a", "rejected": "b", "annotator": name}]
    with pytest.raises(DataError, match=r"prefs\.jsonl:4.*must be one name.*one row for each annotator"):
        audit_pairs(Pairs(rows, [4], "prefs.jsonl"), load(checkpoint))


def test_what_annotators_said_stands_among_the_reasons(pairs, checkpoint):
    rows = [row | {"votes": [2, 1], "annotator": f"n{index % 2}"} for index, row in enumerate(pairs.rows)]
    rows[1] = pairs.rows[1] | {"label_probability": 0.7, "annotator": "n1"}
    found = audit_pairs(Pairs(rows, pairs.numbers, "p"), load(checkpoint), AuditSettings(repeats=1))
    reasons = {row["row"]: row["reasons"] for row in found.rows}
    assert "2 of 3 annotators gave this label" in reasons[pairs.numbers[0]]
    assert "labelled with a confidence of 70%" in reasons[pairs.numbers[1]]
    assert set(found.annotators) == {"n0", "n1"} and "least supported" in render(found)


def test_covariates_are_fitted_and_are_no_evidence():
    """Labels follow a covariate alone: as a feature it makes the margins, and taken out it leaves next to nothing."""
    draw = np.random.default_rng(0)
    other, length = draw.standard_normal((300, 5)), draw.standard_normal((300, 1))
    sign = np.sign(length)
    given = {"groups": range(300), "loss": "bt", "l2": 1e-2, "num_folds": 5, "num_repeats": 1}

    def margins(x, **rest):
        return cross_fitted_margins(x, generator=torch.Generator().manual_seed(0), **given, **rest)[0]

    as_feature = margins(np.hstack([other, length]) * sign)
    removed = margins(other * sign, covariates=10 * length * sign)
    assert (as_feature > 0).mean() > 0.9
    assert abs((removed > 0).mean() - 0.5) < 0.1


@pytest.mark.parametrize("nuisance", ["feature", "remove"])
def test_length_refusal_and_form_can_count_or_be_taken_out(nuisance, audit, pairs, checkpoint):
    found = audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=1, nuisance=nuisance))
    margins = {row["row"]: row["margin"] for row in found.rows}
    assert set(margins) == {row["row"] for row in audit.rows}
    assert any(abs(margins[row["row"]] - row["margin"]) > 1e-6 for row in audit.rows)
    features = nuisance_features(["I\u2019m sorry, but no.", "one\n- two `three`", ""])
    assert features[:, -1].tolist() == [1.0, 0.0, 0.0] and not features[2].any()
    assert features[1, 0] == pytest.approx(np.log(5))
