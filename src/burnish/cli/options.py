"""How a settings class becomes options: `settings: Options[Quantize]`, a field an option, its description the help."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from pydantic import BeforeValidator

Given = TypeVar("Given")


def read_null(given: Any) -> Any:
    """Options are text: `--group-size null` means what `group_size: null` means in a recipe."""
    if isinstance(given, dict):
        return {key: read_null(value) for key, value in given.items()}
    return None if given == "null" else given


Options = Annotated[Given, Parameter(name="*"), BeforeValidator(read_null)]
