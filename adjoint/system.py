"""One linear operator and the right-hand sides that share it: solve, check, judge.

This is where a factorisation is found or made, where every result is multiplied back, and where
the condition number is bounded for free or estimated when in doubt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .condition import inverse_norm
from .contract import Solution, Solver, as_solution
from .operators import Operator
from .policy import Policy
from .problem import Problem
from .status import InputError, Status
from .store import Entry, store
from .verdict import EPS, Conditioning, column_norms, in_doubt, not_solved, ratio, singular

__all__ = ["System", "solve_system"]


@dataclass
class System:
    """The solution of `J V = R`, or `Jᵀ V = R`, and what is known about it.

    Attributes:
        value: V, `(n, k)`.
        length: ‖v‖ per column.
        status: One `Status` per column.
        defect: J V − R, `(n, k)`; F(x̂, θ) if this is the primal solve.
        linear_residual: ‖J v − r‖ / ‖r‖ per column.
        eta: ‖J v − r‖ / (‖J‖ ‖v‖) per column, at least the rounding unit.
        norm: ‖J‖.
        conditioning: The condition number, or None if the solve failed.
        iterations: Of the library.
        reuse: Where the factorisation came from, `""` if there is none.
        entry: What the store holds of J.
    """

    value: np.ndarray
    length: list[float]
    status: list[Status]
    defect: np.ndarray
    linear_residual: list[float]
    eta: list[float]
    norm: float
    conditioning: Conditioning | None
    iterations: int
    reuse: str
    entry: Entry

    def residual(self, j: int) -> np.ndarray:
        """Return the residual vector of column j, on its own."""
        column = self.defect[:, j]
        return column if self.defect.shape[1] == 1 else column.copy()

    def error(self, j: int, eta: float) -> float | None:
        """Return the error estimate κ̂ η of column j; a zero v has none, whatever the condition."""
        if self.conditioning is None:
            return None
        return self.conditioning.value * eta if self.length[j] else 0.0


# Whatever overflows shows in the results, which are all checked.
@np.errstate(over="ignore", invalid="ignore")
def solve_system(
    problem: Problem,
    operands: Sequence[np.ndarray],
    R: np.ndarray,
    ticket: np.ndarray | None = None,
    *,
    transposed: bool = False,
    primal: bool = False,
) -> System:
    """Solve with one operator for the columns of R, `(n, k)`; primal: for x itself."""
    operator, solver = problem.operator, problem.solver if primal else problem.linear
    entry, found = store.find((solver, operator), operands, ticket)
    with entry.lock:
        if entry.norm is None:
            entry.norm = operator.norm(operands)
        norm, sizes, earlier = entry.norm, column_norms(R), entry.state
        status = [Status.SUCCESS if math.isfinite(r) else Status.NONFINITE_INPUT for r in sizes]
        if not math.isfinite(norm):
            status = [Status.NONFINITE_INPUT] * len(sizes)
            V, ended, iterations = np.full(R.shape, np.nan), Status.NONFINITE_INPUT, 0
        else:
            if Status.NONFINITE_INPUT in status:  # solve for the good columns only
                R = np.where([s is Status.SUCCESS for s in status], R, 0.0)
            V, ended, iterations = _call(solver, operator, R, entry, transposed)
        if ended is Status.SUCCESS:
            if len(sizes) == 1:
                defect = operator.apply(operands, V[:, 0], transposed=transposed).reshape(-1, 1)
            else:
                defect = operator.apply(operands, V, transposed=transposed)
            defect = defect - R
        else:
            defect = np.full(R.shape, np.nan)
            status = [ended if s is Status.SUCCESS else s for s in status]
        lengths, defects = column_norms(V), column_norms(defect)
        eta = [max(ratio(d, norm * v), EPS) for d, v in zip(defects, lengths, strict=True)]
        residual = [ratio(d, r) for d, r in zip(defects, sizes, strict=True)]
        for j, length in enumerate(lengths):
            if status[j] is Status.SUCCESS:
                if not math.isfinite(length):
                    status[j] = Status.NONFINITE_OUTPUT
                elif not_solved(eta[j], residual[j]):
                    status[j] = Status.NOT_SOLVED
        conditioning = None
        if Status.SUCCESS in status:
            bound = max(ratio(norm * v, r) for v, r in zip(lengths, sizes, strict=True))
            conditioning = _conditioning(problem.policy, solver, operator, entry, bound, max(eta))
            if conditioning.kind == "estimate" and singular(conditioning.value):
                status = [Status.SINGULAR if s is Status.SUCCESS else s for s in status]
        if entry.state is not None and (found == "new" or entry.state is not earlier):
            store.keep(entry)
    return System(
        value=V,
        length=lengths,
        status=status,
        defect=defect,
        linear_residual=residual,
        eta=eta,
        norm=norm,
        conditioning=conditioning,
        iterations=iterations,
        reuse="" if entry.state is None else ("new" if earlier is None else found),
        entry=entry,
    )


def _call(
    solver: Solver, operator: Operator, R: np.ndarray, entry: Entry, transposed: bool
) -> tuple[np.ndarray, Status, int]:
    """Call the library; return V, how it ended, and the iterations."""
    # The store's copy, not the operands themselves: a state may keep views of its Jacobian.
    J = operator.host(entry.operands)
    n, k = R.shape
    if not solver.capabilities.multi_rhs:
        return _column_by_column(solver, J, R, entry, transposed)
    if entry.probe is not None:
        solution = _checked(solver, J, R if k > 1 else R[:, 0], entry.state, transposed)
        V = solution.value.reshape(n, k)
    else:
        # The first solve with a new operator carries one random right-hand side along: for a
        # direct method that is nearly free, and unlike the given ones it excites every
        # singular direction (a b made as A x would hide the smallest).
        B = np.empty((n, k + 1), order="F")
        B[:, :k], B[:, k] = R, _probe(n)
        solution = _checked(solver, J, B, entry.state, transposed)
        V, w = solution.value[:, :k], solution.value[:, k]
        entry.probe = entry.norm * math.sqrt(float(w.dot(w)))  # type: ignore[operator]
    _keep_state(entry, solution)
    return V, solution.status, int(solution.stats.get("iterations", 0))


@functools.lru_cache(maxsize=16)
def _probe(n: int) -> np.ndarray:
    """Return a random vector of length one."""
    z = np.random.default_rng(n).standard_normal(n)
    return z / np.linalg.norm(z)


def _column_by_column(
    solver: Solver, J: Any, R: np.ndarray, entry: Entry, transposed: bool
) -> tuple[np.ndarray, Status, int]:
    V = np.zeros(R.shape, order="F")
    ended, iterations = Status.SUCCESS, 0
    for v, r in zip(V.T, R.T, strict=True):
        if not r.any():
            continue
        solution = _checked(solver, J, np.ascontiguousarray(r), entry.state, transposed)
        _keep_state(entry, solution)
        v[:] = solution.value
        iterations += int(solution.stats.get("iterations", 0))
        if solution.status is not Status.SUCCESS:
            ended = solution.status
    return V, ended, iterations


def _keep_state(entry: Entry, solution: Solution) -> None:
    if solution.state is not None:  # a bare array says nothing of the state that there was
        entry.state = solution.state


def _checked(solver: Solver, J: Any, rhs: np.ndarray, state: Any, transposed: bool) -> Solution:
    """Call `linear_solve`, and let nothing but success pass for it."""
    try:
        solution = as_solution(solver.linear_solve(J, rhs, state, transposed=transposed))
    except np.linalg.LinAlgError:
        solution = Solution(np.full(rhs.shape, np.nan), Status.SINGULAR)
    except MemoryError:
        solution = Solution(np.full(rhs.shape, np.nan), Status.OUT_OF_MEMORY)
    if not isinstance(solution.status, Status):
        solution.status = Status.UNKNOWN
    if solution.status is not Status.SUCCESS:
        return Solution(np.full(rhs.shape, np.nan), solution.status, solution.stats)
    if np.shape(solution.value) != rhs.shape:
        raise InputError(
            f"linear_solve of {type(solver).__name__} returned shape {np.shape(solution.value)} "
            f"for a right-hand side of shape {rhs.shape}"
        )
    solution.value = np.asarray(solution.value, np.float64)
    if not solution.value.flags.writeable:
        solution.value = solution.value.copy()
    return solution


def _conditioning(
    policy: Policy, solver: Solver, operator: Operator, entry: Entry, bound: float, eta: float
) -> Conditioning:
    """Bound the condition number for free, and estimate it where that leaves doubt."""
    if entry.condition is not None:
        return Conditioning(entry.condition, "estimate")
    bound = max(bound, entry.probe or 0.0)
    if not in_doubt(policy, bound, eta):
        return Conditioning(bound, "bound")
    estimate = _estimate(solver, operator, entry)
    if estimate is None:
        return Conditioning(bound, "bound")
    entry.condition = max(estimate, bound)  # both are below the truth
    return Conditioning(entry.condition, "estimate")


def _estimate(solver: Solver, operator: Operator, entry: Entry) -> float | None:
    J = operator.host(entry.operands)
    own = solver.condition(J, entry.state)
    if own is not None:
        return own
    failed: list[Status] = []

    def solve(r: np.ndarray, *, transposed: bool) -> np.ndarray:
        solution = _checked(solver, J, r, entry.state, transposed)
        if solution.status is not Status.SUCCESS:
            failed.append(solution.status)
            return np.zeros_like(r)
        return solution.value

    estimate = inverse_norm(solve, operator.n) * entry.norm  # type: ignore[operator]
    return None if failed else estimate
