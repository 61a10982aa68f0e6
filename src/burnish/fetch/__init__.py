"""Getting a checkpoint onto this machine: `fetch("smollm2", "models/smollm2")`, or any hub id."""

from burnish.fetch.sources import fetch

__all__ = ["fetch"]
