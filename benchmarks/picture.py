"""A figure of the report as a picture file of its own, for the pages of the docs.

Geometry and colours are those of the report kit; colours are written into the file, since a page's style does not reach
into a picture. Series differ by colour and dash.
"""

from __future__ import annotations

from html import escape

from burnish.core.page import Figure
from burnish.core.page.charts import draw
from burnish.core.page.palette import DASHES, LIGHT

INK, RULE, PAPER = LIGHT["ink"], LIGHT["rule"], LIGHT["paper"]
SERIES = [LIGHT[f"s{index}"] for index in range(len(DASHES))]
LEGEND_HEIGHT = 26


def svg(figure: Figure) -> str:
    """The figure at the width of a desk, lines and legend."""
    chart = draw(figure, "wide")
    height = chart.height + LEGEND_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {chart.width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{INK}" role="img">',
        f"<title>{escape(figure.title)}</title><desc>{escape(figure.description)}</desc>",
        f'<rect width="{chart.width}" height="{height}" fill="{PAPER}"/>',
    ]
    x = chart.left
    for line in chart.lines:
        parts.append(
            f'<path d="M{x:g} 13h26" {_stroke(line.style)}/><text x="{x + 32:g}" y="17">{escape(line.name)}</text>'
        )
        x += 56 + 7 * len(line.name)
    parts.append(f'<g transform="translate(0 {LEGEND_HEIGHT})">')
    for at, text in chart.y_ticks:
        parts.append(f'<path d="M{chart.left} {at}H{chart.right}" stroke="{RULE}"/>')
        parts.append(f'<text x="{chart.left - 8}" y="{at + 4:g}" text-anchor="end">{escape(text)}</text>')
    parts.append(f'<path d="M{chart.left} {chart.bottom}H{chart.right}" stroke="{INK}"/>')
    for at, text in chart.x_ticks:
        parts.append(f'<path d="M{at} {chart.bottom}v4" stroke="{INK}"/>')
        parts.append(f'<text x="{at}" y="{chart.bottom + 18:g}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<text x="0" y="12">{escape(figure.y_label)}</text>')
    parts.append(f'<text x="{chart.right}" y="{chart.height - 6}" text-anchor="end">{escape(figure.x_label)}</text>')
    for line in chart.lines:
        if line.band:
            parts.append(f'<path d="{line.band}" fill="{LIGHT[line.style]}" fill-opacity="0.15"/>')
        parts.append(f'<path d="{line.path}" {_stroke(line.style)}/>')
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _stroke(style: str) -> str:
    dash = DASHES[int(style.removeprefix("s"))]
    return f'fill="none" stroke="{LIGHT[style]}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
