"""Where prompts end, and which pairs are of one question."""

import itertools
import random

import pytest

from burnish.data.prompts import question_groups, split_prompt

OPENINGS = ("I am sorry, but", "I am sure that", "Well,\nlet us see:", "No.")
QUESTIONS = [f"What does number {number} of the list mean" for number in range(40)]


def said(role, content):
    return {"role": role, "content": content}


def pairs_of(question):
    """All pairs of eight answers, of which many begin alike, in a drawn order of preference."""
    draw = random.Random(question)
    answers = [f"{opening} {draw.random():.6f} and {draw.random():.6f}." for opening in OPENINGS for _ in range(2)]
    draw.shuffle(answers)
    return list(itertools.combinations(answers, 2))


SHAPES = {
    "column": lambda q, c, r: {"prompt": q, "chosen": c, "rejected": r},
    "dialogue column": lambda q, c, r: {
        "prompt": f"\n\nHuman: {q}\n\nAssistant:",
        "chosen": f" {c}",
        "rejected": f" {r}",
    },
    "HH": lambda q, c, r: {
        side: f"\n\nHuman: {q}\n\nAssistant: {answer}" for side, answer in (("chosen", c), ("rejected", r))
    },
    "ChatML": lambda q, c, r: {
        side: f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        for side, answer in (("chosen", c), ("rejected", r))
    },
    "instruction": lambda q, c, r: {
        side: f"Below is an instruction.\nAnswer it.\n\n### Instruction:\n{q}\n\n### Response:\n{answer}"
        for side, answer in (("chosen", c), ("rejected", r))
    },
    "lines": lambda q, c, r: {side: f"{q}?\n{answer}" for side, answer in (("chosen", c), ("rejected", r))},
    "messages": lambda q, c, r: {
        side: [said("system", "Be kind."), said("user", q), said("assistant", answer)]
        for side, answer in (("chosen", c), ("rejected", r))
    },
    "message column": lambda q, c, r: {
        "prompt": [said("system", "Be kind."), said("user", q)],
        "chosen": [said("assistant", c)],
        "rejected": [said("assistant", r)],
    },
    "answers alone": lambda q, c, r: {"chosen": c, "rejected": r},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_question_is_one_group_in_every_shape(shape):
    rows = [SHAPES[shape](question, *pair) for question in QUESTIONS for pair in pairs_of(question)]
    owner = [question for question in QUESTIONS for _ in pairs_of(question)]
    groups = question_groups(rows)
    assert len(set(groups)) == len(QUESTIONS) == len(set(zip(groups, owner, strict=True)))


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("answers alone", "lines")])
def test_an_answer_is_whole_however_the_other_begins(shape):
    _, chosen, rejected = split_prompt(SHAPES[shape]("Who", "I am sorry, but no.", "I am sorry, but yes."))
    assert (chosen.strip()[:19], rejected.strip()[:20]) == ("I am sorry, but no.", "I am sorry, but yes.")


def test_turns_of_one_dialogue_are_one_group():
    first = SHAPES["HH"]("Hello", "Hi there", "Go")
    second = SHAPES["HH"]("Hello\n\nAssistant: Hi there\n\nHuman: Who are you", "A program", "A person")
    assert len(set(question_groups([first, second, SHAPES["HH"]("Goodbye", "Bye", "Go")]))) == 2


def test_answers_that_merely_begin_alike_have_no_prompt():
    assert split_prompt({"chosen": "the cat sat", "rejected": "the cat ran"}) == ("", "the cat sat", "the cat ran")


def test_something_is_left_of_an_answer_that_the_other_continues():
    said_more = {"chosen": [said("user", "a"), said("assistant", "b")], "rejected": [said("user", "a")]}
    assert split_prompt(said_more)[2] == "a"


def test_large_groups_do_not_change_the_name_of_small_ones():
    rows = [SHAPES["column"](f"question {number}", "yes", "no") for number in range(30)]
    assert question_groups(rows) == [row["prompt"] for row in rows]


QUESTION = "please tell me how one should best store fresh apples and pears over a long and cold winter in the north"
GOOD = "put them in a dry dark cellar on straw with space between them and look at them once a week at least"
BAD = "leave them in the warm kitchen in a closed plastic bag and do not look at them again before the spring"


def test_nearly_equal_prompts_are_one_question():
    others = [SHAPES["column"](f"question {number}", "yes", "no") for number in range(30)]
    first, second = (
        {"prompt": prompt, "chosen": "yes", "rejected": "no"}
        for prompt in (QUESTION, QUESTION.replace("north", "south"))
    )
    groups = question_groups([first, *others, second])
    assert groups[0] == groups[-1] and len(set(groups)) == 31


@pytest.mark.parametrize("prompts", [(None, None), ("one?", "two?")])
def test_copies_of_a_pair_are_one_question_whichever_way_they_are_labelled(prompts):
    others = [SHAPES["column"](f"question {number}", "yes", "no") for number in range(30)]
    first, second = ({} if prompt is None else {"prompt": prompt} for prompt in prompts)
    first |= {"chosen": GOOD, "rejected": BAD}
    second |= {"chosen": BAD.replace("spring", "summer"), "rejected": GOOD}
    groups = question_groups([first, *others, second])
    assert groups[0] == groups[-1] and len(set(groups)) == 31


def test_a_template_of_a_crowd_is_no_question():
    rows = [{"prompt": f"{QUESTION}: {number}", "chosen": "yes", "rejected": "no"} for number in range(30)]
    assert len(set(question_groups(rows))) == 30
