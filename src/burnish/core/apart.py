"""What is read and what is written stay apart.

A checkpoint that is written into the directory of another changes it, one that takes the place of its own source leaves
nothing to begin again with, and a table of forecasts over the table that they are made from is the end of both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from burnish.core.errors import OutputError
from burnish.core.outside import local_path


def check_apart(places: Iterable[Path | None], read: Iterable[Path | str | None], *, may_hold: bool = False) -> None:
    """Refuses a place to write to that is, holds or lies in something that is read.

    Args:
        places: files and directories to be written, which need not exist.
        read: what is read; names of nothing that lies here (a hub id, a text that ships with burnish) are passed over.
        may_hold: of a directory that things are added to, and that never takes the place of another.

    Raises:
        OutputError: naming both.
    """
    sources = [path for name in read if name is not None and (path := local_path(str(name))) and path.exists()]
    for place in places:
        if place is None or "\0" in str(place):  # which is no name, as is said where it is opened
            continue
        here = Path(os.path.realpath(place))
        for source in sources:
            there = Path(os.path.realpath(source))
            if here == there:
                what = "is what is read"
            elif here.is_relative_to(there):
                what = f"lies in {source}, which is read"
            elif there.is_relative_to(here) and not may_hold:
                what = f"holds {source}, which is read"
            else:
                continue
            raise OutputError(what, where=str(place), fix="choose another place with -o")
