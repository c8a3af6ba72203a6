"""One program solved by Clarabel, as often as is asked for, and what its statuses mean.

Quirks: an object that is given other numbers keeps the scaling of its first ones, so that results
depend on what was solved before, and to make one anew takes a small part of a solve: every solve
does. There is no warm start. `solve` releases Python's lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from backsolve.adjoint.registry import require
from backsolve.adjoint.status import Status

from .settings import Settings, native

__all__ = ["solutions", "status_of"]

_TOLERANCES = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
_TIGHTER = 1e-4  # by what they are multiplied where polishing does not settle
_STATUS = {
    "Solved": Status.SUCCESS,
    "AlmostSolved": Status.MAX_ITERATIONS,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.MAX_ITERATIONS,
    "MaxTime": Status.TIME_LIMIT,
    "NumericalError": Status.DIVERGED,
    "InsufficientProgress": Status.DIVERGED,
}


def solutions(
    P: Any, q: np.ndarray, A: Any, b: np.ndarray, cones: list[Any], settings: Settings
) -> Iterator[Any]:
    """Yield what Clarabel finds, and what it finds with tighter tolerances."""
    made, library = native(settings), require("clarabel")
    yield library.DefaultSolver(P, q, A, b, cones, made).solve()
    for name in _TOLERANCES:
        setattr(made, name, _TIGHTER * getattr(made, name))
    yield library.DefaultSolver(P, q, A, b, cones, made).solve()


def status_of(found: Any) -> tuple[Status, str, bool]:
    """Return the status, by whitelist, Clarabel's word, and whether it stopped near a solution."""
    name = str(found.status)
    return _STATUS.get(name, Status.UNKNOWN), name, name == "AlmostSolved"
