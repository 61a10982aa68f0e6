"""The colours of every page, for light and dark screens and for paper.

Contrasts follow WCAG 2.2: 4.5 for text on both backgrounds (1.4.3), 3 for marks (1.4.11); a test computes them. Series
differ by dash and marker as well as by colour, so that no reader depends on colour.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#16191d",
    "soft": "#565e69",
    "rule": "#d9dde3",
    "grid": "#e6e9ed",
    "accent": "#0b5cad",
    "good": "#0a6b45",
    "bad": "#a8330b",
    "s0": "#0b5cad",
    "s1": "#b84a00",
    "s2": "#08745a",
    "s3": "#8a3ea8",
    "s4": "#8a6a00",
    "s5": "#b3256b",
}
DARK = {
    "paper": "#14171b",
    "raised": "#1d2127",
    "ink": "#e8eaed",
    "soft": "#a3abb6",
    "rule": "#343a43",
    "grid": "#292e36",
    "accent": "#78b4f5",
    "good": "#5cc79a",
    "bad": "#ff9a70",
    "s0": "#78b4f5",
    "s1": "#ff9d57",
    "s2": "#52cba8",
    "s3": "#d39af0",
    "s4": "#e0c04a",
    "s5": "#ff8fbe",
}
PRINT = LIGHT | {"soft": "#4a515b", "rule": "#c9ced6", "grid": "#dfe3e8"}
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
"""Of the lines of series 0 to 5, as SVG writes them; the first is solid."""


def declarations(colours: Mapping[str, str]) -> str:
    """As CSS custom properties."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
