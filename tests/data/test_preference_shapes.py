"""Published shapes of preferences, read without editing."""

import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.data.preference_shapes import TIE, is_shape, parse_columns
from burnish.data.preferences import Pairs, pairs_of


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


PLAIN = {"prompt": "Which colour?", "chosen": "red", "rejected": "blue"}
CHAT = {"prompt": [user("Which colour?")], "chosen": [assistant("red")], "rejected": [assistant("blue")]}

SHAPES = {
    "question": ({"question": "Which colour?", "chosen": "red", "rejected": "blue"}, PLAIN),
    "argilla": ({"instruction": "Which colour?", "chosen_response": "red", "rejected_response": "blue"}, PLAIN),
    "UltraFeedback binarized": (
        {
            "prompt": "Which colour?",
            "chosen": [user("Which colour?"), assistant("red")],
            "rejected": [user("Which colour?"), assistant("blue")],
            "score_chosen": 8.0,
        },
        CHAT,
    ),
    "prompt inside and beside": (
        {"prompt": "Which colour?", "chosen": "Which colour? red", "rejected": "Which colour? blue"},
        {"prompt": "Which colour?", "chosen": " red", "rejected": " blue"},
    ),
    "text prompt before messages": (
        {"prompt": "Which colour?", "chosen": [assistant("red")], "rejected": [assistant("blue")]},
        CHAT,
    ),
    "ShareGPT": (
        {
            "prompt": [{"from": "human", "value": "Which colour?"}],
            "chosen": [{"from": "gpt", "value": "red"}],
            "rejected": [{"from": "gpt", "value": "blue"}],
        },
        CHAT,
    ),
    "Nectar": (
        {"prompt": "Which colour?", "answers": [{"answer": "blue", "rank": 2.0}, {"answer": "red", "rank": 1.0}]},
        PLAIN,
    ),
    "UltraFeedback": (
        {
            "instruction": "Which colour?",
            "completions": [{"response": "blue", "overall_score": 3}, {"response": "red", "overall_score": "8.5"}],
        },
        PLAIN,
    ),
    "distilabel": ({"instruction": "Which colour?", "generations": ["blue", "red"], "ratings": [2.0, 5.0]}, PLAIN),
    "SHP": ({"history": "Which colour?", "human_ref_A": "blue", "human_ref_B": "red", "labels": 0}, PLAIN),
    "PKU-SafeRLHF": (
        {"prompt": "Which colour?", "response_0": "blue", "response_1": "red", "better_response_id": 1},
        PLAIN,
    ),
    "HelpSteer2": (
        {"prompt": "Which colour?", "response_1": "red", "response_2": "blue", "preference_strength": -2},
        PLAIN,
    ),
    "HelpSteer3": (
        {"context": "Which colour?", "response1": "blue", "response2": "red", "overall_preference": 1},
        PLAIN,
    ),
}


def read(*rows, **settings):
    return pairs_of(Pairs(list(rows), list(range(1, len(rows) + 1)), "p.jsonl"), **settings)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read_as_the_plain_pair(shape):
    row, wanted = SHAPES[shape]
    assert is_shape(row)
    (found,) = read(row).rows
    assert {name: found[name] for name in wanted} == wanted


def test_graded_answers_of_one_prompt_make_pairs_with_the_line_of_the_first():
    rows = [
        {"prompt": "a?", "response": "one", "helpfulness": 1},
        {"prompt": "a?", "response": "two", "helpfulness": 4},
        {"prompt": "b?", "response": "three", "helpfulness": 2},
        {"prompt": "b?", "response": "four", "helpfulness": 2},
    ]
    pairs = read(*rows)
    assert [(row["chosen"], row["rejected"]) for row in pairs.rows] == [("two", "one")]
    assert pairs.numbers == [1] and pairs.dropped == {TIE: 1}


def test_a_ranked_list_gives_every_two_answers_of_unlike_rank():
    answers = [{"answer": name, "rank": rank} for name, rank in (("a", 1), ("b", 2), ("c", 2))]
    assert [(row["chosen"], row["rejected"]) for row in read({"prompt": "?", "answers": answers}).rows] == [
        ("a", "b"),
        ("a", "c"),
    ]


def test_a_system_message_stands_before_the_prompt():
    row = {"system": "Be kind.", "question": "Who?", "chosen": "I", "rejected": "You"}
    assert read(row).rows[0]["prompt"] == "Be kind.\n\nWho?"


def test_columns_can_be_named():
    row = {"frage": "Which colour?", "gut": "red", "schlecht": "blue"}
    assert read(row, columns="prompt=frage, chosen=gut,rejected=schlecht").rows == [PLAIN]
    assert parse_columns(None) == {}


def test_a_name_that_is_missing_suggests_the_nearest():
    with pytest.raises(DataError, match=r"p.jsonl:1: has no column 'frag'; did you mean 'frage'\?"):
        read({"frage": "?", "chosen": "a", "rejected": "b"}, columns="prompt=frag")
    with pytest.raises(SettingsError, match="names no column"):
        parse_columns("question")


def test_a_misspelt_prompt_is_no_pair_without_prompt():
    with pytest.raises(DataError, match=r"has a column 'promt' and no prompt; .* --columns prompt=promt"):
        read({"promt": "?", "chosen": "a", "rejected": "b"})


def test_who_labelled_a_pair_may_stand_in_a_column_of_another_name():
    pairs = read({"prompt": "?", "chosen": "a", "rejected": "b", "rater": "ann"}, columns="annotator=rater")
    assert pairs.rows[0]["annotator"] == "ann" and "rater" not in pairs.rows[0]


def test_text_that_nobody_reads_is_named():
    pairs = read({"frage": "?", "chosen": "a", "rejected": "b", "chosen-model": "x", "id": "7"})
    assert pairs.unread == ["frage"]


def test_votes_become_a_soft_label_unless_the_row_has_one():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [pair | {"votes": [2, 1]}, pair | {"votes": [3, 0], "label_probability": 0.7}, pair]
    read = pairs_of(Pairs(rows, [1, 2, 3], "votes.jsonl"))
    assert [row.get("label_probability") for row in read.rows] == [2.5 / 4, 0.7, None]
    assert read.dataset()["label_probability"] == [2.5 / 4, 0.7, 1.0]


@pytest.mark.parametrize("votes", [[0, 0], [2], "2-1", [1.5, 1], [-1, 3], [True, False]])
def test_other_votes_are_refused(votes):
    pairs = Pairs([{"prompt": "p", "chosen": "a", "rejected": "b", "votes": votes}], [7], "votes.jsonl")
    with pytest.raises(DataError, match=r"votes are .* votes.jsonl:7|votes.jsonl:7.*votes are"):
        pairs_of(pairs)


@pytest.mark.parametrize(("votes", "right"), [([5, 0], 0.1), ([0, 1], 0.9)])
def test_votes_and_a_soft_label_that_contradict_each_other_are_refused(votes, right):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "votes": votes, "label_probability": right}
    with pytest.raises(DataError, match=r"votes.jsonl:7.*but label_probability is 0\.\d"):
        pairs_of(Pairs([row], [7], "votes.jsonl"))


def test_votes_are_counts_also_beside_a_soft_label():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "votes": "2-1", "label_probability": 0.7}
    with pytest.raises(DataError, match="votes are '2-1'"):
        pairs_of(Pairs([row], [7], "votes.jsonl"))


@pytest.mark.parametrize("value", [1.2, -0.1, "0.5", True, float("nan")])
def test_a_soft_label_is_a_probability(value):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "label_probability": value}
    with pytest.raises(DataError, match="must be a probability from 0 to 1"):
        pairs_of(Pairs([row], [1], "soft.jsonl"))
