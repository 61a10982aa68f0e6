"""The report in a real browser, of one run and of two, one of them with a very long name."""

from dataclasses import replace

import pytest

from browser import WIDTHS, check_layout, in_chromium
from burnish.report import render

pytestmark = in_chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory, write_run, nodes_with_pictures) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("browser")
    one = write_run(directory / "one", nodes_with_pictures)
    long = replace(nodes_with_pictures[0], name="a-name-of-eighty-characters-without-a-single-space-in-it-" + "x" * 23)
    two = write_run(directory / "two", [long, *nodes_with_pictures[2:3]], name="another-run")
    return {"one": render([one]), "two": render([one, two])}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "two"])
def test_the_report_fits_every_screen(pages, tmp_path, name, width):
    check_layout(pages[name], width, tmp_path)
