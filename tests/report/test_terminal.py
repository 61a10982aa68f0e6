import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from burnish.core.errors import DataError
from burnish.core.ledger import Ledger
from burnish.report import ledger_table, read_run, run_of


def printed(run, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width, no_color=True).print(ledger_table(run))
    return out.getvalue().replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def test_the_table_has_a_line_per_checkpoint_with_intervals_and_changes(make_run):
    text = printed(read_run(make_run()))
    assert "yaqa 3 bit   79.4 MB        24.2       0.226   77.20 %        not   7 min 11 s" in text
    assert "-70.5 %        ±2.3      ±0.014     ±0.60  measured¹" in text
    assert "+23.9 %" in text


def test_the_table_says_why_speed_was_not_measured(make_run):
    assert "¹ transformers decompresses packed weights" in printed(read_run(make_run()))


def test_the_table_fits_eighty_columns(make_run):
    assert max(len(line.rstrip()) for line in printed(read_run(make_run())).splitlines()) <= 80


def test_values_of_another_protocol_stand_apart_and_are_not_compared(make_run, nodes):
    run = make_run([nodes[0], replace(nodes[1], protocol={"context": 512})])
    text = printed(read_run(run), width=100)
    assert (
        text.index("Protocol 1: ") < text.index("nearest 3 bit") < text.index("Protocol 2: ") < text.index("yaqa 3 bit")
    )
    assert "+23.9 %" not in text  # of perplexity, against a start of another protocol


def test_two_nodes_with_equal_weights_both_show_their_measurement(make_run, nodes):
    """A checkpoint is measured once, under the name of the node that had it first."""
    directory = make_run([nodes[1], replace(nodes[1], name="twin", content=nodes[1].name)])
    lines = (directory / "ledger.jsonl").read_text().splitlines()
    once = [line for line in lines if not (json.loads(line)["row"] == "measurement" and '"node": "twin"' in line)]
    assert len(once) == len(lines) - 1
    (directory / "ledger.jsonl").write_text("\n".join(once) + "\n")
    lines = printed(read_run(directory)).splitlines()
    first, second = (next(line for line in lines if line.strip().startswith(name)) for name in ("yaqa 3 bit", "twin"))
    assert second.split() == ["twin", *first.split()[3:]]


def test_names_are_not_read_as_markup(make_run, nodes):
    assert "[red]x[/]" in printed(read_run(make_run([replace(nodes[1], name="[red]x[/]")])))


def test_a_stage_that_was_not_measured_still_shows_its_time(make_run):
    run = make_run(state=False)
    Ledger(run, node="late").append("stage", stage="quantize", checkpoint="a" * 64, seconds=75.0)
    assert "1 min 15 s" in printed(read_run(run))


def test_a_ledger_in_memory_can_be_shown(make_run):
    ledger = Ledger(None, node="gptq")
    ledger.rows = [row for row in Ledger(make_run()).rows if row["node"] == "start"]
    assert "269 MB" in printed(run_of(ledger))


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="the ledger is empty"):
        run_of(Ledger(None))
