"""What users hand in and get back, whichever library solves."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backsolve.adjoint.engine import solve
from backsolve.adjoint.inputs import flag, real_array
from backsolve.adjoint.policy import Policy
from backsolve.adjoint.sparse import CSR, as_csr
from backsolve.adjoint.status import InputError

from .solver import QuadraticSolver
from .structure import is_triangle

__all__ = ["QPSolution", "check_names", "checked_options", "policy_among", "solve_program"]

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


def policy_among(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keyword arguments into fields of `Policy` and a library's settings."""
    fields = {field.name for field in dataclasses.fields(Policy)}
    policy = {name: value for name, value in options.items() if name in fields}
    return policy, {name: value for name, value in options.items() if name not in fields}


def check_names(names: Iterable[str], known: Collection[str], library: str) -> None:
    """See that a library has the settings of these names.

    Raises:
        InputError: If it has not.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{library} has no setting {name!r}: {hint}its settings are {', '.join(known)}"
            )


def checked_options(polish: Any, degenerate: Any) -> tuple[bool, str]:
    """Return the options that all solvers have in common.

    Raises:
        InputError: On another value than they may have.
    """
    if degenerate not in DEGENERATE:
        raise InputError(
            f"degenerate={degenerate!r} is not one of {', '.join(map(repr, DEGENERATE))}"
        )
    return flag(polish, "polish"), degenerate


def solve_program(
    solver: QuadraticSolver, P: Any, q: Any, A: Any, l: Any, u: Any, start: Any, policy: Any
) -> QPSolution:
    """Check the arguments, solve, and say how it went."""
    q = real_array(q, "q", ndim=1)
    n = q.shape[0]
    P = _matrix(P, "P", (n, n), "q")
    l, u = real_array(l, "l", ndim=1), real_array(u, "u", ndim=1)
    m = l.shape[0]
    if u.shape != l.shape:
        raise InputError(f"u has shape {tuple(u.shape)}, but l has {tuple(l.shape)}")
    A = _matrix(A, "A", (m, n), "l and q")
    if isinstance(P, CSR):
        is_triangle(P.pattern)  # or symmetric: an error otherwise
    params = P, q, A, l, u, _start(start, n, m)
    solution = solve(solver, params, full_output=True, **policy)
    x, y = solution.value
    return QPSolution(x, y, solution.status, solution.stats["iterations"])


def _matrix(matrix: Any, name: str, shape: tuple[int, int], others: str) -> Any:
    dense = isinstance(matrix, (np.ndarray, jax.Array, list, tuple))
    matrix = real_array(matrix, name, ndim=2) if dense else as_csr(matrix, name)
    if tuple(matrix.shape) != shape:
        raise InputError(
            f"{name} has shape {tuple(matrix.shape)}, but {shape} is what {others} ask for"
        )
    return matrix


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
