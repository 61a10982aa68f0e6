"""Files that `burnish audit` leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.align.audit import check_place
from burnish.core.errors import OutputError


@pytest.mark.parametrize("text", ["mine\n", "<!doctype html>\n<p>mine\n"])
@pytest.mark.parametrize("name", ["index.html", "report.html"])
def test_a_page_that_is_no_audits_stays(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    if name == "report.html" and text.startswith("<!doctype"):
        check_place(tmp_path)  # `burnish report` may have written it, and an audit does not touch it
        return
    with pytest.raises(OutputError, match=r"another kind of file|has a page and no pairs\.jsonl"):
        check_place(tmp_path)
