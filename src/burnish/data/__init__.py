"""Texts and what is cut from them: reading files, windows of tokens, calibration slices."""

from burnish.data.read import check_disjoint, data_hash, files_digest, num_bytes, read_rows, read_texts, rows_of
from burnish.data.windows import Slice, calibration, cut, windows

__all__ = [
    "Slice",
    "calibration",
    "check_disjoint",
    "cut",
    "data_hash",
    "files_digest",
    "num_bytes",
    "read_rows",
    "read_texts",
    "rows_of",
    "windows",
]
