"""What importing a part costs: heavy libraries come in only where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest


def imported_by(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of the libraries are loaded after a statement, in a fresh process."""
    script = f"{statement}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import burnish", ("torch", "transformers", "pydantic", "numpy", "typing", "dataclasses")),
        (
            "import burnish; burnish.Quantize; burnish.Evaluate; burnish.Align; burnish.Train",
            ("torch", "transformers", "trl"),
        ),
        ("import burnish.optim", ("pydantic", "transformers", "cyclopts")),
        ("import burnish.events", ("transformers", "trl")),
        ("import burnish.cli.events", ("torch", "transformers", "pydantic")),
        (
            "import burnish.verify; from burnish.verify import *",
            ("torch", "transformers", "pydantic", "numpy", "sympy", "math_verify"),
        ),
        ("import burnish.reason; from burnish.reason import *", ("torch", "transformers", "openai")),
        ("import burnish.serve; from burnish.serve import *", ("torch", "transformers", "vllm")),
        ("from burnish.serve import shadow, watch; from burnish.serve.vllm import keys, requests", ("scipy", "torch")),
        ("import burnish.steer; import burnish.cli.steer", ("torch", "transformers", "pydantic", "numpy")),
        ("import burnish.cli.serve", ("torch", "transformers", "pydantic", "numpy")),
        ("import burnish.report", ("torch", "transformers")),
        ("import burnish.core.runner", ("torch", "transformers")),
    ],
)
def test_importing_does_not_load_what_is_not_needed(statement: str, unwanted: tuple[str, ...]):
    assert imported_by(statement, unwanted) == []


def test_every_public_name_resolves():
    import burnish

    for name in burnish.__all__:
        assert getattr(burnish, name) is not None
