"""The page in a real browser: nothing is wider than the screen, and every picture has a size."""

import html
import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from burnish.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
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
MEASURE = """
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
    .map((e) => e.getBoundingClientRect().height).filter((height) => height < 11).length;
  document.getElementById("found").textContent = JSON.stringify({
    scroll: page.documentElement.scrollWidth, wide: wide.slice(0, 5), charts: shown, cut: cut, small: small,
  });
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory, write_run, nodes_with_pictures) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("browser")
    one = write_run(directory / "one", nodes_with_pictures)
    long = replace(nodes_with_pictures[0], name="a-name-of-eighty-characters-without-a-single-space-in-it-" + "x" * 23)
    two = write_run(directory / "two", [long, *nodes_with_pictures[2:3]], name="another-run")
    return {"one": render([one]), "two": render([one, two])}


@pytest.mark.slow
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium binary on this machine")
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("name", ["one", "two"])
def test_nothing_is_wider_than_the_screen_and_every_chart_is_seen_once(pages, tmp_path, name, width):
    assert CHROMIUM is not None
    framed = html.escape(pages[name], quote=True)
    harness = tmp_path / "harness.html"
    harness.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="found"></pre>'
        f'<iframe id="frame" style="border:0;width:{width}px;height:800px"></iframe>'
        f"<script>{MEASURE}</script><script>frame.srcdoc = document.currentScript.dataset.page</script>".replace(
            "<script>frame.srcdoc", f'<script data-page="{framed}">frame.srcdoc'
        ),
        encoding="utf-8",
    )
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", harness.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(dom.split('<pre id="found">')[1].split("</pre>")[0]))
    assert found["wide"] == [], found["wide"]
    assert found["scroll"] <= width
    assert found["cut"] == []
    assert found["small"] == 0
    assert len(found["charts"]) == pages[name].count('class="chart wide"')
    assert all(250 <= chart <= width for chart in found["charts"])
