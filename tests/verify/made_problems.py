"""Problems in the shape of HumanEval, each with a solution and a mutant that is wrong: eight families, 164 in all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FAMILIES: tuple[tuple[str, str, str, str, str], ...] = (
    # what it does, body with K, what to replace for the mutant, by what, inputs
    ("Sum of the items that K divides.", "return sum(x for x in items if x % K == 0)", "== 0", "!= 0", "numbers"),
    (
        "The list turned left by K places.",
        "n = K % len(items)\n    return items[n:] + items[:n]",
        "K %",
        "1 + K %",
        "numbers",
    ),
    (
        "How often each item occurs that is above K.",
        "n = {}\n    for x in items:\n        if x > K:\n            n[x] = n.get(x, 0) + 1\n    return n",
        "> K",
        ">= K",
        "around",
    ),
    (
        "Largest sum of K neighbours, or of all where there are fewer.",
        "n = min(K, len(items))\n    return max(sum(items[i:i + n]) for i in range(len(items) - n + 1))",
        "max(",
        "min(",
        "numbers",
    ),
    ("The set of remainders modulo K + 1.", "return {x % (K + 1) for x in items}", "K + 1", "K + 2", "numbers"),
    (
        "Pairs of neighbours whose difference is at most K.",
        "return [(a, b) for a, b in zip(items, items[1:]) if abs(a - b) <= K]",
        "<= K",
        "< K",
        "around",
    ),
    ("Every item shifted by K, the last first.", "return [x + K for x in reversed(items)]", "+ K", "- K", "numbers"),
    (
        "Polynomial with these coefficients at K, as a float.",
        "value = 0.0\n    for c in items:\n        value = value * K + c\n    return value",
        "* K",
        "* (K + 1)",
        "numbers",
    ),
)
NUMBER = 164


def made_problems() -> Iterator[tuple[dict[str, Any], str, str]]:
    """Problem, solution, mutant."""
    for index in range(NUMBER):
        does, body, old, new, kind = FAMILIES[index % len(FAMILIES)]
        k = 2 + index // len(FAMILIES)
        name = f"task_{index}"
        inputs = [
            list(range(1, 41)),
            [(7 * i + index) % 50 for i in range(30)],
            [k + 3, 2 * k, k, 3 * k, k + 1, k - 1, 5],
        ]
        if kind == "around":
            inputs.append([0, k, 2 * k, k, k + 1, 2 * k + 1])
        prompt = f'def {name}(items):\n    """{does.replace("K", str(k))}"""\n'
        solution, mutant = (f"    {code.replace('K', str(k))}\n" for code in (body, body.replace(old, new)))
        space: dict[str, Any] = {}
        exec(prompt + solution, space)
        tests = "".join(f"    assert candidate({given}) == {space[name](given)!r}\n" for given in inputs)
        problem = {
            "task_id": f"Made/{index}",
            "prompt": prompt,
            "question": prompt,
            "entry_point": name,
            "test": f"def check(candidate):\n{tests}",
        }
        yield problem, solution, mutant
