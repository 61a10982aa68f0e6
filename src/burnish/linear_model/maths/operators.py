"""The constraint matrices of l1 programs, never written out: what the simplex method asks of them, and the five forms.

Coefficients b = b+ - b- and two-sided bounds |r| <= lambda double columns and rows, so a matrix such as

    [ Q  -Q]
    [-Q   Q],   Q = X^T X

holds every number of X four times over and is dense where X is sparse. What a step needs of it are a few rows, a few
columns and the small block where they meet; each form below computes them from X.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Design = Any
"""A float64 array or a scipy.sparse array in rows or columns, for which there is no common type."""


@runtime_checkable
class Operator(Protocol):
    """A matrix A with `shape` (rows, columns), as the simplex method sees it."""

    shape: tuple[int, int]

    def times(self, columns: Indices, weights: Array) -> Array:
        """A[:, columns] @ weights; weights may have several columns."""
        ...

    def transposed_times(self, rows: Indices, weights: Array) -> Array:
        """A[rows, :].T @ weights; weights may have several columns."""
        ...

    def block(self, rows: Indices, columns: Indices) -> Array:
        """A[rows, columns], every row with every column."""
        ...


class Matrix:
    """A matrix that exists, dense or scipy.sparse."""

    def __init__(self, matrix: Design) -> None:
        self.shape = matrix.shape
        if sp.issparse(matrix):
            self._by_column: Design = sp.csc_array(matrix)
            self._by_row: Design = sp.csr_array(matrix)
        else:
            self._by_column, self._by_row = np.asfortranarray(matrix), np.ascontiguousarray(matrix)

    def times(self, columns: Indices, weights: Array) -> Array:
        return self._by_column[:, columns] @ weights

    def transposed_times(self, rows: Indices, weights: Array) -> Array:
        return self._by_row[rows].T @ weights

    def block(self, rows: Indices, columns: Indices) -> Array:
        if sp.issparse(self._by_column):
            return self._by_column[:, columns][rows].toarray()
        return self._by_column[np.ix_(rows, columns)]


class Gram:
    """X^T X for an X of n rows and d columns, of which columns are computed when a step first needs them.

    Memory is O(d k) for the k columns that were ever active. From 2 n columns on, products with X itself are cheaper.
    """

    def __init__(self, design: Design) -> None:
        num_rows, size = design.shape
        self.shape = (size, size)
        self._design: Design = sp.csc_array(design) if sp.issparse(design) else np.asfortranarray(design)
        self._transposed = self._design.T
        self._slots = np.full(size, -1, dtype=np.intp)
        self._used = 0
        self._columns = np.empty((size, 8), order="F")
        self._most = 2 * num_rows

    def _slots_of(self, columns: Indices) -> Indices | None:
        """Where columns lie, after they were computed; None where there are too many."""
        new = np.unique(columns[self._slots[columns] < 0])
        if self._used + len(new) > self._most:
            return None
        for column in new:
            slot = self._used
            if slot == self._columns.shape[1]:
                wider = np.empty((self.shape[0], 2 * slot), order="F")
                wider[:, :slot] = self._columns
                self._columns = wider
            values = self._design[:, [column]]
            values = values.toarray() if sp.issparse(values) else values
            self._columns[:, slot] = (self._transposed @ values)[:, 0]
            self._slots[column] = slot
            self._used += 1
        return self._slots[columns]

    def times(self, columns: Indices, weights: Array) -> Array:
        slots = self._slots_of(columns)
        if slots is None:
            return self._transposed @ (self._design[:, columns] @ weights)
        spread = np.zeros((self._used, *weights.shape[1:]))
        np.add.at(spread, slots, weights)  # b+ and b- of one coefficient share a column
        return self._columns[:, : self._used] @ spread

    def transposed_times(self, rows: Indices, weights: Array) -> Array:
        return self.times(rows, weights)

    def block(self, rows: Indices, columns: Indices) -> Array:
        slots = self._slots_of(columns)
        if slots is None:
            product = self._design[:, rows].T @ self._design[:, columns]
            return product.toarray() if sp.issparse(product) else product
        return self._columns[np.ix_(rows, slots)]


class Mirrored:
    """[M; -M], or with `columns` [[M, -M], [-M, M]]: two-sided bounds, and coefficients of both signs."""

    def __init__(self, half: Operator, *, columns: bool) -> None:
        self.half, self._both = half, columns
        rows, cols = half.shape
        self.shape = (2 * rows, 2 * cols if columns else cols)

    @staticmethod
    def _fold(indices: Indices, size: int) -> tuple[Indices, Array]:
        """The index within the half, and the sign of the copy."""
        second = indices >= size
        return np.where(second, indices - size, indices), np.where(second, -1.0, 1.0)

    def _columns(self, columns: Indices) -> tuple[Indices, Array]:
        return self._fold(columns, self.half.shape[1]) if self._both else (columns, np.ones(len(columns)))

    def times(self, columns: Indices, weights: Array) -> Array:
        inner, signs = self._columns(columns)
        result = self.half.times(inner, weights * (signs[:, None] if weights.ndim == 2 else signs))
        return np.concatenate([result, -result])

    def transposed_times(self, rows: Indices, weights: Array) -> Array:
        inner, signs = self._fold(rows, self.half.shape[0])
        result = self.half.transposed_times(inner, weights * (signs[:, None] if weights.ndim == 2 else signs))
        return np.concatenate([result, -result]) if self._both else result

    def block(self, rows: Indices, columns: Indices) -> Array:
        inner_rows, row_signs = self._fold(rows, self.half.shape[0])
        inner_columns, column_signs = self._columns(columns)
        return row_signs[:, None] * self.half.block(inner_rows, inner_columns) * column_signs


class Margins:
    """The dual of the support vector machine: rows (Z^T, -1), (-Z^T, -1), (y^T, 0), (-y^T, 0) for Z = diag(y) X."""

    def __init__(self, design: Design, signs: Array) -> None:
        self._matrix, self._signs = Matrix(design), signs
        num_samples, num_features = design.shape
        self.shape = (2 * num_features + 2, num_samples + 1)

    def times(self, columns: Indices, weights: Array) -> Array:
        num_samples = len(self._signs)
        samples = columns < num_samples
        signed = (weights[samples].T * self._signs[columns[samples]]).T
        weighted = self._matrix.transposed_times(columns[samples], signed)
        largest, balance = weights[~samples].sum(axis=0), signed.sum(axis=0)
        return np.concatenate([weighted - largest, -weighted - largest, [balance], [-balance]])

    def transposed_times(self, rows: Indices, weights: Array) -> Array:
        size = self.shape[0] // 2 - 1
        feature = rows < 2 * size
        inner, signs = Mirrored._fold(rows[feature], size)
        scores = self._matrix.times(inner, (weights[feature].T * signs).T)
        intercept = (weights[~feature].T * np.where(rows[~feature] == 2 * size, 1.0, -1.0)).T.sum(axis=0)
        by_sample = ((scores + intercept).T * self._signs).T
        return np.concatenate([by_sample, [-weights[feature].sum(axis=0)]])

    def block(self, rows: Indices, columns: Indices) -> Array:
        size, num_samples = self.shape[0] // 2 - 1, len(self._signs)
        result = np.zeros((len(rows), len(columns)))
        feature, sample = np.flatnonzero(rows < 2 * size), np.flatnonzero(columns < num_samples)
        inner, signs = Mirrored._fold(rows[feature], size)
        own = self._signs[columns[sample]]
        result[np.ix_(feature, sample)] = signs[:, None] * self._matrix.block(columns[sample], inner).T * own
        result[np.ix_(feature, np.flatnonzero(columns == num_samples))] = -1.0
        for position in np.flatnonzero(rows >= 2 * size):
            result[position, sample] = own if rows[position] == 2 * size else -own
        return result
