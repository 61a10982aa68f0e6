"""The parametric simplex method: the solutions of a linear program for every value of one parameter.

    maximise (c + lambda cbar)^T x   subject to   A x <= b + lambda bbar,   0 <= x <= h

An optimal basis stays optimal on an interval of lambda, where solution and multipliers are linear in lambda. Going
down, the first basic value or reduced cost that would turn negative names the pivot that crosses to the next interval;
so one pivot a breakpoint gives the whole path, at the price of about one ordinary solution.

Only the **active block** M = A[I, J] is kept: the rows I that hold with equality and the columns J strictly between
their bounds, as many of each. With k of them, and with s = b + lambda bbar - A x the slacks:

    x_J = M^-1 (b_I + lambda bbar_I - A[I, U] h_U)        U: the columns at their upper bounds
    u_I = M^-T (c_J + lambda cbar_J)                      multipliers of the rows
    d   = c + lambda cbar - A[I, :]^T u_I                 reduced costs: <= 0 at a lower bound, >= 0 at an upper one

A pivot appends to, deletes from or replaces in I and J. Everything outside the block is computed anew from it after
every pivot, by products with A that the program's form makes cheap, so that no error builds up along the path.

Several values may reach zero together (equal columns, ties, exact zeros). Then pivots follow one another at one lambda;
after a few of them the choice is Bland's (smallest index), which cannot cycle. Ties between solutions are broken by
their slopes in lambda, so that the basis is optimal below the breakpoint and not only at it.

A row that depends on active rows (equal columns; every further row, once there are as many as X has rank) has a slack
that is exactly zero, or zero at lambda = 0. What is computed for it is rounding, and so is the place where that would
turn negative: pivots on it lead back and forth. So a value counts only where, at the end of the path, it is below zero
by more than the rounding of the terms that it is the sum of: a line is at or above zero between two points where it is.

Source: Parametric Simplex Method for Sparse Learning, Pang, Liu, Vanderbei, Zhao, NIPS 2017; the method itself: Gass
and Saaty, The computational algorithm for the parametric objective function, 1955.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from burnish.linear_model.maths.factor import ActiveBlock
from burnish.linear_model.maths.operators import Array, Indices, Operator

StoppedBy = Literal[
    "complete", "limit", "max_iter", "max_nonzeros", "infeasible", "unbounded", "singular basis", "cycle", "running"
]

Kind = Literal["primal", "dual"]

FEASIBLE = 1e-9
"""How far a value may be from its bound, relative to the largest of its kind."""
PIVOT = 1e-9
"""Entries of a pivot row or column below this share of the largest are zeros that rounding has moved."""
ROUNDING = 1e-13
"""Errors of sums and products, relative to their terms: some hundred units of the last place."""
DOUBTFUL = 1e-5
"""Values beyond are never rounding's, in the units that programs are written in."""
PATIENCE = 8
"""Pivots at one lambda after which Bland's rule chooses."""


@dataclass(frozen=True)
class Program:
    """A parametric program in the form above.

    Attributes:
        matrix: A, m rows and n columns.
        bounds: b and bbar, shape (m, 2).
        costs: c and cbar, shape (n, 2).
        upper: h, shape (n,); inf where there is none.
    """

    matrix: Operator
    bounds: Array
    costs: Array
    upper: Array


@dataclass(frozen=True)
class Basis:
    """Where a path starts: active rows and columns, and the columns at their upper bounds."""

    rows: Indices
    columns: Indices
    at_upper: Indices

    @classmethod
    def of_slacks(cls, at_upper: Indices | None = None) -> Basis:
        """No row is active."""
        none = np.empty(0, dtype=np.intp)
        return cls(none, none, none if at_upper is None else at_upper)


@dataclass(frozen=True)
class Point:
    """The solution at one lambda.

    Attributes:
        parameter: lambda.
        columns, values: the entries of x that are not zero.
        rows, multipliers: the entries of u that may differ from zero, on the interval above lambda.
        objective: (c + lambda cbar)^T x.
        gap: |objective - dual objective|.
        violation: the largest violation of a bound, of a row or of a sign of a multiplier, relative to its kind.
    """

    parameter: float
    columns: Indices
    values: Array
    rows: Indices
    multipliers: Array
    objective: float
    gap: float
    violation: float


@dataclass
class Event:
    """A value that reaches its bound: what leaves the basis (`kind` "primal") or wants to enter it ("dual").

    Attributes:
        parameter: the lambda at which it happens.
        index: a column j, or a row i as n + i.
        to_upper: whether a column reaches its upper bound.
    """

    parameter: float
    kind: Kind
    index: int
    to_upper: bool = False


@dataclass
class Trace:
    """What `follow` leaves behind beside its points: why it stopped, and how many pivots it took."""

    stopped_by: StoppedBy = "running"
    num_pivots: int = 0
    last: float = np.inf


def follow(
    program: Program,
    start: Basis,
    trace: Trace,
    *,
    first: float = np.inf,
    last: float = 0.0,
    max_iter: int | None = None,
    max_nonzeros: int | None = None,
) -> Iterator[Point]:
    """The solutions at every breakpoint between `first` and `last`, going down, and at `last`.

    Args:
        program: what to solve.
        start: a basis that is optimal at `first`, or just below it after pivots that do not change the solution.
        trace: says afterwards why the path ended.
        first: where to start; inf starts above the first breakpoint.
        last: the smallest parameter of interest.
        max_iter: pivots at most; None for no limit.
        max_nonzeros: ends once the solution, or for programs of this form's dual its multipliers, have more entries.
    """
    state = _State(program, start)
    current = first
    still = _Standstill()
    if np.isfinite(first):
        yield state.point(first)
    while True:
        event = state.next_event(current, last, bland=still.is_long)
        at = -np.inf if event is None else event.parameter
        if at <= last + 1e-12 * state.value_scale:  # an event at the very end is rounding's
            # Below 0 a parameter means nothing; above it the solution goes on changing, with or without a breakpoint.
            whole = last == 0 or (last < 0 and event is None)
            trace.stopped_by, trace.last = ("complete" if whole else "limit"), last
            if np.isfinite(last):
                yield state.point(last)
            return
        if at < current - FEASIBLE * max(1.0, abs(at)) or not np.isfinite(current):
            still = _Standstill()
            yield state.point(at)
            current = at
        else:
            still.num_pivots += 1
        trace.last = current
        if max_nonzeros is not None and len(state.columns) > max_nonzeros:
            trace.stopped_by = "max_nonzeros"
            return
        if max_iter is not None and trace.num_pivots >= max_iter:
            trace.stopped_by = "max_iter"
            return
        if still.is_long and still.returns_to(state.name()):
            trace.stopped_by = "cycle"
            return
        assert event is not None
        failed = state.pivot(event, current, bland=still.is_long)
        trace.num_pivots += 1
        if failed is not None:
            trace.stopped_by = failed
            return


@dataclass
class _Standstill:
    """Pivots at one lambda."""

    num_pivots: int = 0
    _seen: set[bytes] = field(default_factory=set)

    @property
    def is_long(self) -> bool:
        return self.num_pivots > PATIENCE

    def returns_to(self, basis: bytes) -> bool:
        """Whether this basis was here before: what follows is a function of it, so it would follow for ever."""
        if basis in self._seen:
            return True
        self._seen.add(basis)
        return False


@dataclass
class _State:
    """A basis and everything that follows from it."""

    program: Program
    start: Basis
    rows: list[int] = field(init=False)
    columns: list[int] = field(init=False)

    def __post_init__(self) -> None:
        matrix = self.program.matrix
        self.num_rows, self.num_columns = matrix.shape
        self.rows, self.columns = self.start.rows.tolist(), self.start.columns.tolist()
        self.at_upper = np.zeros(self.num_columns, dtype=bool)
        self.at_upper[self.start.at_upper] = True
        self.block = ActiveBlock(matrix.block(self._rows, self._columns))
        self.right = self.program.bounds.copy()  # bounds less what the columns at their upper bounds use up
        filled = self.start.at_upper
        self.right[:, 0] -= matrix.times(filled, self.program.upper[filled])
        finite = self.program.upper[np.isfinite(self.program.upper)]
        self.value_scale = max(1.0, np.abs(self.program.bounds).max(initial=0.0), finite.max(initial=0.0))
        self.cost_scale = max(1.0, np.abs(self.program.costs).max(initial=0.0))
        self.refresh()

    @property
    def _rows(self) -> Indices:
        return np.asarray(self.rows, dtype=np.intp)

    @property
    def _columns(self) -> Indices:
        return np.asarray(self.columns, dtype=np.intp)

    def refresh(self) -> None:
        """Everything that the basis determines; each array's last axis is (constant, slope in lambda)."""
        matrix, rows, columns = self.program.matrix, self._rows, self._columns
        self.x = self.block.solve(self.right[rows])
        self.slack = self.right - _nonzero_product(matrix.times, columns, self.x, self.num_rows)
        self.slack[rows] = 0.0
        self.u = self.block.solve_transposed(self.program.costs[columns])
        reduced = self.program.costs - _nonzero_product(matrix.transposed_times, rows, self.u, self.num_columns)
        reduced[columns] = 0.0
        self.distance = np.where(self.at_upper[:, None], reduced, -reduced)  # of a reduced cost from its wrong side
        self._errors: dict[str, Array] | None = None

    def rounding(self) -> dict[str, Array]:
        """Errors of (constants, slopes) of each kind of value, from the terms that they are the sums of.

        Those of x and u, solutions of equations with the block, grow with its condition, as far as its factors show it.
        """
        if self._errors is not None:
            return self._errors
        size, condition = np.abs(self.block.values), self.block.condition
        found = {}
        for kind, part, block, scale in (("x", self.x, size, self.value_scale), ("u", self.u, size.T, self.cost_scale)):
            largest = np.abs(part).max(axis=0, initial=0.0)
            found[kind] = np.minimum(ROUNDING * condition * largest, 0.1 * FEASIBLE * scale)
            terms = (block @ np.abs(part)).max(axis=0, initial=0.0)
            found[f"beside {kind}"] = ROUNDING * (terms + scale)
        self._errors = found
        return found

    def name(self) -> bytes:
        """Of the basis."""
        return np.sort(self._rows).tobytes() + b"|" + np.sort(self._columns).tobytes() + b"|" + self.at_upper.tobytes()

    # -- where the interval ends -------------------------------------------------------------------------------------

    def next_event(self, current: float, last: float, *, bland: bool) -> Event | None:
        """The largest lambda at or below `current` at which the basis stops being optimal before `last`."""
        columns, size = self._columns, self.num_columns
        upper = self.program.upper[columns]
        room = np.column_stack([upper - self.x[:, 0], -self.x[:, 1]])
        kinds: tuple[tuple[Kind, Indices, Array, str], ...] = (
            ("primal", columns, self.x, "x"),
            ("primal", columns, room, "x"),
            ("primal", np.arange(self.num_rows) + size, self.slack, "beside x"),
            ("dual", self._rows + size, self.u, "u"),
            ("dual", np.arange(size), self.distance, "beside u"),
        )
        best: Event | None = None
        steepest = 0.0
        for kind, indices, values, what in kinds:
            slopes = values[:, 1]
            falling = np.flatnonzero((slopes > 1e-12) & np.isfinite(values[:, 0]))
            falling = falling[self._in_earnest(values[falling], last, what)]
            if not len(falling):
                continue
            at = np.minimum(-values[falling, 0] / slopes[falling], current)
            top = at.max()
            tied = falling[at >= top - 1e-12 * max(1.0, abs(top))]
            chosen = tied[indices[tied].argmin()] if bland else tied[slopes[tied].argmax()]
            close = best is not None and abs(top - best.parameter) <= 1e-12 * max(1.0, abs(top))
            if best is None or (top > best.parameter and not close):
                better = True
            elif not close or kind != best.kind:
                better = False  # what leaves goes before what enters
            else:
                better = indices[chosen] < best.index if bland else slopes[chosen] > steepest
            if better:
                best = Event(float(top), kind, int(indices[chosen]), values is room)
                steepest = slopes[chosen]
        return best

    def _in_earnest(self, values: Array, last: float, what: str) -> NDArray[np.bool_]:
        """Which of these falling values are below zero at the end of the path, by more than rounding."""
        fallen = values[:, 1] if np.isinf(last) else -(values[:, 0] + last * values[:, 1])
        if not (fallen < DOUBTFUL).any():
            return np.ones(len(fallen), dtype=bool)
        constant, slope = self.rounding()[what]
        return fallen > (slope if np.isinf(last) else constant + abs(last) * slope)

    # -- crossing to the next one ------------------------------------------------------------------------------------

    def pivot(self, event: Event, at: float, *, bland: bool) -> StoppedBy | None:
        """Changes the basis at lambda = `at`; says why there is none to change to."""
        if event.kind == "primal":
            leaving, to_upper = event.index, event.to_upper
            found = self._entering(leaving, to_upper, at, bland=bland)
            if found is None:
                return "infeasible"
            entering = found
        else:
            entering = event.index
            step = self._leaving(entering, at, bland=bland)
            if step is None:
                return "unbounded"
            leaving, to_upper = step
            if leaving == entering:
                self._set_upper(entering, not self.at_upper[entering])
                self.refresh()
                return None
        self._exchange(leaving, entering, to_upper=to_upper)
        if self.block.is_singular:
            self.block.factor()
            if self.block.is_singular:
                return "singular basis"
        self.refresh()
        residual = np.abs(self.block.values @ self.x - self.right[self._rows]).max(initial=0.0)
        if residual > FEASIBLE * self.value_scale:
            self.block.factor()
            self.refresh()
        return None

    def _entering(self, leaving: int, to_upper: bool, at: float, *, bland: bool) -> int | None:
        """The dual ratio test: what takes the place of a basic value, so that reduced costs keep their signs."""
        matrix, rows = self.program.matrix, self._rows
        if leaving >= self.num_columns:
            row = np.array([leaving - self.num_columns])
            multipliers = self.block.solve_transposed(matrix.block(row, self._columns)[0])
            gradient = matrix.transposed_times(rows, multipliers)
            gradient -= matrix.transposed_times(row, np.ones(1))
            by_slack = multipliers
        else:
            unit = np.zeros(len(self.columns))
            unit[self.columns.index(leaving)] = 1.0
            multipliers = self.block.solve_transposed(unit)
            gradient = -matrix.transposed_times(rows, multipliers)
            by_slack = -multipliers
        gradient[self._columns] = 0.0
        gain = np.concatenate([np.where(self.at_upper, -gradient, gradient), by_slack])
        if to_upper:
            gain = -gain
        costs = np.concatenate([self.distance, self.u])
        indices = np.concatenate([np.arange(self.num_columns), rows + self.num_columns])
        chosen = _ratio_test(gain, costs, at, indices, tolerance=1e-12 * self.cost_scale, bland=bland)
        return None if chosen is None else int(indices[chosen])

    def _leaving(self, entering: int, at: float, *, bland: bool) -> tuple[int, bool] | None:
        """The primal ratio test: (what reaches a bound first, whether the upper one) as `entering` moves."""
        matrix, columns = self.program.matrix, self._columns
        own_room = np.inf
        if entering >= self.num_columns:
            unit = np.zeros(len(self.rows))
            unit[self.rows.index(entering - self.num_columns)] = 1.0
            basic = -self.block.solve(unit)
            slack = -matrix.times(columns, basic)
        else:
            column, sign = np.array([entering]), -1.0 if self.at_upper[entering] else 1.0
            basic = -sign * self.block.solve(matrix.block(self._rows, column)[:, 0])
            slack = -matrix.times(columns, basic) - matrix.times(column, np.array([sign]))
            own_room = self.program.upper[entering]
        slack[self._rows] = 0.0
        upper = self.program.upper[columns]
        room = np.column_stack([np.where(np.isfinite(upper), upper, np.inf) - self.x[:, 0], -self.x[:, 1]])
        values = np.concatenate([self.x, room, self.slack])
        rates = np.concatenate([-basic, np.where(np.isfinite(upper), basic, 0.0), -slack])
        indices = np.concatenate([columns, columns, np.arange(self.num_rows) + self.num_columns])
        chosen = _ratio_test(rates, values, at, indices, tolerance=1e-12 * self.value_scale, bland=bland)
        if chosen is not None:
            length = max(values[chosen, 0] + at * values[chosen, 1], 0.0) / rates[chosen]
            if length <= own_room:
                return int(indices[chosen]), len(columns) <= chosen < 2 * len(columns)
        return (entering, False) if np.isfinite(own_room) else None

    def _exchange(self, leaving: int, entering: int, *, to_upper: bool) -> None:
        """One variable out of the basis, one in: four ways for the block."""
        matrix, size = self.program.matrix, self.num_columns
        new_row = leaving - size if leaving >= size else None  # a slack that leaves makes its row active
        old_row = self.rows.index(entering - size) if entering >= size else None
        old_column = self.columns.index(leaving) if leaving < size else None
        new_column = entering if entering < size else None
        row = column = None
        if new_row is not None:
            row = matrix.block(np.array([new_row]), self._columns)[0]
            self.rows.append(new_row)
        if new_column is not None:
            column = matrix.block(self._rows, np.array([new_column]))[:, 0]
        self.block.change(drop_row=old_row, drop_column=old_column, row=row, column=column)
        if old_row is not None:
            del self.rows[old_row]
        if old_column is not None:
            del self.columns[old_column]
        if new_column is not None:
            self.columns.append(new_column)
            if self.at_upper[new_column]:
                self._set_upper(new_column, False)
        if leaving < size and to_upper:
            self._set_upper(leaving, True)

    def _set_upper(self, column: int, filled: bool) -> None:
        used = self.program.matrix.times(np.array([column]), self.program.upper[[column]])
        self.right[:, 0] -= used if filled else -used
        self.at_upper[column] = filled

    # -- what is recorded --------------------------------------------------------------------------------------------

    def point(self, at: float) -> Point:
        """The solution at lambda = `at`, with its certificate."""
        program, columns, rows = self.program, self._columns, self._rows
        where = np.array([1.0, at])
        basic, multipliers, slack, distance = self.x @ where, self.u @ where, self.slack @ where, self.distance @ where
        filled = np.flatnonzero(self.at_upper)
        costs = program.costs @ where
        objective = float(costs[columns] @ basic + costs[filled] @ program.upper[filled])
        dual = float(program.bounds[rows] @ where @ multipliers + distance[filled] @ program.upper[filled])
        over = np.concatenate([-basic, basic - program.upper[columns], -slack]).max(initial=0.0) / self.value_scale
        wrong = np.concatenate([-multipliers, -distance]).max(initial=0.0) / self.cost_scale
        return Point(
            parameter=at,
            columns=np.concatenate([columns, filled]),
            values=np.concatenate([np.clip(basic, 0.0, program.upper[columns]), program.upper[filled]]),
            rows=rows,
            multipliers=multipliers,
            objective=objective,
            gap=abs(objective - dual),
            violation=float(max(over, wrong)),
        )


def _nonzero_product(product: Callable[[Indices, Array], Array], indices: Indices, weights: Array, size: int) -> Array:
    """A product with (constants, slopes), where one of them is often zero as a whole."""
    result = np.zeros((size, 2))
    for part in np.flatnonzero(weights.any(axis=0)):
        result[:, part] = product(indices, np.ascontiguousarray(weights[:, part]))
    return result


def _ratio_test(
    rates: Array, values: Array, at: float, indices: Indices, *, tolerance: float, bland: bool
) -> int | None:
    """The position of the smallest value/rate over positive rates.

    Ties go to the value that falls fastest below lambda, then to the largest rate (the stablest pivot), or under
    Bland's rule to the smallest index.
    """
    candidates = np.flatnonzero(rates > PIVOT * max(1.0, np.abs(rates).max(initial=0.0)))
    if not len(candidates):
        return None
    rate = rates[candidates]
    now = np.maximum(values[candidates, 0] + at * values[candidates, 1], 0.0)
    finite = np.isfinite(now)
    if not finite.any():
        return None
    candidates, rate, now = candidates[finite], rate[finite], now[finite]
    shortest = (now / rate).min()
    tied = np.flatnonzero(now - shortest * rate <= tolerance)
    fall = values[candidates[tied], 1] / rate[tied]
    tied = tied[fall >= fall.max() - 1e-9 * max(1.0, np.abs(fall).max())]
    position = indices[candidates[tied]].argmin() if bland else rate[tied].argmax()
    return int(candidates[tied[position]])
