"""The report kit: what every HTML page of the package is made of. It knows numbers and nothing of what they mean.

A room that has something to show writes a template and fills it with the kit's pieces:

    {% extends "frame.html.j2" %}                             templates/cats.html.j2 of the room
    {% from "chart.html.j2" import plot %}
    {% from "table.html.j2" import table %}
    {% block heading %}Cats{% endblock %}
    {% block main %}{{ plot(weights) }}{{ table(names) }}{% endblock %}

    page = render("burnish.cats", "cats.html.j2", weights=figure, names=names)
    write(Path("cats.html"), page)

* `frame`: `render` and `write`; the blocks are title, kind, heading, lead, main, notes, style and data.
* `charts`: a `Figure` of `Series` of `Datum`: lines, points with error bars, bars, boxes, bands, a density as cells,
  the steps of a frontier. `plot(figure)` draws it for wide and narrow screens; with `half=True` two stand side by side
  in a `<div class="row">`.
* `bars`: many small rows of bars on one scale, such as one row per kind of matrix and one bar per layer.
* `tables`: a `Table` of `Row` and `Cell`, with small print, footnotes, bars and intervals within cells.
  For rows of plain texts there is `plain(columns, rows)`, for names and values `pairs(items)`.
* `numbers`: how a number is written: units, as many digits as its interval supports, a true minus sign.
* `scale`: axes and round ticks.
* `palette`: colours for light, dark and paper; dashes of series.

Pages are single files without network, follow the reader's light or dark scheme, print, and escape all they are given.
"""

from burnish.core.page.bars import BarRows, bar_rows
from burnish.core.page.charts import Cells, Datum, Figure, Series
from burnish.core.page.frame import render, write
from burnish.core.page.tables import BAD, GOOD, SOFT, Cell, Column, Footnotes, Row, Section, Small, Span, Table, spans

__all__ = [
    "BAD",
    "GOOD",
    "SOFT",
    "BarRows",
    "Cell",
    "Cells",
    "Column",
    "Datum",
    "Figure",
    "Footnotes",
    "Row",
    "Section",
    "Series",
    "Small",
    "Span",
    "Table",
    "bar_rows",
    "render",
    "spans",
    "write",
]
