"""Names of a package that are imported when they are first used."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOMS = ("burnish", *(f"burnish.{room}" for room in ("evaluate", "events", "linear_model", "train", "verify")))


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_lists_its_public_names_and_has_them(room: str):
    package = import_module(room)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_that_no_package_has_is_refused_as_python_does(room: str):
    with pytest.raises(AttributeError, match=rf"^module '{room}' has no attribute 'nothing'$"):
        _ = import_module(room).nothing


def test_a_module_is_imported_when_its_name_is_first_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lazily").mkdir()
    (tmp_path / "lazily" / "__init__.py").write_text(
        "from burnish.core.lazy import lazy\n"
        "__getattr__, __dir__ = lazy(__name__, {'one': '.numbers', 'join': 'posixpath'}, modules=('letters',))\n"
    )
    (tmp_path / "lazily" / "numbers.py").write_text("one = 1\n")
    (tmp_path / "lazily" / "letters.py").write_text("a = 'a'\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lazily", "lazily.numbers", "lazily.letters"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    lazily = import_module("lazily")
    assert {"one", "join", "letters"} <= set(dir(lazily))
    assert not {"lazily.numbers", "lazily.letters"} & set(sys.modules)
    assert (lazily.one, lazily.join("a", "b"), lazily.letters.a) == (1, "a/b", "a")
