import pytest

from burnish.core.page.palette import DARK, LIGHT, PRINT


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK, PRINT], ids=["light", "dark", "print"])
def test_colours_have_the_contrast_of_wcag_aa(colours):
    """4.5 for text on both backgrounds, 3 for marks (WCAG 2.2, criteria 1.4.3 and 1.4.11)."""
    for ground in ("paper", "raised"):
        for name in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for index in range(6):
            assert contrast(colours[f"s{index}"], colours[ground]) >= 3, (index, ground)
