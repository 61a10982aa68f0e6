import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from burnish.core.errors import OutputError
from burnish.core.ledger import Ledger
from burnish.core.page.numbers import TIMES
from burnish.report import render, write

VOID = {"meta", "link", "br", "path", "circle", "rect", "line", "input", "img", "hr"}


class Page(HTMLParser):
    """Text of the page, its tables as cells, its attributes, and whether its elements are well nested."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.errors: list[str] = []
        self.feed(html)
        self.errors += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.errors.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data + " "

    @property
    def words(self) -> str:
        return tidy(" ".join(self.text))

    def row(self, label: str) -> list[str]:
        """Cells of the first table row whose heading begins so."""
        return next([tidy(cell) for cell in row[1:]] for row in self.rows if row and tidy(row[0]).startswith(label))

    def cells(self, metric: str) -> list[str]:
        """What every checkpoint has of a metric, in the order of the page."""
        found, place = [], None
        for row in ([tidy(cell) for cell in row] for row in self.rows):
            if row[:1] in (["Checkpoint"], ["Node"]):
                place = next((index for index, cell in enumerate(row) if cell.startswith(metric)), None)
            elif place is not None and len(row) > place:
                found.append(row[place])
        return found


def tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("\N{MINUS SIGN}", "-").replace(" .", ".").replace(" ,", ",").strip()


@pytest.fixture(scope="module")
def page(quickstart) -> Page:
    return Page(render([quickstart]))


def test_the_page_is_well_formed(page):
    assert page.errors == []


def test_the_browser_may_load_and_run_nothing(page):
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src") and "script-src" not in policy


def test_the_page_needs_nothing_from_elsewhere(quickstart):
    html = render([quickstart])
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>\s]+)""", html)
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in html and "@import" not in html


def test_the_headline_says_what_was_made_and_what_it_cost(page):
    assert "yaqa 4 bit : 4 bits, 64 % smaller, 4.2 % higher perplexity (YAQA)." in page.words
    assert (
        "from SmolLM2-135M; 269 MB to 96.2 MB; perplexity 19.6 to 20.4 on wikitext2-test, +4.2 % (95 % interval"
        in page.words
    )
    assert "+0.041 nats per token); speed not measured." in page.words


def test_a_headline_names_the_whole_way_and_says_a_large_loss_as_a_factor(page):
    assert "healed : 3 bits, 70 % smaller, 11 % higher perplexity (YAQA, then distill)." in page.words
    assert "nearest 3 bit : 3 bits, 70 % smaller, 6.4 times the perplexity (RTN)." in page.words


def test_a_scheme_with_a_width_of_its_own_is_named_in_place_of_bits(make_run, nodes):
    settings = {"method": "rtn", "bits": 4, "scheme": "w8a8-int8"}
    words = Page(render([make_run([replace(nodes[0], settings=settings)])])).words
    assert "nearest 3 bit : w8a8-int8, 70" in words


def test_the_better_result_comes_first_and_is_called_so(make_run, nodes):
    page = Page(render([make_run(nodes[:2])]))
    assert "yaqa 3 bit : 3 bits, 70 % smaller, 24 % higher perplexity (YAQA), the better of two" in page.words
    assert page.words.index("yaqa 3 bit : 3 bits") < page.words.index("nearest 3 bit : 3 bits")


def test_a_smaller_but_worse_result_leaves_no_better_one(make_run, nodes):
    page = Page(render([make_run([replace(nodes[0], size=70e6), nodes[1]])]))
    assert "the better of" not in page.words


def test_a_difference_within_noise_leaves_no_better_one(make_run, nodes):
    twin = replace(nodes[1], name="other", nats=nodes[1].nats + 0.0001)
    assert "the better of" not in Page(render([make_run([nodes[1], twin])])).words


def test_the_headline_is_only_about_results_that_nothing_follows(page):
    assert page.words.count("from SmolLM2-135M;") == 3  # "yaqa 3 bit" is an intermediate step of "healed"


def test_sizes_and_their_changes_stand_in_one_row(page):
    assert page.cells("Size on disk") == ["269 MB", *["79.4 MB -70.5 %"] * 2, "96.2 MB -64.3 %", "79.9 MB -70.3 %"]


def test_what_did_not_change_is_called_unchanged(page):
    assert page.cells("Active parameters") == ["134.5 M", *["134.5 M unchanged"] * 4]


def test_perplexity_has_an_interval_and_a_paired_change(page):
    """exp(0.041) - 1 is 4.2 %; the paired interval is far narrower than those of the values."""
    cell = page.cells("Perplexity")[3]
    assert re.fullmatch(r"20\.4 18\.5 to 22\.4 \+4\.2 %, worse \(\+2\.\d to \+5\.\d\)", cell), cell


def test_packed_checkpoints_have_no_speed_and_the_page_says_why(page):
    assert page.row("yaqa 3 bit")[:2] == [
        "79.4 MB -70.5 %",
        "24.2 22.0 to 26.7 +23.9 %, worse (+21.0 to +26.7)",
    ]  # the first table, beside size and loss
    assert page.row("yaqa 3 bit")[4] == "not measured 3"
    assert "transformers decompresses packed weights, so this would be the dense model's" in page.words


def test_a_difference_whose_interval_includes_zero_is_within_noise(make_run, nodes):
    close = replace(nodes[2], name="close", nats=0.0004, spread=0.05)
    page = Page(render([make_run([close])]))
    assert "close : 4 bits, 64 % smaller, perplexity within noise of the start (YAQA)." in page.words
    assert page.cells("Perplexity")[1].split(", ")[1].startswith("within noise")


def test_speeds_are_shown_and_never_judged(make_run, nodes):
    """Repeats in one process say little about another process: the same weights may lie wholly outside their spread."""
    dense = replace(nodes[2], packed=False, speed=30.0)
    page = Page(render([make_run([dense])]))
    assert page.cells("Decode speed")[1] == f"30.00 2 29.60 to 30.40 {TIMES} 1.43"
    assert "decode speed 21.00 to 30.00 tokens/s, one session each" in page.words


def test_a_gain_is_called_better(make_run, nodes):
    page = Page(render([make_run([replace(nodes[2], name="tuned", nats=-0.2)])]))
    assert "tuned : 4 bits, 64 % smaller, 18 % lower perplexity (YAQA)." in page.words
    assert "-0.200 nats per token" in page.words


def test_without_sequences_no_paired_interval_is_claimed(make_run, nodes):
    run = make_run([nodes[2]])
    for path in (run / "sequences").iterdir():
        path.unlink()
    page = Page(render([run]))
    assert "perplexity 19.6 to 20.4 (YAQA)" in page.words
    assert "the intervals overlap; per-sequence values are missing" in page.words
    assert "Differences on the same text" not in page.words


def test_different_protocols_are_not_compared_and_the_fields_are_named(make_run, nodes):
    other = replace(nodes[1], protocol={"context": 512, "dtype": "bfloat16"})
    page = Page(render([make_run([nodes[0], other])]))
    assert (
        "quality is not compared, because the protocols differ in context (512 against 1,024) and dtype "
        "(bfloat16 against float32)" in page.words
    )
    assert "of yaqa 3 bit against start: their protocols differ in context (512 against 1,024)" in page.words


def test_values_of_different_protocols_stand_in_different_sections(make_run, nodes):
    page = Page(render([make_run([nodes[0], replace(nodes[1], protocol={"context": 512})])]))
    heads = [tidy(row[0]) for row in page.rows]
    second = next(index for index, head in enumerate(heads) if head.startswith("Protocol 2"))
    assert heads.index("start") < heads.index("nearest 3 bit quantize") < second < heads.index("yaqa 3 bit quantize")
    assert page.cells("Perplexity")[2] == "24.2 22.0 to 26.7"  # no change against a start of another protocol


def test_counted_sizes_are_compared_under_any_protocol(make_run, nodes):
    page = Page(render([make_run([replace(nodes[1], protocol={"context": 512})])]))
    assert page.cells("Size on disk")[1] == "79.4 MB -70.5 %"


def test_runs_stand_side_by_side_with_one_column_for_their_common_start(make_run, nodes):
    first = make_run(nodes[:1], directory="a", name="one")
    second = make_run(nodes[1:2], directory="b", name="two")
    page = Page(render([first, second]))
    heads = [tidy(row[0]) for row in page.rows]
    first = heads.index("start")
    assert heads[first : first + 3] == ["start", "one / nearest 3 bit quantize", "two / yaqa 3 bit quantize"]
    assert len(page.cells("Perplexity")) == 3
    assert "two / yaqa 3 bit against one / nearest 3 bit" in page.words


def test_siblings_are_compared_with_each_other(page):
    cells = [[tidy(cell) for cell in row] for row in page.rows]
    row = next(row for row in cells if row and row[0] == "yaqa 3 bit against nearest 3 bit")
    assert row[1].startswith("-1.65 -1.75 to -1.55") and row[-1] == "better"


NASTY = """<script>alert("1")</script> & 'quotes' ünï 模型 ‮"""


def test_names_from_the_ledger_cannot_break_the_page(make_run, nodes):
    node = replace(nodes[1], name=NASTY, settings={NASTY: NASTY}, tables={"layers": [{"name": NASTY, "error": 0.1}]})
    html = render([make_run([node], name=NASTY, start=NASTY)])
    page = Page(html)
    assert page.errors == []
    assert "<script" not in html
    assert tidy(NASTY) in page.words


def test_names_cannot_break_out_of_an_attribute(make_run, nodes):
    html = render([make_run([replace(nodes[1], name='x" onmouseover="alert(1)')])])
    assert not any(key.startswith("on") for _, attributes in Page(html).tags for key in attributes)


def test_layers_loss_and_calibration_are_drawn(make_run, nodes, rows):
    tables = {"layers": rows.layers, "loss": rows.loss, "calibration": rows.calibration}
    page = Page(render([make_run([replace(nodes[1], tables=tables)])]))
    spoken = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert any(text.startswith("weight error per layer: 210 matrices, median") for text in spoken)
    assert any(text.startswith("Training loss. yaqa 3 bit from") and "over 300 steps" in text for text in spoken)
    assert any("gptq, 2,048 tokens" in text for text in spoken)


def test_any_table_over_steps_is_drawn(make_run, nodes):
    steps = [{"step": step, "rewards/margins": step / 10} for step in range(1, 6)]
    page = Page(render([make_run([replace(nodes[1], tables={"preference_training": steps})])]))
    spoken = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert any(text.startswith("Rewards/margins. yaqa 3 bit from 0.1 to 0.5, over 5 steps") for text in spoken)


def test_a_resumed_stage_is_drawn_with_its_later_values(make_run, nodes):
    parts = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}], [{"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}]
    run = make_run([replace(nodes[1], tables={"loss": parts[0], "loss_after_resuming": parts[1]})])
    ledger = (run / "ledger.jsonl").read_text().replace("loss_after_resuming", "loss")
    (run / "ledger.jsonl").write_text(ledger)
    assert "yaqa 3 bit from 3 to 1, over 3 steps" in render([run])


def test_a_node_that_ran_again_is_drawn_without_its_former_run(make_run, nodes):
    run = make_run([replace(nodes[1], tables={"loss": [{"step": 1, "loss": 3.0}, {"step": 9, "loss": 9.0}]})])
    Ledger(run, node=nodes[1].name).table("loss", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    assert "yaqa 3 bit from 2 to 1, over 2 steps" in render([run])


def test_weight_errors_are_explained_where_they_are_shown(make_run, nodes, rows, page):
    shown = Page(render([make_run([replace(nodes[1], tables={"layers": rows.layers})])]))
    assert "an error of the weights, not of what the layer computes" in shown.words
    assert "an error of the weights" not in page.words


def test_a_table_without_a_picture_is_shown_as_it_is(make_run, nodes):
    page = Page(render([make_run([replace(nodes[1], tables={"bit_choice": [{"matrix": "q", "bits": 3}]})])]))
    assert "bit choice" in page.words and ["q ", "3 "] in page.rows


def test_every_picture_has_a_text_for_those_who_cannot_see_it(page):
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")


def test_costs_name_time_and_memory_of_each_stage(page):
    assert ["21 min 24 s", "1.90 GB"] in [[tidy(cell) for cell in row[-2:]] for row in page.rows]


def test_provenance_has_hashes_dates_and_the_recipe(page, quickstart):
    ledger = Ledger(quickstart)
    assert all(row["checkpoint"] in page.words for row in ledger.rows if row["row"] == "measurement")
    assert ledger.rows[0]["time"] in page.words
    assert "nodes: [{stage: quantize}]" in page.words


def test_the_protocol_is_shown_whole(page):
    assert "prompt_tokens 512" in page.words and "text_hash" in page.words


def test_a_node_that_has_not_run_is_in_the_tree_and_nowhere_else(make_run, nodes):
    page = Page(render([make_run([nodes[1], replace(nodes[2], name="later", status="waiting")])]))
    assert "later not run yet" in page.words
    assert "later, made from" not in page.words


def test_many_checkpoints_stand_below_each_other(make_run, nodes):
    many = [replace(nodes[2], name=f"n{index}") for index in range(12)]
    page = Page(render([make_run(many)]))
    assert len(page.cells("Size on disk")) == 13


@pytest.mark.slow
def test_a_ledger_of_ten_thousand_rows_stays_below_a_megabyte(make_run, nodes):
    experts = [
        {"name": f"model.layers.{layer}.mlp.experts.{expert}.w1", "relative_error": 0.01 + expert / 1e4, "bits": 3}
        for layer in range(32)
        for expert in range(128)
    ]
    steps = [{"step": step, "loss": 3.0 + 1 / (1 + step), "lr": 1e-4} for step in range(5_000)]
    run = make_run([replace(nodes[1], tables={"layers": experts, "loss": steps}), *nodes[2:3]])
    ledger = Ledger(run)
    rows = [row for row in ledger.rows if row["row"] == "measurement"]
    kept = ("perplexity", "bytes_on_disk")
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as file:  # as 10,000 appends would, without their fsyncs
        for index in range(10_000):
            row = rows[index % len(rows)]
            file.write(json.dumps(row | {"metrics": {name: row["metrics"][name] for name in kept}}) + "\n")
    html = render([run])
    assert len(html.encode()) < 1_000_000
    assert "3,946 better ones are in the ledger" in tidy(html)


def test_the_page_is_the_same_each_time(quickstart):
    assert render([quickstart]) == render([quickstart])


def test_the_page_lies_in_the_run_by_default(make_run):
    run = make_run()
    assert write(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8") == render([run])


def test_a_place_that_cannot_be_written_to_is_named(make_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write(make_run(), out=tmp_path / "file" / "report.html")
