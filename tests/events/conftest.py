"""Fixtures of the events room; see conftest_events.py beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest_events import fitted, hawkes, parts, places, reference

__all__ = ["fitted", "hawkes", "parts", "places", "reference"]
