"""Calling a library's `linear_solve`, and letting nothing but success pass for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .contract import Solution, Solver, as_solution, iterations_of
from .group import Group
from .inputs import returned
from .operators import Operator
from .patience import Abandoned, within
from .policy import Policy
from .status import InputError, Status
from .store import Entry

__all__ = ["call", "checked", "probe"]


def call(
    policy: Policy,
    solver: Solver,
    operator: Operator,
    R: np.ndarray,
    entry: Entry,
    *,
    transposed: bool,
) -> tuple[Solution, list[Status]]:
    """Solve for the columns of R, `(n, k)`, and return how each ended; the entry keeps the state.

    The solution's own status and message are those of the first column that failed, if one did.
    """
    # The store's copy, not the operands themselves: a state may keep views of its Jacobian.
    J = operator.host(entry.operands)
    n, k = R.shape
    group = operator.group
    seconds = policy.patience(group)
    solve = functools.partial(
        checked, solver, J, entry=entry, transposed=transposed, seconds=seconds
    )
    if not solver.capabilities.multi_rhs:
        return _column_by_column(solve, group, R, entry)
    if entry.probe is not None:
        solution = solve(R if k > 1 else R[:, 0])
        solution.value = solution.value.reshape(n, k)
    else:
        # The first solve with a new operator carries one random right-hand side along: for a
        # direct method that is nearly free, and unlike the given ones it excites every
        # singular direction (a b made as A x would hide the smallest).
        B = np.empty((n, k + 1), order="F")
        z = operator.compatible(probe(n, group), transposed=transposed)
        B[:, :k], B[:, k] = R, z
        solution = solve(B)
        solution.value, w = solution.value[:, :k], solution.value[:, k]
        entry.probe = entry.norm * group.norm(w)  # type: ignore[operator]
    _keep_state(entry, solution)
    return solution, [solution.status] * k


def probe(n: int, group: Group) -> np.ndarray:
    """Return a random vector of length one; collective."""
    z = _random(n, group)
    return z / group.norm(z)


@functools.lru_cache(maxsize=16)
def _random(n: int, group: Group) -> np.ndarray:
    # Without its length: what one process has kept, others may have not.
    return group.rng(n).standard_normal(n)


def _column_by_column(
    solve: Callable[[np.ndarray], Solution], group: Group, R: np.ndarray, entry: Entry
) -> tuple[Solution, list[Status]]:
    V = np.zeros(R.shape, order="F")
    total, ended, iterations = Solution(V), [Status.SUCCESS] * len(V.T), 0
    for j, (v, r) in enumerate(zip(V.T, R.T, strict=True)):
        if not group.some(r.any()):
            continue
        solution = solve(np.ascontiguousarray(r))
        _keep_state(entry, solution)
        v[:], ended[j] = solution.value, solution.status
        iterations += iterations_of(solution)
        if total.status is Status.SUCCESS:
            total.status, total.message = solution.status, solution.message
        total.doubt = total.doubt or solution.doubt
        total.stats |= solution.stats
        if solution.status is Status.TIME_LIMIT:
            V[:, j:], ended[j:] = np.nan, [Status.TIME_LIMIT] * (len(ended) - j)
            break
    total.stats["iterations"] = iterations
    return total, ended


def _keep_state(entry: Entry, solution: Solution) -> None:
    if solution.state is not None:  # a bare array says nothing of the state that there was
        entry.state = solution.state


def checked(
    solver: Solver,
    J: Any,
    rhs: np.ndarray,
    *,
    entry: Entry,
    transposed: bool,
    seconds: float,
) -> Solution:
    """Call `linear_solve` with the entry's state; what is no success becomes NaN.

    What it is given it may overwrite, and what it returns it may use again: both are copied.
    """
    try:
        found = within(
            seconds, solver.linear_solve, J, rhs.copy(), entry.state, transposed=transposed
        )
        solution = as_solution(found)
    except np.linalg.LinAlgError:
        solution = Solution(None, Status.SINGULAR)
    except MemoryError:
        solution = Solution(None, Status.OUT_OF_MEMORY)
    except Abandoned as error:
        entry.state = None  # which the call goes on with
        solution = Solution(None, Status.TIME_LIMIT, message=str(error))
    if solution.status is not Status.SUCCESS:
        status = solution.status if isinstance(solution.status, Status) else Status.UNKNOWN
        nothing = np.full(rhs.shape, np.nan)
        return Solution(nothing, status, solution.stats, message=solution.message)
    name = f"linear_solve of {type(solver).__name__}"
    value = returned(solution.value, name)
    if value.shape != rhs.shape:
        raise InputError(
            f"{name} returned shape {value.shape} for a right-hand side of shape {rhs.shape}"
        )
    return dataclasses.replace(solution, value=np.array(value, np.float64))
