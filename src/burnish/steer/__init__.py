"""Steering: fewer wasted reasoning steps, without training. Attention heads that tell checks, turned at decoding.

from burnish.steer import read_vectors, steer

with steer(model, read_vectors("vectors"), coef=-1, top=0.38) as steering:
    model.generate(**inputs)
steering.counts                     # what was seen, flagged, gated and moved
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.steer.calibration import calibrate
    from burnish.steer.hooks import Steering, SteeringCounts, steer
    from burnish.steer.marks import Marks, marks_of
    from burnish.steer.traces import ReasoningTrace, read_traces
    from burnish.steer.vectors import ProbedHead, Vectors, read_released, read_vectors

_PUBLIC = {
    "SteeringCounts": ".hooks",
    "ProbedHead": ".vectors",
    "Marks": ".marks",
    "Steering": ".hooks",
    "ReasoningTrace": ".traces",
    "Vectors": ".vectors",
    "calibrate": ".calibration",
    "marks_of": ".marks",
    "read_released": ".vectors",
    "read_traces": ".traces",
    "read_vectors": ".vectors",
    "steer": ".hooks",
}

__all__ = [
    "Marks",
    "ProbedHead",
    "ReasoningTrace",
    "Steering",
    "SteeringCounts",
    "Vectors",
    "calibrate",
    "marks_of",
    "read_released",
    "read_traces",
    "read_vectors",
    "steer",
]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
