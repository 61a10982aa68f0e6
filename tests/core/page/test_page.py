"""The kit alone: a page with each of its pieces, made by a package that is no room of burnish."""

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from burnish.core import page
from burnish.core.errors import OutputError
from burnish.core.page import (
    BarRows,
    Cell,
    Column,
    Datum,
    Figure,
    Footnotes,
    Row,
    Section,
    Series,
    Small,
    Table,
    intervals,
    meters,
)
from burnish.core.page.charts import GUIDE

TEMPLATE = """{% extends "frame.html.j2" %}
{% from "table.html.j2" import pairs, plain, table %}
{% block title %}{{ name }}{% endblock %}
{% block kind %}a kind of page{% endblock %}
{% block heading %}{{ name }}{% endblock %}
{% block lead %}<ul class="lead"><li>{{ name }}</li></ul>{% endblock %}
{% block style %}.own { color: var(--ink); }{% endblock %}
{% block main %}{% for one in figures %}{{ one }}{% endfor %}{{ rows }}{{ table(numbers) }}
{{ plain(["a"], [["b"]]) }}{{ pairs([("k", "v")]) }}{% endblock %}
{% block notes %}<p>a note</p>{% endblock %}
{% block data %}<script type="application/json" id="data">{}</script>{% endblock %}
"""
NASTY = """</title></script><script>alert("1")</script> & 'quotes'"""
SCRIPT = 'document.title = "a < b";'


def figure(**changes) -> Figure:
    data = [Datum(x / 4, x / 4, max(0, x / 4 - 0.1), x / 4 + 0.1, label=f"p{x}", title=f"at {x}") for x in range(5)]
    series = [
        Series("expected", data, line=True, markers=False, style=GUIDE),
        Series("found", data, line=True),
        Series("boxes", data, bars=0.1),
        Series("bars", [replace(d, low=None, high=None) for d in data], bars=0.1),
    ]
    return replace(Figure("a figure", "words for it", "x", "y", series), **changes)


@pytest.fixture
def rendered(tmp_path, monkeypatch):
    """`rendered(name=..., script=...)`: a page with every piece, from a package made for the test."""
    package = tmp_path / "cats"
    (package / "templates").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "templates" / "cats.html.j2").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str = "Cats", script: str = "") -> str:
        notes = Footnotes()
        drawn = [intervals([(-1.0, 0.0, 1.0)])[0], meters([3.0, 1.0])[1]]
        table = Table(
            caption="numbers of cats",
            head="Cat",
            columns=[Column("Weight", "kg"), Column("Interval", drawn=True), Column("Share", drawn=True, spare=True)],
            sections=[
                Section(
                    [
                        Row(name, [Cell("4", [Small("±1")], mark=notes.mark("shorn")), *drawn], below="tabby"),
                    ],
                    "Cats",
                    "two of them",
                    "cats",
                )
            ],
            notes=notes.texts,
        )
        return page.render(
            "cats",
            "cats.html.j2",
            script=script,
            name=name,
            figures=[
                figure(),
                figure(half=True, range_x=(0, 1), range_y=(0, 1)),
                figure(steps=[(0, 0), (1, 1)]),
            ],
            rows=BarRows("bars", "n", {"wide": {0: [1.0, 2.0], 1: [3.0]}}, value="error", place="layer"),
            numbers=table,
        )

    page.frame.environment.cache_clear()
    yield make
    page.frame.environment.cache_clear()


def test_every_piece_is_on_the_page(rendered):
    html = rendered()
    for text in (
        "a kind of page",
        "<h1>Cats</h1>",
        ".own {",
        "a note",
        'id="data"',
        "two of them",
        "tabby",
        "±1",
        "shorn",
    ):
        assert text in html
    for shape in ('class="band"', 'class="bars"', 'class="span"', 'class="block"', "whisker"):
        assert shape in html
    assert html.count('class="chart wide"') == 3 and html.count('class="chart half"') == 1
    assert html.count('class="chart narrow"') == 4


def test_every_text_is_escaped(rendered):
    html = rendered(NASTY)
    assert "<script>alert" not in html and html.count("</title>") == html.count("<title>")
    assert html.count("<script") == 1  # the page's own data


def test_a_page_without_a_script_may_run_none(rendered):
    assert "script-src" not in rendered()


def test_a_page_may_run_exactly_its_own_script(rendered):
    html = rendered(script=SCRIPT)
    inside = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert inside is not None and inside.group(1) == SCRIPT
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in html


def test_a_page_is_written_whole_or_the_place_is_named(tmp_path):
    assert page.write(tmp_path / "a.html", "text").read_text() == "text"
    with pytest.raises(OutputError, match=r"a\.html/b\.html: cannot be written"):
        page.write(tmp_path / "a.html" / "b.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_intervals_of_a_column_share_an_axis_that_includes_zero():
    def places(cell: Cell) -> list[float]:
        """Of zero, low, high and value, in per cent of the column."""
        found = re.findall(r' (?:x1|x2|cx)="([\d.]+)%"', str(cell.drawing))
        return [float(found[index]) for index in (0, 2, 3, 4)]

    first, second = (places(cell) for cell in intervals([(1.0, 2.0, 3.0), (2.0, 2.5, 4.0)]))
    assert first[0] == second[0] < first[1] < first[3] < first[2] < second[2] < 100
    assert first[3] == pytest.approx((first[1] + first[2]) / 2, abs=0.1)


def test_the_kit_imports_neither_torch_nor_a_room():
    code = (
        "import pathlib, sys, burnish.core.page as kit\n"
        "rooms = {path.name for path in pathlib.Path(kit.__file__).parents[2].iterdir() if path.is_dir()} - {'core'}\n"
        "loaded = {name.split('.')[1] for name in sys.modules if name.startswith('burnish.')}\n"
        "assert 'align' in rooms and not rooms & loaded, rooms & loaded\n"
        "assert not {'torch', 'transformers', 'jinja2', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
