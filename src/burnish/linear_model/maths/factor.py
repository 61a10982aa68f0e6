"""The factorisation of the active block, changed by one row and one column a step."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import (
    qr,
    qr_delete,  # pyright: ignore[reportAttributeAccessIssue]
    qr_insert,  # pyright: ignore[reportAttributeAccessIssue]
)
from scipy.linalg.lapack import dtrtrs  # pyright: ignore[reportAttributeAccessIssue]

from burnish.linear_model.maths.operators import Array

SMALL = 32
"""Blocks below this size are factored anew: that is faster than changing the factors."""
REFRESH = 50
"""Changes after which a block is factored anew."""


class ActiveBlock:
    """A square block M = QR of the rows and columns in a basis; rows and columns are appended and deleted.

    A change costs O(k^2) by Givens rotations, which lose nothing to growth.
    """

    def __init__(self, values: Array) -> None:
        self.values = values
        self.factor()

    def __len__(self) -> int:
        return len(self.values)

    def factor(self) -> None:
        self._changes = 0
        if len(self.values):
            factors: Any = qr(self.values, check_finite=False)
            self._q, self._r = factors

    def change(
        self,
        *,
        drop_row: int | None = None,
        drop_column: int | None = None,
        row: Array | None = None,
        column: Array | None = None,
    ) -> None:
        """Appends a row (over the old columns) or a column (over the rows as they are then), then deletes.

        What is appended comes before what is deleted, so that no step has more columns than rows: first the new row,
        then the dropped column, then the new column, then the dropped row.
        """
        size = len(self.values)
        update = size >= SMALL and self._changes < REFRESH
        self._changes += 1
        values = self.values
        if row is not None:
            values = np.vstack([values, row])
            if update:
                self._q, self._r = qr_insert(self._q, self._r, row, size, which="row", check_finite=False)
        if drop_column is not None:
            values = np.delete(values, drop_column, axis=1)
            if update:
                self._q, self._r = qr_delete(self._q, self._r, drop_column, which="col", check_finite=False)
        if column is not None:
            values = np.column_stack([values, column])
            if update:
                at = values.shape[1] - 1
                self._q, self._r = qr_insert(self._q, self._r, column, at, which="col", check_finite=False)
        if drop_row is not None:
            values = np.delete(values, drop_row, axis=0)
            if update:
                self._q, self._r = qr_delete(self._q, self._r, drop_row, which="row", check_finite=False)
        self.values = values
        if not update:
            self.factor()

    def solve(self, right: Array) -> Array:
        """M^-1 right."""
        if not len(self.values):
            return right.copy()
        return dtrtrs(self._r, self._q.T @ right)[0]

    def solve_transposed(self, right: Array) -> Array:
        """M^-T right."""
        if not len(self.values):
            return right.copy()
        return self._q @ dtrtrs(self._r, right, trans=1)[0]

    @property
    def condition(self) -> float:
        """A lower bound of the condition number, from the diagonal of R; inf for a singular block."""
        if not len(self.values):
            return 1.0
        diagonal = np.abs(self._r.diagonal())
        smallest = diagonal.min()
        return float(diagonal.max() / smallest) if smallest else np.inf

    @property
    def is_singular(self) -> bool:
        return self.condition >= 1e13
