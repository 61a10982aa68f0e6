"""The version of burnish, in a file that imports nothing, so that every room can state it."""

__version__ = "0.1.0"
