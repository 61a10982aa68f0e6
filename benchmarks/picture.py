"""A figure of the report kit as a picture file of its own, for the pages of the docs.

Geometry, style and colours are the kit's; colours are written into the file, since a page's style does not reach into a
picture.
"""

from __future__ import annotations

import re

from markupsafe import Markup

from burnish.core.page import Figure
from burnish.core.page.charts import SIZES, draw
from burnish.core.page.frame import environment
from burnish.core.page.palette import DASHES, LIGHT
from burnish.core.page.svg import path, tag, text

INK, RULE, PAPER = LIGHT["ink"], LIGHT["rule"], LIGHT["paper"]
SERIES = [LIGHT[f"s{index}"] for index in range(len(DASHES))]
LEGEND_HEIGHT = 26


def svg(figure: Figure) -> str:
    """The figure at the width of a desk, its legend above it."""
    width, height = SIZES["wide"]
    sheet = environment("burnish.core.page").get_template("chart.css.j2").render()
    style = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], sheet).replace("inherit", "sans-serif")
    legend, x = [], 14.0
    for index, series in enumerate(figure.series):
        legend.append(tag("g", path(f"M{x:g} 13h26", "line"), text(x + 32, 17, series.name), class_=f"s{index}"))
        x += 56 + 7 * len(series.name)
    drawing = str(draw(figure, "wide")).replace(
        "<svg", f'<svg y="{LEGEND_HEIGHT}" width="{width}" height="{height}"', 1
    )
    picture = tag(
        "svg",
        tag("title", figure.title),
        tag("style", Markup(style)),
        tag("rect", width=width, height=height + LEGEND_HEIGHT, fill=PAPER),
        *legend,
        Markup(drawing),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height + LEGEND_HEIGHT}",
        role="img",
    )
    return str(picture).replace("><", ">\n<") + "\n"
