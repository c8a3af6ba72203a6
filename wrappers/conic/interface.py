"""What users hand in and get back, whichever library solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from backsolve.adjoint.engine import solve
from backsolve.adjoint.inputs import real_array
from backsolve.adjoint.sparse import CSR
from backsolve.adjoint.status import InputError

from ..quasidefinite.arguments import as_symmetric_as, matrix_argument
from ..quasidefinite.structure import is_triangle
from .solver import ConicSolver

__all__ = ["DEGENERATE", "ConicSolution", "solve_program"]

DEGENERATE = ("raise", "nan", "lstsq")


@jax.tree_util.register_dataclass
@dataclass
class ConicSolution:
    """The solution of a cone program: a pytree.

    Attributes:
        x: `(n,)`, differentiable; NaN where the solve failed.
        y: Multipliers `(m,)` in the dual cone, differentiable.
        s: Slacks `(m,)` in the cone, differentiable.
        status: How the solve ended, a `backsolve.Status` as int32.
        iterations: Of the library, int32.
    """

    x: Any
    y: Any
    s: Any
    status: Any
    iterations: Any


def solve_program(
    solver: ConicSolver, P: Any, c: Any, A: Any, b: Any, start: Any, policy: Any
) -> ConicSolution:
    """Check the arguments, solve, and say how it went."""
    c, b = real_array(c, "c", ndim=1), real_array(b, "b", ndim=1)
    n, m = c.shape[0], b.shape[0]
    if solver.cone.size != m:
        raise InputError(f"the cones have {solver.cone.size} rows in all, but b has {m}")
    if P is not None:
        P = matrix_argument(P, "P", (n, n), "c")
        solver = as_symmetric_as(P, solver)
        if isinstance(P, CSR):
            is_triangle(P.pattern)  # or symmetric: an error otherwise
    A = matrix_argument(A, "A", (m, n), "b and c")
    params = P, c, A, b, _start(start, n, m)
    solution = solve(solver, params, full_output=True, **policy)
    x, y, s = solution.value
    return ConicSolution(x, y, s, solution.status, solution.stats["iterations"])


def _start(start: Any, n: int, m: int) -> tuple[Any, ...] | None:
    """Return where to start from, as constants."""
    if start is None:
        return None
    if isinstance(start, ConicSolution):
        start = start.x, start.y, start.s
    try:
        x, y, s = start
    except (TypeError, ValueError):
        raise InputError(
            f"warm_start must be (x, y, s) or an earlier solution, found {type(start).__name__}"
        ) from None
    names = "the x of warm_start", "its y", "its s"
    given = zip((x, y, s), names, strict=True)
    arrays = [real_array(a, name, ndim=1) for a, name in given]
    shapes = [tuple(a.shape) for a in arrays]
    if shapes != [(n,), (m,), (m,)]:
        raise InputError(f"warm_start has shapes {shapes}, but x is ({n},) and y and s are ({m},)")
    # A failed solve leaves NaN, and the next one then starts anew.
    return tuple(jnp.nan_to_num(jax.lax.stop_gradient(a), nan=0.0) for a in arrays)
