"""One table names the event models; what else lists them follows it."""

import re
from pathlib import Path
from typing import get_args

import pytest

import burnish.events
from burnish.cli.events import ModelName
from burnish.events.models import MODELS, model_class


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_the_model_that_calls_itself_so(name: str) -> None:
    assert model_class(name).kind == name
    assert getattr(burnish.events, MODELS[name][1]) is model_class(name)


def test_the_command_offers_every_row() -> None:

    assert get_args(ModelName) == tuple(MODELS)


def test_every_model_has_a_row() -> None:
    from burnish.events.model import EventModel

    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    for name in MODELS:
        model_class(name)
    named = {one for one in below(EventModel) if one.__module__.startswith("burnish.events") and "kind" in vars(one)}
    assert named == {model_class(name) for name in MODELS}


def test_type_checkers_see_every_public_name() -> None:
    text = Path(str(burnish.events.__file__)).read_text()
    assert sorted(re.findall(r" as (\w+)$", text, re.MULTILINE)) == burnish.events.__all__
