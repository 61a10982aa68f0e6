"""Does another seed keep training and test questions apart, when chains are short?

Training has 40,000 chains of one length, the test 800 of another seed. What share of the test questions was trained on,
and how many different questions does the training set hold? Held apart by question, the share is zero by construction;
where too few questions are left, drawing them is refused. Nothing is tuned.
"""

from __future__ import annotations

from typing import Any

from experiment import SMOKE, Command, cell, record, table

from burnish.core.errors import DataError
from burnish.core.statistics import exact_share
from burnish.data.chain import Chains, chains

LENGTHS = (1, 2, 3, 4, 6, 8)
TRAINED, TESTED = (400, 40) if SMOKE else (40_000, 800)


def overlap(length: int) -> dict[str, Any]:
    kinds = Chains(steps=(length, length))
    known = {one.question for one in chains(kinds, TRAINED, seed=0)}
    seen = sum(one.question in known for one in chains(kinds, TESTED, seed=1))
    try:
        apart = [one.question for one in chains(kinds, TESTED, seed=1, apart_from=known)]
        left = sum(question in known for question in apart)
    except DataError as error:
        return {"different": len(known), "seen": seen, "apart": str(error)}
    return {"different": len(known), "seen": seen, "apart": left}


def main() -> None:
    arguments = Command(__file__, __doc__).read()
    found = {str(length): overlap(length) for length in LENGTHS}
    slices = {"tuning": [], "reporting": ["drawn, seeds 0 and 1"]}
    content = {"slices": slices, "trained": TRAINED, "tested": TESTED, "lengths": found}
    record(arguments.out, __doc__, content, note="nothing is timed")


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for length, found in results["lengths"].items():
        seen = cell(exact_share(found["seen"], results["tested"]), ".1%")
        apart = (
            f"{found['apart']} of {results['tested']}"
            if isinstance(found["apart"], int)
            else "refused: too few are left"
        )
        rows.append([length, f"{found['different']:,} of {results['trained']:,}", seen, apart])
    head = (
        "steps: | different training questions: | test questions that were trained on (95 %): | held apart by question:"
    )
    return {"overlap": table(head, rows)}


if __name__ == "__main__":
    main()
