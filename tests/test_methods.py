"""The table of methods points at pages and results that exist."""

from pathlib import Path

import pytest

from burnish.methods import METHODS, Method

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_has_a_page_and_the_results_it_names(method: Method):
    assert (ROOT / "docs" / "methods" / f"{method.page}.md").is_file()
    if method.results:
        assert (ROOT / "benchmarks" / "results" / f"{method.results}.json").is_file()


def test_every_page_is_in_the_table():
    pages = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert pages <= {method.page for method in METHODS}
