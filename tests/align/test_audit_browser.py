"""The audit page in a real browser, driven over the W3C WebDriver protocol: filter, mark, export."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from browser import WIDTHS, check_layout
from burnish.align.audit import audit_pairs
from burnish.align.audit_settings import AuditSettings
from burnish.align.decisions import apply_decisions
from burnish.core.checkpoint import load
from burnish.data.preferences import Pairs

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.chromium,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the path"),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that the WebDriver standard gives to elements


class Browser:
    """The few WebDriver commands that the test needs."""

    def __init__(self, port, downloads, profile):
        self.root = f"http://127.0.0.1:{port}"
        options = {
            "binary": BROWSER,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--window-size=1200,1000",
                f"--user-data-dir={profile}",
            ],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        asked = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        self.session = f"{self.root}/session/{self.call('POST', f'{self.root}/session', asked)['sessionId']}"

    def call(self, method, url, content=None):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {url}: {error.read().decode()[:500]}") from None

    def open(self, url):
        self.call("POST", f"{self.session}/url", {"url": url})

    def run(self, script, *arguments):
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        found = self.call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return f"{self.session}/element/{found[ELEMENT]}"

    def click(self, selector):
        self.call("POST", f"{self.find(selector)}/click", {})

    def write(self, selector, text):
        self.call("POST", f"{self.find(selector)}/value", {"text": text})

    def press(self, *keys):
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "k", "actions": strokes}]})

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector)

    def mistakes(self):
        log = self.call("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]

    def close(self):
        self.call("DELETE", self.session)


@pytest.fixture
def browser(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: ready(port))
        opened = Browser(port, downloads, tmp_path / "profile")
        yield opened
        opened.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


def ready(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return json.loads(answer.read())["value"]["ready"]
    except OSError:
        return False


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the browser did not get there in a minute"
        time.sleep(0.1)


@pytest.fixture
def audited(checkpoint, tmp_path):
    rows = []
    for index in range(60):
        good, bad = f"Certainly: answer {index}, with pleasure & care.", f"no. <b>go away</b> {index}"
        swap = index in (5, 23)
        rows.append(
            {
                "prompt": f"Question {index}?",
                "chosen": bad if swap else good,
                "rejected": good if swap else bad,
            }
        )
    pairs = Pairs(rows, list(range(1, 61)), "prefs.jsonl")
    audit = audit_pairs(pairs, load(checkpoint), AuditSettings(repeats=1))
    return pairs, audit, audit.write(tmp_path / "audit")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_every_screen(audited, tmp_path, width):
    *_, page = audited
    check_layout(page.read_text(), width, tmp_path)


def test_a_person_can_filter_mark_and_export(audited, browser, tmp_path):
    pairs, audit, page = audited
    browser.open(page.as_uri())
    assert browser.mistakes() == []

    # the most suspicious pairs come first, forty at a time
    titles = browser.texts("article h2")
    assert len(titles) == 40 and titles[0].startswith(f"#1 · row {audit.rows[0]['row']}")
    assert browser.run("return document.querySelectorAll('.text b').length") == 0  # texts are never markup
    browser.click("#more")
    assert len(browser.texts("article h2")) == 60

    # by keys: first pair flip, second pair keep; by button: third pair drop
    browser.press("j", "2", "j", "1")
    browser.click("article:nth-of-type(3) button.drop")
    decided = browser.run("return [...document.querySelectorAll('article')].slice(0, 4).map(n => n.dataset.decision)")
    assert decided == ["flip", "keep", "drop", ""]
    assert browser.run("return document.querySelector('article button.flip').getAttribute('aria-pressed')") == "true"
    assert browser.texts("#tally") == ["3 decided: 1 kept, 1 flipped, 1 dropped"]

    # keys typed into a field are text, not decisions
    browser.write("article:nth-of-type(3) .decide input", "1 of 2")
    assert browser.texts("#tally") == ["3 decided: 1 kept, 1 flipped, 1 dropped"]

    # "u" goes to the next open pair; with the box ticked a decision does, too
    browser.run("document.querySelector('article:nth-of-type(1)').focus()")
    browser.press("u")
    assert browser.run("return document.activeElement.id") == f"pair-{audit.rows[3]['key']}"
    browser.click("#advance")
    browser.run("document.querySelector('article:nth-of-type(4)').focus()")
    browser.press("1")
    assert browser.run("return document.activeElement.id") == f"pair-{audit.rows[4]['key']}"
    browser.press("k", "0")
    browser.click("#advance")
    assert browser.texts("#tally") == ["3 decided: 1 kept, 1 flipped, 1 dropped"]

    # filters and search
    browser.run("const show = document.getElementById('show'); show.value = 'flip'; show.onchange()")
    assert len(browser.texts("article h2")) == 1
    browser.run("const show = document.getElementById('show'); show.value = 'all'; show.onchange()")
    browser.write("#search", f"question {audit.rows[7]['row'] - 1}?")
    assert browser.texts("article h2")[0].startswith("#8 ")
    assert browser.texts("#count") == ["1 of 60 pairs shown"]
    browser.run("const s = document.getElementById('search'); s.value = ''; s.oninput()")

    # sorting by place in the file
    browser.run("const sort = document.getElementById('sort'); sort.value = 'row'; sort.onchange()")
    assert "row 1" in browser.texts("article h2")[0]

    # decisions survive a reload
    browser.open("about:blank")
    browser.open(page.as_uri())
    assert browser.texts("#tally") == ["3 decided: 1 kept, 1 flipped, 1 dropped"]

    for form in ("json", "jsonl"):
        browser.click(f"#export-{form}")
        file = tmp_path / "downloads" / f"decisions.{form}"
        wait(file.is_file)
        cleaned, counts = apply_decisions(pairs, file)
        assert counts == {"keep": 1, "flip": 1, "drop": 1}
        assert len(cleaned) == 59
    # on another machine: nothing decided, the exported file brings it back
    browser.run("localStorage.clear()")
    browser.open("about:blank")
    browser.open(page.as_uri())
    assert browser.texts("#tally") == ["0 decided: 0 kept, 0 flipped, 0 dropped"]
    browser.write("#load", str(tmp_path / "downloads" / "decisions.jsonl"))
    wait(lambda: browser.texts("#tally") == ["3 decided: 1 kept, 1 flipped, 1 dropped"])
    assert "3 of 3 entries" in browser.texts("#count")[0]

    entries = json.loads((tmp_path / "downloads" / "decisions.json").read_text())["decisions"]
    assert [entry["rank"] for entry in entries] == [1, 2, 3]
    assert entries[2]["note"] == "1 of 2"
    assert browser.mistakes() == []


def test_two_tabs_do_not_overwrite_each_others_decisions(audited, browser):
    *_, page = audited
    browser.open(page.as_uri())
    first = browser.call("GET", f"{browser.session}/window")
    second = browser.call("POST", f"{browser.session}/window/new", {"type": "tab"})["handle"]
    browser.call("POST", f"{browser.session}/window", {"handle": second})
    browser.open(page.as_uri())
    browser.click("article:nth-of-type(1) button.flip")
    browser.call("POST", f"{browser.session}/window", {"handle": first})
    wait(lambda: browser.texts("#tally") == ["1 decided: 0 kept, 1 flipped, 0 dropped"])
    browser.click("article:nth-of-type(2) button.keep")
    assert browser.texts("#tally") == ["2 decided: 1 kept, 1 flipped, 0 dropped"]
    stored = browser.run("return Object.values(JSON.parse(localStorage.getItem(Object.keys(localStorage)[0])))")
    assert sorted(entry["decision"] for entry in stored) == ["flip", "keep"]


def test_a_person_sees_what_differs_and_what_was_decided(checkpoint, browser, tmp_path):
    fence = "```python\ndef add(a, b):\n    return a {sign} b\n```"
    rows = [{"prompt": f"Write {i}.", "chosen": f"Certainly, {i}.", "rejected": f"Never, {i}."} for i in range(45)]
    rows[0] |= {"chosen": fence.format(sign="+"), "rejected": fence.format(sign="-"), "prompt": "<i>add</i> **both**"}
    rows[1] |= {"chosen": "the year was 1848 they say", "rejected": "the year was 1849 they say", "prompt": "שלום?"}
    rows[2] |= {"chosen": "alpha beta gamma", "rejected": "one two three four"}
    audit = audit_pairs(Pairs(rows, list(range(1, 46)), "prefs.jsonl"), load(checkpoint), AuditSettings(repeats=1))
    page = audit.write(tmp_path / "audit")
    key = {row["row"]: row["key"] for row in audit.rows}
    browser.open(page.as_uri())
    browser.run("const sort = document.getElementById('sort'); sort.value = 'row'; sort.onchange()")
    article = {row: f"#pair-{key[row]}" for row in (1, 2, 3)}

    # the one word in which two answers differ is marked, in code too; texts without common words are left alone
    assert browser.texts(f"{article[1]} pre mark") == ["+", "-"]
    assert browser.texts(f"{article[1]} strong") == ["both"] and browser.texts(f"{article[1]} i") == []
    assert browser.texts(f"{article[2]} mark") == ["1848", "1849"]
    assert browser.texts(f"{article[3]} mark") == [] and len(browser.texts(f"{article[3]} .few")) == 1
    browser.click("#diff")
    browser.click("#format")
    assert browser.texts("mark") == [] and browser.texts(f"{article[1]} pre") == []
    assert browser.texts(f"{article[1]} .chosen .text") == [fence.format(sign="+")]  # as it was written
    assert browser.run("return [...document.querySelectorAll('.text')].every(node => node.dir === 'auto')")
    assert browser.texts(f"{article[1]} svg text") == ["Bradley-Terry", "R3M", "APS"]

    # several pairs are on one screen, and a flip says which answer is better now
    assert browser.run("return document.querySelector('article:nth-of-type(5)').offsetHeight < innerHeight / 3")
    browser.click(f"{article[2]} button.flip")
    assert browser.texts(f"{article[2]} h3") == ["now worse (was labelled better)", "now better (was labelled worse)"]
    browser.click(f"{article[2]} button.flip")
    assert browser.texts(f"{article[2]} h3") == ["labelled better", "labelled worse"]

    # "Show more" is there as long as there is more; a search starts at its first hit, Esc takes it back
    assert browser.run("return document.getElementById('more').offsetHeight") > 0
    browser.click("#more")
    assert browser.run("return document.getElementById('more').offsetHeight") == 0
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    browser.write("#search", "certainly")
    first = "return document.querySelector('article').getBoundingClientRect()"
    bottom = browser.run("return document.getElementById('panel').getBoundingClientRect().bottom")
    assert bottom - 2 <= browser.run(f"{first}.top") < bottom + 60
    assert len(browser.texts("article")) == 40
    browser.write("#search", " nowhere")
    assert browser.texts("article") == [] and "No pair matches" in browser.texts(".empty")[0]
    browser.press("\ue00c")
    assert browser.texts("#count") == ["45 of 45 pairs shown"]
    assert browser.run("return document.getElementById('search').value") == ""
    browser.write("#search", "nowhere")
    browser.click(".empty button")
    assert browser.texts("#count") == ["45 of 45 pairs shown"]
    assert browser.mistakes() == []
