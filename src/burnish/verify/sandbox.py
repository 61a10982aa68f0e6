"""A sandbox that is tried first: before the first program, harmless ones show that each wall holds on this machine.

Where one does not, nothing runs unless the caller says `unsafe=True`. The walls are those of `burnish.verify.walled`.
"""

from __future__ import annotations

from burnish.core.errors import EngineError
from burnish.verify.probe import walls
from burnish.verify.walled import Check, Execution, Limits, run


class Sandbox:
    """Runs programs; may be used from any thread.

    Args:
        limits: of each program.
        unsafe: run even where the machine cannot isolate: then limits and an own directory are all there is, and as
            root the cap on processes does not hold.

    Raises:
        EngineError: no isolation here, naming the wall that does not hold.
    """

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self.limits = limits or Limits()
        self.isolated = True
        if broken := [wall for wall in walls() if not wall.holds]:
            if not unsafe:
                raise EngineError(
                    f"strange code cannot be isolated on this machine: {broken[0].name} ({broken[0].said})",
                    fix="run in a virtual machine, or as root, or where user namespaces are allowed; --unsafe-code "
                    "(unsafe=True) runs it all the same",
                )
            self.isolated = False

    def run(self, program: str, *, stdin: str = "", check: Check | None = None) -> Execution:
        """Runs a program as a script, or, with a check, asks one of its functions."""
        return run(self.limits, program, stdin=stdin, check=check, isolated=self.isolated)
