"""A size that is asked for, in every way it can be written."""

import pytest

from burnish.core.errors import SettingsError
from burnish.core.target import EXAMPLES, Target, parse_target

EVERY = tuple(EXAMPLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45%", Target(45, "%")),
        (" 12.5 % ", Target(12.5, "%")),
        ("24GB", Target(24e9, "bytes")),
        ("22.5GiB", Target(22.5 * 2**30, "bytes")),
        ("60mb", Target(60e6, "bytes")),
        ("512KiB", Target(512 * 1024, "bytes")),
        ("3.0bits", Target(3, "bits")),
        (".5 bit", Target(0.5, "bits")),
        ("100M parameters", Target(100e6, "parameters")),
        ("7.65B", Target(7.65e9, "parameters")),
        ("350 m", Target(350e6, "parameters")),
        ("1.3B params", Target(1.3e9, "parameters")),
        ("7 param", Target(7, "parameters")),
    ],
)
def test_a_target_is_read(text, expected):
    assert parse_target(text, takes=EVERY, whole="it") == expected


@pytest.mark.parametrize("text", ["", "20", "small", "-5%", "0MB", "1e3MB", "3.0.1bits", "5 %%", "45% of it", "nan%"])
def test_anything_else_is_refused(text):
    with pytest.raises(SettingsError, match="a share of the file"):
        parse_target(text, takes=EVERY, whole="the file")


@pytest.mark.parametrize("text", ["45%", "24GB", "3bits", "1M parameters"])
def test_a_unit_that_means_nothing_here_is_refused_with_those_that_do(text):
    unit = parse_target(text, takes=EVERY, whole="it").unit
    others = [other for other in EVERY if other != unit]
    with pytest.raises(SettingsError, match="target is") as caught:
        parse_target(text, takes=others, whole="it")
    fix = str(caught.value)
    assert EXAMPLES[unit].format(whole="it") not in fix
    assert all(EXAMPLES[other].format(whole="it") in fix for other in others)


def test_a_share_is_rounded_down():
    assert Target(33, "%").share(10) == 3


def test_a_bare_letter_counts_parameters_only_where_they_can_be_asked_for():
    assert parse_target("24B", takes=("%", "bytes"), whole="it") == Target(24, "bytes")
    with pytest.raises(SettingsError, match="target is '24M'"):
        parse_target("24M", takes=("%", "bytes"), whole="it")
