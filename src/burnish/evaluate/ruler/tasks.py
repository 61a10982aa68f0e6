"""The prompts of RULER, drawn here and as long as is asked for.

    niah_single_1    one needle in sentences of noise
    niah_multikey_2  one needle among needles of other keys
    niah_multikey_3  the same with UUIDs as keys and values
    vt               a chain of variables, the first of which is given a number, in sentences of noise
    cwe              ten words that stand in a list more often than all others
    fwe              the three most frequent words of a coded text whose frequencies fall as 1 / rank ^ 2

Two are not RULER's:

    kv_json          the value of a key in a JSON object of UUIDs (Lost in the Middle, 2023, arXiv:2307.03172)
    letters          the same in single characters, for small models (`burnish.evaluate.ruler.letters`)

Templates, answer prefixes, numbers of needles and hops, and tokens to generate are those of NVIDIA/RULER (Apache-2.0)
at c3f5e3b. What differs: words come from the shipped text and not from the package wonderwords; a needle is put at
every depth that is asked for, in the same haystack, where RULER draws its place.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import zeta

from burnish.evaluate.ruler.letters import ASKS, planted
from burnish.evaluate.ruler.words import words

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
COMMON, HOPS, SHOWN, SHORT_BELOW, OTHERS = 10, 4, 17, 4096, 7
"""Words that cwe asks for; hops of vt, and sentences of noise in its worked example; tokens below which cwe repeats
words less often; pairs of letters beside the one that is asked for."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
        text: up to the answer; its last line asks.
        prefix: how the answer begins.
        answers: what it must hold.
        depth: share of the haystack before the needle, None of tasks without one.
    """

    text: str
    prefix: str
    answers: tuple[str, ...]
    depth: float | None = None

    @property
    def context(self) -> Prompt:
        """What stands before the question, and no prefix."""
        return replace(self, text=self.text.rpartition("\n")[0], prefix="")


@dataclass(frozen=True)
class RulerTask:
    """A task.

    Attributes:
        name: as RULER calls it.
        num_generated: tokens of an answer.
        least: units of haystack of the shortest prompt.
        draw: (seed, units of haystack, tokens in all, depth) -> the prompt; one seed has one haystack and one needle.
        has_depth: whether there is one needle.
    """

    name: str
    num_generated: int
    least: int
    draw: Callable[[str, int, int, float], Prompt]
    has_depth: bool = False


def _needles(seed: str, units: int, depth: float, *, haystack: str, kind: str) -> Prompt:
    """A needle after the given share of `units` sentences."""
    rng = random.Random(seed)
    key, value = (_drawn(rng, what) for what in (("uuids" if kind == "uuids" else "words"), kind))
    if haystack == "noise":
        sentences = [NOISE] * units
    else:
        others = ((_drawn(rng, "uuids" if kind == "uuids" else "words"), _drawn(rng, kind)) for _ in range(units))
        sentences = [NEEDLE.format(kind=kind, key=other, value=number) for other, number in others]
    place = round(depth * units)
    context = "\n".join([*sentences[:place], NEEDLE.format(kind=kind, key=key, value=value), *sentences[place:]])
    one = kind[:-1]
    text = (
        f"A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the {one} afterwards.\n{context}\nWhat is the special magic {one} for {key} mentioned in the provided text?"
    )
    return Prompt(text, f" The special magic {one} for {key} mentioned in the provided text is", (value,), depth)


def _drawn(rng: random.Random, kind: str) -> str:
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "uuids":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.choice(words())}-{rng.choice(words())}"


def _chain(rng: random.Random, noises: int, hops: int, letters: int, number: str) -> tuple[str, list[str]]:
    """Sentences of noise with a chain of assignments in its order, and its variables."""
    names = list[str]()
    while len(names) < hops + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    chain = [f"VAR {names[0]} = {number}"]
    chain += [f"VAR {after} = VAR {before} " for before, after in pairwise(names)]
    sentences = [NOISE] * noises
    for shift, place in enumerate(sorted(rng.sample(range(noises), len(chain)))):
        sentences.insert(place + shift, chain[shift])
    return "\n".join(sentences).replace(". \n", ".\n"), names


def _variables(seed: str, units: int) -> Prompt:
    rng = random.Random(seed)

    def asked(noises: int, letters: int) -> tuple[str, str, list[str]]:
        number = str(rng.randint(10000, 99999))
        context, names = _chain(rng, noises, HOPS, letters, number)
        text = (
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
            f"{context}\nQuestion: Find all variables that are assigned the value {number} in the text above."
        )
        prefix = (
            f" Answer: According to the chain(s) of variable assignment in the text above, {HOPS + 1} variables are "
            f"assigned the value {number}, they are: "
        )
        return text, prefix, names

    shown, begun, known = asked(SHOWN, 3)
    text, prefix, names = asked(units, 5)
    return Prompt(f"{shown}{begun} {' '.join(known)}\n\n{text}", prefix, tuple(names))


def _listed(rng: random.Random, num: int, often: int, seldom: int) -> tuple[str, list[str]]:
    """A numbered list with ten words more often than the others."""
    chosen = rng.sample(words(), num)
    common, rest = chosen[:COMMON], chosen[COMMON:]
    listed = common * often + rest * seldom
    rng.shuffle(listed)
    return " ".join(f"{place}. {word}" for place, word in enumerate(listed, start=1)), common


def _common_words(seed: str, units: int, length: int) -> Prompt:
    rng = random.Random(seed)
    short = length < SHORT_BELOW
    prefix = " Answer: The top 10 words that appear most often in the list are:"

    def asked(listed: str) -> str:
        return (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
            f"that appear most often.\n{listed}\nQuestion: What are the 10 most common words in the above list?"
        )

    shown, known = _listed(rng, *((20, 3, 1) if short else (40, 10, 3)))
    listed, common = _listed(rng, units, *((6, 1) if short else (30, 3)))
    answered = " ".join(f"{place}. {word}" for place, word in enumerate(known, start=1))
    return Prompt(f"{asked(shown)}{prefix} {answered}\n{asked(listed)}", prefix, tuple(common))


def _json(seed: str, units: int, depth: float) -> Prompt:
    """A key behind the given share of the others, in the words of the paper's program."""
    rng = random.Random(seed)
    key, value = _drawn(rng, "uuids"), _drawn(rng, "uuids")
    others = [(_drawn(rng, "uuids"), _drawn(rng, "uuids")) for _ in range(units)]
    place = round(depth * units)
    pairs = [*others[:place], (key, value), *others[place:]]
    written = ",\n ".join(f'"{one}": "{other}"' for one, other in pairs)
    text = (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{{written}}}\n\nKey: "{key}"'
    )
    return Prompt(text, "\nCorresponding value:", (value,), depth)


def _letters(seed: str, units: int, depth: float) -> Prompt:
    text, key, value = planted(random.Random(seed), 2 * units, OTHERS, depth)
    return Prompt(text + ASKS, key, (value,), depth)


def _coded_words(seed: str, units: int, length: int, alpha: float = 2.0) -> Prompt:
    rng = random.Random(seed)
    vocabulary = list[str]()
    while len(vocabulary) < max(4, length // 50):
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in vocabulary:
            vocabulary.append(word)
    vocabulary[0] = "..."  # the most frequent one is noise
    ranks = np.arange(1, len(vocabulary) + 1)
    counts = (units * ranks**-alpha / zeta(alpha)).astype(int).tolist()
    coded = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
    rng.shuffle(coded)
    text = (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        f"appeared coded words. {' '.join(coded)}\nQuestion: Do not provide any explanation. Please ignore the dots "
        "'....'. What are the three most frequently appeared words in the above coded text?"
    )
    prefix = " Answer: According to the coded text above, the three most frequently appeared words are:"
    return Prompt(text, prefix, tuple(vocabulary[1:4]))


def _of_needles(name: str, haystack: str, kind: str) -> RulerTask:
    def draw(seed: str, units: int, length: int, depth: float) -> Prompt:
        return _needles(seed, units, depth, haystack=haystack, kind=kind)

    return RulerTask(name, 128, 1, draw, has_depth=True)


TASKS = {
    task.name: task
    for task in (
        _of_needles("niah_single_1", "noise", "numbers"),
        _of_needles("niah_multikey_2", "needles", "numbers"),
        _of_needles("niah_multikey_3", "needles", "uuids"),
        RulerTask("vt", 30, HOPS + 1, lambda seed, units, length, depth: _variables(seed, units)),
        RulerTask("cwe", 120, 2 * COMMON, lambda seed, units, length, depth: _common_words(seed, units, length)),
        RulerTask("fwe", 50, 60, lambda seed, units, length, depth: _coded_words(seed, units, length)),
        RulerTask("kv_json", 50, 1, lambda seed, units, _, depth: _json(seed, units, depth), has_depth=True),
        RulerTask(
            "letters", 1, OTHERS, lambda seed, units, length, depth: _letters(seed, units, depth), has_depth=True
        ),
    )
}
