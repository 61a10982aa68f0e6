"""Is this answer right? Graders behind one adapter: mathematics, numbers, exact words, reasoning-gym, RULER, code.

    from burnish.verify import verifier

    with verifier("math") as math:
        answer = math.extract(text)                              # the last balanced \\boxed{...}, or None
        math.grade(answer, {"question": "...", "answer": "1/2"})  # 1.0 or 0.0
        math.equivalent("0.5", "\\frac12")                       # for votes

Stands on core alone; neither torch nor transformers is imported.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.verify.adapter import Problem, Verifier
    from burnish.verify.answers import Exact, LastInteger, Number
    from burnish.verify.gym import ReasoningGym
    from burnish.verify.mathematics import Mathematics
    from burnish.verify.probe import Wall, walls
    from burnish.verify.problems import read_problems
    from burnish.verify.programs import Code
    from burnish.verify.registry import VERIFIERS, verifier
    from burnish.verify.ruler import Ruler, RulerQuestions
    from burnish.verify.sandbox import Sandbox
    from burnish.verify.walled import Check, Execution, Limits

_PUBLIC = {
    "Check": ".walled",
    "Code": ".programs",
    "Exact": ".answers",
    "Execution": ".walled",
    "LastInteger": ".answers",
    "Limits": ".walled",
    "Mathematics": ".mathematics",
    "Number": ".answers",
    "Problem": ".adapter",
    "ReasoningGym": ".gym",
    "Ruler": ".ruler",
    "RulerQuestions": ".ruler",
    "Sandbox": ".sandbox",
    "VERIFIERS": ".registry",
    "Verifier": ".adapter",
    "Wall": ".probe",
    "read_problems": ".problems",
    "verifier": ".registry",
    "walls": ".probe",
}

__all__ = [
    "VERIFIERS",
    "Check",
    "Code",
    "Exact",
    "Execution",
    "LastInteger",
    "Limits",
    "Mathematics",
    "Number",
    "Problem",
    "ReasoningGym",
    "Ruler",
    "RulerQuestions",
    "Sandbox",
    "Verifier",
    "Wall",
    "read_problems",
    "verifier",
    "walls",
]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
