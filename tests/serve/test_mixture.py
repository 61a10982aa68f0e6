"""A mixture of proposers: whose tokens are verified, and what is learned from what came."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.serve.speculate import Draft, Lookahead
from burnish.serve.speculate.controller import SpeculationController
from burnish.serve.speculate.mixture import Mixture, came

CHEAP, DEAR = [0.0, 0.001, 0.001, 0.001, 0.001], [0.0, 0.05, 0.1, 0.15, 0.2]
PASS = [1.0, 1.01, 1.02, 1.03, 1.04]


class Fixed:
    """Proposes the same way on from every place of a text that it knows, right or wrong."""

    def __init__(self, text: Sequence[int], *, right: bool) -> None:
        self.text, self.right, self.asked = text, right, list[int | None]()

    def begin(self, prompt: Sequence[int]) -> Fixed:
        self.place = 0
        return self

    def extend(self, tokens: Sequence[int]) -> None:
        self.place += len(tokens)

    def draft(self, most: int | None = None) -> Draft:
        self.asked.append(most)
        tokens = [token if self.right else token + 1 for token in self.text[self.place :][:most]]
        return Draft(tokens, list(range(-1, len(tokens) - 1)))

    def end(self) -> None:
        self.place = 0


def test_what_came_is_known_up_to_the_first_wrong_token_and_the_end_of_the_text():
    assert came([1, 2, 3], [1, 2, 9, 4]) == [True, True, False]
    assert came([1, 2, 3], [1, 2]) == [True, True]
    assert came([9], [1, 2]) == [False]
    assert came([], [1, 2]) == [False]
    assert came([1], []) == []


def written(mixture: Mixture, text: Sequence[int]) -> int:
    """Passes after the first that a text takes."""
    session, passes = mixture.begin([7, 8]), 0
    session.extend(text[:1])
    done = 1
    while done < len(text):
        draft = session.draft(len(text) - done - 1)
        passes += 1
        right = next((n for n, token in enumerate(draft.tokens) if token != text[done + n]), len(draft))
        session.extend(text[done : done + right + 1])
        done += right + 1
    session.end()
    return passes


def test_the_one_that_is_right_is_asked_and_the_other_one_tried_now_and_then():
    text = list(range(100, 1100))
    good, bad = Fixed(text, right=True), Fixed(text, right=False)
    controller = SpeculationController({"good": DEAR, "bad": DEAR}, PASS)
    mixture = Mixture({"good": good, "bad": bad}, controller, asked_always=())
    passes = written(mixture, text)
    assert passes < 1000 / 5 + 20
    assert mixture.counts.tokens == 999 and mixture.counts.drafts == passes
    assert controller.acceptance("good")[0] > 0.9 > 0.2 > controller.acceptance("bad")[0]
    assert bad.asked.count(0) > 0.9 * len(bad.asked)
    assert len(good.asked) == len(bad.asked) == passes  # both follow the text


def test_a_memory_is_asked_every_time_and_takes_over_where_a_text_comes_back():
    text = list(range(100, 160))
    memory, other = Lookahead(length=4), Fixed(text, right=False)
    controller = SpeculationController({"trie": CHEAP, "draft": DEAR}, PASS)
    mixture = Mixture({"trie": memory, "draft": other}, controller, asked_always={"trie"})
    first, later = written(mixture, text), [written(mixture, text) for _ in range(6)]
    assert first > 50 and later[-1] <= 15  # five tokens a pass


def test_where_nothing_is_wanted_nothing_is_learned():
    text = list(range(100, 120))
    controller = SpeculationController({"good": CHEAP}, PASS)
    mixture = Mixture({"good": Fixed(text, right=True)}, controller, asked_always={"good"})
    session = mixture.begin([1])
    before = controller.acceptance("good")
    for token in text[:5]:
        session.extend([token])
        assert len(session.draft(0)) == 0
    assert controller.acceptance("good") == before
