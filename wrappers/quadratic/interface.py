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
from .solver import QuadraticSolver

__all__ = ["DEGENERATE", "QPSolution", "solve_program"]

DEGENERATE = ("raise", "nan", "lstsq", "smoothed")


@jax.tree_util.register_dataclass
@dataclass
class QPSolution:
    """The solution of a quadratic program: a pytree.

    Attributes:
        x: `(n,)`, differentiable; NaN where the solve failed.
        y: Multipliers `(m,)`, differentiable: above zero where `A x = u`, below where `A x = l`.
        status: How the solve ended, a `backsolve.Status` as int32.
        iterations: Of the library, int32.
    """

    x: Any
    y: Any
    status: Any
    iterations: Any


def solve_program(
    solver: QuadraticSolver, P: Any, q: Any, A: Any, l: Any, u: Any, start: Any, policy: Any
) -> QPSolution:
    """Check the arguments, solve, and say how it went."""
    q = real_array(q, "q", ndim=1)
    n = q.shape[0]
    P = matrix_argument(P, "P", (n, n), "q")
    l, u = real_array(l, "l", ndim=1), real_array(u, "u", ndim=1)
    m = l.shape[0]
    if u.shape != l.shape:
        raise InputError(f"u has shape {tuple(u.shape)}, but l has {tuple(l.shape)}")
    A, solver = matrix_argument(A, "A", (m, n), "l and q"), as_symmetric_as(P, solver)
    if isinstance(P, CSR):
        is_triangle(P.pattern)  # or symmetric: an error otherwise
    params = P, q, A, l, u, _start(start, n, m)
    solution = solve(solver, params, full_output=True, **policy)
    x, y = solution.value
    return QPSolution(x, y, solution.status, solution.stats["iterations"])


def _start(start: Any, n: int, m: int) -> tuple[Any, Any] | None:
    """Return where to start from, as constants."""
    if start is None:
        return None
    if isinstance(start, QPSolution):
        start = start.x, start.y
    try:
        x, y = start
    except (TypeError, ValueError):
        raise InputError(
            f"warm_start must be (x, y) or an earlier solution, found {type(start).__name__}"
        ) from None
    x, y = real_array(x, "the x of warm_start", ndim=1), real_array(y, "its y", ndim=1)
    if x.shape != (n,) or y.shape != (m,):
        raise InputError(
            f"warm_start has shapes {tuple(x.shape)} and {tuple(y.shape)}, but x is ({n},) and y "
            f"is ({m},)"
        )
    # A failed solve leaves NaN, and the next one then starts anew.
    x, y = (jnp.nan_to_num(jax.lax.stop_gradient(v), nan=0.0) for v in (x, y))
    return x, y
