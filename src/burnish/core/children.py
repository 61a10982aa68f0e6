"""The environment of Python processes that burnish starts: they find burnish, and nothing in the working directory.

`python -m` searches there first, where a `statistics.py` of the user's may lie; an empty entry of PYTHONPATH means the
same place.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def childs_environment(*modules: str) -> dict[str, str]:
    """That of this process, safe; names of files are UTF-8, whatever the locale.

    Args:
        *modules: that the child imports beside burnish, and that this process has imported.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    installed = sysconfig.get_paths().values()
    roots = [root for name in ("burnish", *modules) if (root := _root(name)) and root not in installed]
    paths = os.pathsep.join(dict.fromkeys([*given, *roots]))
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONPATH": paths}


def num_processes() -> int:
    """How many share the work of this one, as the launcher that started them says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _root(module: str) -> str | None:
    """The directory that a module's outermost package lies in; None for what has no file."""
    file = sys.modules[module.partition(".")[0]].__file__
    if file is None:
        return None
    path = Path(file).resolve()
    return str(path.parent.parent if path.name == "__init__.py" else path.parent)
