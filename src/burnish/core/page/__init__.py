"""The report kit: what every HTML page of the package is made of. It knows numbers and nothing of what they mean.

A room that has something to show writes a template and fills it with the kit's pieces:

    {% extends "frame.html.j2" %}                             templates/cats.html.j2 of the room
    {% from "table.html.j2" import table %}
    {% block heading %}Cats{% endblock %}
    {% block main %}{{ weights }}{{ table(names) }}{% endblock %}

    page = render("burnish.cats", "cats.html.j2", weights=figure, names=names)
    write(Path("cats.html"), page)

* `frame`: `render` and `write`; the blocks are title, kind, heading, lead, main, notes, style and data.
* `charts`: a `Figure` of `Series` of `Datum`: lines, points with error bars, bars, boxes, bands,
  the steps of a frontier. Written into a template it draws itself, for wide and for narrow screens; with `half=True`
  two stand side by side in a `<div class="row">`.
* `bars`: `BarRows`, many small rows of bars on one scale, such as one row per kind of matrix and one bar per layer.
* `tables`: a `Table` of `Row` and `Cell`, with small print, footnotes, and `meters` or `intervals` drawn into a column;
  `console.console_table` prints one. For rows of plain texts there is `plain(columns, rows)`, for names and values
  `pairs(items)`.
* `svg`: elements from Python, for drawings of a room's own.
* `numbers`: how a number is written: units, as many digits as its interval supports, a true minus sign.
* `scale`: axes and round ticks.
* `palette`: colours for light, dark and paper; dashes of series.

Pages are single files without network, follow the reader's light or dark scheme, print, and escape all they are given.
"""

from burnish.core.page.bars import BarRows
from burnish.core.page.charts import Datum, Figure, Series
from burnish.core.page.frame import render, write
from burnish.core.page.tables import Cell, Column, Footnotes, Row, Section, Small, Table, intervals, meters

__all__ = [
    "BarRows",
    "Cell",
    "Column",
    "Datum",
    "Figure",
    "Footnotes",
    "Row",
    "Section",
    "Series",
    "Small",
    "Table",
    "intervals",
    "meters",
    "render",
    "write",
]
