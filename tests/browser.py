"""How a page looks in a real browser: whether anything is wider than the screen, cut off or too small to read."""

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = [320, 420, 768, 1280]
in_chromium = [
    pytest.mark.slow,
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary on this machine"),
]
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=2000",
    "--window-size=1400,900",
]
_MEASURE = """
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, width = frame.clientWidth;
  for (const one of page.querySelectorAll("details")) one.open = true;
  const seen = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
  const within = (e) => e.closest(".scroll, .sr, thead");
  const wide = [...page.body.querySelectorAll("*")]
    .filter((e) => seen(e) && !within(e) && e.getBoundingClientRect().right > width + 0.5)
    .map((e) => `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`);
  const shown = [...page.querySelectorAll("svg.chart")].filter(seen).map((e) => e.getBoundingClientRect().width);
  const cut = [...page.querySelectorAll("svg.chart text")]
    .filter((e) => seen(e) && e.getBoundingClientRect().left < 0).map((e) => e.textContent);
  const small = [...page.querySelectorAll("svg.chart text")].filter(seen)
    .map((e) => Number(e.getBoundingClientRect().height.toFixed(2))).filter((height) => height < 11).length;
  document.getElementById("found").textContent = JSON.stringify({
    scroll: page.documentElement.scrollWidth, wide: wide.slice(0, 5), charts: shown, cut: cut, small: small,
  });
});
"""


def check_layout(page: str, width: int, directory: Path) -> None:
    """Opens a page at a width: nothing is wider than the screen, every picture is seen once, every text can be read."""
    found = _measure(page, width, directory)
    assert found["wide"] == [] and found["scroll"] <= width, found
    assert found["cut"] == [] and found["small"] == 0, found
    assert len(found["charts"]) == page.count('class="chart narrow"'), found
    assert all(250 <= chart <= width for chart in found["charts"]), found


def _measure(page: str, width: int, directory: Path) -> dict[str, Any]:
    assert CHROMIUM is not None
    framed = html.escape(page, quote=True)
    harness = directory / "harness.html"
    harness.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="found"></pre>'
        f'<iframe id="frame" style="border:0;width:{width}px;height:800px"></iframe>'
        f'<script>{_MEASURE}</script><script data-page="{framed}">frame.srcdoc = document.currentScript.dataset.page'
        "</script>",
        encoding="utf-8",
    )
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={directory / 'profile'}", "--dump-dom", harness.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(dom.split('<pre id="found">')[1].split("</pre>")[0]))
