from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from burnish.core.errors import DataError
from burnish.core.ledger import Ledger
from burnish.report import ledger_table


def printed(table, width: int = 80) -> str:
    out = StringIO()
    Console(file=out, width=width, no_color=True).print(table)
    return out.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_the_table_has_a_line_per_checkpoint_with_intervals(make_run):
    text = printed(ledger_table(Ledger(make_run()).rows))
    assert "yaqa 3 bit     79.4 MB  24.2    0.226  77.20 %       not   7 min 11 s" in text
    assert "±2.3   ±0.014    ±0.60  measured" in text


def test_the_table_fits_eighty_columns(make_run):
    assert max(len(line.rstrip()) for line in printed(ledger_table(Ledger(make_run()).rows)).splitlines()) <= 80


def test_values_of_another_protocol_are_marked(make_run, nodes):
    run = make_run([nodes[0], replace(nodes[1], protocol={"context": 512})])
    text = printed(ledger_table(Ledger(run).rows), width=100)
    assert "±2.3*" in text
    assert "* yaqa 3 bit: another protocol, not comparable: context 512, above 1,024" in text


def test_names_are_not_read_as_markup(make_run, nodes):
    text = printed(ledger_table(Ledger(make_run([replace(nodes[1], name="[red]x[/]")])).rows))
    assert "[red]x[/]" in text


def test_a_stage_that_was_not_measured_still_shows_its_time(make_run):
    run = make_run()
    Ledger(run, node="late").append("stage", stage="quantize", checkpoint="a" * 64, seconds=75.0)
    assert "1 min 15 s" in printed(ledger_table(Ledger(run).rows))


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="the ledger is empty"):
        ledger_table([])
