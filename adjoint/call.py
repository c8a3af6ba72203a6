"""Calling a library's `linear_solve`, and letting nothing but success pass for it."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .contract import Solution, Solver, as_solution, iterations_of
from .group import Group
from .operators import Operator
from .status import InputError, Status
from .store import Entry

__all__ = ["call", "checked", "probe"]


def call(
    solver: Solver, operator: Operator, R: np.ndarray, entry: Entry, *, transposed: bool
) -> Solution:
    """Solve for the columns of R, `(n, k)`; the entry keeps the state."""
    # The store's copy, not the operands themselves: a state may keep views of its Jacobian.
    J = operator.host(entry.operands)
    n, k = R.shape
    group = operator.group
    if not solver.capabilities.multi_rhs:
        return _column_by_column(solver, group, J, R, entry, transposed)
    if entry.probe is not None:
        solution = checked(solver, J, R if k > 1 else R[:, 0], entry.state, transposed=transposed)
        solution.value = solution.value.reshape(n, k)
    else:
        # The first solve with a new operator carries one random right-hand side along: for a
        # direct method that is nearly free, and unlike the given ones it excites every
        # singular direction (a b made as A x would hide the smallest).
        B = np.empty((n, k + 1), order="F")
        B[:, :k], B[:, k] = R, probe(n, group)
        solution = checked(solver, J, B, entry.state, transposed=transposed)
        solution.value, w = solution.value[:, :k], solution.value[:, k]
        entry.probe = entry.norm * math.sqrt(group.dot(w, w))  # type: ignore[operator]
    _keep_state(entry, solution)
    return solution


@functools.lru_cache(maxsize=16)
def probe(n: int, group: Group) -> np.ndarray:
    """Return a random vector of length one."""
    z = np.random.default_rng((n, group.rank)).standard_normal(n)
    return z / group.norm(z)


def _column_by_column(
    solver: Solver, group: Group, J: Any, R: np.ndarray, entry: Entry, transposed: bool
) -> Solution:
    V = np.zeros(R.shape, order="F")
    total, iterations = Solution(V), 0
    for v, r in zip(V.T, R.T, strict=True):
        if not group.some(r.any()):
            continue
        r = np.ascontiguousarray(r)
        solution = checked(solver, J, r, entry.state, transposed=transposed)
        _keep_state(entry, solution)
        v[:] = solution.value
        iterations += iterations_of(solution)
        if total.status is Status.SUCCESS:
            total.status, total.message = solution.status, solution.message
        total.doubt = total.doubt or solution.doubt
        total.stats |= solution.stats
    total.stats["iterations"] = iterations
    return total


def _keep_state(entry: Entry, solution: Solution) -> None:
    if solution.state is not None:  # a bare array says nothing of the state that there was
        entry.state = solution.state


def checked(solver: Solver, J: Any, rhs: np.ndarray, state: Any, *, transposed: bool) -> Solution:
    """Call `linear_solve`; what is no success becomes NaN."""
    try:
        solution = as_solution(solver.linear_solve(J, rhs, state, transposed=transposed))
    except np.linalg.LinAlgError:
        solution = Solution(None, Status.SINGULAR)
    except MemoryError:
        solution = Solution(None, Status.OUT_OF_MEMORY)
    if not isinstance(solution.status, Status):
        solution.status = Status.UNKNOWN
    if solution.status is not Status.SUCCESS:
        nothing = np.full(rhs.shape, np.nan)
        return Solution(nothing, solution.status, solution.stats, message=solution.message)
    if np.shape(solution.value) != rhs.shape:
        raise InputError(
            f"linear_solve of {type(solver).__name__} returned shape {np.shape(solution.value)} "
            f"for a right-hand side of shape {rhs.shape}"
        )
    solution.value = np.asarray(solution.value, np.float64)
    if not solution.value.flags.writeable:
        solution.value = solution.value.copy()
    return solution
